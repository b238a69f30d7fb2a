"""The tables of a ledger, listed once: `harness table`, the page and scripts take them from `TABLES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from harness.common.progress import Progress, showing_progress
from harness.forms.table import Table, write_forms
from harness.show.contents import Contents, read_contents
from harness.show.tables.acceptance import acceptance_table
from harness.show.tables.cells import categories_table, cells_table, official_table
from harness.show.tables.main import main_table, means_table, models_table
from harness.show.tables.paired import divergences_table, paired_table
from harness.show.tables.tuned import tuned_table


@dataclass(frozen=True, slots=True)
class LedgerTable:
    """A table that every ledger may have. It is written where it has sections."""

    name: str  # of its files
    title: str  # in the page
    make: Callable[[Contents, Progress], Table]
    is_open: bool = False  # the page shows it without a click
    is_written_empty: bool = False  # that there is nothing is worth a file


TABLES = (
    LedgerTable("means", "Six-task means",
                lambda c, _: means_table(c.records, c.summaries, c.audits, c.audit_pages), is_open=True),
    LedgerTable("main", "Speedup and τ", lambda c, _: main_table(c.summaries, c.audits, c.audit_pages)),
    LedgerTable("models", "Models", lambda c, _: models_table(c.summaries), is_open=True),
    LedgerTable("acceptance", "Acceptance in the drafted trees",
                lambda c, progress: acceptance_table(progress.each(c.drafted, "acceptance of method"))),
    LedgerTable("paired", "EAGLE-2 against the others", lambda c, _: paired_table(c.records, c.summaries)),
    LedgerTable("tuned", "Tuned options: predicted, raced and measured",
                lambda c, _: tuned_table(c.summaries, c.tuned)),
    LedgerTable("cells", "Every cell", lambda c, _: cells_table(c.summaries)),
    LedgerTable("official", "What the reference's own scripts would have printed", lambda c, _: official_table(c.summaries)),
    LedgerTable("mt_bench_by_category", "MT-bench by category", lambda c, _: categories_table(c.records, c.summaries)),
    LedgerTable("divergences", "Outputs at T = 0 that differ from vanilla's",
                lambda c, _: divergences_table(c.records, c.summaries), is_written_empty=True),
)  # fmt: skip


def made_tables(contents: Contents, progress: Progress) -> list[tuple[LedgerTable, Table]]:
    """Every table that has something to show, in the order of `TABLES`; a step of `progress` each."""
    progress.expect(len(TABLES))
    made = []
    for entry in TABLES:
        progress.step(f"table {entry.name}")
        table = entry.make(contents, progress)
        if table.sections or entry.is_written_empty:
            made.append((entry, replace(table, notes=(*table.notes, *contents.footnotes))))
    return made


def write_tables(folder: Path, out: Path | None = None, *, strict: bool = False) -> list[Path]:
    """Write every table of a folder's records as Markdown and CSV into `out` (default: `tables` in the folder); -> the files.

    Raises:
        UserError: no records, a file beside them that cannot be read, `out` cannot be written, or `strict` and a line that
            cannot be read.
    """
    with showing_progress("tables") as progress:
        tables = made_tables(read_contents(folder, progress, strict), progress)
        target = out or Path(folder) / "tables"
        return [path for _, table in tables for path in write_forms(table, target)]
