"""`harness list`: what is registered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

import methods
import tasks
from harness.commands.options import examples, include_all, include_option
from harness.load import config as model_configs


@click.command("list", epilog=examples("harness list methods", "harness list tasks --include my_task.py"))
@click.argument("what", type=click.Choice(["methods", "tasks", "models"]))
@include_option
def command(what: str, includes: tuple[Path, ...]) -> None:
    """Show what is registered, a line each."""
    include_all(includes)
    for line in list_lines(what):
        click.echo(line)


def list_lines(what: str) -> Iterator[str]:
    if what == "methods":
        for name in (name for group in ("", *methods.GROUPS, methods.SERVERS) for name in methods.names(group=group)):
            m = methods.get(name)
            options = " ".join(f"{k}={v}" for k, v in m.options.items() if len(str(v)) < 20)
            told = ["inexact"] * (not m.exact) + [f"group {m.group}"] * bool(m.group) + ["replay only"] * m.replay_only
            said = "".join(f"  ({word})" for word in told)
            yield f"{name:18} {m.line}{f'  [{options}]' if options else ''}{said}"
    elif what == "tasks":
        for name in tasks.known():
            task = tasks.get(name)
            alone = f"; for {', '.join(task.models)} alone" if task.models else ""
            yield f"{name:18} {task.line}  [sources: {', '.join(tasks.sources_of(name))}{alone}]"
    else:
        for name in model_configs.known_models():
            c = model_configs.model_config(name)
            here = c.head_folder is not None and (c.head_folder / "config.json").exists()
            head = "with head" if here else "head on the hub" if isinstance(c.head, model_configs.HubRepo) else "no head here"
            repos = [r for r in (c.weights, c.head) if isinstance(r, model_configs.HubRepo)]
            marks = ["gated"] * any(r.gated for r in repos) + ["unofficial"] * any(not r.official for r in repos)
            yield f"{name:20} {c.title}  [{'; '.join((c.licence, *marks, head))}; context {c.context_length}]"
