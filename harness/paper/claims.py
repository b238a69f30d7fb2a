"""`harness claims`: each claim of the paper as a test on what was measured, with its effect, paired interval and verdict.

An effect is *shown* when its 95 % interval excludes 0 on the claimed side. On the other side, *the opposite is shown*. Every
test is made twice: over all outputs, and over those where neither side fell into a loop. The table says how many tests it holds,
and marks what would not hold if all were taken together. It reads records, drafted trees (`--trees`) and what `harness verify`
found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common.names import SIX_TASKS, VANILLA, task_order
from harness.common.progress import Progress, showing_progress
from harness.forms.table import NOTHING, Section, Table, one_line
from harness.ledger.audit_words import audits_of
from harness.ledger.ledger import Records, read
from harness.ledger.record import Record
from harness.load.config import known_models, model_config
from harness.metrics import marks
from harness.metrics.definitions import Estimate, speed_ratio, tau_difference
from harness.metrics.engines import engine_notes, of_records
from harness.metrics.groups import MEAN, weights_line
from harness.metrics.pairing import Side, by_machine, is_row_invariant, without_loops
from harness.metrics.steps import identical
from harness.paper import published
from harness.paper.claim_arms import BEST, DYNAMIC, LIKELIEST, NO_RERANK, NO_VALUE, STATIC, ClaimArms
from harness.paper.contrast import (
    NOT_JUDGED,
    NOT_MEASURED,
    NOT_SHOWN,
    NOTHING_THERE,
    SHOWN,
    Contrast,
    Judge,
    Outcome,
    Row,
    above_zero,
    faster,
    longer,
    of_parts,
    within,
)
from harness.paper.draft_claims import draft_rows
from harness.paper.family import Pair, family_line, is_weak, taken_together
from harness.paper.radar_claims import radar_rows
from harness.paper.verdict import incomparable, reported_model
from harness.show.tables.cell_text import estimated_text

ABLATED_ON = ("mt_bench", "gsm8k")  # the paper's Table 3
ORDERED_ON = "Vicuna-7B"  # the smallest of its Table 1


def rows_of(
    records: Iterable[Record], folder: Path, audit: Mapping[str, str] | None, progress: Progress | None = None
) -> list[Row]:
    """Every claim, tested on one model's records; what was not measured says so.

    folder: where the drafted trees are. audit: method -> the audit's word, None where it was not run.
    """
    progress = progress or Progress("claims")
    progress.expect(5)
    progress.step("dynamic against static trees")
    records = list(records)
    m = ClaimArms(records, folder)
    greedy = partial(m.side_of, temperature=0.0)
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
    progress.step("drafted trees")
    rows += draft_rows(m, folder, progress)
    progress.step("ablations")
    for name, method in (("the value of a path", NO_VALUE), ("reranking", NO_RERANK)):
        for tasks in (ABLATED_ON, SIX_TASKS):
            rows += _both(f"{name} helps", f"EAGLE-2 over {method}", 0.0, dynamic, greedy(method), tasks)
    progress.step("speed")
    for temperature in (0.0, 1.0):
        own, base, other = (m.side_of(name, temperature) for name in (DYNAMIC, VANILLA, STATIC))
        if temperature:
            rows += _both("the gain over EAGLE-1 holds at T = 1", "EAGLE-2 over EAGLE-1", temperature, own, other)
            if likeliest := m.side_of(LIKELIEST, temperature):
                alike = "dynamic trees beat static ones at T = 1, the likeliest drafts in both"
                for preset in ("paper", *m.presets):
                    named = f" ({preset.removeprefix('paper+')})" if preset != "paper" else ""
                    rows += _both(alike + named, "EAGLE-2 over EAGLE-1's tree", temperature,
                                  m.side_of(DYNAMIC, temperature, preset), likeliest)  # fmt: skip
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
            rows.append(Row(claim, test + contrast.signs, temperature, "weakest of six", *contrast.on_each(SIX_TASKS), form))
    (gain,) = published.the_paper("relative_gain")
    low, high = (v / 100 for v in gain.values)
    for temperature in (0.0, 1.0):
        own, other = m.side_of(DYNAMIC, temperature), m.side_of(STATIC, temperature)
        for what, statistic, is_speed in (("speed", faster, True), ("τ", longer, False)):
            rows.append(_mean(f"the gain over EAGLE-1 is {gain.text}", f"{what} over EAGLE-1, less 1, in the range", temperature,
                              Contrast(own, other, statistic, is_speed), SIX_TASKS, partial(within, low, high)))  # fmt: skip
    progress.step("order of methods")
    rows += _order(m.side_of) + (_at_best(m) if m.is_tuned else []) + _headline(m) + radar_rows(records, folder)
    # with few tasks two rows can be the same
    return list({(row.claim, row.test, row.temperature, row.on): row for row in rows}.values())


def _both(
    claim: str, test: str, temperature: float, a: Side, b: Side, tasks: Sequence[str] = SIX_TASKS
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
    judged: Judge = above_zero, form: str = "{:+.0%}",
) -> Row:  # fmt: skip
    """The mean over the tasks wanted. Where some were not measured it is over the others, which are then named."""
    there = [t for t in tasks if t in contrast.tasks()] or list(tasks)
    on = MEAN if there == list(SIX_TASKS) else ", ".join(there)
    return Row(claim, test + contrast.signs, temperature, on, *contrast.on(there, judged), form)


def _lossless(own: Side, base: Side, audit: Mapping[str, str] | None) -> Row:
    """The audit's word. Beside it stands the share of token-identical conversations. It has no threshold below float64, but on a
    row-invariant engine, where all must be."""
    word = (audit or {}).get(DYNAMIC)
    if word is None:
        model = next((r["model"] for r in (*own.values(), *base.values())), "MODEL")
        judged = f"{NOT_MEASURED}: harness verify --model {model} --results DIR --out DIR/audit"
    elif word == "open":
        judged = f"{NOT_JUDGED}: a layer of the audit could not judge it"
    else:  # `lossless (quick)`, `fails L3`
        judged = SHOWN if word.startswith("lossless") else f"{NOT_SHOWN}: {word}"

    def found(of: Side) -> Outcome:
        n, total = identical(of, base)
        is_lossy = n < total and any(map(is_row_invariant, of.values()))
        told = f"{NOT_SHOWN}: {total - n} differ on a row-invariant engine" if is_lossy else judged
        return Outcome(Estimate(n / total if total else None, None, total), told)

    said = f": {word}" if word else ""
    test = f"audit in layers (harness verify{said}); effect: share of conversations identical to vanilla's"
    return Row("lossless", test, 0.0, "all tasks", found(own), found(without_loops(own, base)), "{:.0%}")


def _at_best(m: ClaimArms) -> list[Row]:
    """The claims on speed with each method at the options that `harness tune` found for it on this machine.

    The paper's trees were chosen for its GPUs; these are chosen for the machine at hand.
    """
    rows = []
    for temperature in (0.0, 1.0):
        own, other, base = m.best(DYNAMIC, temperature), m.best(STATIC, temperature), m.side_of(VANILLA, temperature)
        rows += _both(
            "dynamic trees beat static ones, each at its best options here", "EAGLE-2 over EAGLE-1", temperature, own, other
        )
        rows.append(_mean("it is faster than plain decoding at its best options here", "speed over vanilla, less 1", temperature,
                          Contrast(own, base, faster, True), SIX_TASKS))  # fmt: skip

    def is_tuned(name: str, temperature: float) -> bool:
        return bool(m.side_of(name, temperature, BEST))

    return rows + _order(m.best, ", each at its best options here", is_tuned)


def _order(
    arm_of: Callable[[str, float], Side], how: str = "", is_tuned: Callable[[str, float], bool] = lambda *_: True
) -> list[Row]:  # fmt: skip
    """Whether Table 1's methods stand in its order, pair by pair. Two methods with the same printed value are no pair.

    is_tuned: whether a method has tuned options at a temperature. The row names those that have none.
    """
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
            signs = marks.signs_of_records(r for arm in arms.values() for r in arm.values()) if is_speed else ""
            test += f" {signs}" if signs else ""
            every, clean = _in_order({p: f[0] for p, f in found.items()}), _in_order({p: f[1] for p, f in found.items()})
            claim = f"methods stand in the paper's order{how}: {'speed' if is_speed else 'τ'}"
            rows.append(Row(claim, test, temperature, MEAN, every, clean, "{:.0%}"))
    return rows


def _in_order(pairs: Mapping[tuple[str, str], Outcome]) -> Outcome:
    """One verdict of many: shown only where it is shown for every pair."""
    if not pairs:
        return Outcome(NOTHING_THERE, f"{NOT_MEASURED}: fewer than two of its methods")
    values = [f.effect.value for f in pairs.values()]
    if None in values or any(f.verdict.startswith(NOT_JUDGED) for f in pairs.values()):
        return Outcome(NOTHING_THERE, next(f.verdict for f in pairs.values() if f.verdict.startswith((NOT_JUDGED, NOT_MEASURED))))
    share = sum(v > 0 for v in values if v is not None) / len(values)
    effect = Estimate(share, None, min(f.effect.prompts for f in pairs.values()))
    found = of_parts({f"{a} over {b}": f for (a, b), f in pairs.items()})
    named = ", ".join(found.where[:3]) + (f" and {len(found.where) - 3} more" if len(found.where) > 3 else "")
    word = f"{found.word} for {named}, of {len(pairs)} pairs" if found.where else found.word
    return Outcome(effect, word, found.p_for, found.p_against, len(pairs))


def _headline(m: ClaimArms) -> list[Row]:
    """The abstract's range of speedups. It holds for the paper's models, prompts and length budget only."""
    (span,) = published.the_paper("speedup_range")
    low, high = span.values
    rows = []
    for temperature in (0.0, 1.0):
        contrast = Contrast(m.side_of(DYNAMIC, temperature), m.side_of(VANILLA, temperature), speed_ratio, True)
        both = contrast.on(("mt_bench",), partial(within, low, high))
        why = _not_the_papers([r for r in contrast.a.values() if r["task"] == "mt_bench"])
        if why:
            both = (Outcome(both[0].effect, why), Outcome(both[1].effect, why))
        test = "speed over vanilla in the range" + contrast.signs
        rows.append(Row(f"speedups of {span.text} (over its models)", test, temperature, "mt_bench", *both, "{:.2f}×"))
    return rows


def _not_the_papers(records: Sequence[Record]) -> str:
    """Why the speed of these records cannot be compared with the paper's; empty where it can."""
    if not records:
        return ""
    r, name = records[0], records[0]["model"]
    config = model_config(name) if name in known_models() else None
    budget = config.max_new_tokens if config else r["max_new_tokens"]
    target = reported_model(name, config.paper if config else None, budget, records)
    return incomparable(target, r["source"], r["task"], r["max_new_tokens"])


