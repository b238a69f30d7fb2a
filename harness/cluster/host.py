"""What runs in a worker's process: it tells what it is, makes the bench that does the work, and sends its messages."""

from __future__ import annotations

import gc
import importlib
import io
import os
import platform
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple, Protocol

from harness.cluster.facts import Asked, facts_here
from harness.common.errors import UserError, in_one_line


class Message(NamedTuple):
    """From a worker. `kind`: one of those below, or one that the bench and the desk know."""

    kind: str
    body: Any


FACTS, OPENED, LINE = "facts", "opened", "line"
REFUSED = "refused"  # the worker cannot begin, and says why in a line
FAILED = "failed"  # the work itself cannot be done, by any worker
CRASHED = "crashed"  # an error that is a bug: the worker is not used any more

Send = Callable[[str, Any], None]


class Bench(Protocol):
    """Does the work in a worker, one item after another: `opened` goes to the desk when it is made."""

    opened: Any

    def do(self, item: Any, send: Send) -> None: ...


class Host:
    """Lives in a worker's process; each call gives messages as they are made.

    Its own thread makes the bench and does the work: torch's settings are a thread's. It waits until a message was taken before
    it goes on, so that nothing of sending runs inside an interval that is measured.
    """

    def __init__(self) -> None:
        self._asked: queue.Queue[Callable[[], None]] = queue.Queue()
        self._told: queue.Queue[Message | None] = queue.Queue()
        self._bench: Bench | None = None
        threading.Thread(target=self._work, daemon=True).start()

    def hello(self, asked: Asked) -> Iterator[Message]:
        yield from self._messages(lambda: self._send(FACTS, facts_here(asked)), REFUSED)

    def open(self, maker: str, setup: Any, slot: int, threads: int, env: Mapping[str, str]) -> Iterator[Message]:
        """Make the bench: `maker` is MODULE:FUNCTION, called with `setup`. slot: this worker's number on its machine."""

        def make() -> None:
            os.environ.update(env, OMP_NUM_THREADS=str(threads))  # before torch is there, which reads it once
            pin(slot, threads)
            to_the_front(lambda text: self._send(LINE, text))
            module, _, name = maker.partition(":")
            self._bench = getattr(importlib.import_module(module), name)(setup)
            gc.freeze()  # else a collection, inside an interval, looks at all that was loaded: 0.2 s
            self._send(OPENED, self._bench.opened)

        yield from self._messages(make, REFUSED)

    def do(self, item: Any) -> Iterator[Message]:
        assert self._bench is not None
        bench = self._bench
        yield from self._messages(lambda: bench.do(item, self._send), FAILED)

    def _messages(self, work: Callable[[], None], refusal: str) -> Iterator[Message]:
        """What `work` sends, what it prints, and what it ends with if not well; an error that users can mend is a `refusal`."""

        taker = threading.get_ident()  # what it prints itself is no message: it would wait for itself to take it

        def line(text: str) -> None:
            if threading.get_ident() == taker:
                print(text, file=sys.__stderr__)
            else:
                self._send(LINE, text)

        def guarded() -> None:
            lines = _Lines(line)
            try:
                with redirect_stdout(lines), redirect_stderr(lines):
                    work()
            except UserError as e:
                self._send(refusal, str(e))
            except BaseException as e:
                traceback.print_exc(file=sys.__stderr__)  # in Ray's log of the worker
                self._send(CRASHED, in_one_line(e))

        self._asked.put(guarded)
        while (message := self._told.get()) is not None:
            yield message
            self._told.task_done()
        self._told.task_done()

    def _send(self, kind: str, body: Any) -> None:
        self._told.put(Message(kind, body))
        self._told.join()

    def _work(self) -> None:
        while True:
            self._asked.get()()
            self._told.put(None)


def pin(slot: int, threads: int) -> None:
    """Keep this thread, and those it starts, to the cores of its slot: `threads` of those that the process may use."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[(slot * threads + i) % len(cores)] for i in range(threads)})


def to_the_front(line: Callable[[str], None]) -> None:
    """Ray starts workers at nice 15 unless RAY_worker_niceness says otherwise where a node is started: other work comes first."""
    if (nice := os.getpriority(os.PRIO_PROCESS, 0)) > 0:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        except OSError:
            line(f"note: workers on {platform.node()} run at nice {nice}, so that any other work there slows them: "
                 "start its node with RAY_worker_niceness=0")  # fmt: skip


class _Lines(io.TextIOBase):
    """Takes what is printed, and hands on each whole line."""

    def __init__(self, line: Callable[[str], None]) -> None:
        self._line, self._text = line, ""

    def write(self, text: str) -> int:
        *lines, self._text = (self._text + text).split("\n")
        for line in lines:
            if line.strip():
                self._line(line)
        return len(text)
