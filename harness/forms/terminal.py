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
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(file=out)
    for section in table.sections:
        drawn = RichTable(box=SIMPLE_HEAD, pad_edge=False)
        for column in section.shown.columns:
            is_text = column in TEXT_COLUMNS
            drawn.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
        for row in section.shown.itertuples(index=False):
            drawn.add_row(*row)
        console.print(section.title, style="bold", markup=False, highlight=False)
        for line in section.facts:
            console.print(line, style="dim", markup=False, highlight=False)
        console.print(drawn)
        for line in section.conclusions:
            console.print(line, markup=False, highlight=False)
    for note in table.notes:
        console.print(note, markup=False, highlight=False)
