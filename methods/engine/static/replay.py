"""Computations that a GPU records once and replays: a step's hundreds of launches become one.

What is recorded reads its inputs from the same buffers each time and writes to the same. Whoever calls fills the buffers before,
and takes what it needs out of the results before the next replay.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")
WARM_UPS = 2  # before a recording: kernels are chosen and memory is taken


@dataclass(slots=True)
class Recording:
    """What all replayers of a target and its drafters have in common: whether they record, why not, and how often they did."""

    on: bool
    refused: str | None = None
    n_made: int = 0


class Replayer:
    """Records computations by key and replays them. On a CPU, and where recording was refused, it just runs them.

    Its recordings share one pool of memory, which nobody else's do: what one of them gave is good until another is replayed.
    Only what lies in a buffer that was there before a recording is good for longer. beside: another whose `recording` it shares.
    """

    def __init__(self, device: torch.device, beside: Replayer | None = None):
        self.device = device
        self.recording: Recording = Recording(device.type == "cuda") if beside is None else beside.recording
        self._known: dict[Hashable, tuple[Any, Any]] = {}
        self._pool: Any = None

    @property
    def records(self) -> bool:
        """Whether graphs are made and replayed here."""
        return self.recording.on

    def __call__(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The results of `compute`, in buffers that the next replay of the key overwrites.

        key: whatever decides which operations run, on which shapes and which buffers.
        """
        self.prepare(key, compute)
        if not self.records:
            return compute()
        graph, results = self._known[key]
        graph.replay()
        found: T = results
        return found

    def prepare(self, key: Hashable, compute: Callable[[], Any]) -> None:
        """Record `compute` if its key is not known yet. It is run, more than once: so it must be one that may be."""
        if not self.records or key in self._known:
            return
        try:
            self._known[key] = self._recorded(compute)
            self.recording.n_made += 1
        except RuntimeError as e:  # by the driver, for want of memory, or an operation that cannot be recorded
            why = str(e).splitlines()[0] if str(e) else type(e).__name__
            self.recording.on, self.recording.refused = False, why
            print(f"no CUDA graphs ({why}): steps are launched call by call, which is slower", file=sys.stderr)
            self.forget()

    def knows(self, key: Hashable) -> bool:
        """Whether a call with this key records nothing."""
        return not self.records or key in self._known

    def _recorded(self, compute: Callable[[], T]) -> tuple[Any, T]:
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    compute()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                results = compute()
        return graph, results

    def forget(self) -> None:
        """Drop all recordings: the buffers that they read are gone."""
        self._known.clear()
        self._pool = None  # one whose recordings are all gone takes no new ones


def bucket(n: int, sizes: tuple[int, ...]) -> int | None:
    """The least of the sizes that holds n; None where none does."""
    return next((size for size in sizes if size >= n), None)
