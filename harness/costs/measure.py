"""Measures a table of costs: every part of a step, at several contexts, in rounds that take everything in turn.

So a drift of the machine hits all parts alike. A plain step comes before whatever the draft head does, as in decoding a forward
of the target does: else a small head's weights would still lie in the processor's cache, and cost less than they do. A target of
which not all layers fit is measured whole and with half of its layers: their difference is what the layers that are not there
would add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import methods
from harness.costs.outside import fitted, plain_outside, probed
from harness.costs.table import AtContext, Figure, Outside
from harness.watch.check import Names
from methods.base import SamplerParams
from methods.engine.grow import draft_pool
from methods.engine.tree import chain

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 21, 26, 29, 32, 33, 41, 49, 60, 64, 80, 128)  # tiles are of 16
LEVELS = (1, 2, 4, 6, 8, 10, 15, 20)  # drafted nodes of a level
OBSERVED = (1, 2, 3, 4, 5, 6, 8)  # accepted tokens, the bonus among them
CHILDREN = 10  # that are picked of each row
DEEPER = 5  # levels that a whole draft has beyond one of a single level
PREFILLS = 3  # rounds that also take the prefill
PROBED, PROBE_TOKENS = 2, 24  # prompts that whole decodes answer, with so many tokens


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: `rows` of the target, `levels` of the head (rows of each), `observed` tokens, in so many `rounds`.

    layers_measured, layers: of the target, those that are there and those that it has.
    """

    contexts: Sequence[int]
    layers_measured: int
    layers: int
    frequent: int | None = None
    rounds: int = 9
    rows: Sequence[int] = ROWS
    levels: Sequence[int] = LEVELS
    observed: Sequence[int] = OBSERVED


@dataclass(slots=True)
class _Samples:
    """Milliseconds of each part, a figure a round, for the layers there and for half of them."""

    plan: Plan
    whole: dict[Any, list[float]] = field(default_factory=dict)
    half: dict[Any, list[float]] = field(default_factory=dict)

    @property
    def n_half(self) -> int:
        return self.plan.layers_measured // 2

    def figure(self, name: Any) -> Figure:
        """Of all layers: those that are not there cost what those between half and whole do.

        From the medians of both and not round by round: what disturbs one of them would be scaled up with the layers.
        """
        whole, missing = Figure.of(self.whole[name]), self.plan.layers - self.plan.layers_measured
        if not missing or name not in self.half:  # a draft head has all of its layers
            return whole
        half, times = Figure.of(self.half[name]), missing / (self.plan.layers_measured - self.n_half)
        ms = max(whole.ms + times * (whole.ms - half.ms), whole.ms)
        spread = 1.96 * math.sqrt((1 + times) ** 2 * whole.variance + times**2 * half.variance)
        return Figure(ms, max(ms - spread, whole.low), ms + spread)


