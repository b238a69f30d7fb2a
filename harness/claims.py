"""The claims ledger: each claim of the paper as a test on whatever was measured, with its effect, paired interval and verdict.

An effect is *shown* when its 95 % interval excludes 0 on the claimed side, the *opposite* when on the other. Every test is made
twice: over all outputs, and over those where neither side fell into a loop. Records, drafted trees (`--trees`) and what
`harness verify` found are all it reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness import acceptance, published, trees
from harness.config import known_models, model_config
from harness.metrics import (
    Arm,
    Estimate,
    Interval,
    Totals,
    arm,
    estimate,
    identical,
    one_environment,
    one_source,
    speed_ratio,
    tau_difference,
    tau_ratio,
    without_loops,
)
from harness.records import Record, read
from harness.reproduce import incomparable, target_of
from harness.stats import paired_bootstrap
from harness.style import SIX_TASKS, VANILLA, task_order
from harness.tables import MEAN, NOTHING, Section, Table, audits_of, bracketed, number, weights_line

Array = NDArray[np.float64]
SHOWN, OPPOSITE, NOT_SHOWN, NOT_JUDGED = "shown", "the opposite is shown", "not shown", "not judged"
NOT_MEASURED = "not measured"
TOO_FEW = f"{NOT_JUDGED}: no interval under 5 prompts a task"
DYNAMIC, STATIC, NO_VALUE, NO_RERANK = "eagle2", "eagle1", "eagle2-no-value", "eagle2-no-rerank"
ABLATED_ON = ("mt_bench", "gsm8k")  # the paper's Table 3
ORDERED_ON = "Vicuna-7B"  # the smallest of its Table 1
FIGURES_ON = "alpaca"  # its Figures 5 and 6
BEST = "tuned"  # the preset of `harness tune`
SLOPE, MOST_ECE = (0.8, 1.2), 0.05
NOTHING_THERE = Estimate(None, None, 0)


@dataclass(frozen=True, slots=True)
class Found:
    """A test's outcome over one set of outputs."""

    effect: Estimate
    verdict: str


@dataclass(frozen=True, slots=True)
class Row:
    """One claim, tested. `form` shows the effect."""

    claim: str
    test: str
    temperature: float | None
    on: str
    all: Found
    no_loops: Found
    form: str = "{:+.2f}"


# ---- effects --------------------------------------------------------------------------------------------------------


def faster(a: Totals, b: Totals) -> Array:
    """How much faster a is than b: 0.2 is 20 %."""
    return speed_ratio(a, b) - 1


def longer(a: Totals, b: Totals) -> Array:
    """By how much a's tau exceeds b's, as a share of it."""
    return tau_ratio(a, b) - 1


def verdict(ci95: Interval | None) -> str:
    if ci95 is None:
        return TOO_FEW
    return SHOWN if ci95[0] > 0 else OPPOSITE if ci95[1] < 0 else NOT_SHOWN


def positive(ci95: Interval | None) -> str:
    """On a variance, which is never negative: an estimate below 0 shows nothing."""
    return NOT_SHOWN if verdict(ci95) == OPPOSITE else verdict(ci95)


def within(low: float, high: float, ci95: Interval | None) -> str:
    """On a claim that gives a range: shown where the interval lies in it, not shown where it only overlaps."""
    if ci95 is None:
        return TOO_FEW
    if ci95[1] < low or ci95[0] > high:
        return f"not so: {'below' if ci95[1] < low else 'above'} the range"
    return SHOWN if low <= ci95[0] and ci95[1] <= high else "not shown: overlaps the range"


