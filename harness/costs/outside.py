"""What a step costs outside both models: the tree, its mask, acceptance, the cache, the loop, the checks of a watched run.

It is fitted to whole decodes with trees of several sizes, of which the time inside the models is taken away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

import methods
from harness.watch.check import Names
from harness.watch.run import settled
from methods.base import Decode, Generation, SamplerParams

PROBES = ((1, 1, 1), (4, 1, 4), (1, 6, 6), (4, 3, 8), (10, 2, 24), (10, 6, 24), (10, 6, 59))  # top_k, depth, total


@dataclass(frozen=True, slots=True)
class Work:
    """What is done outside both models, as counts: target forwards, draft levels, rows of logits that children are picked from,
    nodes verified, and tokens emitted."""

    steps: float
    levels: float
    rows: float
    nodes: float
    tokens: float

    @property
    def counts(self) -> tuple[float, ...]:
        return self.steps, self.levels, self.rows, self.nodes, self.tokens


@dataclass(frozen=True, slots=True)
class Decoded:
    """One whole decode: what was done outside both models, and what all of it took, in seconds, the prefill left out.

    `inside_s`: of `seconds` those inside the target and the drafter. `sizes`: the drafted nodes of each step. `calls`: how often
    the drafter was asked for a level over so many rows: 0 is its run over accepted tokens, 1 its logits after the root.
    """

    work: Work
    seconds: float
    inside_s: float
    sizes: tuple[int, ...] = ()
    calls: Mapping[tuple[int, int], int] = field(default_factory=dict)


def fitted(decodes: Sequence[Decoded]) -> tuple[float, ...]:
    """Seconds of a unit of each count of `Work`, none under 0, that come nearest to what decodes took outside both models.

    Least squares over seconds a step, so that long decodes count no more than short ones.
    """
    counts = np.array([np.array(d.work.counts) / d.work.steps for d in decodes])
    seconds = np.array([(d.seconds - d.inside_s) / d.work.steps for d in decodes])
    scale = counts.max(axis=0)
    return tuple(float(x) for x in nnls(counts / scale, seconds)[0] / scale)


def probed(
    target: Any, drafter: Any, names: Names, m: methods.Method, options: Mapping[str, Any],
    prompts: Sequence[tuple[list[int], SamplerParams]],
) -> tuple[list[Decoded], list[Decoded]]:  # fmt: skip
    """(vanilla's decodes, those of a dynamic method with trees of several sizes): interleaved, prompt after prompt, after one
    that warms up. options: the method's, of which top_k, depth and total are changed. Without a drafter only vanilla decodes."""
    decodes = [methods.get("vanilla").build()]
    if drafter is not None:
        decodes += [m.build(**{**options, "top_k": k, "depth": d, "total": n}) for k, d, n in PROBES]
    found: list[list[Decoded]] = [[] for _ in decodes]
    for i, (ids, how) in enumerate([prompts[0], *prompts]):
        for j in np.roll(range(len(decodes)), i):
            made = decoded(decodes[j], ids, target, drafter if j else None, how, names)
            if i and made.work.steps:
                found[j].append(made)
    return found[0], [made for own in found[1:] for made in own]


def plain_outside(vanilla: Sequence[Decoded]) -> float:
    """Seconds outside the target of a step of plain decoding."""
    return sum(d.seconds - d.inside_s for d in vanilla) / sum(d.work.steps for d in vanilla)


class _Counted:
    """A drafter whose levels and rows of logits are counted; all else is the drafter's own."""

    def __init__(self, drafter: Any):
        self._drafter = drafter
        self.levels = self.rows = self._level = 0
        self.calls = Counter[tuple[int, int]]()
        self._has_begun = False  # its run over the prompt is the prefill's

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def _count(self, level: int, rows: int) -> None:
        self.levels, self.rows, self._level = self.levels + 1, self.rows + rows, level
        self.calls[level, rows] += 1

    def observe(self, tokens: list[int], features: torch.Tensor) -> None:
        if self._has_begun:
            self.calls[0, len(tokens)] += 1
        self._has_begun = True
        self._drafter.observe(tokens, features)

    def root_logits(self) -> torch.Tensor:
        self._count(1, 1)
        found: torch.Tensor = self._drafter.root_logits()
        return found

    def expand(self, tokens: torch.Tensor, parents: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._drafter.expand(tokens, parents, sees)
        self._count(self._level + 1, len(found))
        return found


class _CountedWhole(_Counted):
    """The same of a drafter that makes a whole draft at a time."""

    def drafted(self, key: Any, draft: Any) -> Any:
        pool, kept = self._drafter.drafted(key, draft)
        for level, rows in enumerate([1, *map(len, pool.expanded[:-1])], start=1):
            self._count(level, rows)
        return pool, kept


def decoded(decode: Decode, ids: list[int], target: Any, drafter: Any, how: SamplerParams, names: Names) -> Decoded:
    """Decode a prompt under watch, and count what is asked of the drafter."""
    counted: list[_Counted] = []

    def counting(ids: list[int], target: Any, drafter: Any, how: SamplerParams) -> Generation:
        counted.append((_CountedWhole if hasattr(type(drafter), "drafted") else _Counted)(drafter))
        return decode(ids, target, counted[-1] if drafter is not None else None, how)

    seen = settled(lambda: counting, ids, target, drafter, how, names)
    made, t = seen.generation, seen.generation.trace
    assert t is not None
    work = Work(len(t.accepted), counted[-1].levels, counted[-1].rows, sum(t.tree_size), len(made.token_ids) - 1)
    inside_s = sum(t.target_s) + sum(t.drafter_s)
    return Decoded(work, seen.wall_s - made.prefill_s, inside_s, tuple(t.tree_size), counted[-1].calls)
