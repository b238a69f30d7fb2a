"""Draft trees under a policy: when to stop drafting, what to run next, and what is verified.

A policy sees the draft so far and what earlier rounds accepted, never the target's tokens of the round under way, nor the numbers
that they are drawn with. So verification keeps the target's law whatever the policy does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from methods.base import Drafter
from methods.engine.grow import BestChildren, best_children, by_score
from methods.engine.loop import Context, Grow
from methods.engine.sampling import uniform
from methods.engine.tree import Tree


@dataclass(frozen=True, slots=True)
class Draft:
    """The nodes of one round so far, level by level, as columns on the CPU.

    `tokens`, `parents` [n]: parents as numbers in this order, -1 the root. `confidence`, `value` [n] float32: logs of a node's
    own probability and of the product along its path. `levels`: where each level ends. `expanded`: of each level but the
    newest, the numbers of the nodes that the drafter was run on. `calls`: of the drafter so far, that after the root among
    them.
    """

    tokens: Tensor
    parents: Tensor
    confidence: Tensor
    value: Tensor
    levels: Sequence[int]
    expanded: Sequence[Tensor]

    @property
    def calls(self) -> int:
        return len(self.levels)

    @property
    def newest(self) -> slice:
        """The nodes of the newest level."""
        return slice(self.levels[-2] if len(self.levels) > 1 else 0, self.levels[-1])


@dataclass(frozen=True, slots=True)
class Round:
    """What came of a round. `accepted`: draft tokens; `size`: nodes verified; `calls`: of the drafter; `deepest`: levels of the
    tree that was verified; `position`: output position of the first token that it drafted."""

    accepted: int
    size: int
    calls: int
    deepest: int
    position: int


@dataclass(frozen=True, slots=True)
class Here:
    """Where a round stands. `position`: output position of the first token to draft; `length`: tokens of the text so far, the
    prompt's among them; `random(i)`: the round's i-th number in [0, 1), of a stream that nothing else draws from."""

    position: int
    length: int
    random: Callable[[int], float]


class Policy(Protocol):
    """One generation's. The order of calls in a round: `begin`, then `expand` after each call of the drafter, then `keep`."""

    def begin(self, here: Here, last: Round | None) -> int:
        """A round begins; last: what came of the one before. -> how many children each node gets, at least 1."""
        ...

    def expand(self, draft: Draft) -> Tensor:
        """Which nodes of the newest level the drafter is run on next, as numbers of the draft, rising not needed; none: stop."""
        ...

    def keep(self, draft: Draft) -> Tensor:
        """Which nodes are verified: numbers of the draft, rising; a node's parent is among them."""
        ...


@dataclass(slots=True)
class _Kept:
    """What a grower keeps from round to round."""

    policy: Policy
    position: int = 0
    last: dict[str, int] = field(default_factory=dict)


def policy_tree(policy: Callable[[], Policy], most: int, frequent: int | None = None) -> Grow:
    """A grower that drafts as a policy says. policy: makes a new one for each generation; most: bounds the nodes that it keeps,
    and the nodes that it has the drafter run on in a round.

    The grower raises ValueError where a policy breaks its interface: a tree with a node twice would not keep the target's law.
    """

    def tree(drafter: Drafter | None, context: Context) -> Tree:
        assert drafter is not None
        kept: _Kept = context.kept if context.kept is not None else _Kept(policy())
        context.kept = kept
        last = Round(accepted=context.position - kept.position - 1, **kept.last) if kept.last else None
        key, position = context.chooser.params.key, context.position
        here = Here(position, len(context.tokens), lambda i: uniform(key, b"policy", position, i))
        draft = drafted(drafter, kept.policy, here, last)
        chosen = kept.policy.keep(draft)
        _check_kept(kept.policy, draft, chosen)
        run = sum(map(len, draft.expanded))
        if max(len(chosen), run) > most:
            raise ValueError(
                f"{_named(kept.policy)} ran the drafter on {run} nodes and kept {len(chosen)}: it said {most} at most"
            )
        found = tree_of(draft, chosen, context.root)
        kept.position = position
        kept.last = {"size": len(chosen), "calls": draft.calls, "deepest": max(found.depths()), "position": position}
        return found

    return Grow(tree, most, frequent)


def tree_of(draft: Draft, chosen: Tensor, root: int) -> Tree:
    """The tree of the draft's nodes `chosen`: numbers, rising; a node's parent is among them."""
    numbers, tokens, parents = torch.stack([chosen, draft.tokens[chosen], draft.parents[chosen]]).tolist()
    place = {-1: 0} | {number: i for i, number in enumerate(numbers, start=1)}
    return Tree(
        [root, *tokens], [-1, *(place[p] for p in parents)],
        confidence=lambda: draft.confidence[chosen].double().exp().tolist(),
    )  # fmt: skip


