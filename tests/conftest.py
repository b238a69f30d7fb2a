"""Fixtures shared by all tests. What needs torch is imported by the fixture, so that light tests stay light."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tiny_model import TinyModel

LONGEST = (
    "cluster/test_ray.py",
    "whole/test_embedded.py",
    "audit/test_audit.py",
    "methods/test_methods.py",
    "run/test_runner.py",
    "commands/test_cli.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: no worker is left with one of them when the others are done."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if str(item.path).endswith(name)), len(LONGEST)))


# The same examples every run: a failure seen once is seen again. No deadline: the machine may be busy.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=30, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def tiny() -> TinyModel:
    """The tiny model in float64, where equality has no excuse."""
    from tiny_model import shared_tiny_model

    return shared_tiny_model("float64")


@pytest.fixture(scope="session", params=["float64", "float32"])
def tiny_model_by_dtype(request: pytest.FixtureRequest) -> TinyModel:
    from tiny_model import shared_tiny_model

    return shared_tiny_model(request.param)


@pytest.fixture
def altered_tiny_model() -> TinyModel:
    """The tiny model in float64 for one test alone, whose weights it may change."""
    from tiny_model import fresh_tiny_model

    return fresh_tiny_model("float64")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: children would ignore Ctrl-C as well
    signal.signal(signal.SIGINT, signal.default_int_handler)
