"""How fast a step could be at best: the bytes of the weights over the bandwidth of the memory, as the engine reads it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from harness.common.errors import UserError, say
from harness.load.model import Loaded
from harness.load.placement import WORKSPACE, gb, let_go
from methods.engine.native import pages
from methods.engine.native.library import read_rate
from methods.engine.native.target import NativeTarget

BLOCK = 512 << 20  # bytes: many times a CPU's caches
GPU_BLOCK = 4 << 30  # on a GPU a smaller one is over before its memory is at full speed
LEAST_BLOCK = 256 << 20  # on a GPU: several times its largest cache
TRIES = 7


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The time that no plain step beats: every weight of the target is read once."""

    weight_bytes: int
    bandwidth: float  # bytes per second

    @property
    def step_ms(self) -> float:
        """Milliseconds of reading the weights."""
        return 1e3 * self.weight_bytes / self.bandwidth


def ceiling(loaded: Loaded, megabytes: int | None = None) -> Ceiling:
    """The ceiling on this machine, with as many threads as decode. The bandwidth is measured, the best of seven tries.

    On the native engine a block in the pages of its weights is read by its own loop; elsewhere a block is summed, and copied.
    megabytes: of a block; None: 512, on a GPU 4,096 or what half of its free memory holds.

    Raises:
        UserError: a GPU has too little memory left to measure with.
    """
    body = loaded.target.model.model
    n = sum(p.numel() for p in body.layers.parameters()) + loaded.target.lm_head.weight.numel()
    size = loaded.target.lm_head.weight.element_size()
    where = loaded.target.device
    n_bytes = megabytes << 20 if megabytes is not None else gpu_block(where) if where.type == "cuda" else BLOCK
    if isinstance(loaded.target, NativeTarget):
        huge = pages.empty((n_bytes,), torch.uint8).fill_(1)
        library, threads = loaded.target.library, torch.get_num_threads()
        return Ceiling(n * size, max(read_rate(library, huge, threads) for _ in range(TRIES)))
    return Ceiling(n * size, bandwidth(where, n_bytes))


def gpu_block(device: torch.device) -> int:
    """Bytes of a block that a GPU's bandwidth is measured with, of which it holds two; one line where few are free.

    Raises:
        UserError: too few.
    """
    let_go()
    free = torch.cuda.mem_get_info(device)[0] - WORKSPACE
    block = min(GPU_BLOCK, free // 2 >> 20 << 20)
    if block < LEAST_BLOCK:
        raise UserError(f"the memory's bandwidth takes {gb(2 * LEAST_BLOCK + WORKSPACE)} of free memory on {device}; "
                        f"{gb(free + WORKSPACE)} are free")  # fmt: skip
    if block < GPU_BLOCK:
        say(f"the memory's bandwidth is measured with blocks of {gb(block)} and not {gb(GPU_BLOCK)}: no more is free")
    return block


def bandwidth(device: torch.device, n_bytes: int) -> float:
    """Bytes per second: the best of summing a block of `n_bytes`, and of copying it."""
    block = torch.ones(n_bytes // 4, device=device)
    other = torch.empty_like(block)
    seconds = _device_seconds if device.type == "cuda" else _seconds

    def best(work: Callable[[], object], moved: int) -> float:
        return max(moved / seconds(work, device) for _ in range(TRIES))

    return max(best(lambda: block.sum(), n_bytes), best(lambda: other.copy_(block), 2 * n_bytes))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _device_seconds(work: Callable[[], object], device: torch.device) -> float:
    """By the device's own clock: the launch is not in it."""
    stream = torch.cuda.current_stream(device)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record(stream)
    work()
    ended.record(stream)
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3
