"""Progress of work that measures nothing, on stderr only: a bar on a terminal, elsewhere a line about every 10 seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from harness.common.errors import duration, say

FIRST_S, EVERY_S = 5.0, 10.0  # when the first line comes, and how long after it the next

T = TypeVar("T")


class Progress:
    """Steps of one piece of work. All steps count alike, so the time left is a rough figure."""

    def __init__(self, what: str):
        self.what = what
        self.total = 0
        self.done = 0
        self.name = ""  # of the step under way
        self._started = time.monotonic()

    def expect(self, n_steps: int) -> None:
        """So many more steps than known before."""
        self.total += n_steps

    def each(self, items: Sequence[T], name: str) -> Iterator[T]:
        """The items, a step each."""
        self.expect(len(items))
        for i, item in enumerate(items):
            self.step(f"{name} {i + 1} of {len(items)}")
            yield item

    def step(self, name: str) -> None:
        """Begin the next step; the one before is done."""
        if self.name:
            self.done += 1
        self.name = name

    def line(self) -> str:
        """`report: 3 of 9 steps, now cells; 20 s spent, about 40 s left`."""
        spent = time.monotonic() - self._started
        left = f", about {duration(spent / self.done * max(self.total - self.done, 1))} left" if self.done else ""
        return f"{self.what}: {self.done} of {max(self.total, self.done)} steps, now {self.name}; {duration(spent)} spent{left}"


@contextmanager
def showing_progress(what: str) -> Iterator[Progress]:
    """Show on stderr how far the block is. A block of under 5 seconds shows no line, and a bar is wiped out at its end.

    A thread draws it, so this is for work whose time is not measured.
    """
    progress, ended = Progress(what), threading.Event()
    drawer = threading.Thread(target=_bar if sys.stderr.isatty() else _lines, args=(progress, ended), daemon=True)
    drawer.start()
    try:
        yield progress
    finally:
        ended.set()
        drawer.join()


def _lines(progress: Progress, ended: threading.Event) -> None:
    wait_s = FIRST_S
    while not ended.wait(wait_s):
        say(progress.line())
        wait_s = EVERY_S


def _bar(progress: Progress, ended: threading.Event) -> None:
    if ended.wait(1.0):  # short work needs no bar
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn(progress.what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
               TimeRemainingColumn(), TextColumn("{task.description}"))  # fmt: skip
    with RichProgress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        row = bar.add_task("", total=None)
        while True:
            bar.update(row, description=progress.name, completed=progress.done, total=progress.total or None, refresh=True)
            if ended.wait(0.25):
                return
