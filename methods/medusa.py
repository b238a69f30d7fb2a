"""Medusa (Cai et al., arXiv 2401.10774): heads on the target's last feature, one a level; a sparse tree of their best tokens.

`medusa` verifies losslessly, by the walk, which is exact at any temperature (the paper offers rejection sampling for that; its
default at T > 0 is not lossless). `medusa-typical` is their typical acceptance, inexact at T > 0 and declared so; the token
after what was accepted is drawn here, theirs is the argmax. How our heads depart from the authors': `methods/engine/heads.py`;
heads in the authors' own layout can be loaded as well.

tree: `mc_sim_7b_63` (published with the authors' code, 63 nodes in 4 levels, for Vicuna-7B), `chosen` (of so many `nodes`,
those most likely accepted by these heads' own held-out accuracies), or words of digits as in `eagle1`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from methods import method
from methods.base import Decode
from methods.engine.grow import chosen_tree, paths_of, static_tree
from methods.engine.loop import Grow, speculative
from methods.engine.verify import typical

CHOSEN, PUBLISHED, NODES = "chosen", "mc_sim_7b_63", 63
TREES = {
    PUBLISHED: "0 1 2 3 4 5 6 7 8 9 "
    "00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 20 21 22 30 31 40 50 60 70 80 90 "
    "000 001 002 003 004 005 006 007 008 009 010 011 012 020 021 030 040 050 060 070 100 101 200 0000 0001"
}


def tree_levels(options: Mapping[str, Any]) -> int:
    """Levels of a named or written tree: as many heads are needed. 0: a chosen tree, which has as many as there are heads."""
    tree = options["tree"]
    return 0 if tree == CHOSEN else max(map(len, paths_of(TREES.get(tree, tree))))


# what `@method` is told of every method whose drafter is a head a level
HEADS: dict[str, Any] = {
    "levels": tree_levels,
    "presets": {CHOSEN: {"tree": CHOSEN}},
    "candidates": [{"tree": CHOSEN, "nodes": nodes} for nodes in (2, 3, 4, 6, 8, 12, 16, 24)],
    "small": [{"tree": tree, "nodes": NODES} for tree in ("0 1 00", "0 00 000", "0 1 2", "0 1 00 01 10")],
}


def heads_tree(tree: str, nodes: int) -> Grow:
    """The grower of a tree's name.

    Raises:
        ValueError: neither a name nor words of digits, or a number of nodes for a tree that has its own.
    """
    if tree == CHOSEN:
        return chosen_tree(nodes)
    if nodes != NODES:
        raise ValueError(f"nodes={nodes} is for tree={CHOSEN}; tree={tree!r} has its own")
    try:
        paths = paths_of(TREES.get(tree, tree))
    except ValueError:
        known = ", ".join([*TREES, CHOSEN])
        raise ValueError(f"tree={tree!r}: known are {known}, or words of digits, one a node, such as '0 1 00 01'") from None
    return static_tree(paths, sampled=False)


@method(
    "medusa",
    line="Medusa: a head a level on the last feature, sparse tree, lossless verification",
    drafter="medusa",
    **HEADS,
)
def medusa(tree: str = PUBLISHED, nodes: int = NODES) -> Decode:
    return speculative(heads_tree(tree, nodes))


@method(
    "medusa-typical",
    line="Medusa with typical acceptance",
    exact=False,
    drafter="medusa",
    **HEADS,
)
def medusa_typical(tree: str = PUBLISHED, nodes: int = NODES, epsilon: float = 0.09, delta: float = 0.3) -> Decode:
    if not (0 < epsilon < 1 and delta > 0):
        raise ValueError(f"epsilon={epsilon}, delta={delta}: epsilon must lie between 0 and 1, delta be over 0")
    return speculative(heads_tree(tree, nodes), typical(epsilon, delta))
