"""What replayed steps would cost on a machine: their calls of the two models, by a table of costs or by costs in plain steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import methods
from harness.costs.price import Prices as _OfTable
from harness.costs.price import near
from harness.costs.relative import named, table_of
from harness.costs.step import StepWork
from harness.costs.table import CostTable
from methods.engine.relative_costs import RelativeCosts, relative_costs
from methods.engine.stop_net import LOOK_MS


class Prices(Protocol):
    """Prices of steps, in a unit of their own: only ratios of them mean anything. `name`: in words; `look`: of a look of a
    policy's network."""

    name: str
    look: float

    def plain(self, context: int) -> float:
        """A step of plain decoding."""
        ...

    def step(self, calls: Sequence[int], nodes: int, accepted: int, context: int, kind: str = methods.EAGLE) -> float:
        """A step that ran the drafter on so many rows a call, the root's first, and verified so many nodes. kind: of its head."""
        ...


class TablePrices:
    """Milliseconds by a table of costs."""

    def __init__(self, table: CostTable):
        self.name, self._prices = f"{table.model} on {table.machine.label}", _OfTable(table)
        self.look = LOOK_MS

    def plain(self, context: int) -> float:
        return self._prices.plain(near(context))

    def step(self, calls: Sequence[int], nodes: int, accepted: int, context: int, kind: str = methods.EAGLE) -> float:
        work = StepWork(1, tuple(calls[1:]), 1, drafter=kind) if calls else StepWork(1)
        return sum(self._prices.step(work, nodes, accepted + 1, near(context)))


class RelativePrices:
    """Plain steps, at any context the same."""

    def __init__(self, costs: RelativeCosts):
        self.name, self.look = costs.name, costs.look
        self._costs, self._drafting = costs, cache(costs.drafting)

    def plain(self, context: int) -> float:
        return 1.0

    def step(self, calls: Sequence[int], nodes: int, accepted: int, context: int, kind: str = methods.EAGLE) -> float:
        return float(self._costs.verifying[nodes]) + self._drafting(tuple(calls))


def looks_of(options: Mapping[str, Any]) -> Callable[[Sequence[int]], int]:
    """How often a policy's network looked in a step, by the step's calls; of methods that have none, never.

    After the last call that its tree may have there is nothing to decide.
    """
    if "weights" not in options:
        return lambda calls: 0
    most = int(options["depth"])
    return lambda calls: min(len(calls), most - 1)


def prices_named(names: Sequence[str]) -> dict[str, Prices]:
    """Prices by the name that options have costs under. names: as `harness.costs.relative.named` takes them.

    Raises:
        UserError: there are no such costs.
    """
    found: dict[str, Prices] = {}
    for text in names:
        name = named(text)
        table = table_of(name)
        found[name] = TablePrices(table) if table is not None else RelativePrices(relative_costs(name))
    return found
