"""Costs in plain steps by name."""

from __future__ import annotations

import pytest

from harness.replay.price import RelativePrices
from methods.engine.relative_costs import RelativeCosts, known, relative_costs


def test_flat_costs_are_read_off_their_name_and_are_not_listed_after() -> None:
    before = known()
    flat = relative_costs("call=0.25,verify=2.18")
    assert flat.verifying[59] == pytest.approx(2.18) and flat.verifying[0] == 1.0
    assert flat.drafting([1, 10]) == pytest.approx(0.5) and flat is relative_costs("call=0.25,verify=2.18")
    assert known() == before
    with pytest.raises(ValueError, match="no such costs; known: gpu-radar, gpu-vllm"):
        relative_costs("call=0.25")


def test_trees_of_any_size_have_a_price_on_the_last_line() -> None:
    """Past the last number of rows that is known a cost goes on as it rose; where it fell or one is known, it stays."""
    flat = relative_costs("call=0.1,verify=2")
    assert flat.verifying[199] == pytest.approx(1 + 199 / 59) and flat.verifying[599] == pytest.approx(1 + 599 / 59)
    assert flat.verifying[1:1000].shape == (999,) and flat.verifying[0] == 1.0
    assert relative_costs("gpu-radar").verifying[400] == relative_costs("gpu-radar").verifying[59]
    falls = RelativeCosts("falls", ((1, 1.0), (10, 0.9)), ((1, 0.1), (10, 0.2), (20, 0.4)))
    assert falls.verifying[500] == pytest.approx(0.9) and falls.next_call(30) == pytest.approx(0.6)
    assert RelativePrices(flat).step([1, 10], 300, 2, 99) == pytest.approx(1.2 + 300 / 59)
