"""Medusa (Cai et al., arXiv 2401.10774): heads on the target's last feature, one a level; a sparse tree of their best tokens.

`medusa` verifies losslessly, by the walk, which is exact at any temperature (the paper offers rejection sampling for that; its
default at T > 0 is not lossless). `medusa-typical` is their typical acceptance, inexact at T > 0 and declared so. How
our heads depart from the authors': `methods/engine/heads.py`; heads in the authors' own layout can be loaded as well.

tree: `mc_sim_7b_63` (published with the authors' code, 63 nodes in 4 levels, for Vicuna-7B), `chosen` (the `total` nodes most
likely accepted by these heads' own held-out accuracies), or words of digits as in `eagle1`.
"""

from __future__ import annotations

from methods import method
from methods.base import Decode
from methods.engine.grow import chosen_tree, paths_of, static_tree
from methods.engine.loop import Grow, speculative
from methods.engine.verify import typical

TREES = {
    "mc_sim_7b_63": "0 1 2 3 4 5 6 7 8 9 "
    "00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 20 21 22 30 31 40 50 60 70 80 90 "
    "000 001 002 003 004 005 006 007 008 009 010 011 012 020 021 030 040 050 060 070 100 101 200 0000 0001"
}
CHOSEN = "chosen"
SMALL = tuple({"tree": tree} for tree in ("0 1 00", "0 00 000", "0 1 2", "0 1 00 01 10"))


def tree_levels(tree: str) -> int:
    """Levels of a named or written tree: as many heads are needed. A chosen tree has as many as there are heads: 0."""
    return 0 if tree == CHOSEN else max(map(len, paths_of(TREES.get(tree, tree))))


def heads_tree(tree: str, total: int) -> Grow:
    """The grower of a tree's name.

    Raises:
        ValueError: neither a name nor words of digits.
    """
    if tree == CHOSEN:
        return chosen_tree(total)
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
    levels=lambda options: tree_levels(options["tree"]),
    presets={"chosen": {"tree": CHOSEN}},
    small=SMALL,
)
def medusa(tree: str = "mc_sim_7b_63", total: int = 63) -> Decode:
    return speculative(heads_tree(tree, total))


@method(
    "medusa-typical",
    line="Medusa with typical acceptance",
    exact=False,
    drafter="medusa",
    levels=lambda options: tree_levels(options["tree"]),
    presets={"chosen": {"tree": CHOSEN}},
    small=SMALL,
)
def medusa_typical(tree: str = "mc_sim_7b_63", total: int = 63, epsilon: float = 0.09, delta: float = 0.3) -> Decode:
    if not (0 < epsilon < 1 and delta > 0):
        raise ValueError(f"epsilon={epsilon}, delta={delta}: epsilon must lie between 0 and 1, delta be over 0")
    return speculative(heads_tree(tree, total), typical(epsilon, delta))
