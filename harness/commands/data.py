"""`harness data pull`: the paper's prompt files."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import PATH, examples, option


@click.group("data")
def command() -> None:
    """Prompt data: the paper's six files."""


@command.command("pull", epilog=examples("harness data pull", "harness data pull --dest prompts"))
@option("--dest", type=PATH, default=None, help="Folder (default: the cache).")
@option("--base-url", default=None, metavar="URL", help="Another place that serves the same files.")
def pull(dest: Path | None, base_url: str | None) -> None:
    """Download the paper's six prompt files from the reference repository, pinned and checked."""
    from tasks import paper_files

    click.echo(paper_files.pull(dest) if base_url is None else paper_files.pull(dest, base_url=base_url))
