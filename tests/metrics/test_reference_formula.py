"""The reference's bookkeeping: against values worked out by hand, and against its loop's counting replayed on the same tokens."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_records import measured, only
from make_ledger import FOLDER

from harness.forms.table import csv, markdown
from harness.ledger.ledger import read
from harness.ledger.record import Record
from harness.metrics.cells import CellSummary, summarise
from harness.metrics.reference_formula import Booked, Official, booked, goes_on, mean_speed, zero_based_tau
from harness.show.tables.cells import cells_table, official_table
from methods.base import SamplerParams
from methods.engine.stopping import Output

STOP = 7


def two_prompts(**changes: Any) -> list[Record]:
    """Vanilla 30 tokens in 4 s, eagle2 the same in 2 s; its second prompt drew 22 and lost 2 to the stop rule."""
    return [
        measured("vanilla", 0, [0] * 9, wall_s=1.0, n_text_tokens=9, **changes),
        measured("vanilla", 1, [0] * 19, wall_s=3.0, n_text_tokens=18, **changes),
        measured("eagle2", 0, [3, 2, 1], wall_s=0.5),
        measured("eagle2", 1, [4, 6, 0, 7], wall_s=1.5, token_ids=list(range(20)), n_cut=2),
    ]


def test_the_official_formula_and_the_way_to_it_are_those_worked_out_by_hand() -> None:
    cell = only(two_prompts())
    found = cell.official
    printed, own, plain, again = (9 / 0.5 + 21 / 1.5) / 2, (20 + 20 / 1.5) / 2, (10 + 20 / 3) / 2, (8 + 17 / 3) / 2
    assert cell.speedup == pytest.approx(2.0)
    assert found.speedup == pytest.approx(printed / again)
    assert found.per_question == pytest.approx(own / plain / 2.0)
    assert found.past_end == pytest.approx(printed / own) and found.retokenised == pytest.approx(plain / again)
    assert found.tau == pytest.approx(30 / (2 + 3))
    assert (found.n_turns, found.n_going_on, found.lacks) == (2, 1, "")


def test_minus_one_takes_away_a_bos_where_the_tokenizer_adds_one() -> None:
    with_bos, without = only(two_prompts(n_special=1)).official, only(two_prompts()).official
    assert with_bos.speedup == pytest.approx((18 + 14) / (9 + 18 / 3))
    assert with_bos.speedup is not None and without.speedup is not None and with_bos.speedup < without.speedup


def test_a_questions_turns_count_together_and_only_the_first_repeat_does() -> None:
    assert mean_speed([("a", 10, 1.0), ("a", 20, 3.0), ("b", 5, 1.0)]) == pytest.approx((30 / 4 + 5) / 2)
    slow = [r | {"repeat": 1, "wall_s": 100.0, "key": r["key"] + "r"} for r in two_prompts() if r["method"] == "eagle2"]
    again = [r | {"repeat": 1, "key": r["key"] + "r"} for r in two_prompts() if r["method"] == "vanilla"]
    cell = only(two_prompts() + cast(list[Record], slow + again))
    assert cell.official.speedup == pytest.approx(only(two_prompts()).official.speedup)
    assert cell.speedup is not None and cell.speedup < 0.1


@pytest.mark.parametrize(
    ("records", "method", "why"),
    [
        (two_prompts()[2:], "eagle2", "no baseline"),
        (two_prompts(), "vanilla", "the baseline"),
        ([measured("vanilla", 0, [0]), measured("eagle2", 0, [0])], "eagle2", "vanilla's text is empty"),
        ([measured("hf-generate", 0, [0], trace=None, prefill_s=None)], "hf-generate", "no trace"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_where_there_is_no_official_number_the_column_says_why(records: list[Record], method: str, why: str) -> None:
    assert only(records, method).official.lacks == why and only(records, method).official.speedup is None
    assert f"— ({why})" in markdown(cells_table(summarise(records)))


def test_tau_over_the_zero_based_index_has_no_value_without_a_second_step() -> None:
    assert zero_based_tau([(5, 2), (0, 0), (3, 1)]) == 8.0
    assert zero_based_tau([(3, 1)]) is None and zero_based_tau([]) is None


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(0, 40), st.integers(1, 20))
def test_counts_are_those_of_the_references_loop_on_the_same_tokens(accepted: list[int], stop_at: int, limit: int) -> None:
    """The oracle appends a step's root and accepted drafts, and only then looks for the stop id and the limit."""
    n = 1 + sum(a + 1 for a in accepted)
    stream = [STOP if i == stop_at else 0 for i in range(n)]
    output = Output(SamplerParams(limit, frozenset({STOP})))
    over, made, at = output.extend(stream[:1]), 0, 1
    while not over and made < len(accepted):
        over = output.extend(stream[at : at + accepted[made] + 1])
        at += accepted[made] + 1
        made += 1
    if not over:
        return  # the stream was too short to end
    trace = {"accepted": accepted[:made], "tree_size": accepted[:made], "target_s": [], "drafter_s": []}
    record = cast(Record, {"method": "eagle2", "token_ids": output.token_ids, "trace": trace, "finish": output.finish,
                           "n_cut": output.n_cut})  # fmt: skip

    new_token, at, idx, ended = 0, 0, -1, False
    for idx, a in enumerate(accepted[:made]):
        new = stream[at : at + a + 1]
        new_token, at = new_token + a + 1, at + a + 1
        ended = STOP in new or new_token > limit
        assert not ended or idx == made - 1, "it would have ended before ours did"
    assert booked(record) == Booked(new_token, idx + 1)
    assert goes_on(record) is not ended


def test_factors_multiply_to_the_official_number_in_every_cell() -> None:
    cells: list[CellSummary] = [c for c in summarise(read(FOLDER)) if c.official.speedup is not None]
    assert len(cells) > 20
    for c in cells:
        o = c.official
        factors = [c.speedup, o.per_question, o.past_end, o.retokenised]
        assert math.prod(f for f in factors if f) == pytest.approx(o.speedup)
    numbers = official_table(cells).numbers
    assert numbers["official_speedup"].tolist() == pytest.approx([c.official.speedup for c in cells])


def test_a_mean_row_is_the_mean_of_six_ratios_and_its_factors_multiply() -> None:
    (section, _) = official_table(summarise(read(FOLDER))).sections
    row = section.shown[(section.shown["method"] == "eagle2") & (section.shown["task"] == "six-task mean")].iloc[0]
    cells = [c for c in summarise(read(FOLDER)) if (c.method, c.preset, c.temperature) == ("eagle2", "paper", 0)]
    mean = sum(c.official.speedup or 0 for c in cells) / 6
    assert row["official"] == f"{mean:.2f}×"
    shown = [float(row[name].rstrip("×")) for name in ("speedup", "per question", "past the end", "re-tokenised")]
    assert math.prod(shown) == pytest.approx(mean, rel=0.01)


def test_the_cells_table_has_both_columns_as_text_and_as_numbers() -> None:
    table = cells_table(summarise(read(FOLDER)))
    assert {"official", "official τ"} <= set(table.sections[0].shown.columns)
    assert "official_speedup" in csv(table).splitlines()[0] and Official().speedup is None
