"""What a policy saves, on replays whose sums are known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_replays import replay

import methods
from harness.replay import saved
from harness.replay.choices import Choice
from harness.replay.price import RelativePrices, looks_of, prices_named
from harness.replay.record import Replay
from methods.engine.relative_costs import RelativeCosts

PRICE = RelativePrices(RelativeCosts("made up", ((1, 1.0),), ((1, 0.1),), root=0.1))
LOOK = PRICE.look
STOPPED = {"weights": "w", "depth": 4}


def sides(n: int = 6) -> tuple[list[Replay], list[Replay]]:
    """A policy with two calls and two rounds of 3 tokens, and its base with four calls and a round of 5 and one of 1."""
    a = [replay("radar", i, [2, 2], [[1, 10]] * 2, [20, 20], STOPPED) for i in range(n)]
    b = [replay("eagle2", i, [4, 0], [[1, 10, 10, 10]] * 2, sizes=[20, 20]) for i in range(n)]
    return a, b


def test_calls_time_and_the_call_s_cost_at_which_both_are_equal() -> None:
    a, b = sides()
    found = saved.saved(a, b, saved.calls_saved)
    assert found.value == pytest.approx(0.5) and found.prompts == 6 and found.ci95 is not None
    mine, theirs = 2 * (1.0 + 0.2 + 2 * LOOK), 2 * (1.0 + 0.4)  # two looks a round
    assert saved.saved(a, b, saved.faster, PRICE).value == pytest.approx(theirs / mine - 1)
    assert saved.saved(a, b, saved.saved_a_round, PRICE).value == pytest.approx((theirs - mine) / 2)
    assert saved.predicted_saving(a, b, 0.1, LOOK) == pytest.approx((theirs - mine) / 2)
    assert saved.saved(a, b, saved.break_even, PRICE).value == pytest.approx(2 * LOOK / 2), "two calls have to cost two looks"


def test_where_it_takes_more_rounds_a_call_has_to_cost_more() -> None:
    a = [replay("radar", i, [1, 1, 1], [[1, 10]] * 3, [20] * 3, STOPPED) for i in range(6)]
    _, b = sides()
    even = saved.saved(a, b, saved.break_even, PRICE).value
    assert even == pytest.approx((3 * (1.1 + 2 * LOOK) - 2 * 1.1) / (6 - 3))
    for call, sign in ((0.9 * even, -1), (1.1 * even, 1)):
        price = RelativePrices(RelativeCosts("made up", ((1, 1.0),), ((1, call),), root=0.1))
        assert np.sign(saved.saved(a, b, saved.faster, price).value) == sign


def test_a_look_is_priced_by_the_machine_s_own_plain_step() -> None:
    """0.4 ms, as RADAR's authors set it: of the 65 ms of a plain step of theirs, of the 7.07 ms of vLLM's."""
    found = {name: price.look for name, price in prices_named(["gpu-radar", "gpu-vllm", "call=0.1,verify=2"]).items()}
    assert found == {"gpu-radar": 0.4 / 65, "gpu-vllm": 0.4 / 7.07, "call=0.1,verify=2": 0.4 / 65}


def test_after_the_last_call_nothing_is_looked_at_and_other_methods_never_look() -> None:
    looks = looks_of(STOPPED)
    assert [looks([1] * n) for n in (1, 2, 3, 4)] == [1, 2, 3, 3]
    assert looks_of({"depth": 4})([1, 1]) == 0


def test_a_histogram_of_calls_is_random_stop_s_option() -> None:
    a, b = sides(1)
    assert saved.calls_histogram(a) == "0 2" and saved.calls_histogram([*a, *b]) == "0 2 0 2"


def test_only_answers_of_both_count_and_none_give_no_value() -> None:
    a, b = sides()
    assert saved.saved(a, b[:5], saved.calls_saved).prompts == 5
    assert saved.saved(a, [], saved.calls_saved).value is None
    (columns,) = saved.paired(a, b)
    assert columns.shape == (2 * saved.N, 6) and columns[saved.TIME].sum() == 0


def test_the_control_makes_as_many_calls_as_often() -> None:
    options = {"weights": "w@1", "sample": True, "top_k": 10, "depth": 8, "total": 16}
    own = [replay("radar", i, [1, 0], [[1, 10], [1]], [10, 10], options) for i in range(2)]
    own.append(replay("radar", 2, [2], [[1, 10, 10]], [10], options))
    chosen = Choice("radar", 0.0, "gpu-radar", options, 1.5, 2.0, 12, 24)
    other = Choice("opt-tree", 0.0, "gpu-radar", options, 1.5, 2.0, 12, 24)
    (control,) = saved.as_often_as([other, chosen], own, "radar")
    assert (control.method, control.costs, control.options) == (
        "random-stop", "gpu-radar", {"histogram": "2 2 1", "top_k": 10, "total": 16},
    )  # fmt: skip
    assert set(control.options) == set(methods.get("random-stop").options)
    assert saved.as_often_as([chosen], own[:0], "radar") == []


def test_the_table_of_savings_holds_radar_against_its_own_tree_and_the_best_fixed_one() -> None:
    tree = {k: methods.get("radar").options[k] for k in ("top_k", "depth", "total")}
    every = {**methods.get("eagle2").options, **tree}
    a = [
        replay("radar", i, [2, 2], [[1, 10]] * 2, [20, 20], {**tree, "weights": "w@0123456789ab", "sample": True})
        for i in range(6)
    ]
    b = [replay("eagle2", i, [4, 0], [[1, 10, 10, 10]] * 2, [20, 20], every) for i in range(6)]
    grid = [replay("eagle2-grid", i, [4, 0], [[1]] * 2, [20, 20], tree) for i in range(6)]
    chosen = [Choice("eagle2-grid", 0.0, "c", tree, 2.0, 3.0, 5, 24)]
    made = saved.saving_table([*a, *b, *grid], chosen, {"c": PRICE})
    values = made.numbers.set_index("statistic")["value"]
    assert values["calls saved"] == 0.5
    assert values["over every call"] == pytest.approx(saved.saved(a, b, saved.faster, PRICE).value)
    assert (
        values["over the best fixed tree"] == pytest.approx(saved.saved(a, grid, saved.faster, PRICE).value)
        and values.iloc[2] < 0
    )
    assert made.sections[0].shown["policy"].tolist() == ["w"]
    assert saved.saving_table(a, chosen, {"c": PRICE}).sections == ()  # without its own tree nothing is said
