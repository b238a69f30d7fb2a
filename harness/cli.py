"""The command line: the commands by what one does with them.

User errors are one line and exit 2. Ctrl-C exits 130 and SIGTERM 143, with one line that says what is kept and how to go on.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any, NoReturn, TypeVar

import click

import harness
from harness.common.errors import ToldElsewhere, TriedToExit, UserError, in_one_line, users_code
from harness.common.shadow import check_packages
from harness.common.stopping import Stop, Stopped, stoppable
from harness.common.users_files import place_in_users_file

# A command is the `command` of a module of harness.commands. What needs torch, transformers or pandas is imported inside it:
# `--help` and bad options answer at once.
WORKFLOW: dict[str, Sequence[str]] = {
    "Prepare": ("list", "fetch", "data"),
    "Measure": ("run", "matrix", "reproduce", "replay", "tune", "profile", "costs", "predict", "merge", "status"),
    "Check": ("verify", "localise", "claims"),
    "Show": ("table", "plot", "report"),
    "Train": ("train", "train-policy"),
    "Exchange": ("import", "export", "export-head"),
}
MODULES = {"import": "import_", "export-head": "export_head", "train-policy": "train_policy"}

T = TypeVar("T")

GOES_ON = "the same command goes on from here"
RECORDS_KEPT = f"the records written are whole; {GOES_ON}"
KEPT = {
    "run": RECORDS_KEPT,
    "matrix": RECORDS_KEPT,
    "reproduce": RECORDS_KEPT,
    "verify": f"the findings written are whole; {GOES_ON} (with --mutants it begins anew)",
    "tune": f"the options saved so far are kept; with --method all {GOES_ON}, methods that are named are tuned anew",
    "replay": f"the answers, pools and replays written are whole; {GOES_ON}",
    "train": f"whole shards are kept, and a checkpoint from every two minutes of training; {GOES_ON}",
    "merge": f"what was copied is whole; {GOES_ON}",
    "fetch": f"what was fetched whole is kept; {GOES_ON}",
}
NOTHING_KEPT = "no file is half written; the same command begins anew"
"""What a stopped command leaves, and how to go on: `KEPT` by command, of all others `NOTHING_KEPT`."""


class Ended(Exception):
    """In place of `Stopped`: click has an answer of its own to a `KeyboardInterrupt`, an empty line."""


class Commands(click.Group):
    """Commands that are imported when they are asked for, listed by workflow."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in WORKFLOW.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands or cmd_name not in self.list_commands(ctx):
            return self.commands.get(cmd_name)
        return _command(f"harness.commands.{MODULES.get(cmd_name, cmd_name)}")

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Stopped as e:
            raise Ended from e

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in WORKFLOW.items():
            commands = [(name, command) for name in names if (command := self.get_command(ctx, name))]
            with formatter.section(title):
                formatter.write_dl([(name, command.get_short_help_str(limit=200)) for name, command in commands])


@cache
def _command(module: str) -> click.Command:
    """A command that ends by returning its status, or by an error: `sys.exit(0)` somewhere in it is no success."""
    found: click.Command = importlib.import_module(module).command
    for one in (found, *(found.commands.values() if isinstance(found, click.Group) else ())):
        if one.callback is not None:
            one.callback = _returning(one.callback)
    return found


def _returning(callback: Callable[..., T]) -> Callable[..., T]:
    @wraps(callback)
    def returning(*args: Any, **kwargs: Any) -> T:
        try:
            with users_code():
                return callback(*args, **kwargs)
        except click.exceptions.Exit as e:
            raise TriedToExit(f"{in_one_line(e)} would have ended the command") from e

    return returning


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(harness.__version__, prog_name="harness")
def cli() -> None:
    """Decoding methods x tasks x models: timed against plain decoding on one budget, checked, recorded."""


def main() -> None:
    """Entry point of `harness`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding, a name that is no UTF-8: shown as \u03c4
            stream.reconfigure(errors="backslashreplace")
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    stop, line = Stop(), f"interrupted: {KEPT.get(name, NOTHING_KEPT)}"
    try:
        with stoppable(stop, line):
            _carry_out()
    except (Stopped, KeyboardInterrupt, click.exceptions.Abort):
        pass
    except Exception:
        if stop.number is None:  # else a library made it of `Stopped`, as C extensions do while they are imported
            raise
    click.echo(line, err=True)
    sys.exit(stop.status)


def _carry_out() -> NoReturn:
    """The command that `sys.argv` asks for. What a user can mend is told in one line.

    The status is what the command returns (None is 0): it ends in no other way than by an error.
    """
    try:
        check_packages()
        # not standalone: click would end a Ctrl-C with status 1
        status = cli.main(prog_name="harness", standalone_mode=False) or 0
    except Ended:
        raise
    except TriedToExit as e:
        _fail(f"{e}, before it was done: nothing is to be concluded from what it printed", 1)
    except ToldElsewhere:
        sys.exit(2)
    except UserError as e:
        _fail(str(e), 2)
    except click.exceptions.NoArgsIsHelpError as e:  # `harness` alone: its message is the help
        e.show()
        sys.exit(e.exit_code)
    except click.UsageError as e:
        _fail(f"{e.format_message()} (`{e.ctx.command_path if e.ctx else 'harness'} -h` shows what there is)", e.exit_code)
    except click.ClickException as e:
        _fail(e.format_message(), e.exit_code)
    except OSError as e:  # a full disk, a folder that cannot be written: nothing a traceback would explain better
        _fail(f"{e.strerror or e}{f': {e.filename}' if e.filename else ''}", 2)
    except Exception as e:
        if (where := place_in_users_file(e)) is None:
            raise
        _fail(f"{where}: {in_one_line(e)}", 2)
    sys.exit(status)


LONGEST = 1200  # characters of an error: a name out of a file may be of any length


def _fail(message: str, code: int) -> NoReturn:
    """One line, whatever the message: scripts that run this look for a line that begins with `error:`."""
    line = " ".join(message.split())
    click.echo(f"error: {line if len(line) <= LONGEST else f'{line[: LONGEST - 300]} ... {line[-295:]}'}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
