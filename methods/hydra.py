"""Hydra (Ankner et al., arXiv 2402.05109): Medusa's heads made sequentially dependent, each sees the tokens drafted before it.

The same trees, the same lossless verification; what differs is the drafter (`methods/engine/heads.py`). This is the paper's basic
Hydra: its Hydra++ adds an attention layer over the prefix and a deeper MLP.
"""

from __future__ import annotations

from methods import method
from methods.base import Decode
from methods.engine.loop import speculative
from methods.medusa import CHOSEN, SMALL, heads_tree, tree_levels


@method(
    "hydra",
    line="Hydra: sequentially dependent heads on the last feature, sparse tree",
    drafter="hydra",
    levels=lambda options: tree_levels(options["tree"]),
    presets={"chosen": {"tree": CHOSEN}},
    small=SMALL,
)
def hydra(tree: str = "mc_sim_7b_63", total: int = 63) -> Decode:
    return speculative(heads_tree(tree, total))
