"""How fast a step could be at best: the bytes of the weights over the bandwidth of the memory, as the engine reads it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from harness.load.model import Loaded
from methods.engine.native import pages
from methods.engine.native.library import read_rate
from methods.engine.native.target import NativeTarget


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The time that no plain step beats: every weight of the target is read once."""

    weight_bytes: int
    bandwidth: float  # bytes per second

    @property
    def step_ms(self) -> float:
        """Milliseconds of reading the weights."""
        return 1e3 * self.weight_bytes / self.bandwidth


def ceiling(loaded: Loaded, megabytes: int = 512) -> Ceiling:
    """The ceiling on this machine, with as many threads as decode. The bandwidth is measured, the best of seven tries.

    On the native engine a block in the pages of its weights is read by its own loop; elsewhere a block is summed, and copied.
    """
    body = loaded.target.model.model
    n = sum(p.numel() for p in body.layers.parameters()) + loaded.target.lm_head.weight.numel()
    size = loaded.target.lm_head.weight.element_size()
    where = loaded.target.device
    if isinstance(loaded.target, NativeTarget):
        huge = pages.empty((megabytes * 2**20,), torch.uint8).fill_(1)
        library, threads = loaded.target.library, torch.get_num_threads()
        return Ceiling(n * size, max(read_rate(library, huge, threads) for _ in range(7)))
    block = torch.ones(megabytes * 2**18, device=where)
    other = torch.empty_like(block)

    def best(work: Callable[[], object], moved: int) -> float:
        rates = []
        for _ in range(7):
            loaded.target.synchronise()
            started = time.perf_counter()
            work()
            loaded.target.synchronise()
            rates.append(moved / (time.perf_counter() - started))
        return max(rates)

    n_bytes = block.numel() * 4
    return Ceiling(n * size, max(best(lambda: block.sum(), n_bytes), best(lambda: other.copy_(block), 2 * n_bytes)))