@torch.inference_mode()
def inside(target: Any, drafter: Any, context: int, plan: Plan) -> AtContext:
    """What is inside the two models at one context. drafter: an EAGLE head's, or None."""
    random = torch.Generator().manual_seed(context)
    ids = _some_ids(target, context, random)
    drafts = torch.tensor(_some_ids(target, max(plan.rows), random))
    room = max(plan.rows) + 64
    samples = _Samples(plan)
    clocks = [target, *([drafter] if drafter is not None else [])]

    def timed(into: dict[Any, list[float]] | None, name: Any, work: Callable[[], Any]) -> Any:
        target.synchronise()
        before = sum(c.forward_s for c in clocks)
        made = work()
        target.synchronise()
        if into is not None:
            into.setdefault(name, []).append(1e3 * (sum(c.forward_s for c in clocks) - before))
        return made

    def step() -> None:
        target.step(ids[0])
        target.cache.length -= 1

    def of_target(into: dict[Any, list[float]] | None) -> None:
        timed(into, "plain", step)
        for n in plan.rows:
            timed(into, ("verify", n), partial(target.verify, chain(ids[0], drafts[: n - 1].tolist())))

    def of_head(into: dict[Any, list[float]] | None, features: torch.Tensor) -> None:
        for n in plan.observed:
            step()
            timed(into, ("observe", n), partial(drafter.observe, drafts[:n].tolist(), features[:n]))
            drafter.rewind(n)
        for n in plan.levels:
            step()
            drafter.observe(drafts[:1].tolist(), features[:1])
            drafter.rewind(1)
            if hasattr(drafter, "drafted"):
                of_whole_drafts(into, n)
                continue
            timed(into if n == plan.levels[-1] else None, "root", lambda: drafter.best_children(drafter.root_logits(), CHILDREN))
            given = drafts[:n], torch.full((n,), -1), torch.eye(n, dtype=torch.bool)
            timed(into, ("level", n), partial(_level, drafter, given))

    def of_whole_drafts(into: dict[Any, list[float]] | None, n: int) -> None:
        """Where a draft is replayed as one graph, a level is what more of them add to it."""
        found: dict[Any, list[float]] = {}
        for depth in (1, 1 + DEEPER):
            timed(found, depth, partial(drafter.drafted, ("costs", n, depth), partial(draft_pool, top_k=n, depth=depth)))
        if into is not None:
            if n == plan.levels[-1]:  # one figure a round
                into.setdefault("root", []).append(found[1][0])
            into.setdefault(("level", n), []).append(max(found[1 + DEEPER][0] - found[1][0], 0.0) / DEEPER)

    def prefill(into: dict[Any, list[float]] | None) -> torch.Tensor:
        features: torch.Tensor = timed(into, "prefill", lambda: target.prefill(ids, room))[0]
        return features

    halves = samples.n_half if plan.layers > plan.layers_measured else 0
    for i in range(plan.rounds + 1):  # the first one warms up
        into, into_half = (samples.whole, samples.half) if i else (None, None)
        if i <= PREFILLS:
            features = prefill(into)
            if drafter is not None:
                drafter.start(context + room, plan.frequent, ids[0])
                timed(into, "head prefill", partial(drafter.observe, [*ids[1:], ids[0]], features))
        of_target(into)
        if drafter is not None:
            of_head(into, features)
        with target.shallow(list(range(halves))) if halves else nullcontext():
            if halves:
                if i <= PREFILLS:
                    prefill(into_half)
                of_target(into_half)
    has_head = drafter is not None
    return AtContext(
        tokens=context,
        plain=samples.figure("plain"),
        verify={n: samples.figure(("verify", n)) for n in plan.rows},
        root=samples.figure("root") if has_head else None,
        level={n: samples.figure(("level", n)) for n in plan.levels} if has_head else None,
        observe={n: samples.figure(("observe", n)) for n in plan.observed} if has_head else None,
        prefill=samples.figure("prefill"),
        head_prefill=samples.figure("head prefill") if has_head else None,
    )


def _some_ids(target: Any, n: int, random: torch.Generator) -> list[int]:
    """Token ids, none of the first, which may be special."""
    ids: list[int] = torch.randint(min(100, target.vocab_size // 2), target.vocab_size, (n,), generator=random).tolist()
    return ids


def _level(drafter: Any, given: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    drafter.best_children(drafter.expand(*given), CHILDREN)


def outside(target: Any, drafter: Any, name: str, context: int, m: methods.Method, options: Mapping[str, Any]) -> Outside:
    """What is outside both models, from whole decodes of random prompts by vanilla and by EAGLE-2 with trees of several sizes.

    m, options: EAGLE-2, and its own. Without a draft head only vanilla decodes, and the rest is taken for 0.
    """
    random = torch.Generator().manual_seed(0)
    prompts = [(_some_ids(target, context, random), SamplerParams(PROBE_TOKENS, key=i)) for i in range(PROBED)]
    names = Names(f"the target {name}", f"the draft head of {name}")
    vanilla, trees = probed(target, drafter, names, m, options, prompts)
    of_work = fitted(trees) if drafter is not None else (0.0,) * 5
    return Outside(plain=1e3 * plain_outside(vanilla), **dict(zip(("step", "level", "row", "node", "token"),
                   (1e3 * s for s in of_work), strict=True)))  # fmt: skip
