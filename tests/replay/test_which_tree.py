"""The tables of policies at chosen options, and the plane of costs: on made-up replays whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made_up_replays import replay

import methods
from harness.replay.choices import Choice
from harness.replay.price import prices_named
from harness.replay.record import Replay
from harness.replay.regions import PLANE, figure, regions, rows_of
from harness.replay.tables import adjusted, chosen_table

COSTS = "call=0.1,verify=1.3"


def options_of(name: str, **changes: Any) -> dict[str, Any]:
    return {**methods.get(name).options, **changes}


def replays(name: str, options: dict[str, Any], calls: int, accepted: int, n: int = 8, seed: int = 0) -> list[Replay]:
    """A task of n conversations; each has steps of so many calls of ten rows, of which about so many tokens are accepted."""
    random = np.random.default_rng(seed)
    made = []
    for i in range(n):
        took = [max(0, accepted + int(x)) for x in random.integers(-1, 2, 12)]
        made.append(replay(name, i, took, [[1, *[10] * (calls - 1)]] * 12, [20] * 12, options))
    return made


def choice(name: str, options: dict[str, Any], speedup: float, costs: str = COSTS) -> Choice:
    return Choice(name, 0.0, costs, options, speedup, 3.0, 5, 24)


def test_each_policy_stands_beside_the_fixed_tree_and_bounds_are_not_judged() -> None:
    grid, tree, random = options_of("eagle2-grid"), options_of("opt-tree"), options_of("random-stop")
    made = [*replays("eagle2-grid", grid, 6, 3), *replays("opt-tree", tree, 2, 3), *replays("random-stop", random, 1, 3)]
    chosen = [choice("eagle2-grid", grid, 2.0), choice("opt-tree", tree, 2.5), choice("random-stop", random, 3.0)]
    numbers = chosen_table(made, chosen, prices_named([COSTS])).numbers
    means = numbers[numbers["task"] == "mean"].set_index(["method", "statistic"])
    over = means.loc[("opt-tree", "over eagle2-grid")]
    # the same tokens: the ratio of what a step costs, 1 + 0.3 * 20 / 59 and a call each
    verify = 1 + 0.3 * 20 / 59
    assert over["value"] == pytest.approx((verify + 0.6) / (verify + 0.2))
    assert np.isnan(over["p"])  # no conversation differs from another in it: no test
    assert np.isnan(means.loc[("random-stop", "over eagle2-grid")]["p"])
    other = [*replays("eagle2-grid", grid, 6, 3), *replays("opt-tree", tree, 2, 3, seed=1)]
    numbers = chosen_table(other, chosen[:2], prices_named([COSTS])).numbers
    p = numbers[(numbers["method"] == "opt-tree") & (numbers["statistic"] == "over eagle2-grid")]["p"].item()
    assert 0 < p < 0.05
    assert adjusted([None]) == [None]


def test_the_fastest_of_a_point_is_decided_on_held_out_conversations() -> None:
    """opt-tree is faster on what is reported, but was not on what was held out: it does not win the point."""
    grid, tree = options_of("eagle2-grid"), options_of("opt-tree")
    made = [*replays("eagle2-grid", grid, 6, 3), *replays("opt-tree", tree, 2, 3, seed=1)]
    name = PLANE[0]
    lost = [choice("eagle2-grid", grid, 2.5, name), choice("opt-tree", tree, 2.0, name)]
    (point,) = regions(made, lost, 0.0)
    assert (point.method, point.gain.value) == ("eagle2-grid", 1.0) and not point.is_shown
    won = [choice("eagle2-grid", grid, 2.5, name), choice("opt-tree", tree, 2.6, name)]
    (point,) = regions(made, won, 0.0)
    assert point.method == "opt-tree" and (point.call, point.verify) == (0.01, 1.0)
    (row,) = rows_of([point], 0.0)
    assert row["gain"] == point.gain.value and "threshold=0.04" in row["options"]
    assert figure({0.0: [point]}).axes
    bound = options_of("random-stop")
    assert regions([*made, *replays("random-stop", bound, 1, 3)], [*won, choice("random-stop", bound, 9.0, name)], 0.0) == [point]
