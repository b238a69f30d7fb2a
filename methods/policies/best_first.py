"""Best first: the `total` nodes of highest value of the whole tree, however wide its levels are.

Sequoia's dynamic trees, DySpec (arXiv 2410.11744) and DDTree (arXiv 2604.12989) pop nodes off a heap ordered by path value,
`total` times. A value never rises along a path. So the nodes popped are the `total` of highest value, and they are found level
by level: a node is run if it is among the `total` best so far, since nothing below any other can be kept. That takes a call of
the drafter a level where a heap takes one a node, and drafts the same tree. EAGLE-2's beam of `top_k` is not there.

`depth` bounds the levels, `children` the tokens after a node. Both are unpublished as such: those papers drafted other models.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods import method
from methods.base import Decode
from methods.engine.loop import speculative
from methods.engine.policy import Draft, Here, Round, best_nodes, policy_tree


@dataclass(slots=True)
class BestFirst:
    total: int
    depth: int
    children: int

    def begin(self, here: Here, last: Round | None) -> int:
        return self.children

    def expand(self, draft: Draft) -> Tensor:
        kept = best_nodes(draft, self.total)
        return kept[(kept >= draft.newest.start) & (draft.calls < self.depth)]

    def keep(self, draft: Draft) -> Tensor:
        return best_nodes(draft, self.total)


@method(
    "best-first", line="Policy: the nodes of highest value of the whole tree, with no beam", drafter="eagle", group="policies",
    candidates=[{"total": n, "depth": d} for n in (2, 4, 8, 16, 24, 40, 59) for d in (2, 4, 6, 8)],
    small=({"total": 4, "depth": 2, "children": 2}, {"total": 3, "depth": 3, "children": 1}),
)  # fmt: skip
def best_first(total: int = 59, depth: int = 8, children: int = 10) -> Decode:
    if min(total, depth, children) < 1:
        raise ValueError(f"total={total}, depth={depth}, children={children}: each must be at least 1")
    return speculative(policy_tree(lambda: BestFirst(total, depth, children), total * depth))
