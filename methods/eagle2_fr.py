"""EAGLE-2 whose drafter predicts over the frequent part of the vocabulary (FR-Spec, Zhao et al., arXiv 2502.14856).

Over a vocabulary of 49,152 the LM head is most of a small draft head's forward, and most drafted tokens are frequent
ones: its rows are cut to the `frequent` most frequent tokens of the head's training data (the list comes with the head).
Verification is over the whole vocabulary, so the output is the target's; a token outside the list is never drafted.
"""

from __future__ import annotations

from methods import method
from methods.base import Decode
from methods.eagle2 import SMALL
from methods.engine.grow import dynamic_tree
from methods.engine.loop import speculative


@method(
    "eagle2-fr",
    line="EAGLE-2 drafting over frequent tokens only (FR-Spec)",
    drafter="eagle",
    dynamic=True,
    needs_frequent=True,
    small=[{**small, "frequent": 3} for small in SMALL],
)
def eagle2_fr(top_k: int = 10, depth: int = 6, total: int = 59, frequent: int = 8192, stop_early: bool = False) -> Decode:
    return speculative(dynamic_tree(top_k, depth, total, frequent=frequent, stop_early=stop_early))