def drafted(drafter: Drafter, policy: Policy, here: Here, last: Round | None = None) -> Draft:
    """One round's draft: level after level, until the policy runs the drafter on nothing more.

    Raises:
        ValueError: the policy asks for no children, or for nodes that are not in the newest level.
    """
    n_children = policy.begin(here, last)
    if n_children < 1:
        raise ValueError(f"{_named(policy)}'s begin gave {n_children}: a node gets at least 1 child")
    logits = drafter.root_logits()
    device = logits.device
    best: BestChildren = getattr(drafter, "best_children", best_children)
    masks: bool = getattr(drafter, "reads_masks", True)  # else it follows `parents`
    tokens, own = best(logits, n_children)
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    levels, expanded = [0], list[Tensor]()
    above = torch.full((1,), -1)  # numbers of the nodes that the newest level hangs on
    entries = torch.full((1,), -1)  # their entry numbers in the drafter
    values = torch.zeros(1)
    sees = torch.zeros(1, 0, dtype=torch.bool, device=device)
    n_entries = 0
    while True:
        k = tokens.shape[1]
        own_logs = own.flatten().cpu()
        level_values = values.repeat_interleave(k) + own_logs
        columns.append((drafter.named(tokens.flatten()).cpu(), above.repeat_interleave(k), own_logs, level_values))
        levels.append(levels[-1] + len(level_values))
        # the drafter's entry of each node of the level, through the node that it hangs on
        hangs = torch.arange(len(above)).repeat_interleave(k)
        all_tokens, parents, confidence, value = (torch.cat(column) for column in zip(*columns, strict=True))
        draft = Draft(all_tokens, parents, confidence, value, levels[1:], expanded)
        picked = policy.expand(draft)
        _check_run(policy, draft, picked)
        if not len(picked):
            return draft
        expanded.append(picked)
        at, m = picked - levels[-2], len(picked)
        row = hangs[at]
        if masks:
            sees = torch.cat([sees[row.to(device)], torch.eye(m, dtype=torch.bool, device=device)], dim=1)
        logits = drafter.expand(all_tokens[picked].to(device), entries[row].to(device), sees)
        above, entries, values = picked, torch.arange(n_entries, n_entries + m), value[picked]
        n_entries += m
        tokens, own = best(logits, n_children)


def _check_run(policy: Policy, draft: Draft, picked: Tensor) -> None:
    given, newest = _numbers(policy, "expand", picked), draft.newest
    if given and not (newest.start <= min(given) and max(given) < newest.stop and len(set(given)) == len(given)):
        raise ValueError(f"{_named(policy)}'s expand gave {_told(given)}: it takes nodes of the newest level, "
                         f"{newest.start} to {newest.stop - 1}, each once")  # fmt: skip


def _check_kept(policy: Policy, draft: Draft, chosen: Tensor) -> None:
    given = _numbers(policy, "keep", chosen)
    n, there = len(draft.tokens), {-1, *given}
    if any(b <= a for a, b in itertools.pairwise([-1, *given, n])):
        raise ValueError(
            f"{_named(policy)}'s keep gave {_told(given)}: it takes nodes of the draft, 0 to {n - 1}, each once, rising"
        )
    for number, parent in zip(given, draft.parents[chosen].tolist(), strict=True):
        if parent not in there:
            raise ValueError(f"{_named(policy)}'s keep gave node {number} without its parent, node {parent}")


def _numbers(policy: Policy, what: str, given: Tensor) -> list[int]:
    if given.dtype != torch.long or given.dim() != 1:
        shape = ", ".join(map(str, given.shape))
        raise ValueError(f"{_named(policy)}'s {what} gave a tensor [{shape}] of {given.dtype}: it takes numbers of nodes, [n] "
                         "of torch.int64")  # fmt: skip
    return given.tolist()


def _named(policy: Policy) -> str:
    return f"policy {type(policy).__name__}"


def _told(given: Sequence[int]) -> str:
    return f"{', '.join(map(str, given[:20]))}{', ...' if len(given) > 20 else ''}"


NONE = torch.zeros(0, dtype=torch.long)
"""No nodes: what `expand` gives to stop."""


def beam(draft: Draft, width: int, total: int | None = None) -> Tensor:
    """The `width` nodes of the newest level of highest value, as EAGLE-2 expands them.

    total: only those of them below which a node can be among the `total` of highest value of all. A value never rises along a
    path, so running the others cannot change what `best_nodes` keeps.
    """
    best = by_score(draft.value[draft.newest], width) + draft.newest.start
    if total is None or len(draft.value) <= total:
        return best
    return best[draft.value[best] >= draft.value.topk(total).values[-1]]


def best_nodes(draft: Draft, total: int) -> Tensor:
    """The `total` nodes of highest value of all, as EAGLE-2 keeps them: a node's parent is among them."""
    return by_score(draft.value, total).sort().values


@dataclass(slots=True)
class Fixed:
    """EAGLE-2's own tree as a policy: what others are compared with, and what they are built on. prunes: nodes below which
    nothing can be kept are not run; the tree is the same."""

    top_k: int = 10
    depth: int = 6
    total: int = 59
    prunes: bool = field(default=False, kw_only=True)

    def begin(self, here: Here, last: Round | None) -> int:
        return self.top_k

    def expand(self, draft: Draft) -> Tensor:
        return beam(draft, self.top_k, self.total if self.prunes else None) if draft.calls < self.depth else NONE

    def keep(self, draft: Draft) -> Tensor:
        return best_nodes(draft, self.total)
