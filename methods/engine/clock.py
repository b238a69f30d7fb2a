"""Seconds inside a model's forwards: by the host's clock on a CPU, by the device's own on a GPU.

A GPU's work is only launched by a forward's calls and is waited for much later, so there the host's clock would charge it to
whatever reads a result first. Events around each forward are read once they are over: nothing waits for them.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
from torch import Tensor


class ForwardClock:
    """`with clock:` around each forward; `seconds`: of all that are over; `n_started`: how many began. device: where its last
    kernels run."""

    def __init__(self, device: torch.device):
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._spent = 0.0
        self.n_started = 0
        self._began: Any = None
        self._events: deque[tuple[Any, Any]] = deque()  # of forwards whose end was not read yet

    def __enter__(self) -> None:
        self.n_started += 1
        self._began = self._event() if self._on_gpu else time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self._events.append((self._began, self._event()))
        else:
            self._spent += time.perf_counter() - self._began

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    @property
    def seconds(self) -> float:
        """On a GPU a forward still under way is left for the next reading; at the end of a generation there is none."""
        while self._events and self._events[0][1].query():
            began, ended = self._events.popleft()
            self._spent += began.elapsed_time(ended) / 1e3
        return self._spent


def wait_for(tensor: Tensor) -> None:
    """Until the device has made it: where one time ends and another begins. At once on a CPU."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
