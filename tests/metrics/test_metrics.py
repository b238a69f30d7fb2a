"""Each metric against a value worked out by hand, and the facts that must hold whatever the records are."""

from __future__ import annotations

import json
import random
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_records import measured, only, unmeasured
from make_ledger import FOLDER, METHODS

from harness.common.names import SIX_TASKS
from harness.ledger.ledger import read
from harness.ledger.record import Record
from harness.metrics.cells import six_task_mean, summarise
from harness.metrics.definitions import paired, speed_ratio, tau_difference, tau_ratio
from harness.metrics.divergences import divergences, first_divergence
from harness.metrics.steps import acceptance_by_depth

JSON_KEYS = ["method", "preset", "task", "model", "source", "temperature", "top_p", "dtype", "threads", "max_new_tokens",
             "prompts", "new_tokens", "seconds", "tokens_per_s", "baseline_tokens_per_s", "speedup", "speedup_ci95",
             "tau", "identical", "looped", "settings", "records"]  # fmt: skip


def both_arms(n: int = 6) -> list[Record]:
    rng = random.Random(0)
    records = []
    for i in range(n):
        records.append(measured("vanilla", i, [0] * 11, wall_s=1 + rng.random()))
        records.append(measured("eagle2", i, [rng.randrange(3), 2, 2, 2], wall_s=0.5 + rng.random()))
    return records


# ---- values by hand -------------------------------------------------------------------------------------------------


def test_the_numbers_of_a_cell_are_those_worked_out_by_hand() -> None:
    records = [
        measured("vanilla", 0, [0] * 9, wall_s=1.0),  # 10 tokens
        measured("vanilla", 1, [0] * 19, wall_s=3.0),  # 20 tokens
        measured("eagle2", 0, [3, 2, 1], wall_s=0.5),  # 10 tokens in 3 forwards
        measured("eagle2", 1, [4, 6, 0, 5], wall_s=1.5),  # 20 tokens in 4 forwards
    ]
    cell = only(records)
    assert (cell.prompts, cell.new_tokens, cell.seconds) == (2, 30, 2.0)
    assert cell.tokens_per_s == pytest.approx(15.0)
    assert cell.baseline_tokens_per_s == pytest.approx(7.5)
    assert cell.speedup == pytest.approx(2.0)
    assert cell.decode_speedup == pytest.approx((28 / 1.8) / (28 / 3.8))
    assert cell.tau == pytest.approx(28 / 7)
    assert cell.mean_tree_size == 4
    assert (cell.identical, cell.n_compared) == (2, 2)
    assert cell.looped == 0
    split = cell.time_split
    assert split is not None
    assert (split.draft, split.verify, split.prefill) == pytest.approx((7 * 0.008 / 30, 7 * 0.015 / 30, 0.2 / 30))
    assert split.total == pytest.approx(2.0 / 30)
    assert [(d.depth, d.n_reached, d.n_accepted) for d in cell.acceptance] == [
        (1, 7, 6), (2, 6, 5), (3, 5, 4), (4, 4, 3), (5, 3, 2), (6, 2, 1)]  # fmt: skip


def test_decode_speedup_is_tau_over_the_costs_of_a_step() -> None:
    cell = only(both_arms())
    costs = cell.step_costs
    assert costs is not None and cell.tau is not None
    assert cell.decode_speedup == pytest.approx(cell.tau / (costs.verify + costs.draft + costs.other))
    assert only(both_arms(), "vanilla").step_costs is not None
    assert only([r for r in both_arms() if r["method"] != "vanilla"]).step_costs is None


def test_a_baseline_from_another_process_is_counted() -> None:
    records = [r | {"run": "another"} if r["method"] == "vanilla" and r["sample_id"] == "1" else r for r in both_arms()]
    found = only(cast(list[Record], records))
    assert (found.n_elsewhere, found.is_apart, only(both_arms()).n_elsewhere) == (1, False, 0)
    elsewhere = [r | {"run": "another"} if r["method"] == "vanilla" else r for r in both_arms()]
    assert only(cast(list[Record], elsewhere)).is_apart


