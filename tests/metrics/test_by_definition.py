"""tau and speedup as others define them: against values worked out by hand, and against a file of the paper's authors."""

from __future__ import annotations

import json
from dataclasses import astuple
from typing import Any

import pytest
from made_up_records import measured, only
from places import SHARED

from harness.metrics.by_definition import OTHER_TAUS, WORDS, speedup_of_questions, taus, taus_of
from harness.metrics.definitions import Estimate, point, tau
from harness.metrics.pairing import Side, side_of
from harness.metrics.reference_formula import Booked

AUTHORS = SHARED / "published_outputs" / "llama-2-chat-70b-fp16-ea-in-temperature-0.0.jsonl"


def test_each_tau_is_the_one_worked_out_by_hand() -> None:
    turns = [("a", Booked(12, 4)), ("a", Booked(6, 3)), ("b", Booked(10, 2)), ("c", Booked(5, 1))]
    assert taus(turns) == pytest.approx({
        "pooled_from_0": 33 / (10 - 4),
        "mean_of_questions": (18 / 7 + 10 / 2 + 5 / 1) / 3,
        "mean_of_questions_from_0": (18 / 5 + 10 / 1 + 5 / 1) / 3,  # c's one step has the index 0, and divides by 1
        "mean_of_turns_from_0": (12 / 3 + 6 / 2 + 10 / 1 + 5 / 1) / 4,
    })  # fmt: skip
    assert set(taus(turns)) == set(OTHER_TAUS) <= set(WORDS) and taus([]) == {}


def sides(n: int = 6, **changes: Any) -> tuple[Side, Side]:
    """A method that is fast and accepts much on long answers only: there the definitions part."""
    own = [measured("eagle2", i, [3] * 40 if i % 2 else [0] * 4, wall_s=2.0 if i % 2 else 1.0, **changes) for i in range(n)]
    plain = {True: ([0] * 160, 8.0, 161), False: ([0] * 4, 0.5, 5)}
    base = [measured("vanilla", i, steps, wall_s=wall_s, n_text_tokens=n_text)
            for i in range(n) for steps, wall_s, n_text in [plain[i % 2 == 1]]]  # fmt: skip
    return side_of(own), side_of(base)


def test_a_mean_of_questions_is_not_the_pooled_one() -> None:
    own, _ = sides()
    found = taus_of(own)
    assert found["mean_of_questions"] == pytest.approx((4 + 1) / 2)
    pooled = point([own], tau)
    assert pooled == pytest.approx((160 + 4) / (40 + 4)) and pooled - found["mean_of_questions"] > 1


def test_records_without_a_trace_have_none_and_several_tasks_their_mean() -> None:
    assert taus_of(sides(trace=None)[0]) == taus_of({}) == {}
    own = {**sides()[0], **side_of([measured("eagle2", i, [1] * 9, task="qa") for i in range(3)])}
    assert taus_of(own)["mean_of_questions"] == pytest.approx((2.5 + 2) / 2)


def test_the_speedup_of_questions_is_the_official_one_with_an_interval() -> None:
    own, base = sides()
    found = speedup_of_questions(own, base)
    cell = only([*own.values(), *base.values()])
    assert found.value == pytest.approx(cell.official.speedup) and found.prompts == 6
    assert found.value is not None and found.ci95 is not None and found.ci95[0] < found.value < found.ci95[1]
    assert cell.speedup is not None and abs(cell.speedup - found.value) > 0.1


@pytest.mark.parametrize("lacking", ["a baseline", "a trace", "vanilla's text", "a method that drafts"])
def test_where_something_is_lacking_there_is_no_speedup_of_questions(lacking: str) -> None:
    own, base = sides(**({"trace": None} if lacking == "a trace" else {}))
    if lacking == "a baseline":
        base = dict(list(base.items())[1:])
    if lacking == "vanilla's text":
        base = {key: r | {"n_text_tokens": 1} for key, r in base.items()}  # type: ignore[misc]
    assert astuple(speedup_of_questions(base if "method" in lacking else own, base)) == astuple(Estimate(None, None, 0))


@pytest.mark.skipif(not AUTHORS.exists(), reason="the authors' answer file is not here")
def test_the_authors_own_file_gives_the_printed_tau_by_one_definition_only() -> None:
    """LLaMA2-Chat-70B, MT-bench, T = 0, EAGLE-1: 3.81 is printed. So the paper's need not be pooled."""
    turns = []
    for line in AUTHORS.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        choice = answer["choices"][0]
        turns += [
            (answer["question_id"], Booked(n, last + 1)) for n, last in zip(choice["new_tokens"], choice["idxs"], strict=True)
        ]
    found = {name: round(value, 2) for name, value in taus(turns).items()}
    assert found == {
        "pooled_from_0": 3.66,
        "mean_of_questions": 3.74,
        "mean_of_questions_from_0": 3.81,
        "mean_of_turns_from_0": 3.82,
    }
    assert round(sum(t.new_tokens for _, t in turns) / sum(t.steps for _, t in turns), 2) == 3.62