_NOTE = one_line("""
    Effects have 95 % intervals (jackknife over conversations; none under 5). Means over tasks are unweighted. Shown: the interval
    lies above 0, or in the claimed range; calibration claims the range in its test. The opposite is shown: it lies below 0. Not
    so: it lies outside the range. No loops: over outputs where neither side fell into a loop. A claim on every task or pair is
    shown if each is. If not, tasks or pairs are named by Holm's procedure over them. Weakest of six: the effect is the weakest
    task's. °: so by its own test, not with all tests of the model taken together (Holm). Speeds measured in two processes are
    not judged.""")


def claims_table(folder: Path, *, strict: bool = False, records: Records | None = None) -> Table:
    """Every claim tested on every model in a folder of records, a section a model and machine. records: the folder's, if read.

    Raises:
        UserError: no records, records of mixed environments (names the key), a file of trees or audits that cannot be read, or
            `strict` and a line that cannot be read.
    """
    with showing_progress("claims") as progress:
        return _claims_table(folder, progress, read(folder, strict=strict, reduced=True) if records is None else records)


def _claims_table(folder: Path, progress: Progress, records: Records) -> Table:
    audits = audits_of(folder)
    sections, numbers = [], []
    for model in sorted({r["model"] for r in records}):
        of_machines = by_machine(r for r in records if r["model"] == model)
        for machine, own in of_machines.items():
            rows = rows_of(own, folder, audits.get(model), progress)
            used = ClaimArms(own, folder).records or own
            first, sources = used[0], {r["task"]: r["source"] for r in used}
            facts = ["Prompts: " + ", ".join(f"{task} {sources[task]}" for task in sorted(sources, key=task_order))]
            facts += [weights_line(first["target_sha"], ((r["method"], r["head_sha"]) for r in used))]
            facts += [f"Machine: {first['machine']}"] if first.get("machine") else []
            title = f"{model}, {first['dtype']}, {first['threads']} threads, at most {first['max_new_tokens']} new tokens"
            together = list(zip(rows, taken_together(rows), strict=True))
            shown = pd.DataFrame([_shown(row, p) for row, p in together])
            sections.append(Section(title, (*facts, family_line(rows)), shown))
            where = {"model": model} | ({"machine": machine} if len(of_machines) > 1 else {})
            numbers += [{**where, **_numbers(row, p)} for row, p in together]
    signs = marks.notes(marks.joined(row["test"] for row in numbers))
    # a report has them among the footnotes already
    footnotes = dict.fromkeys((*engine_notes(of_records(records)), *records.footnotes))
    return Table("claims", tuple(sections), (_NOTE, *signs, *footnotes), pd.DataFrame(numbers))


