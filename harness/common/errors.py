"""What a user is told: errors they can mend (one line, exit code not zero; everything else is a bug), and progress."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from harness.common.stopping import Stopped


class UserError(Exception):
    """Something the user can mend: the message is one line with what was wrong, the value and the choices."""


class ToldElsewhere(UserError):
    """One that another process tells: this one ends with it, and says nothing."""


class TriedToExit(Exception):
    """A user's code raised what would have ended the command: `sys.exit()`, or another error that is no `Exception`."""


@contextmanager
def users_code() -> Iterator[None]:
    """Around every call of code that a user may have written: whatever it raises is an ordinary error then.

    A user's code may fail a prompt or a file, never the command: `sys.exit(0)` in it is no success. Ctrl-C passes.

    Raises:
        TriedToExit: in place of `SystemExit`, and of all else that is neither an `Exception` nor the user's own stopping.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, Stopped):
        raise
    except BaseException as e:
        if isinstance(e, GeneratorExit) and e.__traceback__ and e.__traceback__.tb_next is None:  # Ctrl-C closes this very block
            raise
        raise TriedToExit(f"{in_one_line(e)} would have ended the command") from e


def in_one_line(error: BaseException, most: int = 300) -> str:
    """`ValueError: what it said`, whatever it is: the first line, at most so many characters."""
    try:
        said = " ".join((str(error).strip().splitlines() or [""])[0].split())
    except (KeyboardInterrupt, Stopped):
        raise
    except BaseException:  # a user's error may have no text, or leave instead of telling it
        said = ""
    line = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return line if len(line) <= most else line[: most - 3] + "..."


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """`unknown method 'eagel2'; did you mean 'eagle2'? known: eagle1, eagle2, vanilla`."""
    choices, name = sorted(known), name if len(name) <= 200 else f"{name[:197]}..."
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r};{hint} known: {', '.join(choices) or 'none'}")


def say(text: str) -> None:
    """Progress, on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `2.5 h`."""
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
