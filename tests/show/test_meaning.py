"""The sentences under the main tables: computed from the cells, left out where a number is lacking."""

from __future__ import annotations

import re
from typing import Any

import pytest
from made_up_records import measured
from make_ledger import FOLDER

from harness.common.names import SIX_TASKS
from harness.ledger.ledger import read
from harness.ledger.record import Record
from harness.metrics.cells import summarise
from harness.show.tables.main import main_table, means_table
from harness.show.tables.meaning import conclusions
from harness.show.tables.run import run_table


def arm(method: str, accepted: list[int], step_s: float, n_nodes: int = 4, **changes: Any) -> list[Record]:
    """Five prompts whose steps take step_s each, 60 % of it in the target and 20 % in the drafter."""
    steps = len(accepted)
    trace = {"tree_size": [n_nodes] * steps, "accepted": accepted, "draft_s": [step_s] * steps, "verify_s": [0.0] * steps,
             "target_s": [0.6 * step_s] * steps, "drafter_s": [0.2 * step_s] * steps}  # fmt: skip
    return [measured(method, i, accepted, 0.1 + step_s * steps, trace=trace, **changes) for i in range(5)]


VANILLA = arm("vanilla", [0] * 30, 1.0)


def said(*arms: list[Record]) -> tuple[str, ...]:
    return conclusions(summarise([r for own in (VANILLA, *arms) for r in own]))


def test_a_step_that_costs_more_than_it_yields_cannot_pay() -> None:
    assert said(arm("eagle2", [1] * 15, 5.0, n_nodes=59)) == (
        "A step of eagle2 costs 5.0 vanilla steps and yields 2.0 tokens, so it cannot pay here; "
        "verifying 60 rows alone costs 3.0 vanilla steps.",
    )


def test_a_step_that_yields_more_than_it_costs_pays() -> None:
    (line,) = said(arm("eagle2", [2] * 10, 1.5))
    assert "costs 1.5 vanilla steps and yields 3.0 tokens, so it pays; verifying 5 rows alone costs 0.9" in line


def test_numbers_that_would_read_alike_get_a_digit_more() -> None:
    (line,) = said(arm("eagle2", [1] * 15, 1.98))
    assert "costs 1.98 vanilla steps and yields 2.00 tokens, so it pays" in line


def test_a_baseline_from_another_process_is_marked() -> None:
    (line,) = said(arm("eagle2", [1] * 15, 5.0, run="later"))
    assert "costs ≈5.0 vanilla steps" in line and "alone costs ≈3.0" in line


def test_the_fastest_of_several_trees_is_named_with_its_options() -> None:
    small = {"options": {"top_k": 2, "depth": 3, "total": 6}, "preset": "tuned"}
    _, best = said(arm("eagle2", [1] * 15, 5.0), arm("eagle2", [2] * 10, 1.5, **small))
    speed = (0.1 + 30) / 31 / ((0.1 + 15) / 31)
    assert best == f"The best tree found for eagle2 (of 2 measured) is top_k=2 depth=3 total=6, at {speed:.2f}× vanilla's speed."


def test_a_tree_that_was_measured_on_other_tasks_is_no_rival() -> None:
    small = {"options": {"top_k": 2, "depth": 3, "total": 6}, "preset": "tuned", "task": "alpaca"}
    elsewhere = [*arm("vanilla", [0] * 30, 1.0, task="alpaca"), *arm("eagle2", [2] * 10, 1.5, **small)]
    (line,) = said(arm("eagle2", [1] * 15, 5.0), elsewhere)
    assert "best" not in line


def test_without_eagle2_the_sentence_is_about_the_longest_accepts() -> None:
    (line,) = said(arm("pld", [1] * 15, 1.5), arm("eagle1", [2] * 10, 1.5))
    assert line.startswith("A step of eagle1 costs")


@pytest.mark.parametrize(
    "records",
    [
        [measured("eagle2", i, [1, 1]) for i in range(5)],  # no baseline: what a step costs is not known
        VANILLA,
        [*VANILLA, *(measured("hf-generate", i, [0], trace=None) for i in range(5))],
    ],
)
def test_without_the_numbers_there_is_no_sentence(records: list[Record]) -> None:
    assert conclusions(summarise(records)) == ()


def test_the_sentences_end_each_setting_of_the_main_tables_and_of_a_run() -> None:
    records = read(FOLDER)
    summaries = summarise(records)
    for table in (main_table(summaries), means_table(records, summaries), run_table(summaries)):
        for section in table.sections:
            assert re.match(r"A step of eagle2 costs \d\.\d", section.conclusions[0]), table.name


def test_over_six_tasks_the_sentence_has_the_six_task_means() -> None:
    costs = [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    records = [r for task, cost in zip(SIX_TASKS, costs, strict=True)
               for r in (*arm("vanilla", [0] * 30, 1.0, task=task), *arm("eagle2", [1] * 15, cost, task=task))]  # fmt: skip
    (line,) = conclusions(summarise(records))
    assert "costs 4.5 vanilla steps and yields 2.0 tokens" in line
