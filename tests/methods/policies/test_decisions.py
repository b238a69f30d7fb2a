"""What policies decide on drafts made by hand: where they stop, how wide they run, what they keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from growing import rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.audit.probe.stand_ins import FakeDrafter
from methods.engine.policy import Draft, Fixed, Here, Policy, best_nodes, drafted
from methods.engine.relative_costs import relative_costs
from methods.policies.adt import Adjacent
from methods.policies.bandit import Bandit
from methods.policies.cast import Cast
from methods.policies.ddd import DynamicDepth
from methods.policies.ema_depth import EmaDepth
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
        kept.append([column[nodes].tolist() for column in (draft.tokens, draft.tokens[draft.parents[nodes]], draft.value)])
        run.append(drafter.paths)
    assert kept[0] == kept[1] and set(run[1]) <= set(run[0])


FREE = relative_costs("call=0,verify=1")
K, DEPTH, TOTAL = 6, 6, 5
PRUNING: dict[str, Any] = {
    "adt": lambda: Adjacent("none", "one", 0.5, (DEPTH, K), (1, 1), (DEPTH, K), TOTAL, 0, 0),
    "bandit": lambda: Bandit(FREE, (Fixed(K, DEPTH, TOTAL, prunes=True),), 0.2),
    "cast": lambda: Cast(FREE, 0.0, 0.0, 0.0, K, DEPTH, TOTAL),
    "ddd": lambda: DynamicDepth(-1e9, 1, K, DEPTH, TOTAL),
    "ema-depth": lambda: EmaDepth(0.2, 5, 10, 0.25, K, DEPTH, TOTAL),
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
