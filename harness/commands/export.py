"""`harness export`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import PATH, examples, option, results_option, strict_option


@click.command(
    "export",
    epilog=examples(
        "harness export --results results/mine --out answers",
        "harness export --results results/mine --format spec-bench --out answers",
    ),
)
@results_option
@option("--format", "format_", default="eagle", metavar="eagle|spec-bench", help="Whose layout to write.")
@option("--out", type=PATH, required=True, metavar="DIR", help="Where to write: a file a cell.")
@strict_option
def command(results: Path, format_: str, out: Path, strict: bool) -> None:
    """Write a ledger as answer files of EAGLE or Spec-Bench, with the counts that their loops would have booked."""
    from harness.exchange.export import export

    for path in export(results, out, format_, strict=strict):
        click.echo(path)
