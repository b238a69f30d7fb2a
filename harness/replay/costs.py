"""What a step of a dynamic tree costs on this machine: inside the target, inside the drafter, and outside both.

Forwards are timed one by one: the target's by rows, the drafter's by width and depth. What is outside both models (growing the
tree, its mask, acceptance, the cache, the loop, the checks of a watched run) is fitted to whole decodes with trees of several
sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

import methods
from harness.load.model import Loaded
from harness.replay.prompts import Prompt, params
from harness.watch.run import names_of, watched
from methods.base import Decode, Generation, SamplerParams
from methods.engine.draft_head import EagleDrafter
from methods.engine.grow import draft_pool
from methods.engine.tree import chain

ROWS = (1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 16, 17, 21, 25, 29, 32, 33, 41, 49, 60)  # a matmul's cost steps at tiles of 16

ROUNDS = 9  # repeats of every timing; medians are used
PROBES = ((1, 1, 1), (4, 1, 4), (1, 6, 6), (4, 3, 8), (10, 2, 24), (10, 6, 24), (10, 6, 59))  # top_k, depth, total
PROBED = 2  # prompts that each of them decodes
PROBE_TOKENS = 48  # at most, of each


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
class Costs:
    """Seconds on this machine, at a context of `context` tokens.

    `step`: a whole step of plain decoding. `verify[rows]`: inside the target's forward. `draft[top_k, depth]`: inside the
    drafter, over all levels and over the tokens accepted. `outside`: a unit of each count of `Work`.
    """

    context: int
    step: float
    verify: dict[int, float]
    draft: dict[tuple[int, int], float]
    outside: tuple[float, ...]

    def verify_s(self, rows: int) -> float:
        """Seconds of the target's forward over so many rows, between those that were measured."""
        return float(np.interp(rows, sorted(self.verify), [self.verify[r] for r in sorted(self.verify)]))

    def outside_s(self, work: Work) -> float:
        """Seconds outside both models."""
        return float(np.dot(self.outside, work.counts))


@dataclass(frozen=True, slots=True)
class Decoded:
    """One whole decode: what was done outside both models, and what all of it took, in seconds, the prefill left out.

    `inside_s`: of `seconds` those inside the target and the drafter.
    """

    work: Work
    seconds: float
    inside_s: float


def fitted(decodes: Sequence[Decoded]) -> tuple[float, ...]:
    """Seconds of a unit of each count of `Work`, none under 0, that come nearest to what decodes took outside both models.

    Least squares over seconds a step, so that long decodes count no more than short ones.
    """
    counts = np.array([np.array(d.work.counts) / d.work.steps for d in decodes])
    seconds = np.array([(d.seconds - d.inside_s) / d.work.steps for d in decodes])
    scale = counts.max(axis=0)
    return tuple(float(x) for x in nnls(counts / scale, seconds)[0] / scale)


def measure_costs(
    loaded: Loaded, m: methods.Method, options: Mapping[str, Any], prompts: Sequence[Prompt], *, context: int,
    top_ks: Sequence[int], depths: Sequence[int], temperature: float, rounds: int | None = None, rows: Sequence[int] = ROWS,
) -> Costs:  # fmt: skip
    """Costs of a dynamic method. options: its own, of which top_k, depth and total are changed; prompts: for the whole decodes.

    Raises:
        UserError: no prompt has an answer of more than one token.
    """
    plain, inside = _inside(loaded, context, top_ks, depths, options.get("frequent"), rounds or ROUNDS, rows)
    vanilla, decodes = _probed(loaded, m, options, prompts[:PROBED], temperature)
    return Costs(
        context,
        plain + sum(d.seconds - d.inside_s for d in vanilla) / sum(d.work.steps for d in vanilla),
        {n: inside["verify", n] for n in rows},
        {(k, d): inside["tree", k, d] + inside["observe"] for k, d in itertools.product(top_ks, depths)},
        fitted(decodes),
    )


