"""What a step's parts cost, in steps of plain decoding: what policies weigh drafting against.

A policy names its costs by `NAME`, or by `NAME@HASH` in a record. A built-in one is always there. Others are registered by whoever
measured them (`harness costs`), under the hash of their table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MOST_ROWS = 257


@dataclass(frozen=True)
class StepCosts:
    """In steps of plain decoding. `verify`: (rows, cost) of the target over a tree, root included; `call`: the same of a call of the
    drafter; `root`: of its first, which asks for the logits after the root; `observe`: of its run over accepted tokens; `step`,
    `level`, `row`, `node`: outside both models. Between two numbers of rows a cost is on the line through both.
    """

    name: str
    verify: tuple[tuple[int, float], ...]
    call: tuple[tuple[int, float], ...]
    root: float = 0.0
    observe: float = 0.0
    step: float = 0.0
    level: float = 0.0
    row: float = 0.0
    node: float = 0.0

    @cached_property
    def verifying(self) -> NDArray[np.float64]:
        """[MOST_ROWS]: a step with so many drafted nodes, drafting left out."""
        nodes = np.arange(MOST_ROWS)
        known, costs = zip(*self.verify, strict=True)
        return np.interp(nodes + 1, known, costs) + self.step + self.node * nodes + self.observe

    def drafting(self, calls: Sequence[int]) -> float:
        """Calls of the drafter: how many rows each has, the root's first."""
        return sum(self.next_call(n) for n in calls[1:]) + self.root + self.level + self.row if calls else 0.0

    def next_call(self, rows: int) -> float:
        """One more call, over so many rows."""
        known, costs = zip(*self.call, strict=True)
        return float(np.interp(rows, known, costs)) + self.level + self.row * rows


# RADAR's own splits (arXiv 2512.14069, its published timings; two RTX 3090): a call of the drafter 0.04, verifying and all else 1.05
GPU = StepCosts("gpu", ((1, 1.05),), ((1, 0.04),), root=0.04)

_KNOWN = {GPU.name: GPU}


def register(costs: StepCosts) -> str:
    """Make costs known by their name; -> the name."""
    _KNOWN[costs.name] = costs
    return costs.name


def step_costs(name: str) -> StepCosts:
    """
    Raises:
        ValueError: none of that name are known.
    """
    if name not in _KNOWN:
        raise ValueError(
            f"costs={name!r}: no such costs; known: {', '.join(sorted(_KNOWN))}, and tables of `harness costs`, by file"
        )
    return _KNOWN[name]
