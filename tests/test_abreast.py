"""Generations that share forwards come out as they do alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from lab import STOP_IDS, shared_lab

import methods
from harness.audit import abreast, findings
from harness.audit.findings import Finding
from harness.audit.mutants import MUTANTS
from harness.audit.subject import Subject
from harness.errors import UserError
from methods.base import SamplerParams

LAB = shared_lab("float32")
OWN = [name for name in methods.names() if not methods.get(name).external]


def subject(name: str) -> Subject:
    return Subject.of(methods.get(name), LAB.loaded.config)


def jobs(n: int) -> list[tuple[list[int], SamplerParams]]:
    prompts = [LAB.prompts[i] for i in (0, 2, 3, 4, 6, 10)]
    return [(prompts[i % 6], SamplerParams(12 + 5 * (i % 3), STOP_IDS, temperature=1.0, key=i)) for i in range(n)]


def abreast_of(s: Subject, todo: list[tuple[list[int], SamplerParams]], n_lanes: int) -> dict[int, Finding]:
    made: dict[int, Finding] = {}
    abreast.sampled_findings(LAB.loaded, s, todo, lambda i, f: made.update({i: f}), n_lanes)
    return made


@pytest.mark.parametrize("name", OWN)
def test_a_generation_abreast_of_others_is_what_it_is_alone(name: str) -> None:
    s, todo = subject(name), jobs(7)
    assert abreast.can_run_abreast(LAB.loaded, s)
    found = abreast_of(s, todo, 3)
    assert sorted(found) == list(range(7))
    for i, (prompt, params) in enumerate(todo):
        alone = findings.sampled_finding(LAB.loaded, s, prompt, params)
        assert found[i]["n"] == alone["n"]
        assert found[i]["deviations"] == pytest.approx(alone["deviations"], abs=1e-2)
        assert max(found[i]["differences"]) < 1e-3


def test_forwards_are_of_all_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[int] = []
    one = abreast._forwards

    def counted(calls: Any) -> Any:
        shared.append(len(calls))
        return one(calls)

    monkeypatch.setattr(abreast, "_forwards", counted)
    prompt = LAB.prompts[0]
    same = [(prompt, SamplerParams(9, frozenset(), temperature=1.0, key=1))] * 4
    abreast_of(subject("vanilla"), same, 4)
    assert shared == [4] * 9  # the prefill and eight steps


def test_an_error_is_a_finding_and_the_last_one() -> None:
    def broken(**_: Any) -> Any:
        def decode(*_: Any) -> Any:
            raise RuntimeError("no good")

        return decode

    found = abreast_of(replace(subject("eagle2"), full=broken), jobs(7), 2)
    assert {f["error"] for f in found.values()} == {"RuntimeError: no good"} and len(found) <= 2


def test_what_the_user_can_mend_ends_all() -> None:
    def refuses(**_: Any) -> Any:
        raise UserError("mend it")

    with pytest.raises(UserError, match="mend it"):
        abreast_of(replace(subject("pld"), full=refuses), jobs(5), 2)


def test_planted_faults_other_loops_and_other_forwards_run_one_at_a_time() -> None:
    planted = [m.subject() for m in MUTANTS if m.spoilt or m.misled]
    assert planted and not any(abreast.can_run_abreast(LAB.loaded, s) for s in [*planted, subject("hf-generate")])
    assert not abreast.can_run_abreast(shared_lab("float64").loaded, subject("vanilla"))
