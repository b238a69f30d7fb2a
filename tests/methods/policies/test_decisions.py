"""What policies decide on drafts made by hand: where they stop, how wide they run, what they keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from growing import context, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

import methods
from harness.audit.probe.stand_ins import FakeDrafter
from methods.engine.policy import Draft, Fixed, Here, Policy, Round, best_nodes, drafted, policy_tree
from methods.engine.relative_costs import RelativeCosts, relative_costs
from methods.policies.adt import Adjacent
from methods.policies.bandit import Bandit
from methods.policies.cast import Cast
from methods.policies.ddd import DynamicDepth
from methods.policies.ema_depth import EmaDepth
from methods.policies.expected_gain import ExpectedGain
from methods.policies.opt_tree import OptTree
from methods.policies.random_stop import RandomStop

HERE = Here(1, 3, lambda i: 0.5)


def chain(*levels: Sequence[float]) -> Draft:
    """Levels of probabilities, each hanging on the first node of the level above."""
    own = [math.log(p) for level in levels for p in level]
    ends, parents, values, expanded = list[int](), list[int](), list[float](), list[torch.Tensor]()
    for level in levels:
        first = ends[-1] - len(levels[len(ends) - 1]) if ends else -1
        if ends:
            expanded.append(torch.tensor([first]))
        parents += [first] * len(level)
        values += [math.log(p) + (values[first] if first >= 0 else 0.0) for p in level]
        ends.append((ends[-1] if ends else 0) + len(level))
    n = ends[-1]
    return Draft(torch.arange(n), torch.tensor(parents), torch.tensor(own), torch.tensor(values), ends, expanded)


def runs(policy: Policy, draft: Draft) -> list[int]:
    return policy.expand(draft).tolist()


# ---- what is run ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["distinct", "tied", "saturated"]), top_k=st.integers(1, 6), depth=st.integers(1, 6),
    total=st.integers(1, 40), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_pruning_leaves_the_tree_as_it_is_and_drafts_no_more(kind: str, top_k: int, depth: int, total: int, seed: int) -> None:
    kept, run = [], []
    for prunes in (False, True):
        drafter: Any = FakeDrafter(rows_of(kind, 6, seed))
        draft = drafted(drafter, Fixed(top_k, depth, total, prunes=prunes), HERE)
        nodes = best_nodes(draft, total)
        above = [int(draft.tokens[p]) if p >= 0 else -1 for p in draft.parents[nodes].tolist()]
        kept.append((draft.tokens[nodes].tolist(), above, draft.value[nodes].tolist()))
        run.append(drafter.paths)
    assert kept[0] == kept[1] and set(run[1]) <= set(run[0])


FREE = relative_costs("call=0,verify=1")
K, DEPTH, TOTAL = 6, 6, 5
PRUNING: dict[str, Any] = {
    "adt": lambda: Adjacent("none", "one", 0.5, (DEPTH, K), (1, 1), (DEPTH, K), TOTAL, 0, 0),
    "bandit": lambda: Bandit(FREE, (Fixed(K, DEPTH, TOTAL, prunes=True),), 0.2),
    "cast": lambda: Cast(FREE, 0.0, 0.0, 0.0, K, DEPTH, TOTAL),
    "ddd": lambda: DynamicDepth(-1e9, 1, K, DEPTH, TOTAL),
    "ema-depth": lambda: EmaDepth(0.2, 5, 10, 0.25, (DEPTH,), K, TOTAL),
    "opt-tree": lambda: OptTree(0.0, K, DEPTH, TOTAL),
    "random-stop": lambda: RandomStop((0,) * (DEPTH - 1) + (1,), K, TOTAL),
}


@pytest.mark.parametrize("name", sorted(PRUNING))
def test_a_policy_runs_no_node_below_which_nothing_can_be_kept(name: str) -> None:
    """The control, a fixed tree, leaves such nodes out: else policies would pay for rows that it does not."""
    n_whole = 0
    for seed in range(5):
        drafter: Any = FakeDrafter(rows_of("distinct", 12, seed))
        draft = drafted(drafter, PRUNING[name](), HERE)
        assert draft.calls > 1
        for end, nodes in zip(draft.levels, draft.expanded, strict=False):
            least = draft.value[:end].topk(TOTAL).values[-1]
            assert bool((draft.value[nodes] >= least).all())
        n_whole += sum(map(len, draft.expanded)) == K * (DEPTH - 1)
    assert not n_whole


# ---- where they stop ------------------------------------------------------------------------------------------------


def test_opt_tree_stops_where_the_best_nodes_add_less_than_its_threshold() -> None:
    first, second = chain([0.6, 0.3]), chain([0.6, 0.3], [0.55, 0.4])  # the three best: 0.9 in all, then 0.6 + 0.33 + 0.3
    for threshold, then in ((0.32, [2]), (0.34, [])):  # 0.24 is not among the three best
        policy = OptTree(threshold, 2, 8, 3)
        assert policy.begin(HERE, None) == 2
        assert runs(policy, first) == [0, 1] and runs(policy, second) == then
        assert policy.keep(second).tolist() == [0, 1, 2]
    assert not runs(OptTree(0.91, 2, 8, 3), first) and not runs(OptTree(0.0, 2, 1, 3), first)
    policy.begin(HERE, None)
    assert runs(policy, first) == [0, 1], "a round begins at nothing"


def test_ddd_stops_where_the_beam_as_a_whole_is_unlikely() -> None:
    likely, unlikely = chain([0.3, 0.1]), chain([0.2, 0.1])  # e^-1 is 0.37
    assert runs(DynamicDepth(-1.0, 1, 2, 8, 5), likely) == [0, 1] and not runs(DynamicDepth(-1.0, 1, 2, 8, 5), unlikely)
    assert not runs(DynamicDepth(-1.0, 1, 1, 8, 5), likely), "a beam of one"
    assert runs(DynamicDepth(-1.0, 2, 2, 8, 5), unlikely) == [0, 1], "it looks from the second call on"
    assert not runs(DynamicDepth(-1.0, 2, 2, 8, 5), chain([0.2, 0.1], [0.9, 0.1])), "0.18 and 0.02"
    assert not runs(DynamicDepth(-9.0, 1, 2, 1, 5), likely), "its depth"
    assert runs(DynamicDepth(-1.0, 1, 2, 8, 1), likely) == [0], "the sum is of both, and one can have a kept child"


# A call over 1, 2, 3 rows costs 0.1, 0.5, 0.9; the first 0.1. Verifying 1, 2, 3 nodes costs 1.2, 1.4, 1.6.
COSTS = RelativeCosts("by-hand", ((1, 1.0), (4, 1.6)), ((1, 0.1), (3, 0.9)), root=0.1)


@pytest.mark.parametrize(
    ("c1", "c2", "c3", "run", "kept"),
    [
        (1.0, 1.0, 1.0, [0], [0, 1]),  # sums 0.5, 0.8, 0.89 less costs: 0.4, 0.3, -0.01; 0.25 >= 0.1; -0.7, -0.6, -0.71
        (1.0, 3.0, 2.0, [], [0]),  # 0.25 < 0.3; -1.9, -2.0, -2.31
        (0.5, 1.0, 0.0, [], [0, 1, 2]),  # 0.45, 0.55, 0.44: two; 0.5 * 0.8 < 0.5
        (0.5, 0.7, 0.5, [0, 1], [0, 1]),  # 0.4 >= 0.35; -0.1, 0.1, 0.09
    ],
)
def test_cast_weighs_sums_of_values_against_costs(c1: float, c2: float, c3: float, run: list[int], kept: list[int]) -> None:
    draft = chain([0.5, 0.3, 0.09])
    policy = Cast(COSTS, c1, c2, c3, 3, 8, 3)
    assert runs(policy, draft) == run and policy.keep(draft).tolist() == kept
    assert not runs(Cast(COSTS, c1, c2, c3, 3, 1, 3), draft)


def test_expected_gain_runs_and_keeps_what_earns_most_a_unit_of_time() -> None:
    draft = chain([0.5, 0.3, 0.1])

    def policy(calibration: float, depth: int = 8, costs: RelativeCosts = COSTS) -> ExpectedGain:
        found = ExpectedGain(costs, 3, depth, 3, calibration)
        assert found.begin(HERE, None) == 3
        return found

    # now 1.5 / 1.3, 1.8 / 1.5 = 1.2, 1.9 / 1.7; one more run promises 0.25: 2.05 / 1.8 at best
    modest = policy(1.0)
    assert not runs(modest, draft) and modest.keep(draft).tolist() == [0, 1]
    # chances 0.71, 0.55, 0.32: now 2.57 / 1.7 = 1.512; one run promises 0.5: 2.75 / 1.8 = 1.530; two of them 2.75 / 2.2
    sure = policy(0.5)
    assert runs(sure, draft) == [0] and not runs(policy(0.5, depth=1), draft)
    # then that call is paid, too, and what it brought is 0.71 * 0.1: 2.57 / 1.8, 2.25 / 1.6
    assert sure.keep(chain([0.5, 0.3, 0.1], [0.01])).tolist() == [0, 1, 2]


def test_a_bandit_plays_each_tree_once_and_then_the_best_by_tokens_a_unit_of_time() -> None:
    costs = RelativeCosts("by-hand", ((1, 1.0),), ((1, 0.5),), root=0.5)  # one call: 1.5; two: 2.0
    level = chain([0.5])

    def played(accepted: int, explore: float = 0.0) -> tuple[Bandit, int]:
        policy = Bandit(costs, (Fixed(1, 1, 1, prunes=True), Fixed(1, 2, 2, prunes=True)), explore)
        policy.begin(HERE, None)
        assert not runs(policy, level)  # the first tree has one call
        policy.begin(HERE, Round(accepted=1, size=1, calls=1, deepest=1, position=1))
        assert runs(policy, level) == [0] and not runs(policy, chain([0.5], [0.5]))  # the second two
        policy.begin(HERE, Round(accepted=accepted, size=2, calls=2, deepest=2, position=3))
        return policy, len(runs(policy, level))

    assert played(0)[1] == 0 and played(2)[1] == 1  # 2 / 1.5 against 1 / 2, and against 3 / 2
    policy, _ = played(2)
    assert policy._sum == pytest.approx([2 / 1.5 / 1.5, 1.0]), "of the most that a path can bring"
    curious, n = played(0, explore=5.0)
    assert n == 0, "played as often, the better one"
    curious.begin(HERE, Round(accepted=1, size=1, calls=1, deepest=1, position=4))
    assert runs(curious, level) == [0], "the one that was played less"


def depths(accepted: Sequence[int], steps: Sequence[int], weight: float = 0.2, every: int = 5, warm_up: int = 10) -> list[int]:
    """ema-depth's depth of each round, and of the one after."""
    policy, found, last = EmaDepth(weight, every, warm_up, 0.25, tuple(steps), 2, 9), [], None
    for n in [*accepted, 0]:
        policy.begin(HERE, last)
        found.append(policy.depth)
        last = Round(accepted=n, size=9, calls=policy.depth, deepest=policy.depth, position=1)
    return found