def is_apart(a: Arm, b: Arm) -> bool:
    """Most pairs were measured in two processes, when the machine may have been slower or faster."""
    pairs = [a[key]["run"] != b[key]["run"] for key in a.keys() & b.keys()]
    return 2 * sum(pairs) > len(pairs)


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two arms on the same prompts and a statistic of both; `is_speed`: it is worth nothing across two processes."""

    a: Arm
    b: Arm
    statistic: Callable[[Totals, Totals], Array]
    is_speed: bool

    def tasks(self) -> list[str]:
        there = {self.a[key]["task"] for key in self.a.keys() & self.b.keys()}
        return [t for t in SIX_TASKS if t in there]

    def on(self, tasks: Sequence[str], judged: Callable[[Interval | None], str] = verdict) -> tuple[Found, Found]:
        """The unweighted mean over these tasks, over all outputs and without loops."""
        own = {key: r for key, r in self.a.items() if key in self.b and r["task"] in tasks}
        if {r["task"] for r in own.values()} != set(tasks) or not tasks:
            return Found(NOTHING_THERE, NOT_MEASURED), Found(NOTHING_THERE, NOT_MEASURED)
        clean = without_loops(own, self.b)
        if gone := [t for t in tasks if t not in {r["task"] for r in clean.values()}]:
            return self._found(own, judged), Found(NOTHING_THERE, f"{NOT_JUDGED}: every output looped in {', '.join(gone)}")
        return self._found(own, judged), self._found(clean, judged)

    def _found(self, own: Arm, judged: Callable[[Interval | None], str]) -> Found:
        e = estimate([own, self.b], self.statistic, by_task=True)
        if self.is_speed and is_apart(own, self.b):
            return Found(e, f"{NOT_JUDGED}: the two sides were measured in different processes")
        return Found(e, judged(e.ci95))

    def on_each(self, tasks: Sequence[str]) -> tuple[Found, Found]:
        """Shown only where it is in every one of the tasks; the effect is the weakest one's."""
        by_task = {task: self.on((task,)) for task in tasks}
        return _weakest({t: f[0] for t, f in by_task.items()}), _weakest({t: f[1] for t, f in by_task.items()})


def _weakest(by_task: Mapping[str, Found]) -> Found:
    judged = {t: f for t, f in by_task.items() if f.effect.ci95}
    lacking = [t for t in by_task if t not in judged or by_task[t].verdict.startswith(NOT_JUDGED)]
    if not judged or lacking:
        why = next((f.verdict for f in by_task.values() if f.verdict.startswith(NOT_JUDGED)), "")
        return Found(NOTHING_THERE, why or f"{NOT_MEASURED}: {', '.join(lacking) or 'no task'}")
    weakest = min(judged.values(), key=lambda f: f.effect.ci95[0] if f.effect.ci95 else 0.0)
    for word in (OPPOSITE, NOT_SHOWN):
        if where := [t for t, f in judged.items() if f.verdict == word]:
            others = [t for t in judged if judged[t].verdict == SHOWN]
            named = (
                "every task" if len(where) == len(by_task) else f"{', '.join(where)} ({SHOWN} in {len(others)} of {len(by_task)})"
            )
            return Found(weakest.effect, f"{word} in {named}")
    return Found(weakest.effect, SHOWN)


# ---- one model's claims ---------------------------------------------------------------------------------------------


class Measured:
    """One model's records as arms by method and temperature; `nodes`: of EAGLE-1's and EAGLE-2's tree; `presets`: of EAGLE-2
    with as many nodes as EAGLE-1.

    Raises:
        UserError: they were measured in several environments; names the key.
    """

    def __init__(self, records: Iterable[Record], where: object):
        tested = {VANILLA, *published.METHODS.values()}
        found = [r for r in records if r["method"] in tested]
        others = [r for r in found if r["preset"] != "paper" and r["method"] == DYNAMIC]
        published_trees = [r for r in found if r["preset"] == "paper"]
        budget = _most_nodes(r for r in published_trees if r["method"] == STATIC)
        presets = {r["preset"] for r in others}
        same = {p for p in presets if _most_nodes(r for r in others if r["preset"] == p) == budget}
        matched = [r for r in others if r["preset"] in same]
        tuned = [r for r in found if r["preset"] == BEST and (r["method"] != DYNAMIC or BEST not in same)]
        self.records = one_source(one_environment([*published_trees, *matched, *tuned], where))
        self.nodes = budget, _most_nodes(r for r in published_trees if r["method"] == DYNAMIC)
        self.presets = sorted(same)
        self.temperatures = sorted({r["temperature"] for r in self.records})

    def arm(self, method: str, temperature: float, preset: str = "paper") -> Arm:
        wanted = (method, temperature, preset)
        return arm(r for r in self.records if (r["method"], r["temperature"], r["preset"]) == wanted)

    def best(self, method: str, temperature: float) -> Arm:
        """At tuned options where the folder has them, else at the paper's, which may be the best (a tier measures equal options
        once)."""
        return self.arm(method, temperature, BEST) or self.arm(method, temperature)

    @property
    def is_tuned(self) -> bool:
        return any(r["preset"] == BEST for r in self.records)


