"""Memory in 2 MB pages where the kernel grants them: weights are then read from memory up to 1.7 times as fast.

Both halves ask by madvise: MADV_HUGEPAGE has the first touch of 2 MB get one page, MADV_COLLAPSE (Linux 6.1) makes one page of
512 small ones that are there. Where neither is granted, and on other systems, the memory is ordinary.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

HUGE = 1 << 21
COLLAPSE = 25  # MADV_COLLAPSE, which Python's mmap does not name
CHUNK = 64 << 20  # small tensors share mappings of this size; only what is used of it is ever touched
LINE = 64  # bytes of a line of the CPU's caches, at which each tensor starts
LARGE = 8 << 20  # bytes in use, from which on a mapping is worth collapsing


class _Chunk:
    """An anonymous private mapping that starts at a multiple of 2 MB, handed out from its start on."""

    def __init__(self, size: int):
        # MAP_PRIVATE: Python's default is shared memory, which gets its pages by other rules.
        self.memory = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.first = -start % HUGE
        self.end = self.first + size
        self.used = self.touched = self.first
        _advise(self.memory, mmap.MADV_HUGEPAGE, self.first, size)

    def take(self, size: int) -> int:
        """The offset of so many bytes; the pages they lie in are there."""
        at = self.used
        self.used += -(-size // LINE) * LINE
        begun = self.touched
        while self.touched < self.used:
            self.memory[self.touched] = 0
            self.touched += HUGE
        if self.touched > begun:  # those that the touch did not get whole
            _advise(self.memory, COLLAPSE, begun, self.touched - begun)
        return at


# The one that small tensors share now. A name that is bound anew would look like one that a user's file replaced.
_small: list[_Chunk] = []
_lock = threading.Lock()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor on the CPU, its values undefined, in 2 MB pages where the kernel grants them; at a multiple of 64 bytes.

    Small ones share a mapping. A mapping is freed with the last of its tensors.
    """
    size = math.prod(shape) * dtype.itemsize
    if size == 0 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype)
    with _lock:
        if size > CHUNK // 4:
            chunk = _Chunk(-(-size // HUGE) * HUGE)
        else:
            if not _small or _small[0].used + size > _small[0].end:
                _small[:] = [_Chunk(CHUNK)]
            chunk = _small[0]
        at = chunk.take(size)
    flat = torch.frombuffer(chunk.memory, dtype=torch.uint8, count=size, offset=at)  # which keeps the mapping
    return flat.view(dtype).view(shape)


def _advise(memory: mmap.mmap, advice: int, at: int, size: int) -> None:
    try:
        memory.madvise(advice, at, size)
    except (OSError, ValueError):  # not granted, or a kernel that does not know it
        pass


@dataclass(frozen=True, slots=True)
class _Mapping:
    """A line of /proc/self/smaps with what follows it. start, end: addresses; resident, huge: bytes."""

    start: int
    end: int
    is_anonymous: bool  # private, writable, and of no file: what malloc and mmap hand out
    resident: int
    huge: int


def _mappings() -> Iterator[_Mapping]:
    """Of this process; none where there is no /proc."""
    try:
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
            lines = file.readlines()
    except OSError:
        return
    head: list[str] = []
    resident = 0
    for line in lines:
        words = line.split()
        if not words[0].endswith(":"):
            head = words
        elif words[0] == "Rss:":
            resident = int(words[1]) << 10
        elif words[0] == "AnonHugePages:":
            start, end = (int(word, 16) for word in head[0].split("-"))
            named = head[5] if len(head) > 5 else ""
            anonymous = head[1] == "rw-p" and (named in ("", "[heap]") or named.startswith("[anon:"))
            yield _Mapping(start, end, anonymous, resident, int(words[1]) << 10)


def granted(tensor: Tensor) -> float:
    """The share of a tensor's memory that is in 2 MB pages: that of the mappings it lies in, as the kernel says no more."""
    start = tensor.data_ptr()
    end = start + tensor.numel() * tensor.element_size()
    return _share([m for m in _mappings() if m.start < end and start < m.end])


def collapse_large() -> float:
    """Ask for 2 MB pages for all of this process's large anonymous memory that is in use; the share that is in such pages.

    For memory whose address nobody tells, as that of oneDNN's packed weights. Call it once weights are loaded; never raises.
    """
    try:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError, TypeError):
        return 0.0
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for m in (m for m in _mappings() if m.is_anonymous and m.resident >= LARGE):
        first, last = -(-m.start // HUGE) * HUGE, m.end // HUGE * HUGE
        for advice in (getattr(mmap, "MADV_HUGEPAGE", 14), COLLAPSE):
            madvise(first, last - first, advice)  # what is not granted stays as it is
    return _share([m for m in _mappings() if m.is_anonymous and m.resident >= LARGE])


def _share(mappings: list[_Mapping]) -> float:
    resident = sum(m.resident for m in mappings)
    return sum(m.huge for m in mappings) / resident if resident else 0.0


def matter(model: torch.nn.Module) -> bool:
    """Whether a model is so large that the size of its pages shows in its speed: smaller ones stay in the CPU's caches."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) >= CHUNK


def in_words(share: float) -> str:
    """For a record's environment: "2 MB", "4 KB", or "mixed", as a share would differ from run to run."""
    return "2 MB" if share >= 0.8 else "4 KB" if share < 0.2 else "mixed"
