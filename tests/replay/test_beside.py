"""Replays beside runs: alike, or an error of the harness."""

from __future__ import annotations

from typing import Any

import pytest
from made_up_records import measured
from made_up_replays import replay

import methods
from harness.replay.beside import beside, faults
from harness.replay.record import Replay

OPTIONS = {"total": 4}
SAMPLES = 6


def ledger(accepted: list[list[int]], **changes: Any) -> list[Any]:
    """Vanilla's answers and EAGLE-2's runs, a sample each."""
    found: list[Any] = []
    for i, steps in enumerate(accepted):
        same = {"head_id": "h", "options": OPTIONS, "code_sha": methods.code_sha("eagle2"), "row_invariant": True, **changes}
        found += [measured("vanilla", i, steps, row_invariant=True), measured("eagle2", i, steps, **same)]
    return found


def replays(accepted: list[list[int]]) -> list[Replay]:
    made = [replay("eagle2", i, steps, [[1]] * len(steps), [4] * len(steps), OPTIONS) for i, steps in enumerate(accepted)]
    keys = [r["key"] for r in ledger(accepted) if r["method"] == "vanilla"]
    return [r.model_copy(update={"answer": key}) for r, key in zip(made, keys, strict=True)]


STEPS = [[2, 1], [3, 0], [1, 2, 0], [0, 3], [2, 2], [1, 1, 1]]
OTHER = [[2, 1], [3, 0], [1, 1, 1], [0, 3], [2, 2], [1, 1, 1]]  # the third one's tokens in other steps


def test_the_same_steps_are_no_fault() -> None:
    (found,) = beside(replays(STEPS), ledger(STEPS)).values()
    assert (found.turns, found.alike, found.is_fault) == (SAMPLES, SAMPLES, False)
    assert found.shown == "the same in all 6" and found.difference.value == 0


def test_other_steps_are_a_fault_where_they_cannot_be() -> None:
    found = beside(replays(STEPS), ledger(OTHER))
    (one,) = found.values()
    assert (one.alike, one.is_fault) == (5, True) and one.shown.startswith("!! the same in 5 of 6")
    assert "eagle2 at T = 0: a run's steps are those of its replay in 5 of 6 turns" in faults(found)[0]


@pytest.mark.parametrize("changes", [{"row_invariant": False}, {"code_sha": "older"}])
def test_rounding_and_older_code_may_differ_within_the_interval(changes: dict[str, Any]) -> None:
    found = beside(replays(STEPS), ledger(OTHER, **changes))
    assert not faults(found) and next(iter(found.values())).shown.startswith("the same in 5 of 6")
    longer = [[a + 1 for a in steps] for steps in STEPS]  # tau higher by one everywhere
    found = beside(replays(STEPS), ledger(longer, **changes))
    assert len(faults(found)) == 1


@pytest.mark.parametrize(
    "changes", [{"head_id": "other"}, {"options": {"total": 5}}, {"max_new_tokens": 7}, {"dtype": "float64"}]
)
def test_another_run_is_not_beside_it(changes: dict[str, Any]) -> None:
    assert beside(replays(STEPS), ledger(STEPS, **changes)) == {}