def _most_nodes(records: Iterable[Record]) -> int | None:
    """Draft nodes of the largest tree, root excluded; a context that ends makes smaller ones."""
    return max((max(r["trace"]["tree_size"], default=0) for r in records if r["trace"]), default=None)


def rows_of(records: Iterable[Record], folder: Path, audit: Mapping[str, str] | None) -> list[Row]:
    """Every claim, tested on one model's records; what was not measured says so."""
    records = list(records)
    m = Measured(records, folder)
    greedy = partial(m.arm, temperature=0.0)
    dynamic, static = greedy(DYNAMIC), greedy(STATIC)
    n_static, n_dynamic = m.nodes
    sizes = f"{n_dynamic or '?'} against {n_static or '?'} nodes"
    rows = _both(f"dynamic trees beat static ones as published ({sizes})", "EAGLE-2 over EAGLE-1", 0.0, dynamic, static)
    equal = [p for p in m.presets if greedy(DYNAMIC, preset=p)]
    for preset in equal or [""]:
        own = greedy(DYNAMIC, preset=preset) if preset else {}
        named = f", {preset}" if len(equal) > 1 else ""
        rows += _both(f"dynamic trees beat static ones at equal budget ({n_static or '?'} nodes{named})", "EAGLE-2 over EAGLE-1",
                      0.0, own, static)  # fmt: skip
    rows.append(_lossless(dynamic, greedy(VANILLA), audit))
    rows += _draft_rows(m, folder)
    for name, method in (("the value of a path", NO_VALUE), ("reranking", NO_RERANK)):
        for tasks in (ABLATED_ON, SIX_TASKS):
            rows += _both(f"{name} helps", f"EAGLE-2 over {method}", 0.0, dynamic, greedy(method), tasks)
    for temperature in (0.0, 1.0):
        own, base, other = (m.arm(name, temperature) for name in (DYNAMIC, VANILLA, STATIC))
        if temperature:
            rows += _both("the gain over EAGLE-1 holds at T = 1", "EAGLE-2 over EAGLE-1", temperature, own, other)
        rows.append(_mean("it is faster than plain decoding", "speed over vanilla, less 1", temperature,
                          Contrast(own, base, faster, True), SIX_TASKS))  # fmt: skip
        over_vanilla, over_static = Contrast(own, base, faster, True), Contrast(own, other, faster, True)
        each = (
            ("faster than plain decoding in every task", "speed over vanilla, less 1", over_vanilla, "{:+.0%}"),
            (
                "longer accepts than EAGLE-1 in every task",
                "difference in τ",
                Contrast(own, other, tau_difference, False),
                "{:+.2f}",
            ),
            ("faster than EAGLE-1 in every task", "speed over EAGLE-1, less 1", over_static, "{:+.0%}"),
        )
        for claim, test, contrast, form in each:
            rows.append(Row(claim, test, temperature, "weakest of six", *contrast.on_each(SIX_TASKS), form))
    (gain,) = published.the_paper("relative_gain")
    low, high = (v / 100 for v in gain.values)
    for temperature in (0.0, 1.0):
        own, other = m.arm(DYNAMIC, temperature), m.arm(STATIC, temperature)
        for what, statistic, is_speed in (("speed", faster, True), ("τ", longer, False)):
            rows.append(_mean(f"the gain over EAGLE-1 is {gain.text}", f"{what} over EAGLE-1, less 1, in the range", temperature,
                              Contrast(own, other, statistic, is_speed), SIX_TASKS, partial(within, low, high)))  # fmt: skip
    rows += _order(m.arm) + (_at_best(m) if m.is_tuned else []) + _headline(m)
    return list({(row.claim, row.test, row.temperature, row.on): row for row in rows}.values())  # few tasks: scopes coincide