def test_speedup_is_a_ratio_of_totals_not_a_mean_of_ratios() -> None:
    records = [
        measured("vanilla", 0, [0], wall_s=1.0), measured("eagle2", 0, [0], wall_s=0.1),
        measured("vanilla", 1, [0], wall_s=9.0), measured("eagle2", 1, [0], wall_s=9.0),
    ]  # fmt: skip
    assert only(records).speedup == pytest.approx(10 / 9.1)


def test_outputs_of_unequal_length_are_compared_by_seconds_per_token() -> None:
    records = [measured("vanilla", 0, [0] * 9, wall_s=1.0, temperature=1.0),
               measured("eagle2", 0, [4] * 4, wall_s=1.05, temperature=1.0)]  # fmt: skip
    cell = only(records)
    assert cell.speedup == pytest.approx((1.0 / 10) / (1.05 / 21))
    assert cell.identical is None and cell.n_compared is None  # nothing to be identical to at T > 0


def test_the_cut_off_tokens_count_in_neither_side_of_tau() -> None:
    cut = measured("eagle2", 0, [5, 5], n_cut=3, token_ids=list(range(10)))
    assert only([cut]).tau == pytest.approx(9 / 2)


def test_an_output_of_one_token_has_no_tau() -> None:
    cell = only([measured("eagle2", 0, []), measured("vanilla", 0, [])])
    assert cell.tau is None and cell.decode_speedup is None and cell.speedup == 1.0
    assert cell.acceptance == () and cell.mean_tree_size is None


# ---- what must hold -------------------------------------------------------------------------------------------------


def test_identical_arms_have_a_speedup_of_one_and_no_doubt_about_it() -> None:
    vanilla = [measured("vanilla", i, [0] * (5 + i), wall_s=1 + i) for i in range(6)]
    twin = [measured("eagle2", i, [0] * (5 + i), wall_s=1 + i) for i in range(6)]
    cell = only(vanilla + twin)
    assert cell.speedup == cell.decode_speedup == cell.tau == 1.0
    assert cell.speedup_ci95 == (1.0, 1.0) == cell.tau_ci95
    assert (cell.identical, cell.n_compared) == (6, 6)


def test_vanilla_is_its_own_baseline_and_claims_nothing_more() -> None:
    cell = only(both_arms(), "vanilla")
    assert (cell.speedup, cell.tau) == (1.0, 1.0)
    assert cell.speedup_ci95 is None and cell.identical is None


def test_the_order_of_the_file_changes_nothing() -> None:
    records = read(FOLDER)
    mixed = records[:]
    random.Random(1).shuffle(mixed)
    assert summarise(mixed) == summarise(records)


def test_a_cell_does_not_depend_on_the_other_cells_of_the_folder() -> None:
    records = read(FOLDER)
    alone = [r for r in records if r["task"] == "gsm8k" and r["method"] in ("vanilla", "eagle2")]
    whole = {(s.setting, s.variant, s.task): s for s in summarise(records)}
    for cell in summarise(alone):
        assert cell == whole[cell.setting, cell.variant, cell.task]


@given(st.floats(0.1, 10))
def test_a_method_that_takes_k_times_as_long_has_a_kth_of_the_speedup(k: float) -> None:
    records = both_arms(5)
    slower = [cast(Record, {**r, "wall_s": (r["wall_s"] or 0) * k}) if r["method"] == "eagle2" else r for r in records]
    a, b = only(records), only(slower)
    assert a.speedup is not None and b.speedup == pytest.approx(a.speedup / k)
    assert a.speedup_ci95 and b.speedup_ci95 == pytest.approx(tuple(end / k for end in a.speedup_ci95))


def test_intervals_need_five_conversations_and_turns_do_not_count_as_more() -> None:
    turns = [measured(m, i, [2, 1], turn=t, n_turns=2) for m in ("vanilla", "eagle2") for i in range(4) for t in (1, 2)]
    assert only(turns).speedup_ci95 is None and only(turns).tau_ci95 is None
    assert only(both_arms(5)).speedup_ci95 is not None


