"""EAGLE-2 without value, without reranking, without both (the paper's Table 3), as keyword arguments of its tree.

The paper does not say which nodes are verified without reranking; here it is the `top_k` expanded nodes of each level
in level order, cut at `total`, so that all variants verify the same number. Without value, a node's own confidence ranks
it, best first among nodes whose parent is in (ties: shallower, then lower index).

Each has EAGLE-2's option `stop_early`, so that both sides of a comparison can be drafted alike.
"""

from __future__ import annotations

from methods import method
from methods.base import Decode
from methods.eagle2 import SMALL
from methods.engine.grow import dynamic_tree
from methods.engine.loop import speculative


@method(
    "eagle2-no-value", line="EAGLE-2 ablation: a node's own confidence instead of the path product", drafter="eagle", small=SMALL
)
def no_value(top_k: int = 10, depth: int = 6, total: int = 59, stop_early: bool = False) -> Decode:
    return speculative(dynamic_tree(top_k, depth, total, score="confidence", stop_early=stop_early))


@method("eagle2-no-rerank", line="EAGLE-2 ablation: expanded nodes in level order, no reranking", drafter="eagle", small=SMALL)
def no_rerank(top_k: int = 10, depth: int = 6, total: int = 59, stop_early: bool = False) -> Decode:
    return speculative(dynamic_tree(top_k, depth, total, rerank=False, stop_early=stop_early))


@method("eagle2-no-both", line="EAGLE-2 ablation: neither value nor reranking", drafter="eagle", small=SMALL)
def no_both(top_k: int = 10, depth: int = 6, total: int = 59, stop_early: bool = False) -> Decode:
    return speculative(dynamic_tree(top_k, depth, total, score="confidence", rerank=False, stop_early=stop_early))
