"""The table at the end of `harness run`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TextIO

import pandas as pd

from harness.forms.table import Section, Table, bracketed, number
from harness.forms.terminal import print_table
from harness.metrics.cells import CellSummary
from harness.metrics.engines import engine_notes, of_cells
from harness.metrics.groups import by_setting, facts, labelled_cells, notes_of, task_label
from harness.show.tables.cell_text import fraction_text, speedup_text, tau_text
from harness.show.tables.cells import cell_numbers
from harness.show.tables.meaning import conclusions

_NOTE = "τ in brackets: over outputs where neither arm looped. Square brackets: 95 % intervals, none under 5 prompts."


def run_table(summaries: Iterable[CellSummary]) -> Table:
    """A row a cell, a section a setting."""
    summaries = list(summaries)
    sections = tuple(
        Section(setting.title(), facts(group), _run_rows(group), conclusions(group)) for setting, group in by_setting(summaries)
    )
    return Table("run", sections, (_NOTE, *notes_of(summaries), *engine_notes(of_cells(summaries))), cell_numbers(summaries))


def print_run_table(summaries: Iterable[CellSummary], file: TextIO | None = None) -> None:
    """Print it to `file` (default: stdout): drawn by rich on a terminal, plain lines elsewhere."""
    print_table(run_table(summaries), file)


def _run_rows(group: Sequence[CellSummary]) -> pd.DataFrame:
    """Narrow enough for a terminal: what is the same in all rows stands above them."""
    several_sources = len({c.source for c in group}) > 1
    return pd.DataFrame([
        {
            "method": name,
            "task": task_label(c) if several_sources else c.task,
            "speedup": bracketed(speedup_text(c), c.speedup_ci95),
            "τ": tau_text(c),
            "tokens/s": number(c.tokens_per_s, "{:.1f}"),
            "identical": fraction_text(c),
            "looped": number(c.looped, "{:.0%}"),
            "prompts": str(c.prompts),
        }
        for name, c in labelled_cells(group)
    ])  # fmt: skip
