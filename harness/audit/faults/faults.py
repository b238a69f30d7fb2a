"""Layer 5: faults planted on purpose, and which layer notices each. Nothing here is registered as a method.

The numbers are those of the protocol's table. A mutant is a method (or a spoilt target, drafter or metric under one) that
runs through the same checks as a real method. Three equivalent mutants cost speed and change no law: they must not be
flagged, or the checks are too strict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.audit.probe.subject import Subject
from methods.base import Decode, Drafter, Generation, SamplerParams
from methods.engine.grow import dynamic_tree, static_tree
from methods.engine.loop import Context, Grow, speculative
from methods.engine.sampling import Chooser, inverse_cdf, uniform
from methods.engine.tree import Tree
from methods.engine.verify import Accepted, Verify, rejection, walk


@dataclass(frozen=True, slots=True)
class Mutant:
    """`build(small)` makes the faulty decode; `small`: a tree whose every branch can be walked. `killers`: layers that must
    notice; none for an equivalent mutant. `spoilt`, `misled`: the fault is in the target or drafter under a healthy method."""

    number: str
    what: str
    killers: tuple[str, ...]
    build: Callable[[bool], Decode]
    samples_drafts: bool = False
    spoilt: Callable[[Any], Any] | None = None
    misled: Callable[[Any], Any] | None = None
    temperature: float = 1.0  # at which layer 4 looks

    def subject(self) -> Subject:
        return Subject(
            self.number, lambda: self.build(False), {"": lambda: self.build(True)}, samples_drafts=self.samples_drafts,
            spoilt=self.spoilt, misled=self.misled,
        )  # fmt: skip


def sequential(
    *, zero: bool = True, renormalise: bool = True, greedy_bonus: bool = False, threshold: float | None = None
) -> Verify:
    """The reference's rule for deterministic drafts: accept child x with p(x), else strike it and renormalise."""

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
    """`rejection` with one rule changed. residual: "p - q", "none" (draw from p) or "zero" (only the token struck from p)."""

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
    """Each node read by its parent's row of logits."""
    rows = torch.tensor([max(p, 0) for p in tree.parents], device=logits.device)
    return walk(tree, logits[rows], chooser, position)


def hotter(tree: Tree, logits: Tensor, chooser: Chooser, position: int) -> Accepted:
    """The temperature applied twice."""
    t = chooser.params.temperature
    return walk(tree, logits / t if t > 0 else logits, chooser, position)


def small_or(small: bool, **changes: Any) -> Grow:
    return dynamic_tree(2, 2, 4, **changes) if small else dynamic_tree(**changes)


def sampled(small: bool, chain: bool = False) -> Grow:
    if chain:
        return static_tree([(0,)] if small else [(0,), (0, 0), (0, 0, 0)])
    return static_tree([(0,), (1,)] if small else [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])


def replaced(n: int) -> Grow:
    """n children of the root, each drawn from the same q: duplicates may come."""

    def tree(drafter: Drafter | None, context: Context) -> Tree:
        assert drafter is not None
        if context.chooser.greedy:
            return Tree([context.root, int(drafter.root_logits()[0].argmax())], [-1, 0])
        q = context.chooser.law(drafter.root_logits()[0])
        tokens = [context.chooser.children(q, 1, context.position, 1000 + i)[0] for i in range(n)]
        return Tree([context.root, *tokens], [-1] + [0] * n, {0: q})

    return Grow(tree, n)


def shared_uniform() -> Grow:
    """The draft drawn with the very number that its acceptance will be decided by."""

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
    """The root's n best tokens, said to have been drawn from the drafter's softmax."""
    grow = dynamic_tree(n, 1, n)

    def tree(drafter: Drafter | None, context: Context) -> Tree:
        assert drafter is not None
        made = grow.tree(drafter, context)
        q = {} if context.chooser.greedy else {0: context.chooser.law(drafter.root_logits()[0])}
        return Tree(made.tokens, made.parents, q or None)

    return Grow(tree, n)


