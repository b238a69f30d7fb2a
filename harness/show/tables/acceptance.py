"""The table of acceptance in the drafted trees: by the draft's confidence, by position and by drafted features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import pandas as pd

from harness.common.names import label
from harness.forms.table import NOTHING, Section, Table, one_line, with_interval
from harness.metrics.acceptance import ALL, ARM, POSITIONS, ArmSums, acceptance_numbers
from harness.metrics.pairing import Setting, titles

_NOTES = (
    one_line("""
    From the drafted trees (`--trees`). Tasks are pooled where there are several; looping outputs are included. The CSV has both
    apart; `harness/metrics/acceptance.py` describes its columns."""),
    one_line("""
    Slope: of acceptance on confidence, least squares over the nodes tried. ECE: expected calibration error over 20 bins. Gap: the
    same with equal weight for each bin. Square brackets: 95 % intervals over conversations. P1 to P6: acceptance by position, of
    the forwards that drafted it; in brackets the standard deviation between conversations and what chance alone would give. n-α:
    chains only."""),
)


def acceptance_table(drafted: Iterable[ArmSums]) -> Table:
    """Calibration, acceptance by position and n-α of every method whose trees were kept; without sections where none were."""
    numbers = acceptance_numbers(drafted)
    sections = []
    names = [f.name for f in fields(Setting)]
    title_of = titles(Setting(*row) for row in numbers[names].itertuples(index=False)) if len(numbers) else {}
    setting: Any
    for setting, mine in numbers.groupby(names, sort=False) if len(numbers) else ():
        pooled = mine[(mine["outputs"] == ALL) & _pooled(mine)]
        rows = [_shown(str(m), str(p), part) for (m, p, *_), part in pooled.groupby(ARM, sort=False)]
        columns = sorted({c for row in rows for c in row}, key=_COLUMNS.index)
        sections.append(Section(title_of[Setting(*setting)], (), pd.DataFrame(rows, columns=columns).fillna(NOTHING)))
    return Table("acceptance", tuple(sections), _NOTES, numbers)


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
