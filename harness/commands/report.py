"""`harness report`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import PATH, examples, option, results_option, strict_option


@click.command(
    "report",
    epilog=examples("harness report --results results/mine", "harness report --results results/mine --prompts prompts"),
)
@results_option
@option("--out", type=PATH, default=None, metavar="FILE", help="The page (default: DIR/report.html).")
@option("--generations", type=int, default=24, help="How many generations the viewer of drafted trees holds.")
@option(
    "--prompts", "prompts_dir", type=PATH, default=None,
    help="Folder of the paper's prompt files: shows these prompts in the page, too.",
)  # fmt: skip
@strict_option
def command(results: Path, out: Path | None, generations: int, prompts_dir: Path | None, strict: bool) -> None:
    """Write a ledger as one HTML page: tables, plots, losslessness, claims, and a viewer of drafted trees; opens from disk."""
    from harness.show.page import write_report

    click.echo(write_report(results, out, generations, prompts_dir, strict=strict))
