"""Ctrl-C and SIGTERM: a command ends where it is, and its exit status says which of the two it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by a signal that asks to stop. Cleaning up may handle it, but has to raise it again."""


class Stop:
    """Whether the process was asked to stop: `number` is the signal's, None as long as none came."""

    number: int | None = None

    @property
    def status(self) -> int:
        """The exit status: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + (self.number or signal.SIGINT)


@contextmanager
def stoppable(stop: Stop, line: str) -> Iterator[None]:
    """In the block the first signal is noted in `stop` and raises `Stopped`; a second one prints `line` and ends at once.

    A signal that the process was started with as ignored (`nohup`, a job in the background) stays ignored.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.number is not None:
            os.write(2, f"{line}\n".encode())
            os._exit(stop.status)
        stop.number = number
        raise Stopped

    old = {n: handler for n in SIGNALS if (handler := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
    for number in old:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def draining(line: str) -> Iterator[Callable[[], bool]]:
    """In the block the first signal is noted alone, and `line` printed: what is given says whether it came. The second does what
    it did before the block. At the end of the block the first does so, too: what was under way is done by then."""
    old = {int(n): handler for n in SIGNALS if (handler := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
    came: list[int] = []

    def before(number: int, frame: FrameType | None) -> None:
        handler = old[number]
        (handler if callable(handler) else signal.default_int_handler)(number, frame)

    def handle(number: int, frame: FrameType | None) -> None:
        if came:
            before(number, frame)
        came.append(number)
        os.write(2, f"{line}\n".encode())

    for number in old:
        signal.signal(number, handle)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if came:
        before(came[0], None)
