"""The tables of acceptance: by position, by context and by the draft's confidence, as `harness table` writes them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common.names import label
from harness.forms import table as tables
from harness.forms.table import with_interval
from harness.ledger.ledger import read
from harness.ledger.trees import has_trees, read_drafts
from harness.metrics.acceptance import ALL, ARM, POSITIONS, acceptance_table
from harness.metrics.pairing import Setting

_READING = (
    """From the drafted trees (`--trees`); all tasks pooled where there are several, looping outputs included. The CSV has them
    apart; its columns are described in `harness/acceptance.py`.""",
    """Slope: of acceptance on confidence, least squares over tried nodes; ECE: expected calibration error over 20 bins; gap: the
    same with every bin weighing alike. Square brackets: 95 %, over conversations. P1 to P6: acceptance by position, of the
    forwards that drafted it; in brackets the standard deviation between conversations, and what chance alone would give.
    n-α: chains only.""",
)


def report(numbers: pd.DataFrame) -> tables.Table:
    """The table to read; its numbers are `acceptance_table`'s."""
    sections = []
    setting: Any
    for setting, mine in numbers.groupby([f.name for f in fields(Setting)], sort=False) if len(numbers) else ():
        pooled = mine[(mine["outputs"] == ALL) & _pooled(mine)]
        rows = [_shown(str(m), str(p), part) for (m, p, _, _), part in pooled.groupby(ARM, sort=False)]
        columns = sorted({c for row in rows for c in row}, key=_COLUMNS.index)
        sections.append(tables.Section(Setting(*setting).title(), (), pd.DataFrame(rows, columns=columns).fillna(tables.NOTHING)))
    return tables.Table("acceptance", tuple(sections), tuple(" ".join(text.split()) for text in _READING), numbers)


_COLUMNS = ("method", "generations", "nodes tried", "slope", "ECE", "gap", *POSITIONS, *(f"{n}-α" for n in range(5)))


def _pooled(rows: pd.DataFrame) -> pd.Series:
    """All tasks together where there are several, else the one."""
    several = rows.groupby(ARM)["task"].transform("nunique") > 1
    return (rows["task"] == ALL) | ~several


def _shown(method: str, preset: str, rows: pd.DataFrame) -> dict[str, str]:
    found: dict[tuple[str, str], Any] = {(str(r.kind), str(r.at)): r for r in rows.itertuples()}
    shown = {"method": label(method, preset), "generations": f"{rows['generations'].iloc[0]:,}"}
    if ("calibration", "0") in found or ("fit", "ece") in found:
        shown["nodes tried"] = f"{int(rows[rows['kind'] == 'calibration']['n'].sum()):,}"
    for at, name in (("slope", "slope"), ("ece", "ECE"), ("mean_gap", "gap")):
        if ("fit", at) in found:
            shown[name] = with_interval(found["fit", at], "{:.3f}" if at != "slope" else "{:.2f}")
    for at in POSITIONS:
        if ("position", at) in found:
            r = found["position", at]
            spread = f" ({r.variance**0.5:.2f}; {r.chance_variance**0.5:.2f})" if pd.notna(r.variance) else ""
            shown[at] = f"{r.value:.2f}{spread}"
    for n in range(5):
        if ("n_alpha", str(n)) in found:
            shown[f"{n}-α"] = with_interval(found["n_alpha", str(n)], "{:.2f}")
    return shown


def write(folder: Path, out: Path | None = None) -> list[Path]:
    """`acceptance.md`, `.csv` and `.tex` in `out` (default: `tables` in the folder), where the folder has trees.

    Raises:
        UserError: no records, a file of trees that cannot be read, or `out` cannot be written.
    """
    if not has_trees(folder):
        return []
    numbers = acceptance_table(read(folder), read_drafts(folder))
    return tables.write_forms(report(numbers), out or Path(folder) / "tables")
