"""Costs in plain steps by name."""

from __future__ import annotations

import pytest

from methods.engine.relative_costs import known, relative_costs


def test_flat_costs_are_read_off_their_name_and_are_not_listed_after() -> None:
    before = known()
    flat = relative_costs("call=0.25,verify=2.18")
    assert flat.verifying[59] == pytest.approx(2.18) and flat.verifying[0] == 1.0
    assert flat.drafting([1, 10]) == pytest.approx(0.5) and flat is relative_costs("call=0.25,verify=2.18")
    assert known() == before
    with pytest.raises(ValueError, match="no such costs; known: gpu-radar, gpu-vllm"):
        relative_costs("call=0.25")
