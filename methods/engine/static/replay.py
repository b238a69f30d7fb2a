"""Computations that a GPU records once and replays: a step's hundreds of launches become one.

What is recorded reads its inputs from the same buffers each time and writes to the same. Whoever calls fills the buffers before,
and takes what it needs out of the results before the next replay.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakSet

import torch

T = TypeVar("T")
WARM_UPS = 2  # before a recording: kernels are chosen and memory is taken


@dataclass(slots=True)
class Recording:
    """What all replayers of a target and its drafters have in common.

    on: whether they record. refused: why they do no longer. n_tried: recordings so far, the refused one included: its warm-ups
    take time, too. is_prepared: what a run needs was recorded. refused_late: they were refused after that.
    """

    on: bool
    refused: str | None = None
    n_tried: int = 0
    is_prepared: bool = False
    refused_late: bool = False
    replayers: WeakSet[Replayer] = field(default_factory=WeakSet)


class Replayer:
    """Records computations by key and replays them. On a CPU, and where recording was refused, it just runs them.

    Its recordings share one pool of memory, which nobody else's do: what one of them gave is good until another is replayed.
    Only what lies in a buffer that was there before a recording is good for longer. beside: another whose `recording` it shares.
    """

    def __init__(self, device: torch.device, beside: Replayer | None = None):
        self.device = device
        self.recording: Recording = Recording(device.type == "cuda") if beside is None else beside.recording
        self.recording.replayers.add(self)
        self._known: dict[Hashable, tuple[Any, Any]] = {}
        self._pool: Any = None
        self._side: Any = None  # the stream that all its recordings are made on: each stream holds memory of its own

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
        self.recording.n_tried += 1
        try:
            self._known[key] = self._recorded(compute)
        except RuntimeError as e:  # by the driver, for want of memory, or an operation that cannot be recorded
            self._refuse(str(e).splitlines()[0] if str(e) else type(e).__name__)

    def _refuse(self, why: str) -> None:
        """No more recordings, of any replayer; those there are give their memory back."""
        all_of_them = self.recording
        all_of_them.on, all_of_them.refused, all_of_them.refused_late = False, why, all_of_them.is_prepared
        print(f"no CUDA graphs ({why}): steps are launched call by call, which is slower", file=sys.stderr)
        for replayer in all_of_them.replayers:
            replayer.forget()

    def knows(self, key: Hashable) -> bool:
        """Whether a call with this key records nothing."""
        return not self.records or key in self._known

    def _recorded(self, compute: Callable[[], T]) -> tuple[Any, T]:
        # `torch.cuda.graph` leaves its stream the current one where the recording cannot be ended: the outer `stream` does not
        with torch.cuda.device(self.device), torch.cuda.stream(torch.cuda.current_stream(self.device)):
            if self._side is None:
                self._side = torch.cuda.Stream()
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                for _ in range(WARM_UPS):
                    compute()
            torch.cuda.current_stream().wait_stream(self._side)
            graph = torch.cuda.CUDAGraph()
            with own_workspaces(), torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
                results = compute()
        return graph, results

    def forget(self) -> None:
        """Drop all recordings: the buffers that they read are gone."""
        self._known.clear()
        self._pool = None  # one whose recordings are all gone takes no new ones


@contextmanager
def own_workspaces() -> Iterator[None]:
    """What cuBLAS works in while something is recorded lies in the recording's pool. So nothing is lost to it when `let_go` of
    `harness.load.placement` frees what cuBLAS keeps."""
    drop_workspaces()
    try:
        yield
    finally:
        drop_workspaces()


def drop_workspaces() -> None:
    """Let go of the memory that cuBLAS keeps a stream to work in; the next product takes some anew. CUDA only."""
    torch._C._cuda_clearCublasWorkspaces()


def bucket(n: int, sizes: tuple[int, ...]) -> int | None:
    """The least of the sizes that holds n; None where none does."""
    return next((size for size in sizes if size >= n), None)
