"""EAGLE-3 (Li et al., arXiv 2503.01840): EAGLE-2's tree on a head that reads three of the target's hidden states.

What is new is the head and how it is trained (`engine.eagle3`, `harness train eagle3`). The tree, its options and its
verification are EAGLE-2's. Nodes are of the head's draft vocabulary: a token outside it is never drafted.
"""

from __future__ import annotations

from methods import method
from methods.base import Decode
from methods.eagle2 import SMALL
from methods.engine.grow import dynamic_tree
from methods.engine.loop import speculative


@method("eagle3", line="EAGLE-3: EAGLE-2's tree on a head over three hidden states", drafter="eagle3", dynamic=True, small=SMALL)
def eagle3(top_k: int = 10, depth: int = 6, total: int = 59, stop_early: bool = False) -> Decode:
    return speculative(dynamic_tree(top_k, depth, total, stop_early=stop_early))
