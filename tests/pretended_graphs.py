"""CUDA graphs as a CPU can pretend them: recorded by the real `Replayer`, replayed by running the same function again.

As on a GPU a recording is made by running what it records several times, reads the buffers that were there then, and gives its
results in the same memory each time. That memory is of a pool: what lies in it is spoilt when another recording is replayed.
What a function reads of Python's variables is what they were when it was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.engine.static.replay import WARM_UPS, Replayer


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for column in fields(value):
            yield from tensors_in(getattr(value, column.name))


class Graph:
    """What `torch.cuda.CUDAGraph` is to a replayer. hosts: the objects whose attributes it finds as they were when it was made,
    and leaves as they are: a graph knows of Python's variables what they were once."""

    def __init__(self, replayer: Replayer, compute: Callable[[], Any], buffers: Callable[[], list[int]], hosts: list[Any]):
        self.replayer, self.compute, self.buffers, self.hosts = replayer, compute, buffers, hosts
        self.frozen = [dict(vars(host)) for host in hosts]
        self.kept = compute()
        self.results = list(tensors_in(self.kept))
        again = list(tensors_in(compute()))  # what lies in the same memory each time is outside the pool
        self.of_pool = [a for a, b in zip(self.results, again, strict=True) if a.data_ptr() != b.data_ptr()]
        self.there = buffers()

    @torch.inference_mode()
    def replay(self) -> None:
        assert self.buffers() == self.there, "it reads buffers that are gone"
        now = [dict(vars(host)) for host in self.hosts]
        for host, then in zip(self.hosts, self.frozen, strict=True):
            vars(host).update(then)
        try:
            found = list(tensors_in(self.compute()))
        finally:
            for host, was in zip(self.hosts, now, strict=True):
                vars(host).update(was)
        for old, new in zip(self.results, found, strict=True):
            old.copy_(new.clone())
        for other, _ in self.replayer._known.values():
            for spoilt in other.of_pool if other is not self else ():
                spoilt.fill_(float("nan") if spoilt.is_floating_point() else 10**9)


def pretend(monkeypatch: pytest.MonkeyPatch, target: Any, drafter: Any = None) -> None:
    """Let a static target, on each of its devices, and its EAGLE drafter record and replay, until the test is over."""
    replayers = {target._replayer_of(device): device for device in target.devices}

    def buffers(replayer: Replayer) -> list[int]:
        if replayer in replayers:
            device = replayers[replayer]
            kept = [*target.cache.on(device), *target._tables[device]]
        else:
            kept = [drafter._keys, drafter._values, drafter._cos, drafter._sin]
        return [x.data_ptr() for x in kept]

    def recorded(self: Replayer, compute: Callable[[], Any]) -> tuple[Any, Any]:
        for _ in range(WARM_UPS):
            compute()
        graph = Graph(self, compute, lambda: buffers(self), [target, target.cache, *([] if drafter is None else [drafter])])
        return graph, graph.kept

    monkeypatch.setattr(Replayer, "_recorded", recorded)
    for name, value in (("on", True), ("refused", None), ("refused_late", False), ("is_prepared", False)):
        monkeypatch.setattr(target.replayer.recording, name, value)
    for replayer in (*replayers, *([] if drafter is None else [drafter.replayer])):
        replayer.forget()
        monkeypatch.setattr(replayer, "_known", {})
