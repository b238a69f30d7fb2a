"""`harness plot`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import PATH, examples, option, results_option, strict_option
from harness.common.files_written import files_written


@click.command(
    "plot", epilog=examples("harness plot --results results/mine", "harness plot --results results/mine --out figures")
)
@results_option
@option("--out", type=PATH, default=None, help="Where to write (default: DIR/plots).")
@strict_option
def command(results: Path, out: Path | None, strict: bool) -> None:
    """Draw the plots of a ledger, each with a CSV of the numbers drawn."""
    from harness.show.plots.all import write_plots

    click.echo(files_written(write_plots(results, out, strict=strict)))
