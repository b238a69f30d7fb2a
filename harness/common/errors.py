"""What a user is told: errors they can mend (one line, exit code not zero; everything else is a bug), and progress."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: the message is one line with what was wrong, the value and the choices."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """`unknown method 'eagel2'; did you mean 'eagle2'? known: eagle1, eagle2, vanilla`."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r};{hint} known: {', '.join(choices) or 'none'}")


def say(text: str) -> None:
    """Progress, on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `2.5 h`."""
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
