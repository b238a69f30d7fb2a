"""Drafting level by level, as growers do it."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.engine.draft_head import EagleDrafter
from methods.engine.tree import Tree


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-9)


def expand_in_levels(drafter: EagleDrafter, tree: Tree) -> dict[int, Tensor]:
    """Run a tree's draft nodes level by level -> logits by node. Entries come in another order than nodes."""
    depths, entry, out = tree.depths(), {0: -1}, {}
    ancestors = tree.ancestors()
    for depth in range(1, max(depths) + 1):
        level = [node for node in range(1, len(tree)) if depths[node] == depth][::-1]
        first = len(entry) - 1
        for j, node in enumerate(level):
            entry[node] = first + j
        sees = torch.zeros(len(level), first + len(level), dtype=torch.bool)
        for j, node in enumerate(level):
            for above in range(1, len(tree)):
                if ancestors[node, above]:
                    sees[j, entry[above]] = True
        tokens, parents = ([values[node] for node in level] for values in (tree.tokens, tree.parents))
        logits = drafter.expand(torch.tensor(tokens), torch.tensor([entry[p] for p in parents]), sees)
        out |= dict(zip(level, logits, strict=True))
    return out
