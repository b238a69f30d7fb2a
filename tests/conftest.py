"""Fixtures shared by all tests. What needs torch is imported by the fixture, so that light tests stay light."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from lab import Lab

# The same examples every run: a failure seen once is seen again. No deadline: the machine may be busy.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=30, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The tiny model in float64, where equality has no excuse."""
    from lab import shared_lab

    return shared_lab("float64")


@pytest.fixture(scope="session", params=["float64", "float32"])
def lab_by_dtype(request: pytest.FixtureRequest) -> Lab:
    from lab import shared_lab

    return shared_lab(request.param)


@pytest.fixture
def altered_lab() -> Lab:
    """The tiny model in float64 for one test alone, whose weights it may change."""
    from lab import fresh_lab

    return fresh_lab("float64")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: children would ignore Ctrl-C as well
    signal.signal(signal.SIGINT, signal.default_int_handler)