def test_ema_depth_is_sglangs_arithmetic() -> None:
    # the mean goes from 7 by 0.8 each round: 3.584 after three, the first that is looked at. 8 falls to 7 at 6.25 and less,
    # to 6 at 5.25, to 5 at 4.25, to 4 at 3.25 only. Two rounds later it is 2.29: to 4, and to 3 at 2.25 only
    assert depths([0] * 5, range(1, 9), every=2, warm_up=1) == [8, 8, 8, 5, 5, 4]
    lately = [3, 2, 2, 3, 2, 3, 2, 2, 3, 2] * 4  # the mean ends near 2.4: over 2.25, where 4 falls to 3 and 7 falls to 3
    assert depths(lately, range(1, 9))[-1] == 4 and depths(lately, (1, 3, 7))[-1] == 7
    # with all weight on the last round: down to 1 at 0.25, up again over 0.5 to 3 and over 2.5 to 7
    assert depths([2, 0, 1, 2, 3, 7], (1, 3, 7), weight=1.0, every=1, warm_up=0) == [7, 3, 1, 3, 3, 7, 7]
    assert depths([0] * 15, (1, 3, 7))[10:] == [7, 7, 7, 7, 7, 1]  # nothing falls in the first warm_up + every - 1 rounds


@pytest.mark.parametrize("steps", ["", "3 1", "1 1", "0 2", "1 x", "-1"])
def test_ema_depths_steps_are_depths_that_rise(steps: str) -> None:
    with pytest.raises(ValueError, match="steps=.*expected depths from 1, rising, such as '1 3 7'"):
        methods.get("ema-depth").build(steps=steps)


