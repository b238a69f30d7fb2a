"""The clock around forwards: the host's on a CPU; on a GPU, for which a stand-in serves here, the device's events."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from methods.engine.clock import ForwardClock, wait_for


def test_on_a_cpu_it_adds_up_what_is_inside_and_nothing_else() -> None:
    clock = ForwardClock(torch.device("cpu"))
    with clock:
        time.sleep(0.02)
    inside = clock.seconds
    time.sleep(0.02)
    assert 0.02 <= inside == clock.seconds
    wait_for(torch.zeros(1))


class Device:
    """A GPU's queue: what is launched takes `cost` ms of its own time, and is over when the host has waited for it."""

    def __init__(self) -> None:
        self.launched_ms = self.done_ms = 0.0

    def launch(self, cost: float) -> None:
        self.launched_ms += cost

    def wait(self) -> None:
        self.done_ms = self.launched_ms


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    queue = Device()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at: float | None = None

        def record(self, stream: Any) -> None:
            self.at = queue.launched_ms

        def query(self) -> bool:
            assert self.at is not None
            return self.at <= queue.done_ms

        def elapsed_time(self, end: Any) -> float:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    return queue


def test_on_a_gpu_a_forward_counts_its_own_time_once_it_is_over_and_what_stands_between_does_not(device: Device) -> None:
    clock = ForwardClock(torch.device("cuda"))
    with clock:
        device.launch(3.0)
    assert clock.seconds == 0.0  # launched, not over
    device.launch(5.0)  # a drafter's, say
    with clock:
        device.launch(4.0)
    device.wait()
    assert clock.seconds == pytest.approx(0.007)
    with clock:
        device.launch(1.0)
    assert clock.seconds == pytest.approx(0.007)  # left for the next reading
    device.wait()
    assert clock.seconds == pytest.approx(0.008) == clock.seconds
