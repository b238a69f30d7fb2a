"""What `harness tune` predicted and raced of each tuned method, against what was measured on the tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from harness.common.names import SIX_TASKS
from harness.forms.table import Section, Table, number, one_line
from harness.ledger.tuned_presets import Entry
from harness.metrics.cells import CellSummary, joint_mark
from harness.metrics.groups import by_setting, facts, labelled, notes_of, shown_cells
from harness.show.tables.cell_text import marked_text

WITHIN = 0.05  # what is off by more is named
_FORMS = {"τ": "{:.2f}", "cost": "{:.2f}", "decode": "{:.2f}×"}
_NOTE = one_line("""
    Measured: the unweighted mean over the tasks. Predicted: by replay or by decoding on the held-out conversations that options
    were ranked on. Raced: decoded beside vanilla on held-out conversations that no choice has used; it is what `harness tune`
    stores as its result. In brackets: by how much of what was measured they are off. Decode: speedup without the prefill and its
    token. Cost: vanilla steps a step, which is τ over the decode speedup.""")


def tuned_table(summaries: Iterable[CellSummary], entries: Sequence[Entry]) -> Table:
    """A row a method at the preset `tuned`, in the tables' order.

    Without sections where there are no entries. A method whose options, machine or engine no entry has is named above the rows.
    """
    sections, numbers, shown = [], [], shown_cells(summaries)
    for setting, group in by_setting(shown if entries else []):
        rows, lacking = [], []
        for name, cells in labelled(group):
            if cells[0].preset != "tuned":
                continue
            entry = next((e for e in entries if _holds(e, cells[0])), None)
            values = [(c.tau, c.decode_speedup) for c in cells if c.tau is not None and c.decode_speedup is not None]
            if entry is None or not values:
                lacking.append(name)
                continue
            tau, speed = (sum(column) / len(values) for column in zip(*values, strict=True))
            three = {"predicted": _three(entry.predicted), "raced": _three(entry.raced)}
            measured = {"τ": tau, "cost": tau / speed, "decode": speed}
            off = {what: {k: x / measured[k] - 1 for k, x in own.items()} for what, own in three.items()}
            row = {"method": name}
            for k, form in _FORMS.items():
                row |= {f"{k} {what}": f"{form.format(own[k])} ({off[what][k]:+.1%})" for what, own in three.items()}
                row[f"{k} measured"] = marked_text(speed, joint_mark(cells)) if k == "decode" else number(measured[k], form)
            rows.append(row | {"tasks": str(len(values))})
            line: dict[str, Any] = {**asdict(setting), "method": cells[0].method, "preset": cells[0].preset, "tasks": len(values)}
            for k, plain in (("τ", "tau"), ("cost", "cost"), ("decode", "decode_speedup")):
                line |= {f"{what}_{plain}": own[k] for what, own in {**three, "measured": measured}.items()}
                line |= {f"{what}_{plain}_off": own[k] for what, own in off.items()}
            for k, plain in (("tau", "tau"), ("speedup", "decode_speedup")):
                low, high = entry.raced.get(f"{k}_ci95") or (None, None)
                line |= {f"raced_{plain}_low": low, f"raced_{plain}_high": high}
            numbers.append(
                line | {"ranked_on": entry.predicted.get("conversations"), "raced_on": entry.raced.get("conversations")}
            )
        if rows:
            ours = numbers[-len(rows) :]
            above = [f"Of no entry with these options, machine and engine: {', '.join(lacking)}"] if lacking else []
            said = tuple(_said(what, rows, ours) for what in ("predicted", "raced"))
            sections.append(Section(setting.title(), (*facts(group), *above), pd.DataFrame(rows), said))
    return Table("tuned", tuple(sections), (_NOTE, *notes_of(shown)), pd.DataFrame(numbers))


def _holds(entry: Entry, cell: CellSummary) -> bool:
    """Whether an entry is of what a cell was measured with."""
    key = entry.key
    same = (key.model, key.method, key.temperature, key.dtype, key.threads, key.engine)
    return (
        same == (cell.model, cell.method, cell.temperature, cell.dtype, cell.threads, cell.engine)
        and key.machine in cell.machine
        and dict(entry.options) == dict(cell.options)
    )


def _three(figures: Mapping[str, Any]) -> dict[str, float]:
    return {"τ": figures["tau"], "cost": figures["tau"] / figures["speedup"], "decode": figures["speedup"]}


def _said(what: str, rows: Sequence[Mapping[str, str]], numbers: Sequence[Mapping[str, Any]]) -> str:
    """How many of the decode speedups are within 5 % of what was measured, and which is furthest off."""
    off = [line[f"{what}_decode_speedup_off"] for line in numbers]
    worst = max(range(len(off)), key=lambda i: abs(off[i]))
    tasks = "six-task mean" if all(line["tasks"] == len(SIX_TASKS) for line in numbers) else "mean over the tasks measured"
    return (
        f"Decode speedups as {what}: {sum(abs(x) <= WITHIN for x in off)} of {len(off)} within {WITHIN:.0%} of the {tasks}; "
        f"furthest off is {rows[worst]['method']}, by {off[worst]:+.1%}."
    )
