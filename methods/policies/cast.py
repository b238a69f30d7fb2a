"""A cost-aware rule after CAST (arXiv 2510.26577): width, depth and size by what each is worth against what it costs.

- Width: of a level's nodes below which something can be kept, by value, as many are run as maximise the sum of their values less
  `c1` times what the call costs.
- Depth: another call is made where the mean confidence of best children, times the sum of those values, is at least `c2` times
  its
  cost.
- Size: as many nodes are kept, by value, as maximise the sum of their values less `c3` times what verifying them costs.

Costs are in steps of plain decoding, each of which brings one token: so 1 is the constant at which drafting pays as much as
plain decoding does. The paper's own constants are of its machine and unknown to us; it takes marginal costs, which on a table
of steps are now nothing, now a jump, so here the same rule is applied to the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from methods import method
from methods.base import Decode
from methods.engine.grow import by_score
from methods.engine.loop import speculative
from methods.engine.policy import NONE, Draft, Here, Round, beam, best_nodes, policy_tree
from methods.engine.relative_costs import RelativeCosts, relative_costs


@dataclass(slots=True)
class Cast:
    costs: RelativeCosts
    c1: float
    c2: float
    c3: float
    top_k: int
    depth: int
    total: int

    def begin(self, here: Here, last: Round | None) -> int:
        return self.top_k

    def expand(self, draft: Draft) -> Tensor:
        if draft.calls == self.depth:
            return NONE
        run = beam(draft, self.top_k, self.total)
        if not len(run):
            return NONE
        values = draft.value[run].double().exp().numpy()
        costs = np.array([self.costs.next_call(m) for m in range(1, len(run) + 1)])
        m = int((values.cumsum() - self.c1 * costs).argmax()) + 1
        confidence = float(draft.confidence[draft.newest].double().exp().view(_parents(draft), -1).amax(1).mean())
        worth = confidence * float(values[:m].sum())
        return run[:m] if worth >= self.c2 * costs[m - 1] else NONE

    def keep(self, draft: Draft) -> Tensor:
        values = draft.value[by_score(draft.value, self.total)].double().exp().numpy()
        worth = values.cumsum() - self.c3 * self.costs.verifying[1 : len(values) + 1]
        return best_nodes(draft, int(worth.argmax()) + 1)


def _parents(draft: Draft) -> int:
    """How many nodes the newest level hangs on."""
    return len(draft.expanded[-1]) if draft.expanded else 1


@method(
    "cast", line="Policy: after CAST, width, depth and size by worth against cost", drafter="eagle", group="policies",
    candidates=[{"c1": a, "c2": b, "c3": c} for a in (0.5, 1.0) for b in (0.5, 1.0, 2.0) for c in (0.5, 1.0, 2.0)],
    small=({"top_k": 2, "depth": 2, "total": 4}, {"top_k": 2, "depth": 3, "total": 5}),
)  # fmt: skip
def cast(
    costs: str = "gpu-radar", c1: float = 1.0, c2: float = 1.0, c3: float = 1.0, top_k: int = 10, depth: int = 8, total: int = 59
) -> Decode:  # fmt: skip
    if min(top_k, depth, total) < 1 or min(c1, c2, c3) < 0:
        raise ValueError(
            f"c1={c1}, c2={c2}, c3={c3}, top_k={top_k}, depth={depth}, total={total}: counts from 1, constants from 0"
        )
    table = relative_costs(costs)
    return speculative(policy_tree(lambda: Cast(table, c1, c2, c3, top_k, depth, total), max(total, top_k * depth)))
