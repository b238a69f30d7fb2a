"""The table of replays: tau, what was drafted for it, and the speed that it would have under tables of costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.common.names import SIX_TASKS, VANILLA, method_order
from harness.forms.table import Section, Table, bracketed, number
from harness.metrics.definitions import Estimate, estimated
from harness.metrics.intervals import Array
from harness.replay.price import Prices
from harness.replay.record import Replay, of_methods

NAME = "replay"


def summands(replays: Sequence[Replay], prices: Sequence[Prices]) -> dict[str, Array]:
    """By task [columns, conversations]: tokens after the prefill's, forwards, calls, rows drafted, nodes; then, for each table of
    costs, milliseconds of plain decoding and of this."""
    found: dict[str, dict[str, Array]] = {}
    for r in replays:
        sums = np.zeros(5 + 2 * len(prices))
        sums[:5] = (r.tokens - 1, len(r.accepted), sum(map(len, r.calls)), sum(map(sum, r.calls)), sum(r.sizes))
        for i, price in enumerate(prices):
            plain = sum(price.plain(r.n_prompt + 1 + j) for j in range(r.tokens - 1))
            sums[5 + 2 * i] = plain
            if r.method == VANILLA:
                sums[6 + 2 * i] = plain
                continue
            context = r.n_prompt + 1
            for calls, nodes, accepted in zip(r.calls, r.sizes, r.accepted, strict=True):
                sums[6 + 2 * i] += price.step(calls, nodes, accepted, context)
                context += accepted + 1
        own = found.setdefault(r.task, {})
        own[r.sample_id] = own.get(r.sample_id, 0) + sums
    return {task: np.stack(list(own.values()), axis=1) for task, own in found.items()}


def tau(sums: Array) -> Array:
    """Tokens a target forward."""
    return sums[0] / sums[1]


def speedup(i: int) -> Any:
    """Of decoding, under the i-th table of costs."""
    return lambda sums: sums[5 + 2 * i] / sums[6 + 2 * i]


def a_step(column: int) -> Any:
    """A count a target forward."""
    return lambda sums: sums[column] / sums[1]


def replay_table(replays: Sequence[Replay], prices: Sequence[Prices]) -> Table:
    """Per temperature a section, per method a row: means over tasks of each task's value, with intervals over conversations."""
    sections, numbers = [], []
    by_cell = sorted(of_methods(replays), key=lambda cell: (cell[0][0], method_order(cell[0][1]), cell[0][2]))
    for t in sorted({cell[0][0] for cell in by_cell}):
        rows = []
        own = [(key, rs) for key, rs in by_cell if key[0] == t]
        for (_, method, preset, _), rs in own:
            sums = summands(rs, prices)
            strata = list(sums.values())
            estimates: dict[str, Estimate] = {"tau": estimated(strata, tau, 1.0)}
            for name, column in (("calls a step", 2), ("rows drafted", 3), ("nodes", 4)):
                estimates[name] = estimated(strata, a_step(column), 0.0)
            for i, price in enumerate(prices):
                estimates[price.name] = estimated(strata, speedup(i), 0.0)
            shown = {"method": method, "preset": preset, "tau": _shown(estimates["tau"])}
            shown |= {name: number(estimates[name].value, "{:.1f}") for name in ("calls a step", "rows drafted", "nodes")}
            shown["not in the pool"] = f"{sum(r.lacking for r in rs) / max(sum(r.asked for r in rs), 1):.1%}"
            shown |= {price.name: _shown(estimates[price.name], "{:.2f}×") for price in prices}
            rows.append(shown)
            for task, columns in [("mean", None), *sums.items()]:
                for name, e in estimates.items():
                    if columns is not None:
                        i = (
                            [p.name for p in prices].index(name)
                            if name not in ("tau", "calls a step", "rows drafted", "nodes")
                            else -1
                        )
                        stat = tau if name == "tau" else speedup(i) if i >= 0 else a_step(
                            {"calls a step": 2, "rows drafted": 3, "nodes": 4}[name])  # fmt: skip
                        e = estimated([columns], stat, 0.0)
                    low, high = e.ci95 or (None, None)
                    numbers.append({"model": rs[0].model, "temperature": t, "method": method, "preset": preset, "task": task,
                                    "statistic": name, "value": e.value, "value_low": low, "value_high": high,
                                    "conversations": e.prompts})  # fmt: skip
        first = own[0][1]
        names = sorted({r.task for r in first})
        mean = "the mean of the six tasks" if set(names) == set(SIX_TASKS) else f"the mean of {', '.join(names)}"
        n = len({(r.task, r.sample_id) for r in first})
        title = f"{first[0].model}, T = {t:g}, {first[0].dtype}, replayed from vanilla's answers"
        sections.append(Section(title, (f"{mean}; {n} conversations; intervals over them",), pd.DataFrame(rows)))
    notes = (
        "tau: tokens a target forward, as a run has it: replays equal runs step by step. No target forward is run for them.",
        "Speeds are of decoding, prefill left out, and predicted: each step's calls of both models by a table of costs.",
    )
    return Table(NAME, tuple(sections), notes, pd.DataFrame(numbers))


def _shown(e: Estimate, form: str = "{:.2f}") -> str:
    return bracketed(number(e.value, form), e.ci95, form)
