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
from harness.costs.table import AtContext, Figure, OfDrafter, Outside
from harness.watch.check import Names
from methods.base import SamplerParams
from methods.engine.grow import draft_pool
from methods.engine.loop import prefilled
from methods.engine.tree import chain

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 21, 26, 29, 32, 33, 41, 49, 60, 64, 80, 128)  # tiles are of 16
LEVELS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20)  # drafted nodes of a level
# of other drafters: a chain; heads of which all nodes of a level have the same children; the published tree has up to 18
OTHERS = {"lm": (1,), "medusa": (1,), "hydra": (1, 4, 10, 18), methods.EAGLE3: LEVELS}
OBSERVED = (1, 2, 3, 4, 5, 6, 8)  # accepted tokens, the bonus among them
CHILDREN = 10  # that are picked of each row
DEEPER = 5  # levels that a whole draft has beyond one of a single level
PREFILLS = 3  # rounds that also take the prefill
PROBED, PROBE_TOKENS = 2, 24  # prompts that whole decodes answer, with so many tokens


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: `rows` of the target, `levels` of EAGLE heads (rows of each), `observed` tokens, in so many `rounds`.

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

    def rows_of(self, kind: str) -> Sequence[int]:
        """Nodes of each level that are measured of a drafter."""
        return self.levels if kind in methods.HEADS else OTHERS[kind]


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
def inside(target: Any, drafters: Mapping[str, Any], context: int, plan: Plan) -> AtContext:
    """What is inside the target and inside each drafter at one context. drafters: by kind."""
    random = torch.Generator().manual_seed(context)
    ids = _some_ids(target, context, random)
    drafts = torch.tensor(_some_ids(target, max(*plan.rows, *plan.levels, *OTHERS["hydra"]), random))
    room = max(plan.rows) + 64
    samples = _Samples(plan)
    clocks = [target, *drafters.values()]

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

    def of_drafter(into: dict[Any, list[float]] | None, kind: str, drafter: Any, features: torch.Tensor) -> None:
        for n in plan.observed:
            step()
            if kind == "lm":  # the accepted drafts are entries of its own, which it does not run again
                _drafted_chain(drafter, drafts[: n - 1])
            timed(into, (kind, "observe", n), partial(drafter.observe, drafts[:n].tolist(), features[:n]))
            drafter.rewind(n)
        rows = plan.rows_of(kind)
        for n in rows:
            step()
            drafter.observe(drafts[:1].tolist(), features[:1])
            drafter.rewind(1)
            if hasattr(drafter, "drafted"):
                of_whole_drafts(into, kind, drafter, n)
                continue
            timed(into if n == rows[-1] else None, (kind, "root"), partial(_chosen, drafter, drafter.root_logits))
            above, sees = torch.full((n,), -1), torch.zeros(n, 0, dtype=torch.bool)
            for number in range(1, n_levels(drafter) + 1):
                sees = torch.cat([sees, torch.eye(n, dtype=torch.bool)], dim=1)
                work = partial(_chosen, drafter, partial(drafter.expand, drafts[:n], above, sees))
                timed(into, (kind, "level", number, n), work)
                above = torch.arange(n) + (number - 1) * n

    def of_whole_drafts(into: dict[Any, list[float]] | None, kind: str, drafter: Any, n: int) -> None:
        """Where a draft is replayed as one graph, a level is what more of them add to it."""
        found: dict[Any, list[float]] = {}
        for depth in (1, 1 + DEEPER):
            timed(found, depth, partial(drafter.drafted, ("costs", n, depth), partial(draft_pool, top_k=n, depth=depth)))
        if into is not None:
            if n == plan.rows_of(kind)[-1]:  # one figure a round
                into.setdefault((kind, "root"), []).append(found[1][0])
            into.setdefault((kind, "level", 1, n), []).append(max(found[1 + DEEPER][0] - found[1][0], 0.0) / DEEPER)

    def of_kind(kind: str) -> OfDrafter:
        levels = range(1, n_levels(drafters[kind]) + 1)
        return OfDrafter(
            root=samples.figure((kind, "root")),
            levels=[{n: samples.figure((kind, "level", number, n)) for n in plan.rows_of(kind)} for number in levels],
            observe={n: samples.figure((kind, "observe", n)) for n in plan.observed},
            prefill=samples.figure((kind, "prefill")),
        )

    def prefill(into: dict[Any, list[float]] | None) -> torch.Tensor:
        features: torch.Tensor = timed(into, "prefill", lambda: target.prefill(ids, room))[0]
        return features

    halves = samples.n_half if plan.layers > plan.layers_measured else 0
    for i in range(plan.rounds + 1):  # the first one warms up
        into, into_half = (samples.whole, samples.half) if i else (None, None)
        if i <= PREFILLS:
            # those that observe other hidden states are given them first: a plain step after that gives none
            given = {kind: prefilled(target, d, ids, room)[0] for kind, d in drafters.items() if getattr(d, "aux_layers", ())}
            features = prefill(into)
            for kind, drafter in drafters.items():
                drafter.start(context + room, plan.frequent if kind == methods.EAGLE else None, ids[0])
                timed(into, (kind, "prefill"), partial(drafter.observe, [*ids[1:], ids[0]], given.get(kind, features)))
        of_target(into)
        for kind, drafter in drafters.items():
            of_drafter(into, kind, drafter, given.get(kind, features))
        with target.shallow(list(range(halves))) if halves else nullcontext():
            if halves:
                if i <= PREFILLS:
                    prefill(into_half)
                of_target(into_half)
    head = of_kind(methods.EAGLE) if methods.EAGLE in drafters else None
    return AtContext(
        tokens=context,
        plain=samples.figure("plain"),
        verify={n: samples.figure(("verify", n)) for n in plan.rows},
        root=head.root if head else None,
        level=head.levels[0] if head else None,
        observe=head.observe if head else None,
        prefill=samples.figure("prefill"),
        head_prefill=head.prefill if head else None,
        drafters={kind: of_kind(kind) for kind in drafters if kind != methods.EAGLE},
    )


