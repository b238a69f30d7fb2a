"""Faults in what the target's forwards are given: other positions, other rows to see, less of the text. On every engine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from methods.engine.llama import LlamaTarget
from methods.engine.native.library import NativeModel
from methods.engine.native.target import NativeTarget
from methods.engine.static.target import StaticTarget
from methods.engine.tree import Tree

BEYOND, DEEP = 256, 5  # tokens of a text; levels of a tree


@dataclass(frozen=True, slots=True)
class Given:
    """What a forward over a tree is given. `positions` [n]; `sees` [n, n] bool: the rows of the tree that each row attends to,
    itself among them; `n_text`: how many tokens of the text before it they all attend to."""

    positions: Tensor
    sees: Tensor
    n_text: int

    @classmethod
    def of(cls, tree: Tree, length: int) -> Given:
        """What is right, after a text of `length` tokens."""
        return cls(length + torch.tensor(tree.depths()), tree.ancestors(), length)


class Misgiven:
    """A target whose forwards over trees are given what `change` makes of what is right. All else is the target's own."""

    def __init__(self, target: Any, change: Callable[[Given], Given]):
        self._target, self._change = target, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        run = _row_by_row if isinstance(self._target, NativeTarget) else _masked
        return run(self._target, tree, self._change(Given.of(tree, self._target.length)))


# ---- what is changed ----


def one_further(given: Given) -> Given:
    return replace(given, positions=given.positions + 1)


def through_the_tree(given: Given) -> Given:
    """Positions are counted on from row to row."""
    return replace(given, positions=given.positions[0] + torch.arange(len(given.positions)))


def neighbour(given: Given) -> Given:
    """Each row sees the row before it."""
    sees = given.sees.clone()
    for i in range(2, len(sees)):
        sees[i, i - 1] = True
    return replace(given, sees=sees)


def blind_beyond(given: Given) -> Given:
    """Rows see of the text only the first 256 tokens."""
    return replace(given, n_text=min(given.n_text, BEYOND))


def deep_see_each_other(given: Given) -> Given:
    """The rows of each level from the fifth on see one another."""
    depths = given.positions - given.positions[0]
    return replace(given, sees=given.sees | ((depths[:, None] == depths) & (depths >= DEEP)))


def one_further_beyond(target: Any) -> Any:
    return at_other_positions(target, lambda positions: positions + (positions >= BEYOND))


def at_other_positions(target: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A target all of whose positions are changed, in prefills and steps as in trees. change: [n] -> [n]."""
    changed = _with_a_forward(target)
    if not isinstance(target, NativeTarget):
        changed._forward = lambda ids, positions, mask: target._forward(ids, change(positions), mask)
        return changed
    native: Any = copy.copy(target.native)
    changed.native = native
    native.c = type(native.c).from_buffer_copy(native.c)  # with rotary tables of its own
    native.n_positions = 0

    def turn_elsewhere(cos: Tensor, sin: Tensor) -> None:
        places = change(torch.arange(len(cos))).clamp(max=len(cos) - 1)
        NativeModel.turn_by(native, cos[places], sin[places])

    native.turn_by = turn_elsewhere
    return changed


# ---- how an engine is given it ----


def _with_a_forward(target: Any) -> Any:
    """A copy that can be given another forward: one with steps of fixed shapes makes its masks and positions on the device."""
    changed = copy.copy(target)
    if isinstance(target, StaticTarget):
        changed.__class__ = LlamaTarget
    return changed


def _masked(target: Any, tree: Tree, given: Given) -> tuple[Tensor, Tensor]:
    """Through the mask and the positions of the target's own forward."""
    changed = _with_a_forward(target)

    def forward(ids: list[int], positions: Tensor, mask: Tensor) -> Tensor:
        blocked = torch.zeros(mask.shape[-2] // len(ids), len(ids), mask.shape[-1], dtype=torch.bool)
        blocked[..., given.n_text : target.length] = True
        blocked[..., target.length :] = ~given.sees
        other = torch.zeros_like(mask).masked_fill_(blocked.view(mask.shape).to(mask.device), torch.finfo(mask.dtype).min)
        features: Tensor = target._forward(ids, given.positions.to(positions.device), other)
        return features

    changed._forward = forward
    features, logits = changed.verify(tree)
    target._n_pending = len(tree)
    return features, logits


@torch.inference_mode()
def _row_by_row(target: NativeTarget, tree: Tree, given: Given) -> tuple[Tensor, Tensor]:
    """Row after row, each hung below those that it sees and turned to its position.

    A row that sees later ones is run once more after them. Of its two keys and values the first are kept.
    """
    native, cache, n, length = target.native, target.cache, len(tree), target.cache.length
    tables = native._rotary
    cache.n_waiting = 0
    cache.await_rows(2 * n)
    parents = cache._waiting[3]

    def row(i: int, above: list[int]) -> tuple[Tensor, Tensor]:
        for upper, lower in zip([-1, *above], above, strict=False):
            parents[lower] = upper
        shift = int(given.positions[i]) - given.n_text - len(above)
        places = (torch.arange(len(tables[0])) + shift).clamp(0, len(tables[0]) - 1)
        native.turn_by(*(table[places] for table in tables))
        parent = torch.tensor(above[-1:] or [-1])
        return native.run(cache, torch.tensor(tree.tokens[i : i + 1]), parent, target.lm_head, states=target.aux_layers)

    seen = [[j for j in given.sees[i].nonzero().flatten().tolist() if j != i] for i in range(n)]
    try:
        with target._clock:
            cache.length = given.n_text
            rows = [row(i, [j for j in others if j < i]) for i, others in enumerate(seen)]
            rows = [row(i, others) if others and others[-1] > i else rows[i] for i, others in enumerate(seen)]
    finally:
        cache.length = length
        native.turn_by(*tables)
    target._n_pending = n
    features, logits = (torch.cat(part) for part in zip(*rows, strict=True))
    return features, logits
