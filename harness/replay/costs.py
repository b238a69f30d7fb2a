"""What a step of a dynamic tree costs on this machine: target forwards by rows, drafts by width and depth."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch

from harness.load.model import Loaded
from methods.base import SamplerParams
from methods.engine.draft_head import EagleDrafter
from methods.engine.grow import by_score, draft_pool, kept_tree
from methods.engine.sampling import Chooser
from methods.engine.tree import chain
from methods.engine.verify import walk

ROWS = (1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 16, 17, 21, 25, 29, 32, 33, 41, 49, 60)  # a matmul's cost steps at tiles of 16

ROUNDS = 9  # repeats of every timing; medians are used


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds on this machine, at a context of `context` tokens.

    `step`: plain decoding of one token. `verify[rows]`: target forward, acceptance and commit. `draft[top_k, depth]`: growing a
    tree, and running the head over the tokens accepted.
    """

    context: int
    step: float
    token: float  # drawing one token from its logits: a step of tau tokens does it tau times, `verify` has the first
    verify: dict[int, float]
    draft: dict[tuple[int, int], float]

    def verify_s(self, rows: int) -> float:
        """Seconds of verifying so many rows, between those that were measured."""
        return float(np.interp(rows, sorted(self.verify), [self.verify[r] for r in sorted(self.verify)]))


@torch.inference_mode()
def measure_costs(
    loaded: Loaded, context: int, top_ks: Sequence[int], depths: Sequence[int], temperature: float, frequent: int | None,
    rounds: int | None = None, rows: Sequence[int] = ROWS,
) -> Costs:  # fmt: skip
    """Medians over `rounds` passes. Everything is interleaved, so that a drift of the machine hits all alike."""
    target, drafter = loaded.target, loaded.drafter
    assert drafter is not None  # dynamic trees are an EAGLE head's
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, len(target.embedding), (context,), generator=generator).tolist()
    chooser = Chooser(SamplerParams(1, temperature=temperature, key=1))
    features, _ = target.prefill(ids, max(rows) + 64)
    drafter.start(context + max(top_ks) * max(depths) + 8, frequent)
    drafter.observe([*ids[1:], ids[0]], features)
    draw = ids[:2]
    drafts = torch.randint(100, len(target.embedding), (max(rows),), generator=generator).tolist()
    samples: dict[Hashable, list[float]] = {}

    def timed(name: Hashable, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        target.synchronise()
        samples.setdefault(name, []).append(time.perf_counter() - started)

    def verify(n: int) -> None:
        tree = chain(ids[0], drafts[: n - 1])
        _, logits = target.verify(tree)
        walk(tree, logits, chooser, 0)
        path = [0, 2] if n > 2 else [0]  # a path off the first rows: what is kept has to be moved
        target.commit(path)
        target.cache.length -= len(path)

    logits = target.step(ids[0])
    target.cache.length -= 1

    def step() -> None:
        chooser.token(target.step(ids[0]), 0)
        target.cache.length -= 1

    for _ in range((rounds or ROUNDS) + 1):
        timed("step", step)
        timed("token", lambda: chooser.token(logits, 0))
        for n in rows:
            timed(("verify", n), partial(verify, n))
        for k, d in itertools.product(top_ks, depths):
            drafter.observe(draw, features[:2])
            drafter.rewind(2)
            timed(("tree", k, d), partial(draft, drafter, k, d))

            def observe() -> None:
                drafter.observe(draw, features[:2])
                drafter.rewind(2)

            timed("observe", observe)
    middle = {name: median(times[1:]) for name, times in samples.items()}
    return Costs(
        context,
        middle["step"],
        middle["token"],
        {n: middle["verify", n] for n in rows},
        {(k, d): middle["tree", k, d] + middle["observe"] for k, d in itertools.product(top_ks, depths)},
    )


def draft(drafter: EagleDrafter, top_k: int, depth: int) -> None:
    """All levels of a draft, and a tree of a usual size from them."""
    pool = draft_pool(drafter, top_k, depth)
    kept_tree(pool, by_score(pool.value, 16).sort().values, 0)
