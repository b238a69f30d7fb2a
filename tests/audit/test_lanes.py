"""Generations that share forwards come out as they do alone."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from policies import POLICIES
from tiny_model import STOP_IDS, TinyModel, fresh_tiny_model, shared_tiny_model

import methods
from harness.audit.faults.faults import MUTANTS
from harness.audit.probe import findings, lanes
from harness.audit.probe.findings import Finding
from harness.audit.probe.lanes import LaneJob
from harness.audit.probe.subject import Subject
from harness.common.errors import UserError
from methods.base import SamplerParams
from methods.engine.native.build import VARIABLE


def on_torch() -> TinyModel:
    """The tiny model on the engine that lanes share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "torch")
        return fresh_tiny_model("float32")


TINY = on_torch()
OWN = [name for name in methods.names() if not methods.get(name).external]


@pytest.fixture(autouse=True)
def torch_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch")


def subject(name: str) -> Subject:
    return Subject.of(methods.get(name), TINY.loaded.config)


def jobs(n: int) -> list[tuple[list[int], SamplerParams]]:
    prompts = [TINY.prompts[i] for i in (0, 2, 3, 4, 6, 10)]
    return [(prompts[i % 6], SamplerParams(12 + 5 * (i % 3), STOP_IDS, temperature=1.0, key=i)) for i in range(n)]


def lane_jobs(name: str, n: int) -> list[LaneJob]:
    return [LaneJob(subject(name), *job) for job in jobs(n)]


def made_in_lanes(s: Subject, todo: list[tuple[list[int], SamplerParams]], n_lanes: int) -> dict[int, Finding]:
    made: dict[int, Finding] = {}
    lanes.sampled_in_lanes(TINY.loaded, [LaneJob(s, *job) for job in todo], lambda i, f: made.update({i: f}), n_lanes)
    return made


@pytest.mark.parametrize("name", [*OWN, *POLICIES])
def test_a_generation_in_a_lane_is_what_it_is_alone(name: str) -> None:
    s, todo = subject(name), jobs(7)
    assert lanes.can_run_in_lanes(TINY.loaded, s, "float32")
    found = made_in_lanes(s, todo, 3)
    assert sorted(found) == list(range(7))
    for i, (prompt, params) in enumerate(todo):
        alone = findings.sampled_finding(TINY.loaded, s, prompt, params)
        assert found[i]["n"] == alone["n"]
        assert found[i]["deviations"] == pytest.approx(alone["deviations"], abs=1e-2)
        assert max(found[i]["differences"]) < 1e-3


def test_forwards_are_of_all_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[int] = []
    one = lanes._forwards

    def counted(calls: Any) -> Any:
        shared.append(len(calls))
        return one(calls)

    monkeypatch.setattr(lanes, "_forwards", counted)
    prompt = TINY.prompts[0]
    same = [(prompt, SamplerParams(9, frozenset(), temperature=1.0, key=1))] * 4
    made_in_lanes(subject("vanilla"), same, 4)
    assert shared == [4] * 9  # the prefill and eight steps


def test_an_error_is_a_finding_and_the_last_one() -> None:
    def broken(**_: Any) -> Any:
        def decode(*_: Any) -> Any:
            raise RuntimeError("no good")

        return decode

    found = made_in_lanes(replace(subject("eagle2"), full=broken), jobs(7), 2)
    assert {f["error"] for f in found.values()} == {"RuntimeError: no good"} and len(found) <= 2


def test_methods_share_forwards_and_come_out_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[int] = []
    one = lanes._forwards
    monkeypatch.setattr(lanes, "_forwards", lambda calls: shared.append(len(calls)) or one(calls))
    todo = [job for name in OWN for job in lane_jobs(name, 2)]
    found: dict[int, Finding] = {}
    lanes.sampled_in_lanes(TINY.loaded, todo, lambda i, f: found.update({i: f}), 5)
    assert sorted(found) == list(range(len(todo))) and sum(shared) / len(shared) > 4
    for i, job in enumerate(todo):
        alone = findings.sampled_finding(TINY.loaded, job.subject, job.prompt, job.params)
        assert found[i]["n"] == alone["n"], job.subject.name
        assert found[i]["deviations"] == pytest.approx(alone["deviations"], abs=1e-2)


