"""Tables of replays: tau, what was drafted for it, and the speed that it would have under costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

import methods
from harness.common.names import SIX_TASKS, VANILLA, method_order
from harness.common.plain_names import split_hash
from harness.forms.table import NOTHING, Section, Table, bracketed, number
from harness.ledger.record import canonical_hash
from harness.metrics.definitions import Estimate, estimated
from harness.metrics.intervals import Array, holm
from harness.replay.beside import Beside
from harness.replay.choices import Choice
from harness.replay.price import Prices, looks_of
from harness.replay.record import Replay, of_methods

NAME, CHOSEN_NAME = "replay", "which-tree-pays"
CONTROL = "eagle2-grid"
CONTROLS = (CONTROL, "eagle1-top")  # what is compared with, not a rival
Summed = Mapping[tuple[str, str], Array]
"""By (task, conversation) the sums of its replays."""


def counts(replays: Sequence[Replay]) -> Summed:
    """[tokens after the prefill's, forwards, calls, rows drafted, nodes]."""
    found: dict[tuple[str, str], Array] = {}
    for r in replays:
        sums = np.array(
            [r.tokens - 1, len(r.accepted), sum(map(len, r.calls)), sum(map(sum, r.calls)), sum(r.sizes)], dtype=float
        )
        found[r.task, r.sample_id] = found.get((r.task, r.sample_id), 0.0) + sums
    return found


def costs(replays: Sequence[Replay], price: Prices) -> Summed:
    """[of plain decoding, of this], in the prices' unit; prefill left out of both. The looks of a policy's network count."""
    found: dict[tuple[str, str], Array] = {}
    for r in replays:
        plain = sum(price.plain(r.n_prompt + 1 + j) for j in range(r.tokens - 1))
        ours = plain
        if r.method != VANILLA:
            ours, context, looks = 0.0, r.n_prompt + 1, looks_of(r.options)
            for calls, nodes, accepted in zip(r.calls, r.sizes, r.accepted, strict=True):
                ours += price.step(calls, nodes, accepted, context, r.head_kind) + price.look * looks(calls)
                context += accepted + 1
        found[r.task, r.sample_id] = found.get((r.task, r.sample_id), 0.0) + np.array([plain, ours])
    return found


def strata(summed: Sequence[Summed]) -> dict[str, Array]:
    """By task [columns of all, conversations that all have]."""
    found: dict[str, list[Array]] = {}
    for key in (key for key in summed[0] if all(key in other for other in summed)):
        found.setdefault(key[0], []).append(np.concatenate([one[key] for one in summed]))
    return {task: np.stack(columns, axis=1) for task, columns in found.items()}


def tau(sums: Array) -> Array:
    """Tokens a target forward."""
    return sums[0] / sums[1]


def speedup(sums: Array) -> Array:
    """Of decoding, over plain decoding."""
    return sums[0] / sums[1]


def faster(sums: Array) -> Array:
    """The first one's speedup over the second's."""
    return (sums[0] / sums[1]) / (sums[2] / sums[3])


STATISTICS: Mapping[str, tuple[Any, str]] = {
    "tau": (tau, "{:.2f}"),
    "calls a step": (lambda sums: sums[2] / sums[1], "{:.1f}"),
    "rows drafted": (lambda sums: sums[3] / sums[1], "{:.1f}"),
    "nodes": (lambda sums: sums[4] / sums[1], "{:.1f}"),
}


def replay_table(
    replays: Sequence[Replay], prices: Sequence[Prices], live: Mapping[tuple[float, str, str], Beside] | None = None
) -> Table:
    """Per temperature a section, per method a row: means over tasks of each task's value, with intervals over conversations.

    live: of what was also run, how it compares.
    """
    live = live or {}
    sections, numbers = [], []
    cells = sorted(of_methods(replays), key=lambda cell: (cell[0][0], method_order(cell[0][1]), cell[0][2]))
    for t in sorted({key[0] for key, _ in cells}):
        own = [(key, rs) for key, rs in cells if key[0] == t]
        rows = []
        for (_, method, preset, sha), rs in own:
            shown = {"method": method, "preset": preset}
            by_task = strata([counts(rs)])
            for name, (statistic, form) in STATISTICS.items():
                found = _estimates(by_task, statistic)
                shown[name] = _shown(found["mean"], form) if name == "tau" else number(found["mean"].value, form)
                numbers += _numbers(rs[0], t, method, preset, name, found)
            shown["not in the pool"] = f"{sum(r.lacking for r in rs) / max(sum(r.asked for r in rs), 1):.1%}"
            for price in prices:
                found = _estimates(strata([costs(rs, price)]), speedup)
                shown[price.name] = _shown(found["mean"], "{:.2f}×")
                numbers += _numbers(rs[0], t, method, preset, price.name, found)
            if live:
                found_live = live.get((t, method, sha))
                shown["beside its run"] = found_live.shown if found_live else NOTHING
                if found_live:
                    for name, e in (("tau live", found_live.live), ("tau live less replayed", found_live.difference)):
                        numbers += _numbers(rs[0], t, method, preset, name, {"mean": e})
            rows.append(shown)
        sections.append(_section(own[0][1], t, rows))
    return Table(NAME, tuple(sections), (*NOTES, *([BESIDE] if live else [])), pd.DataFrame(numbers))


BESIDE = (
    "Beside its run: turns that the ledger has a run of, whose accept lengths and tree sizes are the replay's, step by step. !!:"
    " they differ though they cannot, or tau does by more than chance (Holm's over the rows): an error of the harness."
)
EXACT = (
    "Replays equal runs step by step on row-invariant engines in any dtype, and in our tests on torch's in float32. There"
    " bfloat16 and float16 may round a forward over other nodes otherwise, and nearly equal nodes may change places in a tree."
)
NOTES = (
    "tau: tokens a target forward, as a run has it. No target forward is run for replays.",
    EXACT,
    "Speeds are of decoding, prefill left out, and predicted: each step's calls of both models at the costs named.",
)


def chosen_table(replays: Sequence[Replay], choices: Sequence[Choice], prices: Mapping[str, Prices]) -> Table:
    """Per temperature and costs a section: each policy at the options chosen for them, against the fixed tree of a grid search.

    prices: by the name that choices have them under. p: that the policy is no faster than the fixed tree, Holm over policies;
    the bounds, which are no methods, are not judged.
    """
    sections, numbers = [], []
    by_arm = {(t, method, sha): rs for (t, method, _, sha), rs in of_methods(replays)}
    for t in sorted({c.temperature for c in choices}):
        for name, price in prices.items():
            own = [(c, rs) for c in choices if c.temperature == t and c.costs == name
                   and (rs := by_arm.get((t, c.method, canonical_hash(dict(c.options)))))]  # fmt: skip
            control = next((costs(rs, price) for c, rs in own if c.method == CONTROL), None)
            made = []
            for c, rs in own:
                mine = costs(rs, price)
                against = estimated(list(strata([mine, control]).values()), faster, 0.0) if control else None
                made.append((c, rs, _estimates(strata([mine]), speedup), against))
            rivals = [i for i, (c, *_) in enumerate(made) if c.method not in CONTROLS and not methods.get(c.method).replay_only]
            p = dict(zip(rivals, adjusted([made[i][3] for i in rivals]), strict=True))
            rows = []
            order = sorted(range(len(made)), key=lambda i: -(made[i][2]["mean"].value or 0.0))
            for i in order:
                c, rs, found, against = made[i]
                of_counts = {s: _estimates(strata([counts(rs)]), statistic) for s, (statistic, _) in STATISTICS.items()}
                rows.append({
                    "method": c.method, "setting": _setting(c), "tau": number(of_counts["tau"]["mean"].value),
                    "calls a step": number(of_counts["calls a step"]["mean"].value, "{:.1f}"),
                    "nodes": number(of_counts["nodes"]["mean"].value, "{:.1f}"),
                    "speed": _shown(found["mean"], "{:.2f}×"),
                    f"over {CONTROL}": _shown(against, "{:.3f}") if against and c.method != CONTROL else number(None),
                    "p": _p(p.get(i)),
                })  # fmt: skip
                numbers += [row | {"costs": name} for row in _numbers(rs[0], t, c.method, "chosen", "speed", found)]
                for s, e in of_counts.items():
                    numbers += [row | {"costs": name} for row in _numbers(rs[0], t, c.method, "chosen", s, e)]
                if against:
                    over = {"mean": against}
                    numbers += [
                        row | {"costs": name, "p": p.get(i)}
                        for row in _numbers(rs[0], t, c.method, "chosen", f"over {CONTROL}", over)
                    ]
            if own:
                n = max(c.conversations for c, _ in own)
                section = _section(own[0][1], t, rows)
                facts = (section.title, *section.facts, f"options chosen on {n} held-out conversations")
                sections.append(Section(f"T = {t:g}, costs of {price.name}", facts, section.shown))
    notes = (
        *NOTES,
        "setting: options that are not the method's defaults.",
        f"p: of being no faster than {CONTROL}, one-sided, paired by conversation; Holm's over a section.",
        "oracle-stop knows what vanilla will say, random-stop looks at nothing: bounds, not methods.",
    )
    return Table(CHOSEN_NAME, tuple(sections), notes, pd.DataFrame(numbers))


def adjusted(estimates: Sequence[Estimate | None]) -> list[float | None]:
    """Holm's p-values of "no faster", in the order given. None, and no test, where there are too few conversations, or none
    that differs from another: they are one conversation then, however often it is counted."""
    raw = {i: e.spread.p_above(1.0) for i, e in enumerate(estimates) if e and e.spread and e.spread.error > 0}
    found = dict(zip(raw, holm(list(raw.values())), strict=True))
    return [found.get(i) for i in range(len(estimates))]


def _setting(c: Choice) -> str:
    """The options that are not the method's defaults; costs stand above, and hashes in the records."""
    defaults = methods.get(c.method).options
    shown = {k: v for k, v in c.options.items() if k != "costs" and v != defaults.get(k)}
    return " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={split_hash(str(v))[0]}" for k, v in shown.items())


