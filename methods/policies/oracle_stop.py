"""Oracle stop: EAGLE-2's tree, stopped where it turns out to have paid best. It knows what vanilla will say: an upper bound.

Of each number of calls up to `depth` it sees how many tokens the tree would have accepted, and takes the one with the most
tokens less `rate` times what the step costs: tokens and steps of plain decoding. At the `rate` that equals the speed it
reaches, no rule of when to stop is faster (Dinkelbach 1967). At 0 it takes the fewest calls that accept as much as all do.
"""

from __future__ import annotations

from typing import Any

import torch

from methods import method
from methods.base import Decode, Drafter
from methods.engine.loop import Context, Grow, speculative
from methods.engine.policy import Draft, Fixed, Here, best_nodes, drafted
from methods.engine.relative_costs import RelativeCosts, relative_costs
from methods.engine.tree import Tree


def _stopped(costs: RelativeCosts, rate: float, top_k: int, depth: int, total: int) -> Grow:
    def tree(drafter: Drafter | None, context: Context) -> Tree:
        known: Any = getattr(context.chooser, "known", None)
        if drafter is None or known is None:
            raise ValueError("oracle-stop knows what vanilla will say, which only a replay does")
        whole = drafted(drafter, Fixed(top_k, depth, total), Here(context.position, len(context.tokens), lambda i: 0.0))
        best: tuple[float, Tree, int] | None = None
        for calls in range(1, whole.calls + 1):
            n = whole.levels[calls - 1]
            cut = Draft(whole.tokens[:n], whole.parents[:n], whole.confidence[:n], whole.value[:n], whole.levels[:calls],
                        whole.expanded[: calls - 1])  # fmt: skip
            found = _tree(cut, total, context.root)
            rows = [1, *([top_k] * (calls - 1))]
            cost = float(costs.verifying[found.n_draft]) + costs.drafting(rows)
            worth = _accepted(found, known, context.position) + 1 - rate * cost
            if best is None or worth > best[0]:
                best = worth, found, calls
        assert best is not None
        drafter.made(best[2])  # type: ignore[attr-defined]
        return best[1]

    return Grow(tree, max(total, top_k * depth))


def _tree(draft: Draft, total: int, root: int) -> Tree:
    kept = best_nodes(draft, total)
    numbers, tokens, parents = torch.stack([kept, draft.tokens[kept], draft.parents[kept]]).tolist()
    place = {-1: 0} | {number: i for i, number in enumerate(numbers, start=1)}
    return Tree([root, *tokens], [-1, *(place[p] for p in parents)])


def _accepted(tree: Tree, known: Any, position: int) -> int:
    below = {(p, t): i for i, (p, t) in enumerate(zip(tree.parents, tree.tokens, strict=True)) if i}
    node, n = 0, 0
    while (child := below.get((node, known[position + n]))) is not None:
        node, n = child, n + 1
    return n


@method(
    "oracle-stop", line="Bound: stop where it turns out to have paid best", drafter="eagle", group="policies",
    replay_only=True,
    candidates=[{"rate": r, "total": n, "top_k": k} for r in (1.0, 1.5, 2.0, 3.0) for n in (4, 8, 16, 24, 59) for k in (4, 10)],
)  # fmt: skip
def oracle_stop(costs: str = "gpu-radar", rate: float = 1.0, top_k: int = 10, depth: int = 8, total: int = 59) -> Decode:
    if min(top_k, depth, total) < 1 or rate < 0:
        raise ValueError(f"rate={rate}, top_k={top_k}, depth={depth}, total={total}: counts from 1, a rate from 0")
    return speculative(_stopped(relative_costs(costs), rate, top_k, depth, total))