def _both(
    claim: str, test: str, temperature: float, a: Arm, b: Arm, tasks: Sequence[str] = SIX_TASKS
) -> list[Row]:  # fmt: skip
    """The claim on tau and on speed."""
    return [
        _mean(
            f"{claim}: τ", f"{test}, difference in τ", temperature, Contrast(a, b, tau_difference, False), tasks, form="{:+.2f}"
        ),
        _mean(f"{claim}: speed", f"{test}, speed ratio less 1", temperature, Contrast(a, b, faster, True), tasks),
    ]


def _mean(
    claim: str, test: str, temperature: float, contrast: Contrast, tasks: Sequence[str],
    judged: Callable[[Interval | None], str] = verdict, form: str = "{:+.0%}",
) -> Row:  # fmt: skip
    """Over the tasks wanted, or those of them that are there, which are then named."""
    there = [t for t in tasks if t in contrast.tasks()] or list(tasks)
    on = MEAN if there == list(SIX_TASKS) else ", ".join(there)
    return Row(claim, test, temperature, on, *contrast.on(there, judged), form)


def _lossless(own: Arm, base: Arm, audit: Mapping[str, str] | None) -> Row:
    """The audit's word; the share of token-identical conversations beside it has no threshold outside float64."""
    word = (audit or {}).get(DYNAMIC)
    if word is None:
        judged = f"{NOT_MEASURED}: harness verify --out DIR/audit"
    elif word == "open":
        judged = f"{NOT_JUDGED}: a layer of the audit could not judge it"
    else:  # `lossless (quick)`, `fails L3`
        judged = SHOWN if word.startswith("lossless") else f"{NOT_SHOWN}: {word}"

    def found(of: Arm) -> Found:
        n, total = identical(of, base)
        return Found(Estimate(n / total if total else None, None, total), judged)

    said = f": {word}" if word else ""
    test = f"audit in layers (harness verify{said}); effect: share of conversations identical to vanilla's"
    return Row("lossless", test, 0.0, "all tasks", found(own), found(without_loops(own, base)), "{:.0%}")


def _at_best(m: Measured) -> list[Row]:
    """What the paper's trees were to its GPUs, tuned ones are to another machine: the claims on speed with each method at the
    options that `harness tune` found for it there."""
    rows = []
    for temperature in (0.0, 1.0):
        own, other, base = m.best(DYNAMIC, temperature), m.best(STATIC, temperature), m.arm(VANILLA, temperature)
        rows += _both(
            "dynamic trees beat static ones, each at its best options here", "EAGLE-2 over EAGLE-1", temperature, own, other
        )
        rows.append(_mean("it is faster than plain decoding at its best options here", "speed over vanilla, less 1", temperature,
                          Contrast(own, base, faster, True), SIX_TASKS))  # fmt: skip

    def is_tuned(name: str, temperature: float) -> bool:
        return bool(m.arm(name, temperature, BEST))

    return rows + _order(m.best, ", each at its best options here", is_tuned)


def _order(
    arm_of: Callable[[str, float], Arm], how: str = "", is_tuned: Callable[[str, float], bool] = lambda *_: True
) -> list[Row]:  # fmt: skip
    """Whether Table 1's methods stand in its order, pair by pair; those it prints alike are no pair. is_tuned: whether a method
    has options other than the paper's at a temperature; those that have not are named."""
    rows = []
    for temperature in (0.0, 1.0):
        arms = {name: arm_of(name, temperature) for name in published.METHODS.values()}
        for metric, statistic, is_speed in (("speedup", faster, True), ("tau", tau_difference, False)):
            printed = {published.METHODS[n.method]: n.value for n in published.the_paper(metric, "Table 1")
                       if (n.model, n.task, n.temperature) == (ORDERED_ON, published.MEAN, f"{temperature:g}")}  # fmt: skip
            order = sorted((name for name in printed if arms[name]), key=lambda name: -printed[name])
            pairs = [(a, b) for a, b in combinations(order, 2) if printed[a] > printed[b]]
            found = {(a, b): Contrast(arms[a], arms[b], statistic, is_speed).on(SIX_TASKS) for a, b in pairs}
            shown = "".join((" = " if printed[a] == printed[b] else " > ") + b for a, b in pairwise(order))
            at_paper = [name for name in order if not is_tuned(name, temperature)]
            test = f"{''.join(order[:1]) or 'none'}{shown} as in Table 1 ({ORDERED_ON}): share of pairs in that order"
            test += f"; at the paper's options: {', '.join(at_paper)}" if at_paper else ""
            every, clean = _in_order({p: f[0] for p, f in found.items()}), _in_order({p: f[1] for p, f in found.items()})
            claim = f"methods stand in the paper's order{how}: {'speed' if is_speed else 'τ'}"
            rows.append(Row(claim, test, temperature, MEAN, every, clean, "{:.0%}"))
    return rows