class Spoilt:
    """A target with one thing wrong; all else is the target's own."""

    def __init__(self, target: Any, fault: str):
        self._target, self._fault = target, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def verify(self, tree: Tree) -> Any:
        spoilt = {"position": LatePositions, "flat": _FlatPositions, "sibling": _SeesSibling}.get(self._fault)
        return self._target.verify(spoilt(tree.tokens, tree.parents, tree.q) if spoilt else tree)

    def commit(self, path: list[int]) -> None:
        if self._fault == "first rows":
            path = list(range(len(path)))
        elif self._fault == "one short" and len(path) > 1:
            path = path[:-1]
        elif self._fault == "not cropped":
            path = [*path, path[-1] + 1] if path[-1] + 1 < self._n_nodes() else path
        self._target.commit(path)

    def _n_nodes(self) -> int:
        n: int = getattr(self._target, "_n_pending", 0)
        return n


class LatePositions(Tree):
    def depths(self) -> list[int]:
        return [d + 1 for d in super().depths()]


class _FlatPositions(Tree):
    def depths(self) -> list[int]:
        return list(range(len(self.tokens)))


class _SeesSibling(Tree):
    def ancestors(self) -> Tensor:
        sees = super().ancestors().clone()
        for i in range(2, len(self.tokens)):
            sees[i, i - 1] = True
        return sees


class StaleDrafter:
    """A drafter given each token with the feature of the token before the right one."""

    def __init__(self, drafter: Any):
        self._drafter = drafter
        self._last: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def observe(self, tokens: list[int], features: Tensor) -> None:
        before = features[:1] if self._last is None else self._last
        self._last = features[-1:]
        self._drafter.observe(tokens, torch.cat([before, features[:-1]]))


class WrongHead:
    """A drafter whose logits are another vocabulary's: columns turned by one."""

    def __init__(self, drafter: Any):
        self._drafter = drafter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def root_logits(self) -> Tensor:
        return self._drafter.root_logits().roll(1, -1)

    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        return self._drafter.expand(tokens, parents, sees).roll(1, -1)


def greedy_first(small: bool) -> Decode:
    """The first token by argmax at any temperature."""
    decode = speculative(small_or(small))

    class First(Chooser):
        def __init__(self, inner: Chooser):
            super().__init__(inner.params)
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def token(self, logits: Tensor, position: int) -> int:
            return int(logits.argmax()) if position == 0 else self.inner.token(logits, position)

        def draw(self, p: Tensor, position: int) -> int:
            return self.inner.draw(p, position)

        def accept(self, probability: float, position: int, attempt: int) -> bool:
            return self.inner.accept(probability, position, attempt)

        def children(self, q: Tensor, k: int, position: int, node: int) -> Any:
            return self.inner.children(q, k, position, node)

    def run(ids: list[int], target: Any, drafter: Any, params: SamplerParams) -> Generation:
        made = params.chooser
        return decode(ids, target, drafter, replace(params, chooser=lambda p: First(made(p) if made else Chooser(p))))

    return run


def ignores_stop(small: bool) -> Decode:
    """A stop id inside an accepted block does not end the output; only one at a block's end does."""
    decode = speculative(small_or(small))

    def run(ids: list[int], target: Any, drafter: Any, params: SamplerParams) -> Generation:
        made = decode(ids, target, drafter, replace(params, stop_ids=frozenset()))
        assert made.trace is not None
        end, at = len(made.token_ids), 1
        for accepted in made.trace.accepted:
            at += accepted + 1
            if at <= end and made.token_ids[at - 1] in params.stop_ids:
                return replace_ids(made, made.token_ids[:at], "stop")
        return made

    return run


def overshoots(small: bool) -> Decode:
    """The budget is looked at after a block only."""
    decode = speculative(small_or(small))

    def run(ids: list[int], target: Any, drafter: Any, params: SamplerParams) -> Generation:
        return decode(ids, target, drafter, replace(params, max_new_tokens=params.max_new_tokens + 3))

    return run


