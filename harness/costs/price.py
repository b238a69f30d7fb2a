"""What a step costs by a table: the target over its rows, each level of the drafter, and all that is outside both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import methods
from harness.costs.step import StepWork
from harness.costs.table import CostTable, Figure, Sum


class Range(NamedTuple):
    """A predicted number, with the interval that the costs' own noise gives it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Of one step of a method in plain steps, and `plain_ms`, the milliseconds of one of those."""

    plain_ms: float
    verify: float
    draft: float
    other: float
    variance: float  # of their sum

    @property
    def total(self) -> float:
        return self.verify + self.draft + self.other

    def speedup(self, tau: float) -> Range:
        """The decode speedup that a tau gives."""
        spread = 1.96 * math.sqrt(self.variance)
        return Range(tau / self.total, tau / (self.total + spread), tau / max(self.total - spread, 1e-9))


def step_costs(table: CostTable, work: StepWork, tau: float, context: int) -> StepCosts:
    """What a step of such work costs. tau: how many accepted tokens the drafter runs over after it.

    Raises:
        ValueError: the method drafts with what was not measured.
    """
    plain = table.plain(context)
    if work.is_plain:
        return StepCosts(plain.ms + table.outside.plain, 1.0, 0.0, 0.0, 0.0)
    verify, draft = table.verify(work.rows, context), Sum.of([f for _, f in drafting(table, work, tau, context)])
    other = outside_ms(table, work, work.nodes, tau)
    base = plain.ms + table.outside.plain
    total = verify.ms + draft.ms + other
    relative = (verify.variance + draft.variance) / total**2 + plain.variance / base**2
    return StepCosts(base, verify.ms / base, draft.ms / base, other / base, (total / base) ** 2 * relative)


def drafting(table: CostTable, work: StepWork, tau: float, context: int) -> list[tuple[int, Figure]]:
    """The parts of a step inside the drafter, each with the level of the tree that it drafts: 0 over the tokens accepted before,
    1 after the root, and so on.

    Raises:
        ValueError: as `step_costs`.
    """
    if not work.depth:
        return []
    kind = work.drafter
    if not table.has(kind):
        raise ValueError(f"the costs of {table.model} were measured without a {methods.DRAFTERS.get(kind, kind)}")
    found = [(0, table.observe(tau, context, kind)), *[(1, table.root(context, kind))] * work.root]
    return found + [(i + 1, table.level(n, context, kind, i)) for i, n in enumerate(work.levels, start=1)]


def outside_ms(table: CostTable, work: StepWork, nodes: float, tau: float) -> float:
    """Milliseconds outside both models of a step that verifies so many nodes and emits so many tokens."""
    o = table.outside
    if work.is_plain:
        return o.plain
    return o.step + o.level * work.depth + o.row * (work.root + sum(work.levels)) + o.node * nodes + o.token * tau


CONTEXT_STEP = 32  # contexts are told apart no finer


def near(context: int) -> int:
    """The context that a step is priced at: so few are looked up."""
    return max(round(context / CONTEXT_STEP), 1) * CONTEXT_STEP


class Prices:
    """Milliseconds of single steps by a table of costs, each looked up once."""

    def __init__(self, table: CostTable):
        self.table = table
        self._verify: Callable[[int, int], float] = cache(lambda rows, context: table.verify(rows, context).ms)
        self._plain: Callable[[int], float] = cache(lambda context: table.plain(context).ms)
        self._levels: Callable[[StepWork, int], float] = cache(
            lambda work, context: sum(f.ms for level, f in drafting(table, work, 1, context) if level)
        )
        self._observe: Callable[[float, int, str], float] = cache(lambda *what: table.observe(*what).ms)

    def plain(self, context: int) -> float:
        """A whole step of plain decoding."""
        return self._plain(context) + self.table.outside.plain

    def step(self, work: StepWork, nodes: int, tokens: float, context: int) -> tuple[float, float, float]:
        """(target, drafter, outside both) of a step that verified so many nodes and emitted so many tokens."""
        other = outside_ms(self.table, work, nodes, tokens)
        if work.is_plain:
            return self._plain(context), 0.0, other
        draft = self._levels(replace(work, rows=1), context) + self._observe(tokens, context, work.drafter) if work.depth else 0.0
        return self._verify(nodes + 1, context), draft, other
