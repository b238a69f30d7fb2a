"""What replayed steps would cost on a machine: their calls of the two models, by a table of costs or by costs in plain steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol

from harness.costs.relative import named, table_of
from harness.costs.table import CostTable
from methods.engine.step_costs import StepCosts, step_costs

CONTEXT_STEP = 32  # contexts are told apart no finer


class Prices(Protocol):
    """Prices of steps, in a unit of their own: only ratios of them mean anything. `name`: in words."""

    name: str

    def plain(self, context: int) -> float:
        """A step of plain decoding."""
        ...

    def step(self, calls: Sequence[int], nodes: int, accepted: int, context: int) -> float:
        """A step that ran the drafter on so many rows a call, the root's first, and verified so many nodes."""
        ...


class TablePrices:
    """Milliseconds by a table of costs, each looked up once."""

    def __init__(self, table: CostTable):
        self.table, self.name = table, f"{table.model} on {table.machine.label}"
        o = self._outside = table.outside
        self._verify = cache(lambda rows, context: table.verify(rows, context).ms)
        self._plain = cache(lambda context: table.plain(context).ms + o.plain)
        self._level = cache(lambda rows, context: table.level(rows, context).ms)
        self._root = cache(lambda context: table.root(context).ms)
        self._observe = cache(lambda tokens, context: table.observe(tokens, context).ms)

    def plain(self, context: int) -> float:
        return self._plain(_near(context))

    def step(self, calls: Sequence[int], nodes: int, accepted: int, context: int) -> float:
        at, o, tokens = _near(context), self._outside, accepted + 1
        other = o.step + o.level * len(calls) + o.row * sum(calls) + o.node * nodes + o.token * tokens
        draft = self._root(at) + sum(self._level(n, at) for n in calls[1:]) + self._observe(tokens, at) if calls else 0.0
        return self._verify(nodes + 1, at) + draft + other


class RelativePrices:
    """Plain steps, at any context the same."""

    def __init__(self, costs: StepCosts):
        self.name = costs.name
        self._costs, self._drafting = costs, cache(costs.drafting)

    def plain(self, context: int) -> float:
        return 1.0

    def step(self, calls: Sequence[int], nodes: int, accepted: int, context: int) -> float:
        return float(self._costs.verifying[nodes]) + self._drafting(tuple(calls))


def _near(context: int) -> int:
    return max(round(context / CONTEXT_STEP), 1) * CONTEXT_STEP


def prices_named(names: Sequence[str]) -> dict[str, Prices]:
    """Prices by the name that options have costs under. names: as `harness.costs.relative.named` takes them.

    Raises:
        UserError: there are no such costs.
    """
    found: dict[str, Prices] = {}
    for text in names:
        name = named(text)
        table = table_of(name)
        found[name] = TablePrices(table) if table is not None else RelativePrices(step_costs(name))
    return found
