"""Commands that a message tells the user to run: each works when it is copied as it stands."""

from __future__ import annotations

import shlex

import click
from click.core import ParameterSource

CARRIED = ("--model", "--include", "--head", "--dtype", "--threads", "--results", "--row-invariant")


def hinted(command: str, *words: object, model: str | None = None) -> str:
    """`harness COMMAND WORDS ...` in backticks.

    Behind the words stand those options of the command under way that matter there, too: what was given of `CARRIED`, where the
    command takes it in the same way and the words do not name it. Outside the command line there are none.
    model: what `--model` is where it is neither among the words nor carried.
    """
    named = list(map(str, words))
    context = click.get_current_context(silent=True)
    carried = {} if context is None else _carried(context, command, named)
    if model is not None and "--model" not in named:
        carried.setdefault("--model", ["--model", model])
    line = ["harness", *command.split(), *carried.pop("--model", []), *named, *(word for own in carried.values() for word in own)]
    return f"`{' '.join(map(shlex.quote, line))}`"


def _carried(context: click.Context, command: str, named: list[str]) -> dict[str, list[str]]:
    """Option -> its words, of what was given to the command under way and goes with `command` too."""
    taken: click.Command | None = context.find_root().command
    for name in command.split():
        taken = taken.get_command(context, name) if isinstance(taken, click.Group) else None
    takes = {(option, p.multiple) for p in taken.params if isinstance(p, click.Option) for option in p.opts} if taken else set()
    found: dict[str, list[str]] = {}
    for p in context.command.params:
        option, name = next((o for o in p.opts if o in CARRIED), ""), p.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and option not in named and isinstance(p, click.Option) and (option, p.multiple) in takes:
            if p.is_flag:
                found[option] = [option]
                continue
            values = context.params[name] if p.multiple else [context.params[name]]
            found[option] = [str(word) for value in values for word in (option, value)]
    return found
