"""RADAR's claims: judged on what was measured and on replays, and not measured where there is neither."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import pytest
from made_up_records import measured
from made_up_replays import replay

from harness.common.names import SIX_TASKS
from harness.ledger.record import Record
from harness.metrics.pairing import side_of
from harness.paper.contrast import SHOWN, Row
from harness.paper.radar_claims import UNMEASURED, is_base, measured_saving, radar_rows
from harness.replay import record
from harness.replay.record import Replay

RADAR: dict[str, Any] = {"weights": "w@1", "sample": True, **UNMEASURED}
BASE: dict[str, Any] = {**UNMEASURED, "stop_early": False}


def records(seconds: float, base_options: dict[str, Any] = BASE, n: int = 6) -> list[Record]:
    """RADAR at so many seconds where its base takes 6, on all six tasks."""
    rng, found = random.Random(0), []
    for task in SIX_TASKS:
        for i in range(n):
            for name, wall, options in (("radar", seconds, RADAR), ("eagle2", 6.0, base_options)):
                found.append(measured("eagle2", i, [2, 3, 2], wall_s=wall * rng.uniform(0.99, 1.01), task=task, method=name,
                                      options=options, preset="paper", head_id="h"))  # fmt: skip
    return found


def replays(calls: int, t: float = 0.0, n: int = 6) -> list[Replay]:
    """RADAR with so many calls a round, its base with eight, on all six tasks."""
    found = []
    for task, i in ((task, i) for task in SIX_TASKS for i in range(n)):
        for name, each, options in (("radar", calls, RADAR), ("eagle2", 8, BASE)):
            found.append(replay(name, i, [3] * 6, [[1, *[10] * (each - 1)]] * 6, [59] * 6, options, task, t))
    return found


def row(rows: list[Row], test: str, t: float = 0.0) -> Row:
    (found,) = [r for r in rows if test in r.test and r.temperature == t]
    return found


SPEED, CALLS, SPLITS = "speed over EAGLE-2", "share of draft calls", "RADAR's published splits"


def test_without_the_policy_every_claim_is_there_and_not_measured(tmp_path: Path) -> None:
    rows = radar_rows([], tmp_path)
    assert len(rows) == 6 and {r.temperature for r in rows} == {0.0, 1.0}
    assert {r.all.verdict for r in rows} == {"not measured: no policy radar"} and all(r.all.p_for is None for r in rows)


@pytest.mark.parametrize(("seconds", "word"), [(5.55, SHOWN), (6.3, "not so: below the range"), (4.5, "not so: above the range")])
def test_its_gain_is_judged_against_the_same_tree_with_every_call(tmp_path: Path, seconds: float, word: str) -> None:
    live = [r for r in radar_rows(records(seconds), tmp_path) if "replayed" not in r.test and r.temperature == 0]
    assert [r.all.verdict for r in live] == [word] and live[0].all.effect.value == pytest.approx(6 / seconds - 1, abs=0.01)
    assert "10/8/59" in live[0].test and "w@1" in live[0].claim


def test_another_tree_is_no_base(tmp_path: Path) -> None:
    assert is_base(BASE, RADAR) and not is_base({**BASE, "stop_early": True}, RADAR) and not is_base({**BASE, "depth": 6}, RADAR)
    rows = radar_rows(records(5.5, {**BASE, "depth": 6}), tmp_path)
    (live,) = [r for r in rows if "replayed" not in r.test and r.temperature == 0]
    assert live.all.verdict.startswith("not measured: one side only")


def of_tiny(found: list[Record], **changes: Any) -> list[Record]:
    return [cast(Record, {**r, "model": "tiny", **changes}) for r in found]


def test_calls_and_speeds_under_costs_are_judged_on_replays(tmp_path: Path) -> None:
    record.append(tmp_path, [*replays(6), *replays(1, t=1.0)])
    own = radar_rows(of_tiny(records(5.55)), tmp_path)
    assert row(own, CALLS).all.effect.value == pytest.approx(0.25) and row(own, CALLS).all.verdict == SHOWN
    mine, theirs = 89.5 - 2 * 2.81 + 6 * 0.4, 89.5
    assert row(own, SPLITS).all.effect.value == pytest.approx(theirs / mine - 1)
    assert row(own, CALLS, 1.0).all.verdict == "not so: above the range"


def test_replays_of_two_heads_are_told_apart(tmp_path: Path) -> None:
    """A pair is of one head: not the policy with one against the base with another."""
    other = [r.model_copy(update={"head_id": "i"}) for r in replays(4)]
    record.append(tmp_path, [*replays(6), *other])
    own = [r for r in radar_rows(of_tiny(records(5.55)), tmp_path) if CALLS in r.test and r.temperature == 0]
    assert {r.claim.partition("head ")[2]: r.all.effect.value for r in own} == {"h)": 0.25, "i)": 0.5}


def test_replays_of_another_model_are_left_out(tmp_path: Path) -> None:
    record.append(tmp_path, replays(6))
    assert row(radar_rows(records(5.55), tmp_path), CALLS).all.verdict.startswith("not measured")


def test_the_packages_tables_of_the_model_are_among_the_costs(tmp_path: Path) -> None:
    record.append(tmp_path, [r.model_copy(update={"model": "smollm2-135m"}) for r in replays(6)])
    rows = radar_rows([cast(Record, {**r, "model": "smollm2-135m"}) for r in records(5.55)], tmp_path)
    under = [r for r in rows if "the costs of" in r.test and r.temperature == 0]
    assert len(under) == 2 and all(r.all.effect.value and r.all.effect.value > 0 for r in under)


def test_answers_that_looped_are_left_out_of_the_second_verdict(tmp_path: Path) -> None:
    record.append(tmp_path, replays(6))
    looping = [of_tiny([r], key=f"gsm8k {i} 0", looped=True)[0] for i, r in enumerate(records(5.5)[:2])]
    found = row(radar_rows(looping, tmp_path), CALLS)
    assert (found.all.effect.prompts, found.no_loops.effect.prompts) == (36, 34)


def test_the_time_saved_a_round_by_the_clock() -> None:
    found = records(5.0)
    own, base = (side_of(r for r in found if r["method"] == name) for name in ("radar", "eagle2"))
    assert measured_saving(own, base) == pytest.approx(1e3 * (6.0 - 5.0) / 3, rel=0.02)
