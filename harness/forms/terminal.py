"""How a table is printed: drawn by rich on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TextIO

from harness.forms.table import TEXT_COLUMNS, Table, plain


def print_table(table: Table, file: TextIO | None = None) -> None:
    """Print to `file`, by default to stdout."""
    out = file or sys.stdout
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
        for line in section.conclusions:
            console.print(line, markup=False, highlight=False)
    for note in table.notes:
        console.print(note, markup=False, highlight=False)