def _shown(row: Row, together: Pair) -> dict[str, str]:
    verdict, clean = (f.verdict + "°" * is_weak(f, p) for f, p in zip((row.all, row.no_loops), together, strict=True))
    return {
        "claim": row.claim,
        "test": row.test,
        "T": NOTHING if row.temperature is None else f"{row.temperature:g}",
        "on": row.on,
        "prompts": str(row.all.effect.prompts),
        "effect": estimated_text(row.all.effect, row.form),
        "verdict": verdict,
        "effect, no loops": estimated_text(row.no_loops.effect, row.form),
        "verdict, no loops": "the same" if clean == verdict else clean,
    }


def _numbers(row: Row, together: Pair) -> dict[str, Any]:
    numbers: dict[str, Any] = {"claim": row.claim, "test": row.test, "temperature": row.temperature, "on": row.on}
    for name, found, p_together in zip(("", "_no_loops"), (row.all, row.no_loops), together, strict=True):
        low, high = found.effect.ci95 or (None, None)
        numbers |= {f"prompts{name}": found.effect.prompts, f"effect{name}": found.effect.value, f"effect{name}_low": low,
                    f"effect{name}_high": high, f"p_for{name}": found.p_for, f"p_against{name}": found.p_against,
                    f"p_together{name}": p_together, f"verdict{name}": found.verdict}  # fmt: skip
    return numbers