def _in_order(pairs: Mapping[tuple[str, str], Found]) -> Found:
    """One verdict of many: shown where it is for every pair."""
    if not pairs:
        return Found(NOTHING_THERE, f"{NOT_MEASURED}: fewer than two of its methods")
    values = [f.effect.value for f in pairs.values()]
    if None in values or any(f.verdict.startswith(NOT_JUDGED) for f in pairs.values()):
        return Found(NOTHING_THERE, next(f.verdict for f in pairs.values() if f.verdict.startswith((NOT_JUDGED, NOT_MEASURED))))
    share = sum(v > 0 for v in values if v is not None) / len(values)
    effect = Estimate(share, None, min(f.effect.prompts for f in pairs.values()))
    for word in (OPPOSITE, NOT_SHOWN):
        if there := [f"{a} over {b}" for (a, b), f in pairs.items() if f.verdict == word]:
            named = ", ".join(there[:3]) + (f" and {len(there) - 3} more" if len(there) > 3 else "")
            return Found(effect, f"{word} for {named}, of {len(pairs)} pairs")
    return Found(effect, SHOWN)


def _headline(m: Measured) -> list[Row]:
    """The abstract's range of speedups, which is of the paper's models, prompts and length budget."""
    (span,) = published.the_paper("speedup_range")
    low, high = span.values
    rows = []
    for temperature in (0.0, 1.0):
        contrast = Contrast(m.arm(DYNAMIC, temperature), m.arm(VANILLA, temperature), speed_ratio, True)
        both = contrast.on(("mt_bench",), partial(within, low, high))
        why = _not_the_papers([r for r in contrast.a.values() if r["task"] == "mt_bench"])
        if why:
            both = (Found(both[0].effect, why), Found(both[1].effect, why))
        rows.append(Row(f"speedups of {span.text} (over its models)", "speed over vanilla in the range", temperature,
                        "mt_bench", *both, "{:.2f}×"))  # fmt: skip
    return rows


def _not_the_papers(records: Sequence[Record]) -> str:
    """Why the speed of one arm's records cannot be held against the paper's, or nothing."""
    if not records:
        return ""
    r, name = records[0], records[0]["model"]
    config = model_config(name) if name in known_models() else None
    budget = config.max_new_tokens if config else r["max_new_tokens"]
    target = target_of(name, config.paper if config else None, budget, records)
    return incomparable(target, r["source"], r["task"], r["max_new_tokens"])


# ---- claims on the draft: Figures 5 and 6 ---------------------------------------------------------------------------


