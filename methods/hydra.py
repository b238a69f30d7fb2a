"""Hydra (Ankner et al., arXiv 2402.05109): Medusa's heads made sequentially dependent, each sees the tokens drafted before it.

The same trees, the same lossless verification; what differs is the drafter (`methods/engine/heads.py`). This is the paper's basic
Hydra: its Hydra++ adds an attention layer over the prefix and a deeper MLP.
"""

from __future__ import annotations

from methods import method
from methods.base import Decode
from methods.engine.loop import speculative
from methods.medusa import HEADS, NODES, PUBLISHED, heads_tree


@method(
    "hydra",
    line="Hydra: sequentially dependent heads on the last feature, sparse tree",
    drafter="hydra",
    **HEADS,
)
def hydra(tree: str = PUBLISHED, nodes: int = NODES) -> Decode:
    return speculative(heads_tree(tree, nodes))