# ---- what is left out -----------------------------------------------------------------------------------------------


def test_warmups_and_failures_are_left_out_of_both_arms() -> None:
    records = both_arms(3)
    noise = [
        measured("vanilla", 7, [0], wall_s=99), unmeasured("eagle2", 7, "error"),
        unmeasured("vanilla", 8, "skipped"), unmeasured("eagle2", 8, "skipped"),
        measured("vanilla", 9, [0], wall_s=99, is_warmup=True), measured("eagle2", 9, [0], wall_s=99, is_warmup=True),
    ]  # fmt: skip
    cell, clean = only(records + noise), only(records)
    for name in ("speedup", "tau", "prompts", "new_tokens", "baseline_tokens_per_s", "identical"):
        assert getattr(cell, name) == getattr(clean, name), name
    assert (cell.n_errors, cell.n_skipped) == (1, 1)


def test_a_failure_that_was_measured_since_is_none() -> None:
    records = [unmeasured("eagle2", 0, "error"), *both_arms(1)]
    assert only(records).n_errors == 0 and only(records).prompts == 1


def test_of_two_measurements_of_one_prompt_the_first_stands() -> None:
    """Runs with different limits are different cells, and may both have measured a prompt."""
    first = measured("eagle2", 0, [1], wall_s=1)
    second = cast(Record, measured("eagle2", 0, [1], wall_s=5) | {"cell": "other", "key": "other"})
    cell = only([first, second])
    assert cell.seconds == 1 and cell.cells == tuple(sorted([first["cell"], "other"]))


def test_without_a_baseline_there_is_no_speedup_but_all_else() -> None:
    cell = only([measured("eagle2", i, [2, 2]) for i in range(6)])
    assert cell.speedup is None and cell.speedup_ci95 is None and cell.baseline_tokens_per_s is None
    assert cell.identical is None and cell.decode_speedup is None
    assert cell.tau == 3.0 and cell.tau_ci95 == (3.0, 3.0) and cell.prompts == 6


def test_all_numbers_of_a_cell_rest_on_the_prompts_that_have_a_baseline() -> None:
    records = [*both_arms(3), measured("eagle2", 9, [9] * 9, wall_s=99)]
    assert only(records).n_unpaired == 1
    assert only(records).tau == only(both_arms(3)).tau and only(records).prompts == 3


def test_vanillas_first_turn_alone_is_no_baseline() -> None:
    """It is measured to build the second turn's prompt from, also where no baseline was asked for."""
    records = [measured("vanilla", 0, [0], n_turns=2, turn=1), measured("eagle2", 0, [1], n_turns=2, turn=1),
               measured("eagle2", 0, [1], n_turns=2, turn=2)]  # fmt: skip
    cell = only(records)
    assert cell.speedup is None and cell.identical is None
    assert (cell.prompts, cell.new_tokens, cell.n_unpaired, cell.n_incomplete) == (1, 6, 0, 0)
    assert only(records, "vanilla").n_incomplete == 1


def test_another_machine_temperature_or_prompt_is_no_baseline() -> None:
    own = measured("eagle2", 0, [1])
    for change in ({"machine": "B"}, {"temperature": 1.0}, {"prompt_sha": "x"}, {"dtype": "float64"}, {"repeat": 1}):
        assert only([own, measured("vanilla", 0, [0], **change)]).speedup is None, change


def test_a_conversation_is_identical_only_if_all_its_turns_and_repeats_are() -> None:
    def arms(**last: Any) -> list[Record]:
        records = [measured(m, i, [1, 1], turn=t, n_turns=2, repeat=k, **(last if (m, i, t, k) == ("eagle2", 1, 2, 1)
                                                                         else {}))
                   for m in ("vanilla", "eagle2") for i in range(3) for t in (1, 2) for k in (0, 1)]  # fmt: skip
        return records

    assert (only(arms()).identical, only(arms()).n_compared) == (3, 3)
    changed = only(arms(token_ids=[0, 1, 2, 3, 99]))
    assert (changed.identical, changed.n_compared) == (2, 3)
    shorter = only(arms(token_ids=[0, 1, 2, 3]))
    assert (shorter.identical, shorter.n_compared) == (2, 3)
    missing = only([r for r in arms() if (r["sample_id"], r["turn"]) != ("2", 2)])
    assert (missing.identical, missing.n_compared, missing.n_incomplete) == (2, 2, 1)


