"""Oracle stop: EAGLE-2's tree, stopped in each round where the whole answer takes least time. It knows what vanilla will say.

Where a round stops decides what it accepts, and so where the next one starts. So the oracle takes the shortest path over the
positions of the answer: from each one an edge for each number of calls up to `depth`, to the position that the round would reach,
as long as the step costs. By the costs that it weighs no rule of when to stop this tree is faster: an upper bound. Costs of a
table are those at one context, as policies have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from methods import method
from methods.base import Decode, Drafter, SamplerParams
from methods.engine.loop import Context, Grow, speculative
from methods.engine.policy import Draft, Fixed, Here, best_nodes, drafted, tree_of
from methods.engine.relative_costs import RelativeCosts, relative_costs
from methods.engine.tree import Tree


def _stopped(costs: RelativeCosts, top_k: int, depth: int, total: int) -> Grow:
    def draft(drafter: Drafter, position: int, calls: int) -> Draft:
        return drafted(drafter, Fixed(top_k, calls, total, prunes=True), Here(position, 0, lambda i: 0.0))

    def plan(drafter: Drafter, context: Context, known: Sequence[int]) -> list[int]:
        """Of each position how many calls, from a walk over all of them."""
        n, nothing = _length(known, context.chooser.params), torch.empty(0, 0)
        edges: list[list[tuple[float, int]]] = [[]]  # of each position, by calls: the cost, and where the next round starts
        for position in range(1, n):
            if position > 1:
                drafter.observe([known[position - 1]], nothing)
            whole = draft(drafter, position, depth)
            rows, accepted = [1, *map(len, whole.expanded)], accepted_by_calls(whole, total, known[position:])
            edges.append([
                (float(costs.verifying[min(end, total)]) + costs.drafting(rows[: i + 1]), position + accepted[i] + 1)
                for i, end in enumerate(whole.levels)
            ])  # fmt: skip
        drafter.start(top_k * depth)
        drafter.observe(context.tokens[1:], nothing)
        return shortest(edges)

    def tree(drafter: Drafter | None, context: Context) -> Tree:
        known: Any = getattr(context.chooser, "known", None)
        if drafter is None or known is None:
            raise ValueError("oracle-stop knows what vanilla will say, which only a replay does")
        if context.kept is None:
            context.kept = plan(drafter, context, known)
        found = draft(drafter, context.position, context.kept[context.position])
        return tree_of(found, best_nodes(found, total), context.root)

    return Grow(tree, max(total, top_k * depth))


def _length(known: Sequence[int], params: SamplerParams) -> int:
    """Of the answer, whose beginning `known` is."""
    n = min(len(known), params.max_new_tokens)
    return next((i + 1 for i, token in enumerate(known[:n]) if token in params.stop_ids), n)


def accepted_by_calls(draft: Draft, total: int, then: Sequence[int]) -> list[int]:
    """How many tokens the tree of the `total` best nodes accepts, of the draft after each number of calls. then: what follows."""
    accepted, above = [0] * draft.calls, -1
    for token in then:
        here = ((draft.parents == above) & (draft.tokens == token)).nonzero().flatten().tolist()
        if not here:
            break
        above = here[0]
        better = draft.value > draft.value[above]
        better[:above] |= draft.value[:above] == draft.value[above]  # ties go to the lower number, as in `by_score`
        ranks = better.cumsum(0)
        for i, end in enumerate(draft.levels):
            accepted[i] += above < end and int(ranks[end - 1]) < total
    return accepted


def shortest(edges: Sequence[Sequence[tuple[float, int]]]) -> list[int]:
    """Which edge leads to the end at least cost, from 1, of each position; the first of equals. edges: of each position, (cost,
    where it leads), always forward; those that lead beyond the last position lead to the end."""
    left, chosen = [0.0] * len(edges), [0] * len(edges)
    for position in range(len(edges) - 1, 0, -1):
        costs = [cost + (left[then] if then < len(edges) else 0.0) for cost, then in edges[position]]
        left[position] = min(costs)
        chosen[position] = costs.index(left[position]) + 1
    return chosen


@method(
    "oracle-stop", line="Bound: stop where the whole answer takes least time", drafter="eagle", group="policies",
    replay_only=True,
    candidates=[{"total": n, "top_k": k} for n in (4, 8, 16, 24, 40, 59) for k in (2, 4, 10)],
)  # fmt: skip
def oracle_stop(costs: str = "gpu-radar", top_k: int = 10, depth: int = 8, total: int = 59) -> Decode:
    if min(top_k, depth, total) < 1:
        raise ValueError(f"top_k={top_k}, depth={depth}, total={total}: each must be at least 1")
    return speculative(_stopped(relative_costs(costs), top_k, depth, total))
