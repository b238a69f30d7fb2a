"""Computations that a GPU records once and replays: a step's hundreds of launches become one.

What is recorded reads its inputs from the same buffers each time and writes to the same. Whoever calls fills the buffers before,
and takes what it needs out of the results before the next replay.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
WARM_UPS = 2  # before a recording: kernels are chosen and memory is taken


class Replayer:
    """Records computations by key and replays them. On a CPU, and where recording was refused, it just runs them.

    Its recordings share one pool of memory, which nobody else's do: what one of them gave is good until another is replayed.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.records = device.type == "cuda"
        self.refused: str | None = None
        self._known: dict[Hashable, tuple[Any, Any]] = {}
        self._pool: Any = None

    def __call__(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The results of `compute`, in buffers that the next replay of the key overwrites.

        key: whatever decides which operations run, on which shapes and which buffers.
        """
        if not self.records:
            return compute()
        if key not in self._known:
            try:
                self._known[key] = self._recorded(compute)
            except RuntimeError as e:  # by the driver, or an operation that cannot be recorded
                self.refused = str(e).splitlines()[0] if str(e) else type(e).__name__
                self.records = False
                print(f"no CUDA graphs ({self.refused}): steps are launched call by call, which is slower", file=sys.stderr)
                return compute()
        graph, results = self._known[key]
        graph.replay()
        found: T = results
        return found

    def _recorded(self, compute: Callable[[], T]) -> tuple[Any, T]:
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                compute()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = compute()
        return graph, results

    def forget(self) -> None:
        """Drop all recordings: the buffers that they read are gone."""
        self._known.clear()
        self._pool = None  # one whose recordings are all gone takes no new ones


def bucket(n: int, sizes: tuple[int, ...]) -> int | None:
    """The least of the sizes that holds n; None where none does."""
    return next((size for size in sizes if size >= n), None)