def _p(p: float | None) -> str:
    return "<0.001" if p is not None and p < 0.0005 else number(p, "{:.3f}")


def _estimates(by_task: Mapping[str, Array], statistic: Any) -> dict[str, Estimate]:
    """The unweighted mean over tasks first, then each task's own."""
    return {"mean": estimated(list(by_task.values()), statistic, 0.0)} | {
        task: estimated([columns], statistic, 0.0) for task, columns in by_task.items()
    }


def _numbers(r: Replay, t: float, method: str, preset: str, name: str, found: Mapping[str, Estimate]) -> list[dict[str, Any]]:
    rows = []
    for task, e in found.items():
        low, high = e.ci95 or (None, None)
        rows.append({"model": r.model, "temperature": t, "method": method, "preset": preset, "task": task, "statistic": name,
                     "value": e.value, "value_low": low, "value_high": high, "conversations": e.prompts})  # fmt: skip
    return rows


def _section(replays: Sequence[Replay], t: float, rows: Sequence[Mapping[str, str]]) -> Section:
    first, names = replays[0], sorted({r.task for r in replays})
    mean = "the mean of the six tasks" if set(names) == set(SIX_TASKS) else f"the mean of {', '.join(names)}"
    n = len({(r.task, r.sample_id) for r in replays})
    title = f"{first.model}, T = {t:g}, {first.dtype}, replayed from vanilla's answers"
    return Section(title, (f"{mean}; {n} conversations; intervals over them",), pd.DataFrame(rows))


def _shown(e: Estimate, form: str = "{:.2f}") -> str:
    return bracketed(number(e.value, form), e.ci95, form)
