"""EAGLE-2 (Li et al., arXiv 2406.16858): context-aware dynamic draft trees.

The head's confidence approximates the acceptance rate of a token, so the product of confidences along a path (a node's
*value*) approximates the chance that the whole path is accepted. Expansion (section 4.1): `depth - 1` times, the `top_k`
nodes of highest value in the newest level are run through the head and get `top_k` children each. Reranking (4.2): of
all nodes drafted, the `total` of highest value are verified. The tree is deterministic at any temperature and depends
only on emitted tokens, so verification keeps the target's distribution.

Defaults are the paper's for 7B/8B targets. Counts are draft nodes and levels: the release's total-token 60, depth 5.
`stop_early` is ours: drafting that cannot change the tree is left out. The paper's code drafts it, so it is off by default.
"""

from __future__ import annotations

from methods import method
from methods.base import Decode
from methods.engine.grow import dynamic_tree
from methods.engine.loop import speculative

# trees whose every branch of chance the audit walks: one level, two, three
SMALL = ({"top_k": 2, "depth": 2, "total": 4}, {"top_k": 2, "depth": 3, "total": 5}, {"top_k": 3, "depth": 1, "total": 3})


@method(
    "eagle2",
    line="EAGLE-2: dynamic draft tree, expansion and reranking by value",
    drafter="eagle",
    dynamic=True,
    small=SMALL,
)
def eagle2(top_k: int = 10, depth: int = 6, total: int = 59, stop_early: bool = False) -> Decode:
    return speculative(dynamic_tree(top_k, depth, total, stop_early=stop_early))
