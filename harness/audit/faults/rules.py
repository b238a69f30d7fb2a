"""Faulty rules of verification, and growers to go with them. Nothing here is registered as a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from methods.base import Drafter
from methods.engine.grow import dynamic_tree, static_tree
from methods.engine.loop import Context, Grow
from methods.engine.sampling import Chooser, inverse_cdf, uniform
from methods.engine.tree import Tree
from methods.engine.verify import Accepted, Verify, walk


def sequential(
    *, zero: bool = True, renormalise: bool = True, greedy_bonus: bool = False, threshold: float | None = None
) -> Verify:
    """The reference's rule for deterministic drafts, with parts of it left out: accept child x with p(x), else strike it from p
    and renormalise."""

    def verify(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
        if chooser.greedy:
            return walk(tree, logits, chooser, position)
        children, path = tree.children(), [0]
        while True:
            at = position + len(path) - 1
            p = chooser.law(logits[path[-1]])
            for attempt, child in enumerate(children[path[-1]]):
                token = tree.tokens[child]
                sure = threshold is not None and float(p[token]) > threshold
                if sure or chooser.accept(min(1.0, float(p[token])), at, attempt):
                    path.append(child)
                    break
                p = p.clone()
                if zero:
                    p[token] = 0
                if renormalise and float(p.sum()) > 0:
                    p = p / p.sum()
            else:
                return Accepted(path, int(p.argmax()) if greedy_bonus else chooser.draw(p / p.sum(), at))

    return verify


def resampling(
    *, residual: str = "p - q", strike: bool = True, renormalise: bool = True, accept: str = "p/q", q_power: float = 1.0
) -> Verify:
    """`rejection` with one rule changed. residual: "p - q", "none" (draw from p) or "zero" (strike only the token from p)."""

    def verify(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
        if chooser.greedy or tree.q is None:
            return walk(tree, logits, chooser, position)
        children, path = tree.children(), [0]
        while True:
            at = position + len(path) - 1
            p = chooser.law(logits[path[-1]])
            if path[-1] not in tree.q:
                return Accepted(path, chooser.draw(p, at))
            q = tree.q[path[-1]] ** q_power
            q = q / q.sum()
            for attempt, child in enumerate(children[path[-1]]):
                token = tree.tokens[child]
                ratio = float(p[token] / q[token]) if q[token] > 0 else 1.0
                taken = ratio >= 1 if accept == "p >= q" else chooser.accept(min(1.0, ratio), at, attempt)
                if taken:
                    path.append(child)
                    break
                if residual == "p - q":
                    p = (p - q).clamp(min=0)
                elif residual == "zero":
                    p = p.clone()
                    p[token] = 0
                if renormalise and float(p.sum()) > 0:
                    p = p / p.sum()
                if strike:
                    q = q.clone()
                    q[token] = 0
                    q = q / q.sum() if float(q.sum()) > 0 else q
            else:
                total = float(p.sum())
                return Accepted(path, chooser.draw(p / total if total > 0 else chooser.law(logits[path[-1]]), at))

    return verify


def greedy_bonus(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
    found = walk(tree, logits, chooser, position)
    return replace(found, bonus=int(logits[found.path[-1]].argmax()))


def parents_row(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
    """Each node is judged by its parent's row of logits."""
    rows = torch.tensor([max(p, 0) for p in tree.parents], device=logits.device)
    return walk(tree, logits[rows], chooser, position)


def hotter(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
    """The temperature is applied twice."""
    t = chooser.params.temperature
    return walk(tree, logits / t if t > 0 else logits, chooser, position)


Options = Mapping[str, Any]
"""Of a tree. `SMALL`: its every branch can be walked."""
WHOLE, SMALL = {"top_k": 10, "depth": 6, "total": 59}, {"top_k": 2, "depth": 2, "total": 4}


def dynamic(tree: Options) -> Grow:
    return dynamic_tree(**tree)


def sampled(tree: Options, chain: bool = False) -> Grow:
    if chain:
        return static_tree([(0,)] if tree == SMALL else [(0,), (0, 0), (0, 0, 0)])
    return static_tree([(0,), (1,)] if tree == SMALL else [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])


def replaced(n: int) -> Grow:
    """n children of the root, each drawn from the same q, so that there may be duplicates."""

    def tree(drafter: Drafter | None, context: Context) -> Tree:
        assert drafter is not None
        if context.chooser.greedy:
            return Tree([context.root, int(drafter.root_logits()[0].argmax())], [-1, 0])
        q = context.chooser.law(drafter.root_logits()[0])
        tokens = [context.chooser.children(q, 1, context.position, 1000 + i)[0] for i in range(n)]
        return Tree([context.root, *tokens], [-1] + [0] * n, {0: q})

    return Grow(tree, n)


def shared_uniform() -> Grow:
    """The draft is drawn with the random number that will decide on its acceptance."""

    def tree(drafter: Drafter | None, context: Context) -> Tree:
        assert drafter is not None
        logits = drafter.root_logits()[0]
        if context.chooser.greedy:
            return Tree([context.root, int(logits.argmax())], [-1, 0])
        q = context.chooser.law(logits)
        token = inverse_cdf(q, uniform(context.chooser.params.key, b"accept", context.position, 0))
        return Tree([context.root, token], [-1, 0], {0: q})

    return Grow(tree, 1)


def with_softmax(n: int) -> Grow:
    """The root's n best tokens, passed off as drawn from the drafter's softmax."""
    grow = dynamic_tree(n, 1, n)

    def tree(drafter: Drafter | None, context: Context) -> Tree:
        assert drafter is not None
        made = grow.tree(drafter, context)
        q = {} if context.chooser.greedy else {0: context.chooser.law(drafter.root_logits()[0])}
        return Tree(made.tokens, made.parents, q or None)

    return Grow(tree, n)
