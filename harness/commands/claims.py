"""`harness claims`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import PATH, examples, json_option, option, results_option, strict_option
from harness.common.files_written import files_written


@click.command("claims", epilog=examples("harness claims --results results/mine", "harness claims --results results/mine --json"))
@results_option
@option("--out", type=PATH, default=None, help="Where to write (default: DIR/claims).")
@strict_option
@json_option
def command(results: Path, out: Path | None, strict: bool, as_json: bool) -> None:
    """Test every claim of the paper on what a ledger holds: effect, paired interval, verdict."""
    from harness.forms.table import json_rows, plain, write_forms
    from harness.paper.claims import claims_table

    tested = claims_table(results, strict=strict)
    click.echo(plain(tested))
    click.echo(files_written(write_forms(tested, out or results / "claims")), err=True)
    if as_json:
        click.echo(json_rows([tested]))
