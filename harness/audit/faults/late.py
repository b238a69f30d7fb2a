"""Faults that a short output on a short prompt does not show: beyond 256 tokens, five levels down, late, or every 16th step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from methods.engine.sampling import Chooser
from methods.engine.tree import Tree
from methods.engine.verify import Accepted, Verify, walk

BEYOND, DEEP, LATE, TIMES = 256, 5, 20, 16


# ---- in the target ----


def _with_forward(target: Any, change: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]) -> Any:
    """The same target, but its forwards get positions and mask as `change` gives them."""
    changed = copy.copy(target)
    changed._forward = lambda ids, positions, mask: target._forward(ids, *change(positions, mask))
    return changed


def blind_beyond(target: Any) -> Any:
    """Rows of a tree see of the cache only the first 256 tokens."""

    def change(positions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if mask is not None and target.length > BEYOND:
            mask = mask.clone()
            mask[..., BEYOND : target.length] = torch.finfo(mask.dtype).min
        return positions, mask

    return _with_forward(target, change)


def one_further_beyond(target: Any) -> Any:
    return _with_forward(target, lambda positions, mask: (positions + (positions >= BEYOND), mask))


class DeepSeeEachOther:
    """A target in whose mask the nodes of each level from the fifth on see one another."""

    def __init__(self, target: Any):
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def verify(self, tree: Tree) -> Any:
        return self._target.verify(_DeepSeeEachOther(tree.tokens, tree.parents, tree.q))


class _DeepSeeEachOther(Tree):
    def ancestors(self) -> Tensor:
        depths = torch.tensor(self.depths())
        return super().ancestors() | ((depths[:, None] == depths) & (depths >= DEEP))


class LongPathsKeepParent:
    """A target that keeps the last row of a long path wrongly: its parent's stands in its place."""

    def __init__(self, target: Any):
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def commit(self, path: list[int]) -> None:
        self._target.commit([*path[:-1], path[-2]] if len(path) > DEEP else path)


# ---- in the verification ----


def grandparents_row(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
    rows = [tree.parents[tree.parents[i]] if depth >= DEEP else i for i, depth in enumerate(tree.depths())]
    return walk(tree, logits[torch.tensor(rows, device=logits.device)], chooser, position)


def second_best_late(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
    found = walk(tree, logits, chooser, position)
    if not chooser.greedy or position + len(found.path) - 1 < LATE:
        return found
    return replace(found, bonus=int(logits[found.path[-1]].topk(2).indices[1]))


def greedy_late(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
    return walk(tree, logits, Chooser(replace(chooser.params, temperature=0.0)) if position >= LATE else chooser, position)


def unverified_at_times() -> Verify:
    """At every 16th step, or the next that can, a child of the last node accepted is taken as well."""
    n_due = 0

    def verify(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
        nonlocal n_due
        n_due += 1
        found = walk(tree, logits, chooser, position)
        children = tree.children()[found.path[-1]]
        if n_due < TIMES or not children:
            return found
        n_due = 0
        path = [*found.path, children[0]]
        return Accepted(path, chooser.token(logits[path[-1]], position + len(path) - 1))

    return verify


def next_number_at_times() -> Verify:
    n = 0

    def verify(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
        nonlocal n
        n += 1
        return walk(tree, logits, chooser, position + (n % TIMES == 0 and not chooser.greedy))

    return verify


# ---- in what the drafter is given ----


class StaleAtTimes:
    """A drafter that gets at every 16th step the features of the step before."""

    def __init__(self, drafter: Any):
        self._drafter, self._n, self._last = drafter, 0, torch.empty(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def observe(self, tokens: list[int], features: Tensor) -> None:
        given = self._last[-1:].expand_as(features) if self._n and self._n % TIMES == 0 else features
        self._n, self._last = self._n + 1, features
        self._drafter.observe(tokens, given)
