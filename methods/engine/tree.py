"""The draft tree: tokens and parent pointers are the one truth; depth, ancestors and children are derived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tree:
    """Node 0 is the root (last emitted token, not yet in the KV cache); parents[i] < i, parents[0] == -1.

    `q`, only where drafts were sampled: for a node with children, the distribution [vocab] they were drawn from, without
    replacement, in index order. Deterministic proposals leave it None.
    `confidence`: gives the draft's own probability of each draft node given its parent, [n - 1], untempered; a call, so that
    nothing is computed unless trees are kept, and only good within the step. None where the draft has no probabilities.
    """

    tokens: list[int]
    parents: list[int]
    q: dict[int, Tensor] | None = None
    confidence: Callable[[], list[float]] | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_draft(self) -> int:
        """Draft nodes: the root is not one."""
        return len(self.tokens) - 1

    def depths(self) -> list[int]:
        out = [0] * len(self.parents)
        for i, p in enumerate(self.parents[1:], start=1):
            out[i] = out[p] + 1
        return out

    def ancestors(self) -> Tensor:
        """[n, n] bool: row i marks i and everything above it. One pass: a row is its parent's row and its own bit."""
        n = len(self.parents)
        rows = torch.zeros(n, n, dtype=torch.bool)
        marks = rows.numpy()
        for i, p in enumerate(self.parents):
            if p >= 0:
                marks[i] = marks[p]
            marks[i, i] = True
        return rows

    def children(self) -> list[list[int]]:
        """For each node its children in index order."""
        out: list[list[int]] = [[] for _ in self.parents]
        for i, p in enumerate(self.parents[1:], start=1):
            out[p].append(i)
        return out


def chain(root: int, tokens: list[int]) -> Tree:
    """A tree without branches: what prompt lookup and plain speculative sampling draft."""
    return Tree([root, *tokens], list(range(-1, len(tokens))))
