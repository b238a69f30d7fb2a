"""`harness report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.commands.options import PATH, examples, option, results_option, strict_option
from harness.common.errors import UserError, say
from harness.common.files_written import files_written

if TYPE_CHECKING:
    from harness.show.contents import Contents


@click.command(
    "report",
    epilog=examples("harness report --results results/mine --all", "harness report --results results/mine --prompts prompts"),
)
@results_option
@option("--out", type=PATH, default=None, metavar="FILE", help="The page (default: DIR/report.html).")
@option("--generations", type=int, default=24, help="How many generations the viewer of drafted trees holds.")
@option(
    "--prompts", "prompts_dir", type=PATH, default=None,
    help="Folder of the paper's prompt files: shows these prompts in the page, too.",
)  # fmt: skip
@option("--all", "everything", is_flag=True, help="Write the tables, plots and claims beside it, too: the ledger is read once.")
@strict_option
def command(
    results: Path, out: Path | None, generations: int, prompts_dir: Path | None, everything: bool, strict: bool
) -> None:  # fmt: skip
    """Write a ledger as one HTML page: tables, plots, losslessness, claims, and a viewer of drafted trees; opens from disk."""
    from harness.show.page import drawn, write_drawn, write_report

    made = None
    if everything:
        made = drawn(results, strict=strict)
        click.echo(files_written([*write_drawn(results, made), *_claims(results, made.contents)]))
    click.echo(write_report(results, out, generations, prompts_dir, strict=strict, made=made))


def _claims(results: Path, contents: Contents) -> list[Path]:
    """Write the claims; none, and why, where the records cannot be judged together."""
    from harness.forms.table import write_forms
    from harness.ledger.ledger import Records
    from harness.paper.claims import claims_table

    try:
        tested = claims_table(results, records=Records(contents.records, contents.footnotes))
    except UserError as error:
        say(f"no claims ledger: {error}")
        return []
    return write_forms(tested, results / "claims")