def n_levels(drafter: Any) -> int:
    """Levels below the root that cost differently: as many as a drafter has heads behind the first; of others all cost alike."""
    return int(getattr(drafter, "n_heads", 2)) - 1


def _some_ids(target: Any, n: int, random: torch.Generator) -> list[int]:
    """Token ids, none of the first, which may be special."""
    ids: list[int] = torch.randint(min(100, target.vocab_size // 2), target.vocab_size, (n,), generator=random).tolist()
    return ids


def _chosen(drafter: Any, logits: Callable[[], torch.Tensor]) -> None:
    """Logits and, where that is the drafter's own work, their best children."""
    found = logits()
    if best := getattr(drafter, "best_children", None):
        best(found, CHILDREN)


def _drafted_chain(drafter: Any, tokens: torch.Tensor) -> None:
    for i in range(len(tokens)):
        drafter.expand(tokens[i : i + 1], torch.tensor([i - 1]), torch.ones(1, i + 1, dtype=torch.bool))


def outside(
    target: Any, drafter: Any, name: str, context: int, m: methods.Method, options: Mapping[str, Any], temperature: float = 0.0,
    rounds: int = 9,
) -> Outside:  # fmt: skip
    """What is outside both models, from whole decodes of random prompts by vanilla and by EAGLE-2 with trees of several sizes.

    m, options: EAGLE-2, and its own. rounds: with few of them the decodes are shorter, too. Without a draft head only vanilla
    decodes, and the rest is taken for 0.
    """
    random = torch.Generator().manual_seed(0)
    n = min(PROBE_TOKENS, 8 * rounds)
    prompts = [(_some_ids(target, context, random), SamplerParams(n, temperature=temperature, key=i)) for i in range(PROBED)]
    names = Names(f"the target {name}", f"the draft head of {name}")
    vanilla, trees = probed(target, drafter, names, m, options, prompts)
    of_work = fitted(trees) if drafter is not None else (0.0,) * 5
    return Outside(plain=1e3 * plain_outside(vanilla), **dict(zip(("step", "level", "row", "node", "token"),
                   (1e3 * s for s in of_work), strict=True)))  # fmt: skip
