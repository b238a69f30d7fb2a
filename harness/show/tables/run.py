"""The table at the end of `harness run`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

import pandas as pd

from harness.forms.table import Section, Table, bracketed, number
from harness.forms.terminal import print_table
from harness.metrics.cells import CellSummary
from harness.metrics.groups import by_setting, facts, mark_of, notes_of
from harness.show.tables.cell_text import fraction_text, speedup_text, tau_text
from harness.show.tables.cells import cell_numbers
from harness.show.tables.meaning import conclusions

_NOTE = "τ in brackets: over outputs where neither arm looped. Square brackets: 95 % intervals, none under 5 prompts."


def run_table(summaries: Iterable[CellSummary]) -> Table:
    """A row a cell, in the order given; a section a setting."""
    summaries = list(summaries)
    sections = tuple(
        Section(setting.title(), facts(group), pd.DataFrame([_run_row(c) for c in group]), conclusions(group))
        for setting, group in by_setting(summaries)
    )
    return Table("run", sections, (_NOTE, *notes_of(summaries)), cell_numbers(summaries))


def print_run_table(summaries: Iterable[CellSummary], file: TextIO | None = None) -> None:
    """Print it to `file` (default: stdout): drawn by rich on a terminal, plain lines elsewhere."""
    print_table(run_table(summaries), file)


def _run_row(c: CellSummary) -> dict[str, str]:
    return {
        "method": c.method + mark_of(c.exact),
        "preset": c.preset,
        "task": c.task,
        "source": c.source,
        "T": f"{c.temperature:g}",
        "prompts": str(c.prompts),
        "tokens/s": number(c.tokens_per_s, "{:.1f}"),
        "speedup": bracketed(speedup_text(c), c.speedup_ci95),
        "τ": tau_text(c),
        "identical": fraction_text(c),
        "looped": number(c.looped, "{:.0%}"),
    }
