"""`harness table --compare A B`: what changed from one ledger to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common.errors import UserError
from harness.common.names import VANILLA, label, method_order, preset_order, task_order
from harness.forms.table import NOTHING, Section, Table, number
from harness.ledger.ledger import read
from harness.ledger.record import Record
from harness.metrics.definitions import Estimate, estimate, point, speed_ratio, speedup_change, tau, tau_difference, tokens_per_s
from harness.metrics.groups import INEXACT, interval_columns, mark_of
from harness.metrics.pairing import ACROSS_FOLDERS, Side, measured, side_of, variant_of, without_loops
from harness.metrics.steps import identical
from harness.show.tables.cell_text import estimated_text
from harness.show.tables.reading import READING


def compare(folder_a: Path, folder_b: Path) -> Table:
    """What changed from folder A to folder B, cell by cell, on the prompts both measured.

    Weights, heads, options and machines may differ: the table says which do.
    """
    cells_a, cells_b = _comparable_cells(folder_a), _comparable_cells(folder_b)
    rows: list[dict[str, str]] = []
    numbers: list[dict[str, Any]] = []
    for key in sorted(cells_a.keys() | cells_b.keys(), key=_comparable_order):
        named = dict(zip(_COMPARABLE, key, strict=True))
        if key in cells_a and key in cells_b:
            change = _change(cells_a[key], cells_b[key])
            rows.append(_change_labels(named, cells_b[key]) | _change_row(change))
            numbers.append({**named, "in": "both", **_change_numbers(change)})
        else:
            only = "A" if key in cells_a else "B"
            cell = cells_a.get(key) or cells_b[key]
            rows.append(_change_labels(named, cell) | {"prompts": f"only in {only}"})
            numbers.append({**named, "in": only})
    notes = (f"A = {folder_a}, B = {folder_b}.", READING["compare"], INEXACT)
    section = Section("A against B", (), pd.DataFrame(rows).fillna(NOTHING))
    return Table("compare", (section,), notes, pd.DataFrame(numbers))


_COMPARABLE = ("model", "temperature", "top_p", "dtype", "threads", "max_new_tokens", "seed", "method", "preset",
               "task", "source")  # fmt: skip
_ONE_SIDED = ("target_sha", "head_sha", "options", "machine")  # reported where they differ between the folders


@dataclass(frozen=True, slots=True)
class _BothSides:
    own: Side
    base: Side


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a cell from folder A to folder B."""

    prompts: int
    tau_a: float | None
    tau_b: float | None
    tau_difference: Estimate
    tau_difference_no_loop: Estimate
    tokens_per_s_a: float | None
    tokens_per_s_b: float | None
    speed_ratio: Estimate
    speedup_ratio: Estimate
    n_same: int  # conversations with the same output in both
    n_compared: int
    differs: tuple[str, ...]


def _comparable_cells(folder: Path) -> dict[tuple[Any, ...], _BothSides]:
    records = read(folder)
    base = side_of((r for r in records if r["method"] == VANILLA), by=ACROSS_FOLDERS)
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(dict(record)[name] for name in _COMPARABLE), []).append(record)
    for group in groups.values():
        first = group[0]
        if len({(variant_of(r), r["target_sha"], r.get("machine")) for r in measured(group)}) > 1:
            raise UserError(
                f"{folder} holds {first['method']} ({first['preset']}) on {first['task']} with several options, "
                "weights or machines: compare folders that hold one of each"
            )
    arms = {key: side_of(group, by=ACROSS_FOLDERS) for key, group in groups.items()}
    return {key: _BothSides(own, base) for key, own in arms.items() if own}


def _comparable_order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    *setting, method, preset, task, source = key
    return (*setting, method_order(method), preset_order(preset), task_order(task), source)


def _change(a: _BothSides, b: _BothSides) -> Change:
    own_a = {key: r for key, r in a.own.items() if key in b.own}
    own_b = {key: b.own[key] for key in own_a}
    tau_change = estimate([own_b, own_a], tau_difference)
    n_same, n_compared = identical(own_b, own_a)
    return Change(
        prompts=tau_change.prompts,
        tau_a=point([own_a], tau),
        tau_b=point([own_b], tau),
        tau_difference=tau_change,
        tau_difference_no_loop=estimate([without_loops(own_b, own_a), own_a], tau_difference),
        tokens_per_s_a=point([own_a], tokens_per_s),
        tokens_per_s_b=point([own_b], tokens_per_s),
        speed_ratio=estimate([own_b, own_a], speed_ratio),
        speedup_ratio=estimate([own_b, b.base, own_a, a.base], speedup_change),
        n_same=n_same,
        n_compared=n_compared,
        differs=tuple(name for name in _ONE_SIDED if _values(own_a, name) != _values(own_b, name)),
    )


def _values(own: Side, name: str) -> set[str]:
    return {str(r.get(name)) for r in own.values()}


def _change_labels(named: Mapping[str, Any], cell: _BothSides) -> dict[str, str]:
    setting = "{model}, T = {temperature:g}, {dtype}, {threads} threads, {max_new_tokens} tokens".format(**named)
    method = label(named["method"], named["preset"]) + mark_of(next(iter(cell.own.values()))["exact"])
    return {"method": method, "task": named["task"], "source": named["source"], "setting": setting}


def _change_numbers(c: Change) -> dict[str, Any]:
    row: dict[str, Any] = {"prompts": c.prompts, "tau_a": c.tau_a, "tau_b": c.tau_b}
    row |= {"tokens_per_s_a": c.tokens_per_s_a, "tokens_per_s_b": c.tokens_per_s_b}
    for name in ("tau_difference", "tau_difference_no_loop", "speed_ratio", "speedup_ratio"):
        value: Estimate = getattr(c, name)
        row |= interval_columns(name, value.value, value.ci95)
    return row | {"n_same": c.n_same, "n_compared": c.n_compared, "differs": " ".join(c.differs)}


def _change_row(c: Change) -> dict[str, str]:
    return {
        "prompts": str(c.prompts),
        "τ": f"{number(c.tau_a)} → {number(c.tau_b)}",
        "difference in τ": estimated_text(c.tau_difference, "{:+.2f}"),
        "no loops": estimated_text(c.tau_difference_no_loop, "{:+.2f}"),
        "tokens/s": f"{number(c.tokens_per_s_a, '{:.1f}')} → {number(c.tokens_per_s_b, '{:.1f}')}",
        "speed ratio": estimated_text(c.speed_ratio),
        "speedup ratio": estimated_text(c.speedup_ratio),
        "same outputs": f"{c.n_same}/{c.n_compared}",
        "differs": ", ".join(c.differs) or "nothing",
    }