def test_repeats_are_paired_with_repeats_and_count_as_one_prompt() -> None:
    records = [measured(m, i, [1], wall_s=1.0 + k, repeat=k) for m in ("vanilla", "eagle2") for i in range(5) for k in (0, 1)]
    cell = only(records)
    assert cell.prompts == 5 and cell.seconds == 15 and cell.speedup_ci95 == (1.0, 1.0)


def test_tau_without_loops_leaves_out_a_prompt_where_either_arm_looped() -> None:
    records = [
        measured("vanilla", 0, [0]), measured("eagle2", 0, [1, 1]),
        measured("vanilla", 1, [0], looped=True), measured("eagle2", 1, [9]),
        measured("vanilla", 2, [0]), measured("eagle2", 2, [9], looped=True),
    ]  # fmt: skip
    cell = only(records)
    assert cell.tau == pytest.approx((4 + 10 + 10) / 4) and cell.tau_no_loop == 2.0
    assert cell.looped == pytest.approx(1 / 3)
    everything_loops = [cast(Record, {**r, "looped": True}) for r in records]
    assert only(everything_loops).tau_no_loop is None


def test_a_method_without_a_trace_has_speed_but_no_tau() -> None:
    records = [measured("vanilla", i, [0] * 4) for i in range(5)]
    records += [measured("hf-generate", i, [0] * 4, wall_s=2.0, trace=None, prefill_s=None) for i in range(5)]
    cell = only(records, "hf-generate")
    assert cell.speedup == 0.5 and cell.speedup_ci95 == (0.5, 0.5)
    for name in ("tau", "tau_ci95", "tau_no_loop", "decode_speedup", "time_split", "mean_tree_size"):
        assert getattr(cell, name) is None, name
    assert cell.acceptance == () and (cell.identical, cell.n_compared) == (5, 5)


def test_heads_presets_options_and_settings_are_cells_of_their_own() -> None:
    base = measured("eagle2", 0, [1])
    for change in ({"head_id": "x"}, {"code_sha": "x"}, {"target_id": "x"},
                   {"preset": "fast"}, {"options": {"total": 9}}, {"dtype": "float64"}, {"seed": 1},
                   {"max_new_tokens": 9}, {"threads": 1}, {"source": "hub"}, {"model": "m"}, {"top_p": 0.9}):  # fmt: skip
        assert len(summarise([base, measured("eagle2", 0, [1], **change)])) == 2, change


# ---- JSON, means, pairs ---------------------------------------------------------------------------------------------


def test_the_json_object_has_exactly_the_documented_keys() -> None:
    found = only(both_arms()).to_json("results/records.jsonl")
    assert list(found) == JSON_KEYS
    assert json.loads(json.dumps(found)) == found
    assert found["settings"] == METHODS["eagle2"].options and found["records"] == "results/records.jsonl"
    assert isinstance(found["identical"], int) and len(found["speedup_ci95"]) == 2
    bare = only([unmeasured("eagle2", 0, "error")]).to_json("r")
    assert bare["prompts"] == bare["new_tokens"] == 0
    assert [k for k, v in bare.items() if v is None] == [
        "seconds", "tokens_per_s", "baseline_tokens_per_s", "speedup", "speedup_ci95", "tau", "identical", "looped"]  # fmt: skip


def test_the_six_task_mean_is_unweighted_and_needs_each_task_once() -> None:
    cells = [only([measured("eagle2", i, [k] * 3, task=task) for i in range(k)], task=task)
             for k, task in enumerate(SIX_TASKS, 1)]  # fmt: skip
    assert six_task_mean(cells).tau == pytest.approx(np.mean([2, 3, 4, 5, 6, 7]))
    assert six_task_mean(cells).speedup is None  # no baselines
    assert six_task_mean(cells[:5]).tau is None
    assert six_task_mean([*cells, cells[0]]).tau is None
    assert six_task_mean([]).tau is None