def _draft_rows(m: Measured, folder: Path) -> list[Row]:
    """From drafted trees at T = 0. Positions are of EAGLE-1's tree, which always drafts all six."""
    groups: dict[str, pd.DataFrame] = {}
    if trees.has_trees(folder):
        wanted = [r for r in m.records if r["temperature"] == 0 and r["method"] in (STATIC, DYNAMIC) and r["preset"] == "paper"]
        base = [r for r in m.records if r["method"] == VANILLA and r["temperature"] == 0]
        groups = {named["method"]: g for named, g in acceptance.by_arm([*wanted, *base], trees.read_drafts(folder))}
    rows = []
    for method in (STATIC, DYNAMIC):
        for on in (FIGURES_ON, "all tasks"):
            group = _of(groups.get(method), on)
            rows += [_fit(method, name, on, group) for name in ("slope", "ece")]
    position = ("acceptance depends on position", f"{STATIC}: rate at P1 less that at P6 (Figure 5)")
    context = ("acceptance depends on context", f"{STATIC}: variance between queries at P1 to P6 beyond chance's (Figure 5)")
    for on in (FIGURES_ON, "all tasks"):
        group = _of(groups.get(STATIC), on)
        rows.append(_tree_row(*position, on, group, position_columns, p1_less_p6, verdict, "{:+.2f}"))
        rows.append(_tree_row(*context, on, group, variance_columns, excess_variance, positive, "{:+.4f}"))
    return rows


def _of(group: pd.DataFrame | None, on: str) -> pd.DataFrame | None:
    if group is None:
        return None
    chosen = group[group["task"] == on] if on in SIX_TASKS else group
    return chosen if len(chosen) else None


UNSEEN = Found(NOTHING_THERE, f"{NOT_MEASURED}: run with --trees")
ALL_LOOPED = Found(NOTHING_THERE, f"{NOT_JUDGED}: every output looped")


def _fit(method: str, name: str, on: str, group: pd.DataFrame | None) -> Row:
    bounds = f"in [{SLOPE[0]}, {SLOPE[1]}]" if name == "slope" else f"at most {MOST_ECE}"
    shown = "slope" if name == "slope" else "ECE"

    def found(of: pd.DataFrame) -> Found:
        fits = {row["at"]: row for row in acceptance.fits_of(of[of["kind"] == "calibration"])}
        if name not in fits or fits[name]["value"] is None:
            return UNSEEN
        row = fits[name]
        ci95 = None if row["value_low"] is None else (row["value_low"], row["value_high"])
        holds = SLOPE[0] <= row["value"] <= SLOPE[1] if name == "slope" else row["value"] <= MOST_ECE
        word = TOO_FEW if ci95 is None else SHOWN if holds else f"{NOT_SHOWN}: {shown} not {bounds}"
        return Found(Estimate(row["value"], ci95, row["queries"]), word)

    both = (UNSEEN, UNSEEN) if group is None else (found(group), _without_loops(group, found))
    test = f"{method}: {shown} {'of nodes' if name == 'slope' else 'over 20 bins'} {bounds} (Figure 6)"
    return Row(f"draft confidence is calibrated: {shown}", test, 0.0, on, *both, "{:.3f}")


def _without_loops(group: pd.DataFrame, found: Callable[[pd.DataFrame], Found]) -> Found:
    rest = group[~group["looped"]]
    return found(rest) if len(rest) else ALL_LOOPED


def _tree_row(
    claim: str, test: str, on: str, group: pd.DataFrame | None, columns_of: Callable[[pd.DataFrame], Array],
    statistic: Callable[[Array], Array], judged: Callable[[Interval | None], str], form: str,
) -> Row:  # fmt: skip
    def found(of: pd.DataFrame) -> Found:
        columns = columns_of(of)
        if columns.shape[1] == 0:
            return UNSEEN
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(statistic(columns.sum(axis=1)))
        ci95 = paired_bootstrap([columns], statistic, np.random.default_rng(0))
        return Found(Estimate(value if np.isfinite(value) else None, ci95, columns.shape[1]), judged(ci95))

    both = (UNSEEN, UNSEEN) if group is None else (found(group), _without_loops(group, found))
    return Row(claim, test, 0.0, on, *both, form)


def position_columns(group: pd.DataFrame) -> Array:
    """-> [12, queries]: forwards that drafted P1 to P6, then those that accepted it."""
    rows = group[group["kind"] == "position"]
    counts = rows.pivot_table(index="query", columns="at", values=["n", "accepted"], aggfunc="sum", fill_value=0.0)
    names = [(what, at) for what in ("n", "accepted") for at in range(1, len(acceptance.POSITIONS) + 1)]
    return counts.reindex(columns=pd.MultiIndex.from_tuples(names), fill_value=0.0).to_numpy(dtype=float).T