# ---- what a policy must not say -------------------------------------------------------------------------------------


class Says(Fixed):
    """A fixed tree of two levels of two but for what it is told to say."""

    def __init__(self, run: Any = None, kept: Any = None, children: int = 2) -> None:
        super().__init__(2, 2, 6)
        self._run, self._kept, self._children = run, kept, children

    def begin(self, here: Here, last: Round | None) -> int:
        return self._children

    def expand(self, draft: Draft) -> torch.Tensor:
        return torch.tensor(self._run) if self._run is not None and draft.calls == 1 else super().expand(draft)

    def keep(self, draft: Draft) -> torch.Tensor:
        return torch.tensor(self._kept) if self._kept is not None else super().keep(draft)


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ({"run": [0, 0]}, "expand gave 0, 0: it takes nodes of the newest level, 0 to 1, each once"),
        ({"run": [2]}, "expand gave 2: it takes nodes of the newest level"),
        ({"run": [-1]}, "expand gave -1: it takes"),
        ({"run": [True, False]}, r"expand gave a tensor \[2\] of torch.bool: it takes numbers of nodes"),
        ({"kept": [0, 0]}, "keep gave 0, 0: it takes nodes of the draft, 0 to 5, each once, rising"),
        ({"kept": [1, 0]}, "keep gave 1, 0: it takes"),
        ({"kept": [0, 6]}, "keep gave 0, 6: it takes"),
        ({"kept": [-1, 0]}, "keep gave -1, 0: it takes"),
        ({"kept": [True] * 6}, "keep gave a tensor"),
        ({"kept": [2, 3]}, "keep gave node 2 without its parent, node [01]"),
        ({"children": 0}, "begin gave 0: a node gets at least 1 child"),
    ],
)
def test_a_policy_that_breaks_its_interface_is_one_clear_line(says: dict[str, Any], told: str) -> None:
    """A sibling that is there twice would be verified twice: no tree may break the target's law in silence."""
    drafter: Any = FakeDrafter(rows_of("distinct", 6, 0))
    with pytest.raises(ValueError, match=f"policy Says's {told}"):
        policy_tree(lambda: Says(**says), 6).tree(drafter, context())


def test_a_policy_that_takes_more_than_it_said_is_one_clear_line() -> None:
    drafter: Any = FakeDrafter(rows_of("distinct", 6, 0))
    with pytest.raises(ValueError, match="policy Says ran the drafter on 2 nodes and kept 6: it said 5 at most"):
        policy_tree(Says, 5).tree(drafter, context())
