"""`harness claims`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import examples, json_option, option, results_option


@click.command("claims", epilog=examples("harness claims --results results/mine", "harness claims --results results/mine --json"))
@results_option
@option("--out", type=click.Path(path_type=Path), default=None, help="Where to write (default: DIR/claims).")
@json_option
def command(results: Path, out: Path | None, as_json: bool) -> None:
    """Test every claim of the paper on what a ledger holds: effect, paired interval, verdict."""
    from harness.forms.table import plain, write_forms
    from harness.paper.claims import report, to_json

    table = report(results)
    click.echo(plain(table))
    for path in write_forms(table, out or results / "claims"):
        click.echo(path, err=True)
    if as_json:
        click.echo(to_json(table))
