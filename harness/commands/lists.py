"""`harness list` and `harness fetch`: what is here, and obtaining what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

import methods
import tasks
from harness import config as model_configs
from harness.commands.options import include_all
from harness.errors import unknown


def list_lines(what: str) -> Iterator[str]:
    if what == "methods":
        for name in methods.names():
            m = methods.get(name)
            options = " ".join(f"{k}={v}" for k, v in m.options.items() if len(str(v)) < 20)
            yield f"{name:18} {m.line}{f'  [{options}]' if options else ''}{'' if m.exact else '  (inexact)'}"
    elif what == "tasks":
        for name in tasks.names():
            yield f"{name:18} {tasks.get(name).line}  [sources: {', '.join(tasks.sources_of(name))}]"
    else:
        for name in model_configs.known_models():
            c = model_configs.model_config(name)
            here = c.head_folder is not None and (c.head_folder / "config.json").exists()
            head = "with head" if here else "head on the hub" if isinstance(c.head, model_configs.HubRepo) else "no head here"
            repos = [r for r in (c.weights, c.head) if isinstance(r, model_configs.HubRepo)]
            marks = ["gated"] * any(r.gated for r in repos) + ["unofficial"] * any(not r.official for r in repos)
            yield f"{name:20} {c.title}  [{'; '.join((c.licence, *marks, head))}; context {c.context_length}]"


def fetch_command(model: str, source: str, includes: tuple[Path, ...]) -> None:
    from harness.weights import drafter_folder, require_packages, weights_folder

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
