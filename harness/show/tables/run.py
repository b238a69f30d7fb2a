"""The table that `harness run` prints."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TextIO

import pandas as pd

from harness.forms.table import TEXT_COLUMNS, Section, Table, bracketed, number, plain
from harness.metrics.cells import CellSummary
from harness.metrics.groups import by_setting, facts, mark_of, notes_of
from harness.show.tables.cell_text import fraction_text, speedup_text, tau_text
from harness.show.tables.cells import tidy_table
from harness.show.tables.reading import READING


def run_table(summaries: Iterable[CellSummary]) -> str:
    """What `harness run` prints, as plain text with aligned columns."""
    return plain(_run_report(summaries))


def print_run_table(summaries: Iterable[CellSummary], file: TextIO | None = None) -> None:
    """Print it: drawn by rich on a terminal, plain lines elsewhere."""
    out = file or sys.stdout
    table = _run_report(summaries)
    if not out.isatty():
        print(plain(table), file=out)
        return
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(file=out)
    for section in table.sections:
        drawn = RichTable(title=section.title, title_justify="left", caption="\n".join(section.facts))
        for column in section.shown.columns:
            drawn.add_column(column, justify="left" if column in TEXT_COLUMNS else "right", overflow="fold")
        for row in section.shown.itertuples(index=False):
            drawn.add_row(*row)
        console.print(drawn)
    for note in table.notes:
        console.print(note, markup=False, highlight=False)


def _run_report(summaries: Iterable[CellSummary]) -> Table:
    summaries = list(summaries)
    sections = tuple(
        Section(setting.title(), facts(group), pd.DataFrame([_run_row(c) for c in group]))
        for setting, group in by_setting(summaries)
    )
    return Table("run", sections, (READING["run"], *notes_of(summaries)), tidy_table(summaries))


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
