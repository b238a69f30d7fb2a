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

import methods
from harness.costs.outside import Work, fitted, plain_outside, probed
from harness.load.model import Loaded
from harness.replay.prompts import Prompt, params
from harness.watch.run import names_of
from methods.engine.grow import draft_pool
from methods.engine.tree import chain

ROWS = (1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 16, 17, 21, 25, 29, 32, 33, 41, 49, 60)  # a matmul's cost steps at tiles of 16

ROUNDS = 9  # repeats of every timing; medians are used
PROBED = 2  # prompts that each of them decodes
PROBE_TOKENS = 48  # at most, of each


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


def measure_costs(
    loaded: Loaded, m: methods.Method, options: Mapping[str, Any], prompts: Sequence[Prompt], *, context: int,
    top_ks: Sequence[int], depths: Sequence[int], temperature: float, rounds: int | None = None, rows: Sequence[int] = ROWS,
) -> Costs:  # fmt: skip
    """Costs of a dynamic method. options: its own, of which top_k, depth and total are changed; prompts: for the whole decodes.

    Raises:
        UserError: no prompt has an answer of more than one token.
    """
    with loaded.target.decoding():
        plain, inside = _inside(loaded, context, top_ks, depths, options.get("frequent"), rounds or ROUNDS, rows)
    probes = [(prompt.ids, params(loaded, prompt, temperature, PROBE_TOKENS)) for prompt in prompts[:PROBED]]
    names = names_of(loaded, m.drafter)
    vanilla, decodes = probed(loaded.target, loaded.drafter_of(m.drafter), names, m, options, probes)
    return Costs(
        context,
        plain + plain_outside(vanilla),
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

    Medians over rounds. Everything is interleaved, so that a drift of the machine hits all alike. A plain step goes before
    whatever the drafter does, as in decoding the target does: else a small head's weights would still lie in the processor's
    cache.
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
            step()
            timed("observe", observe)
            timed(("tree", k, d), partial(draft_pool, drafter, k, d))
    middle = {name: median(times[1:]) for name, times in samples.items()}
    return middle["step"], middle