def variance_columns(group: pd.DataFrame) -> Array:
    """-> [24, queries]: for each position whether the query has two forwards there, its rate, the rate squared, and what
    chance alone would make the rate vary."""
    n, accepted = np.split(position_columns(group), 2)
    enough = n >= 2
    rate = np.where(enough, accepted / np.where(enough, n, 1), 0.0)
    chance = np.where(enough, rate * (1 - rate) / np.where(enough, n - 1, 1), 0.0)
    return np.concatenate([enough.astype(float), rate, rate**2, chance])


def p1_less_p6(sums: Array) -> Array:
    """sums: [12, ...] -> the rate at P1 less the rate at P6."""
    return sums[6] / sums[0] - sums[11] / sums[5]


def excess_variance(sums: Array) -> Array:
    """sums: [24, ...] -> mean over positions of the rates' variance between queries less what chance gives."""
    n, rate, squares, chance = np.split(sums, 4)
    return ((squares - rate**2 / n) / (n - 1) - chance / n).mean(axis=0)


# ---- the table ------------------------------------------------------------------------------------------------------

_READING = """Effects with 95 % intervals (paired bootstrap over conversations, none under 5; means over tasks unweighted).
    Shown: the interval excludes 0, or lies in the claimed range; the opposite is shown: it lies below 0. No loops: over outputs
    where neither side fell into a loop. Weakest of six: a claim on every task is shown only if it is in each; the effect is the
    weakest task's. Calibration is judged by its value, the interval stands beside it. Timings of two processes are not judged."""


def report(folder: Path) -> Table:
    """The ledger of every model in a folder of records.

    Raises:
        UserError: no records, records of mixed environments (names the key), or a file of trees or audits that cannot be read.
    """
    records = read(folder)
    audits = audits_of(folder)
    sections, numbers = [], []
    for model in sorted({r["model"] for r in records}):
        own = [r for r in records if r["model"] == model]
        rows = rows_of(own, folder, audits.get(model))
        used = Measured(own, folder).records or own
        first, sources = used[0], {r["task"]: r["source"] for r in used}
        facts = ["Prompts: " + ", ".join(f"{task} {sources[task]}" for task in sorted(sources, key=task_order))]
        facts += [weights_line(first["target_sha"], ((r["method"], r["head_sha"]) for r in used))]
        facts += [f"Machine: {first['machine']}"] if first.get("machine") else []
        title = f"{model}, {first['dtype']}, {first['threads']} threads, at most {first['max_new_tokens']} new tokens"
        sections.append(Section(title, tuple(facts), pd.DataFrame([_shown(row) for row in rows])))
        numbers += [{"model": model, **_numbers(row)} for row in rows]
    return Table("claims", tuple(sections), (" ".join(_READING.split()),), pd.DataFrame(numbers))


def _shown(row: Row) -> dict[str, str]:
    return {
        "claim": row.claim,
        "test": row.test,
        "T": NOTHING if row.temperature is None else f"{row.temperature:g}",
        "on": row.on,
        "prompts": str(row.all.effect.prompts),
        "effect": _effect(row.all.effect, row.form),
        "verdict": row.all.verdict,
        "effect, no loops": _effect(row.no_loops.effect, row.form),
        "verdict, no loops": "the same" if row.no_loops.verdict == row.all.verdict else row.no_loops.verdict,
    }


def _effect(e: Estimate, form: str) -> str:
    return bracketed(number(e.value, form), e.ci95, form)


def _numbers(row: Row) -> dict[str, Any]:
    numbers: dict[str, Any] = {"claim": row.claim, "test": row.test, "temperature": row.temperature, "on": row.on}
    for name, found in (("", row.all), ("_no_loops", row.no_loops)):
        low, high = found.effect.ci95 or (None, None)
        numbers |= {f"prompts{name}": found.effect.prompts, f"effect{name}": found.effect.value, f"effect{name}_low": low,
                    f"effect{name}_high": high, f"verdict{name}": found.verdict}  # fmt: skip
    return numbers


def to_json(table: Table) -> str:
    return json.dumps(json.loads(table.numbers.to_json(orient="records")), ensure_ascii=False)
