"""What a step's parts cost, in steps of plain decoding: what policies weigh drafting against.

A policy names its costs by `NAME`, or by `NAME@HASH` in a record. A built-in one is always there. So is `call=X,verify=Y`: a call
of the drafter costs X plain steps, verifying 60 rows Y, and other numbers of rows what the line through that and one row, which
costs 1, says. Others are registered by whoever measured them (`harness costs`), under the hash of their table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

AT_FIRST = 257  # numbers of nodes that are priced at once
RADAR_MS, VLLM_MS = 65.0, 7.07  # a step of plain decoding of theirs
LOOK_MS = 0.4  # of RADAR's network on a GPU, as its authors set it (train script)


class ByNodes:
    """What a step costs by its number of drafted nodes, drafting left out: `[nodes]`, or `[first:end]`; there is no most."""

    def __init__(self, price: Callable[[NDArray[np.int64]], NDArray[np.float64]]):
        self._price, self._known = price, price(np.arange(AT_FIRST))

    def __getitem__(self, nodes: int | slice) -> NDArray[np.float64]:
        end = nodes.stop if isinstance(nodes, slice) else nodes + 1
        if end > len(self._known):
            self._known = self._price(np.arange(2 * end))
        found: NDArray[np.float64] = self._known[nodes]
        return found


def on_line(known: tuple[tuple[int, float], ...], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Costs of so many rows: beyond the last known on the line through the last two, but not under the last. One known: all."""
    n, costs = zip(*known, strict=True)
    found: NDArray[np.float64] = np.interp(rows, n, costs)
    if len(n) > 1:
        found = found + max(costs[-1] - costs[-2], 0.0) / (n[-1] - n[-2]) * np.maximum(rows - n[-1], 0)
    return found


@dataclass(frozen=True)
class RelativeCosts:
    """In steps of plain decoding. `verify`: (rows, cost) of the target over a tree, root included; `call`: the same of a call
    of the drafter; `root`: of its first, which asks for the logits after the root; `observe`: of its run over accepted tokens;
    `step`, `level`, `row`, `node`: outside both models; `look`: of a look of a policy's network. Between two numbers of rows a
    cost is on the line through both, beyond the last on that through the last two.
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
    look: float = LOOK_MS / RADAR_MS

    @cached_property
    def verifying(self) -> ByNodes:
        """A step with so many drafted nodes, drafting left out."""
        return ByNodes(lambda nodes: on_line(self.verify, nodes + 1) + self.step + self.node * nodes + self.observe)

    def drafting(self, calls: Sequence[int]) -> float:
        """Calls of the drafter: how many rows each has, the root's first."""
        return sum(self.next_call(n) for n in calls[1:]) + self.root + self.level + self.row if calls else 0.0

    def next_call(self, rows: int) -> float:
        """One more call, over so many rows."""
        return float(on_line(self.call, np.array(rows))) + self.level + self.row * rows


# What others measured on GPUs, in plain steps of theirs. Verification is flat up to 60 rows there, and they
# tell of no more: larger trees cost as much. RADAR's raw outputs (github
# minaduki-sora/RADAR, branch cm; LLaMA3.1-8B on two RTX 3090 in Hugging Face's loop): vanilla 65 ms, a call 2.81 ms, a cycle of
# 8 calls 89.5 ms.
RADAR = RelativeCosts("gpu-radar", ((1, (89.5 - 8 * 2.81) / RADAR_MS),), ((1, 2.81 / RADAR_MS),), root=2.81 / RADAR_MS)
# vLLM (its issue 20780; LLaMA3.1-8B on one H100): vanilla 7.07 ms, a step with 2 to 7 levels of a chain 7.72 + 0.73 ms a level.
VLLM = RelativeCosts("gpu-vllm", ((1, 7.72 / VLLM_MS),), ((1, 0.73 / VLLM_MS),), root=0.73 / VLLM_MS, look=LOOK_MS / VLLM_MS)

_FLAT = re.compile(r"call=(\d+(?:\.\d+)?),verify=(\d*[1-9]\d*(?:\.\d+)?|\d+\.\d*[1-9]\d*)")

_KNOWN = {costs.name: costs for costs in (RADAR, VLLM)}


def register(costs: RelativeCosts) -> str:
    """Make costs known by their name; -> the name."""
    _KNOWN[costs.name] = costs
    return costs.name


def known() -> list[str]:
    """The names of all costs that are known; of `call=X,verify=Y` there is no end, so none is among them."""
    return sorted(_KNOWN)


def relative_costs(name: str) -> RelativeCosts:
    """
    Raises:
        ValueError: none of that name are known.
    """
    if numbers := _FLAT.fullmatch(name):
        return _flat(name, *map(float, numbers.groups()))
    if name not in _KNOWN:
        raise ValueError(f"costs={name!r}: no such costs; known: {', '.join(known())}, and tables of `harness costs`, by file")
    return _KNOWN[name]


@cache
def _flat(name: str, call: float, verify: float) -> RelativeCosts:
    return RelativeCosts(name, ((1, 1.0), (60, verify)), ((1, call),), root=call)
