"""`harness status`: how far the work in a folder is."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import PATH, examples, json_option


@click.command("status", epilog=examples("harness status results/mine", "harness status results/mine --json"))
@click.argument("folder", type=PATH, metavar="DIR")
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Say what of a ledger is done, running, failed and left, cell by cell, and which process writes to it."""
    from harness.forms.table import json_rows
    from harness.forms.terminal import print_table
    from harness.show.status import status_table

    table = status_table(folder)
    print_table(table)
    if as_json:
        click.echo(json_rows([table]))
