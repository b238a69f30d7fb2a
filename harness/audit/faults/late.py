"""Faults that a short output does not show: five levels down, late, or every 16th step. Those beyond 256 tokens: `forwards`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.audit.faults.forwards import DEEP
from methods.engine.sampling import Chooser
from methods.engine.tree import Tree
from methods.engine.verify import Accepted, Verify, walk

LATE, TIMES = 20, 16


# ---- in the target ----


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
