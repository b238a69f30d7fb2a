"""Calls of several threads, run together once all of the threads wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(slots=True)
class Call:
    """What a lane waits for."""

    kind: str
    arguments: Any
    result: Any = None
    error: BaseException | None = None
    is_done: bool = False


class Gathering:
    """Calls of `n` threads, run together once all of the threads wait.

    runs: kind of call -> what runs all waiting calls of that kind at once. It takes their arguments and returns a result each.
    The first kind that any thread waits for is run. So `runs` names first what a lane does between its forwards: the lane
    catches up with the others, and the next forward is of all lanes.
    """

    def __init__(self, n: int, runs: dict[str, Callable[[list[Any]], Sequence[Any]]]):
        self._n, self._runs, self._calls, self._is_over = n, runs, list[Call](), False
        self._changed = threading.Condition()

    def __call__(self, kind: str, arguments: Any) -> Any:
        mine = Call(kind, arguments)
        with self._changed:
            self._calls.append(mine)
            self._run_if_all_wait()
            while not (mine.is_done or self._is_over):
                self._changed.wait()
        if not mine.is_done:
            raise KeyboardInterrupt
        if mine.error is not None:
            raise mine.error
        return mine.result

    def end(self) -> None:
        """Stop every wait: those who wait raise KeyboardInterrupt."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def leave(self) -> None:
        """Say that this thread asks for nothing more."""
        with self._changed:
            self._n -= 1
            self._run_if_all_wait()

    def _run_if_all_wait(self) -> None:
        if self._is_over or not self._calls or len(self._calls) < self._n:
            return
        kind = next(k for k in self._runs if any(c.kind == k for c in self._calls))
        now = [c for c in self._calls if c.kind == kind]
        self._calls = [c for c in self._calls if c.kind != kind]
        try:
            with torch.inference_mode():
                for call, result in zip(now, self._runs[kind]([c.arguments for c in now]), strict=True):
                    call.result = result
        except BaseException as e:  # all of them are told: one call may have spoilt the others
            for call in now:
                call.error = e
        for call in now:
            call.is_done = True
        self._changed.notify_all()
