"""What replayed steps would cost on a machine: their calls of the two models, by a table of costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from harness.costs.table import CostTable

CONTEXT_STEP = 32  # contexts are told apart no finer


class Prices:
    """Milliseconds by a table of costs, each looked up once."""

    def __init__(self, table: CostTable):
        self.table = table
        o = self._outside = table.outside
        self._verify = cache(lambda rows, context: table.verify(rows, context).ms)
        self._plain = cache(lambda context: table.plain(context).ms + o.plain)
        self._level = cache(lambda rows, context: table.level(rows, context).ms)
        self._root = cache(lambda context: table.root(context).ms)
        self._observe = cache(lambda tokens, context: table.observe(tokens, context).ms)

    @property
    def name(self) -> str:
        """In words."""
        return self.table.machine.label

    def plain(self, context: int) -> float:
        """A step of plain decoding."""
        return self._plain(_near(context))

    def step(self, calls: Sequence[int], nodes: int, accepted: int, context: int) -> float:
        """A step that ran the drafter on so many rows a call, the root's first, and verified so many nodes."""
        at, o, tokens = _near(context), self._outside, accepted + 1
        other = o.step + o.level * len(calls) + o.row * sum(calls) + o.node * nodes + o.token * tokens
        draft = self._root(at) + sum(self._level(n, at) for n in calls[1:]) + self._observe(tokens, at) if calls else 0.0
        return self._verify(nodes + 1, at) + draft + other


def _near(context: int) -> int:
    return max(round(context / CONTEXT_STEP), 1) * CONTEXT_STEP