def replace_ids(made: Generation, ids: list[int], finish: str) -> Generation:
    return Generation(ids, finish, made.n_cut, made.prefill_s, made.trace)


def of(grow: Callable[[bool], Grow], verify: Verify) -> Callable[[bool], Decode]:
    return lambda small: speculative(grow(small), verify)


def healthy(small: bool) -> Decode:
    return speculative(small_or(small))


def drawn(number: str, what: str, killers: tuple[str, ...], verify: Verify, chain: bool = False) -> Mutant:
    """A fault in the verification of sampled drafts."""
    return Mutant(number, what, killers, of(lambda small: sampled(small, chain), verify), samples_drafts=True)


def spoilt(number: str, what: str, fault: str) -> Mutant:
    return Mutant(number, what, ("L2", "L3"), healthy, spoilt=lambda target: Spoilt(target, fault))


MUTANTS: Sequence[Mutant] = (
    drawn("1", "after a rejection drawn from p, not from the residual", ("L1", "L4"), resampling(residual="none")),
    drawn("2", "only the rejected token struck from p (sampled drafts)", ("L1", "L4"), resampling(residual="zero")),
    drawn("3", "no renormalising between siblings", ("L1",), resampling(renormalise=False)),
    drawn("4", "the second child judged by the unconditioned q", ("L1",), resampling(strike=False)),
    drawn("5", "q at another temperature than the drafts'", ("L1", "L4"), resampling(q_power=0.6)),
    Mutant(
        "6", "deterministic drafts judged by the softmax", ("L1", "L4"), of(lambda s: with_softmax(2 if s else 10), rejection)
    ),
    drawn("7", "accepted exactly where p >= q", ("L1", "L4"), resampling(accept="p >= q")),
    Mutant("8", "a rejected token not struck (deterministic drafts)", ("L1", "L4"), of(small_or, sequential(zero=False))),
    Mutant("9", "draft and acceptance share a random number", ("L4",), of(lambda s: shared_uniform(), rejection), True),
    Mutant(
        "10", "duplicate candidates tried twice, struck once", ("L1",), of(lambda s: replaced(2 if s else 4), resampling()), True
    ),
    Mutant("11", "bonus token by argmax at T > 0", ("L1", "L4"), of(small_or, greedy_bonus)),
    Mutant("12", "first token by argmax at T > 0", ("L1",), greedy_first),
    Mutant("13", "temperature applied twice", ("L1", "L4"), of(small_or, hotter), temperature=0.7),
    Mutant("14", "each node read by its parent's row", ("L1", "L3"), of(small_or, parents_row)),
    spoilt("15", "tree positions one too large", "position"),
    spoilt("16", "positions counted through the tree", "flat"),
    spoilt("17", "a node sees its neighbour", "sibling"),
    spoilt("18", "the cache keeps the first rows, not the path's", "first rows"),
    spoilt("19", "the cache is one row short", "one short"),
    spoilt("20", "a rejected row stays in the cache", "not cropped"),
    Mutant("21", "a stop id inside an accepted block ignored", ("stop",), ignores_stop),
    Mutant("22", "the budget overshot", ("stop", "L3"), overshoots),
    Mutant("23", "stale features into the head", ("L5",), healthy, misled=StaleDrafter),
    Mutant("24", "the head's logits of another vocabulary", ("L5",), healthy, misled=WrongHead),
    Mutant("25", "typical acceptance: likely tokens always taken", ("L1", "L4"), of(small_or, sequential(threshold=0.3))),
    # 26, the baseline's tokens counted differently, is a fault of a metric: see `mutation.counts_differently`
)
EQUIVALENT: Sequence[Mutant] = (
    drawn("E1", "the rule for deterministic drafts on sampled ones", (), sequential()),
    Mutant("E2", "children drawn with replacement, q accordingly", (), of(lambda s: replaced(2), resampling(strike=False)), True),
    drawn("E3", "no renormalising with one child", (), resampling(renormalise=False), chain=True),
)
