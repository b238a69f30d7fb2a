"""EAGLE-1 (Li et al., arXiv 2401.15077): the draft head with a tree of fixed shape.

The shape is the release's `mc_sim_7b_63`, which has 25 draft nodes (levels 4/8/8/3/2) for every model. At T > 0 its
children are sampled without replacement and verified by p/q rejection with the residual, as published; the bonus token
is drawn from the processed logits (the v1 release used the raw ones, which is wrong for T != 1 or top-p < 1).
"""

from __future__ import annotations

from methods import method
from methods.base import Decode
from methods.engine.grow import paths_of, static_tree
from methods.engine.loop import speculative
from methods.engine.verify import rejection

# each word is a node: the ranks of its ancestors' and its own among their siblings
SHAPE = "0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 00000 00001"  # fmt: skip

# the same shape with fewer nodes, where a forward's cost rises with its rows
SMALLER = ("0", "0 00", "0 1 00", "0 1 2 00 01", "0 1 2 3 00 01 10 000", "0 1 2 3 00 01 02 10 20 000 001 010")
# shapes whose every branch of chance the audit walks: leaves of unequal depth, a chain, siblings
SMALL = ("0 1 00", "0 00 000", "0 1", "0 1 2 3", "0 1 00 000", "0 1 00 01 10")


@method(
    "eagle1",
    line="EAGLE-1: static draft tree of 25 nodes",
    drafter="eagle",
    samples_drafts=True,
    candidates=[{"shape": shape} for shape in SMALLER],
    small=[{"shape": shape} for shape in SMALL],
)
def eagle1(shape: str = SHAPE) -> Decode:
    return speculative(static_tree(paths_of(shape)), rejection)


@method(
    "eagle1-top",
    line="Control: EAGLE-1's tree of the likeliest drafts at any temperature, verified as EAGLE-2's is",
    drafter="eagle",
    group="policies",
    small=[{"shape": shape} for shape in SMALL],
)
def eagle1_top(shape: str = SHAPE) -> Decode:
    """At T > 0 EAGLE-1 and EAGLE-2 differ in their trees and in whether drafts are sampled. This differs from each in one."""
    return speculative(static_tree(paths_of(shape), sampled=False))
