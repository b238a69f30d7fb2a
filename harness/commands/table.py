"""`harness table`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import PATH, examples, option, strict_option
from harness.common.errors import UserError
from harness.common.files_written import files_written


@click.command(
    "table", epilog=examples("harness table --results results/mine", "harness table --compare results/before results/after")
)
@option("--results", type=PATH, metavar="DIR", default=None, help="A ledger: a folder with records.jsonl.")
@option("--compare", nargs=2, type=PATH, metavar="DIR_A DIR_B", default=None, help="What changed from A to B.")
@option("--out", type=PATH, default=None, help="Where to write (default: DIR/tables; of --compare: none).")
@strict_option
def command(results: Path | None, compare: tuple[Path, Path] | None, out: Path | None, strict: bool) -> None:
    """Write the tables of a ledger, or compare two ledgers."""
    if (results is None) == (compare is None):
        raise UserError("give either --results DIR or --compare DIR_A DIR_B")
    if compare is not None:
        from harness.forms.table import plain, write_forms
        from harness.show.tables.two_folders import comparison_table

        changes = comparison_table(*compare, strict=strict)
        click.echo(plain(changes, width=100))
        if out is not None:
            click.echo(files_written(write_forms(changes, out)), err=True)
        return
    assert results is not None
    from harness.exchange.imported_report import write_report
    from harness.ledger.ledger import holds_import
    from harness.show.tables.all import write_tables

    write = write_report if holds_import(results) else write_tables
    click.echo(files_written(write(results, out, strict=strict)))