@torch.inference_mode()
def _inside(
    loaded: Loaded, context: int, top_ks: Sequence[int], depths: Sequence[int], frequent: int | None, rounds: int,
    rows: Sequence[int],
) -> tuple[float, dict[Hashable, float]]:  # fmt: skip
    """(seconds inside the target of a plain step, those inside either model of everything else).

    Medians over rounds. Everything is interleaved, so that a drift of the machine hits all alike.
    """
    target, drafter = loaded.target, loaded.drafter
    assert drafter is not None  # dynamic trees are an EAGLE head's
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, len(target.embedding), (context,), generator=generator).tolist()
    features, _ = target.prefill(ids, max(rows) + 64)
    drafter.start(context + max(top_ks) * max(depths) + 8, frequent)
    drafter.observe([*ids[1:], ids[0]], features)
    drafts = torch.randint(100, len(target.embedding), (max(rows),), generator=generator).tolist()
    samples: dict[Hashable, list[float]] = {}

    def timed(name: Hashable, work: Callable[[], object]) -> None:
        target.synchronise()
        before = target.forward_s + drafter.forward_s
        work()
        target.synchronise()
        samples.setdefault(name, []).append(target.forward_s + drafter.forward_s - before)

    def verify(n: int) -> None:
        target.verify(chain(ids[0], drafts[: n - 1]))
        path = [0, 2] if n > 2 else [0]  # a path off the first rows: what is kept has to be moved
        target.commit(path)
        target.cache.length -= len(path)

    def step() -> None:
        target.step(ids[0])
        target.cache.length -= 1

    def observe() -> None:
        drafter.observe(ids[:2], features[:2])
        drafter.rewind(2)

    for _ in range(rounds + 1):
        timed("step", step)
        for n in rows:
            timed(("verify", n), partial(verify, n))
        for k, d in itertools.product(top_ks, depths):
            observe()
            timed(("tree", k, d), partial(draft_pool, drafter, k, d))
            timed("observe", observe)
    middle = {name: median(times[1:]) for name, times in samples.items()}
    return middle["step"], middle


class _Counted:
    """A drafter whose levels and rows of logits are counted; all else is the drafter's own."""

    def __init__(self, drafter: EagleDrafter):
        self._drafter = drafter
        self.levels = self.rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def root_logits(self) -> torch.Tensor:
        self.levels, self.rows = self.levels + 1, self.rows + 1
        return self._drafter.root_logits()

    def expand(self, tokens: torch.Tensor, parents: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
        self.levels, self.rows = self.levels + 1, self.rows + len(tokens)
        return self._drafter.expand(tokens, parents, sees)


def _probed(
    loaded: Loaded, m: methods.Method, options: Mapping[str, Any], prompts: Sequence[Prompt], temperature: float
) -> tuple[list[Decoded], list[Decoded]]:  # fmt: skip
    """(vanilla's decodes, those with trees of several sizes): interleaved, prompt after prompt, after one that warms up."""
    decodes = [methods.get("vanilla").build()]
    decodes += [m.build(**{**options, "top_k": k, "depth": d, "total": n}) for k, d, n in PROBES]
    found: list[list[Decoded]] = [[] for _ in decodes]
    for i, prompt in enumerate([prompts[0], *prompts]):
        for j in np.roll(range(len(decodes)), i):
            made = _decoded(loaded, decodes[j], m.drafter if j else None, prompt, temperature)
            if i and made.work.steps:
                found[j].append(made)
    return found[0], [made for own in found[1:] for made in own]


def _decoded(loaded: Loaded, decode: Decode, kind: str | None, prompt: Prompt, temperature: float) -> Decoded:
    counted: list[_Counted] = []

    def counting(ids: list[int], target: Any, drafter: Any, how: SamplerParams) -> Generation:
        counted.append(_Counted(drafter))
        return decode(ids, target, counted[0] if drafter is not None else None, how)

    how = params(loaded, prompt, temperature, PROBE_TOKENS)
    seen = watched(counting, prompt.ids, loaded.target, loaded.drafter_of(kind), how, names_of(loaded, kind))
    made, t = seen.generation, seen.generation.trace
    assert t is not None
    work = Work(len(t.accepted), counted[0].levels, counted[0].rows, sum(t.tree_size), len(made.token_ids) - 1)
    return Decoded(work, seen.wall_s - made.prefill_s, sum(t.target_s) + sum(t.drafter_s))