def test_an_error_ends_its_own_method_and_no_other() -> None:
    def broken(**_: Any) -> Any:
        def decode(*_: Any) -> Any:
            raise RuntimeError("no good")

        return decode

    bad = replace(subject("eagle2"), full=broken)
    todo = [LaneJob(s, *job) for job in jobs(6) for s in (bad, subject("pld"))]
    found: dict[int, Finding] = {}
    lanes.sampled_in_lanes(TINY.loaded, todo, lambda i, f: found.update({i: f}), 2)
    by_name = {name: [f for i, f in found.items() if todo[i].subject.name == name] for name in ("eagle2", "pld")}
    assert len(by_name["pld"]) == 6 and not any("error" in f for f in by_name["pld"])
    assert 1 <= len(by_name["eagle2"]) <= 2 and all("error" in f for f in by_name["eagle2"])


def test_an_error_between_forwards_leaves_no_lane_waiting() -> None:
    """One lane's grower breaks down in the middle; the others finish what they are at."""
    sound = subject("eagle2").full
    broken: list[int] = []

    def full(**changes: Any) -> Any:
        decode = sound(**changes)

        def once(prompt: list[int], target: Any, drafter: Any, params: SamplerParams) -> Any:
            if params.key == 4:
                target.prefill(prompt, 99)
                broken.append(4)
                raise RuntimeError("in the middle")
            return decode(prompt, target, drafter, params)

        return once

    found = made_in_lanes(replace(subject("eagle2"), full=full), jobs(12), 3)
    assert broken == [4] and found[4]["error"] == "RuntimeError: in the middle"
    assert [i for i, f in found.items() if "error" in f] == [4] and 5 <= len(found) < 12


def test_an_error_in_a_shared_forward_is_every_lanes_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(calls: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lanes, "_forwards", fails)
    found = made_in_lanes(subject("pld"), jobs(5), 3)
    assert len(found) >= 3 and all("out of memory" in f["error"] for f in found.values())


@pytest.mark.parametrize("error", [UserError("disk full"), KeyboardInterrupt()])
def test_what_keeping_a_finding_raises_ends_all(error: BaseException) -> None:
    def made(i: int, f: Finding) -> None:
        raise error

    with pytest.raises(type(error)):
        lanes.sampled_in_lanes(TINY.loaded, lane_jobs("vanilla", 9), made, 3)


def test_an_interrupt_of_the_main_thread_ends_the_lanes_before_it_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    join, made = threading.Thread.join, dict[int, Finding]()

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        monkeypatch.setattr(threading.Thread, "join", join)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        lanes.sampled_in_lanes(TINY.loaded, lane_jobs("eagle2", 30), lambda i, f: made.update({i: f}), 3)
    assert threading.active_count() == before and len(made) < 30


def test_what_the_user_can_mend_ends_all() -> None:
    def refuses(**_: Any) -> Any:
        raise UserError("mend it")

    with pytest.raises(UserError, match="mend it"):
        made_in_lanes(replace(subject("pld"), full=refuses), jobs(5), 2)


def test_planted_faults_and_other_loops_run_one_at_a_time() -> None:
    planted = [m.subject() for m in MUTANTS if m.spoilt or m.misled]
    assert planted and not any(lanes.can_run_in_lanes(TINY.loaded, s, "float32") for s in [*planted, subject("hf-generate")])


def test_plans_do_not_hang_on_the_dtype_that_is_loaded_while_planning() -> None:
    assert lanes.can_run_in_lanes(shared_tiny_model("float64").loaded, subject("vanilla"), "float32")


def test_the_native_engine_shares_no_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its forwards over a few rows cost what reading the weights costs: more rows together gain nothing."""
    monkeypatch.delenv(VARIABLE)
    assert not lanes.can_run_in_lanes(shared_tiny_model("float32").loaded, subject("vanilla"), "float32")