def test_a_paired_comparison_is_over_the_prompts_of_both() -> None:
    a = [measured("eagle2", i, [2] * (3 + i), wall_s=1.0) for i in range(7)]
    b = [measured("eagle1", i, [1] * (3 + i), wall_s=1.0) for i in range(1, 9)]
    difference = paired(a, b, tau_difference)
    assert (difference.value, difference.prompts) == (1.0, 6)
    assert difference.ci95 == (1.0, 1.0)
    assert paired(a, b, tau_ratio).value == 1.5
    tokens = [sum(len(r["token_ids"]) for r in arm if r["sample_id"] in "123456") for arm in (a, b)]
    assert paired(a, b, speed_ratio).value == pytest.approx(tokens[0] / tokens[1])
    assert paired(a, [], tau_difference).value is None


def test_pairing_narrows_the_interval_where_prompts_differ_more_than_methods() -> None:
    rng = random.Random(0)
    a, b = [], []
    for i in range(30):
        hard = rng.randrange(1, 8)
        a.append(measured("eagle2", i, [hard] * 5))
        b.append(measured("eagle1", i, [hard - (rng.random() < 0.5)] * 5))
    ci95 = paired(a, b, tau_difference).ci95
    alone = only(a).tau_ci95
    assert ci95 and alone and 0 < ci95[0] and ci95[1] - ci95[0] < (alone[1] - alone[0]) / 2


def test_a_mean_over_tasks_weighs_tasks_not_prompts() -> None:
    records: dict[str, list[Record]] = {"eagle2": [], "eagle1": []}
    for task, n, gain in (("gsm8k", 20, 1), ("alpaca", 5, 3)):
        for i in range(n):
            records["eagle2"].append(measured("eagle2", i, [1 + gain] * 4, task=task))
            records["eagle1"].append(measured("eagle1", i, [1] * 4, task=task))
    by_task = paired(records["eagle2"], records["eagle1"], tau_difference, by_task=True)
    assert by_task.value == pytest.approx(2.0) and by_task.ci95 == pytest.approx((2.0, 2.0)) and by_task.prompts == 25
    assert paired(records["eagle2"], records["eagle1"], tau_difference).value == pytest.approx((20 * 1 + 5 * 3) / 25)


@given(st.lists(st.lists(st.integers(0, 6), max_size=12), min_size=1, max_size=6))
def test_acceptance_rates_multiply_to_the_accepted_tokens(accepted: list[list[int]]) -> None:
    rates = acceptance_by_depth([measured("eagle2", i, a) for i, a in enumerate(accepted)])
    forwards = [n for a in accepted for n in a]
    assert sum(d.n_accepted for d in rates) == sum(forwards)
    assert [d.depth for d in rates] == list(range(1, max(forwards, default=0) + 1))
    reach = float(len(forwards))
    for d in rates:
        assert d.n_reached == pytest.approx(reach)
        reach *= d.rate


# ---- divergences ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_the_first_divergence_is_where_the_common_prefix_ends(a: list[int], b: list[int]) -> None:
    position = first_divergence(a, b)
    if position is None:
        assert a == b
    else:
        assert a[:position] == b[:position] and a[position : position + 1] != b[position : position + 1]


def test_divergences_name_position_tokens_and_the_end_of_a_shorter_output() -> None:
    records = [measured("vanilla", i, [0] * 3) for i in range(3)]
    records += [measured("eagle2", 0, [3]), measured("eagle2", 1, [3], token_ids=[0, 1, 9]),
                measured("eagle2", 2, [3], token_ids=[0, 1])]  # fmt: skip
    records += [measured("vanilla", 3, [0], temperature=1.0), measured("eagle2", 3, [4], temperature=1.0)]
    found = [(d.sample_id, d.position, d.vanilla_token, d.token) for d in divergences(records)]
    assert found == [("0", 4, None, 4), ("1", 2, 2, 9), ("2", 2, 2, None)]
