"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from harness.common.errors import duration, say


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C: the prompt under way is dropped, what is written stays whole.

    Where somebody else handles SIGTERM, as the command line does, nothing changes; nor outside the main thread.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


Work = tuple[int, str]  # which run, which method

Progress = tuple[Callable[[str], None], Callable[[Work], None]]


@contextmanager
def progress(total: int, estimate: dict[Work, float], missing: dict[Work, int]) -> Iterator[Progress]:
    """A bar with time left on a terminal, else a plain line about every twentieth of the work."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                   TextColumn("{task.description}"))  # fmt: skip
        # drawn between generations only: a thread that redraws would run inside the intervals that are measured
        with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
            row = bar.add_task("", total=total)
            yield (
                lambda text: bar.update(row, description=text, refresh=True),
                lambda _: bar.update(row, advance=1, refresh=True),
            )
        return
    done, started, shown = 0, time.monotonic(), 0
    left = dict(missing)
    guessed_total = sum(estimate[m] * n for m, n in missing.items()) or 1.0

    def advance(name: Work) -> None:
        nonlocal done, shown
        done += 1
        left[name] -= 1
        if done * 20 // total > shown or done == total:
            shown = done * 20 // total
            spent = time.monotonic() - started
            to_go = sum(estimate[m] * n for m, n in left.items())
            so_far = guessed_total - to_go
            left_s = f", {duration(spent * to_go / so_far)} left" if so_far > 1e-6 * guessed_total else ""
            say(f"{done}/{total} generations, {duration(spent)} spent{left_s}")

    yield lambda _: None, advance
