"""The draft tree: tokens and parent pointers are the one truth; depth, ancestors and children are derived."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    q: Mapping[int, Tensor] | None = None
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
        """[n, n] bool: row i marks i and everything above it."""
        return ancestors(self.parents)

    def children(self) -> list[list[int]]:
        """For each node its children in index order."""
        out: list[list[int]] = [[] for _ in self.parents]
        for i, p in enumerate(self.parents[1:], start=1):
            out[p].append(i)
        return out


def ancestors(parents: Sequence[int]) -> Tensor:
    """[n, n] bool: row i marks i and everything above it; parents[i] < i, -1 for none. One pass: a row is its parent's row and
    its own bit."""
    n = len(parents)
    rows = torch.zeros(n, n, dtype=torch.bool)
    marks = rows.numpy()
    for i, p in enumerate(parents):
        if p >= 0:
            marks[i] = marks[p]
        marks[i, i] = True
    return rows


def chain(root: int, tokens: list[int]) -> Tree:
    """A tree without branches: what prompt lookup and plain speculative sampling draft."""
    return Tree([root, *tokens], list(range(-1, len(tokens))))


@dataclass(slots=True)
class Trie:
    """A tree in the making from several sources of candidates: equal siblings are one node, whoever proposed them."""

    root: int
    tokens: list[int] = field(init=False)
    parents: list[int] = field(init=False)
    _node: dict[tuple[int, int], int] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens, self.parents, self._node = [self.root], [-1], {}

    def add(self, parent: int, token: int) -> int:
        """The node of `token` under `parent`, made if there is none."""
        node = self._node.setdefault((parent, token), len(self.tokens))
        if node == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
        return node

    def add_path(self, tokens: Iterable[int], parent: int = 0) -> list[int]:
        """The nodes of a chain of tokens that hangs on `parent`."""
        path = []
        for token in tokens:
            parent = self.add(parent, token)
            path.append(parent)
        return path

    def tree(self) -> Tree:
        return Tree(self.tokens, self.parents)
