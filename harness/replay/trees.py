"""Which dynamic trees should pay best: every tree's tau, replayed from drafted pools, over what its steps should cost.

1. Vanilla answers some held-out prompts at the temperature asked for.
2. At every position of those answers, and for every top_k, a pool is drafted to the greatest depth (`pools`).
3. What a step costs at one context, the mean of those conversations, is read off a table of costs (`harness.costs`).
4. Trees are ranked by tokens per second: tau / (c_verify + c_draft + c_other). The first is the best of a thousand on few
   prompts, so what is predicted of it is on the high side. That is why the first few are raced on other prompts (`tune`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import methods
from harness.common.errors import UserError, say
from harness.costs.price import Prices
from harness.costs.session import ROOM, Wanted, given_table, machine_of, measured_of
from harness.costs.step import StepWork
from harness.costs.table import CostTable
from harness.load.model import Loaded
from harness.replay.pools import TOTALS, answer_ranks, drafter_over, replayed_tau
from harness.replay.prompts import Answer

TOP_KS = (1, 2, 3, 4, 5, 6, 8, 10)
DEPTHS = tuple(range(1, 9))
ROUNDS = 9  # of measuring costs

Ranks = tuple[np.ndarray, np.ndarray]
"""What `answer_ranks` gives of one answer."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A tree, and what is expected of it. Costs are in vanilla steps, as a ledger's tables have them: inside the target, inside
    the drafter, and outside both. stop_early: drafted with that option."""

    top_k: int
    depth: int
    total: int
    tau: float
    c_verify: float
    c_draft: float
    c_other: float
    stop_early: bool = False

    @property
    def cost(self) -> float:
        """Vanilla steps a step."""
        return self.c_verify + self.c_draft + self.c_other

    @property
    def speedup(self) -> float:
        """Tokens per second of decoding, over vanilla's."""
        return self.tau / self.cost


def choices(
    drafts: Mapping[int, Sequence[Ranks]], table: CostTable, context: int, depths: Sequence[int], totals: Sequence[int],
    stop_early: bool = False, kind: str = methods.EAGLE,
) -> list[Choice]:  # fmt: skip
    """Every tree that the drafts cover, best first, at the costs of a context. drafts: the answers' ranks by top_k; stop_early:
    as in `dynamic_tree`; kind: of the EAGLE head."""
    found, prices = [], Prices(table)
    plain = prices.plain(context)
    for top_k, answers in drafts.items():
        ranks, run = [r for r, _ in answers], np.concatenate([r for _, r in answers])
        for depth in depths:
            most = top_k + (depth - 1) * top_k * top_k
            for total in sorted({min(t, most) for t in totals}):
                tau = replayed_tau(ranks, depth, total)
                # of a total that was cut to the pool's size nothing is ever out of reach
                stops = stop_early and total in TOTALS
                levels = np.minimum(run[:, TOTALS.index(total)], depth) if stops else np.full(1, depth)
                ran, times = np.unique(levels, return_counts=True)
                works = [StepWork(total + 1, (top_k,) * (int(n) - 1), 1, drafter=kind) for n in ran]
                steps = [prices.step(work, total, tau, context) for work in works]
                verify, draft, other = np.average(steps, axis=0, weights=times) / plain
                found.append(Choice(top_k, depth, total, tau, float(verify), float(draft), float(other), stop_early))
    return sorted(found, key=lambda c: -c.speedup)


def ranked_trees(
    loaded: Loaded, options: Mapping[str, Any], *, temperature: float, answers: Sequence[Answer], threads: int,
    costs: Path | None = None, kind: str = methods.EAGLE,
) -> tuple[list[Choice], CostTable, int]:  # fmt: skip
    """(all trees, best first; the costs that they were judged by; at which context). options: the method's, at which the rest of
    it is kept. costs: where tables of costs are; None: they are measured here. kind: of the EAGLE head.

    Where the method can stop early, every tree is there twice, without and with it.

    Raises:
        UserError: no table there is of this model, machine, temperature and frequent tokens.
    """
    mean = int(np.mean([len(a.prompt.ids) + len(a.ids) / 2 for a in answers]))
    context, frequent = max(min(mean, loaded.config.context_length - ROOM), 1), options.get("frequent")
    if costs is not None:
        machine = machine_of(loaded.target, loaded.dtype, threads)
        table = given_table(costs, loaded.config.name, machine, frequent, temperature)
        if not table.has(kind):
            raise UserError(f"--costs {costs}: the costs of {table.title} were measured without a {methods.DRAFTERS[kind]}")
    else:
        wanted = Wanted(contexts=(context,), frequent=frequent, rounds=ROUNDS, command="harness tune", temperature=temperature)
        table = measured_of(loaded, threads, wanted, {kind})
    drafts: dict[int, list[Ranks]] = {}
    n = sum(len(a.ids) - 1 for a in answers)
    say(f"drafting at {n} positions ...")
    for answer in answers:
        drafter = drafter_over(loaded, answer, max(TOP_KS), max(DEPTHS), frequent, kind)
        with loaded.target.decoding():
            for top_k in TOP_KS:
                drafts.setdefault(top_k, []).append(answer_ranks(drafter, answer, top_k, max(DEPTHS)))
    kinds = (False, True) if "stop_early" in options else (False,)
    found = [choice for stops in kinds for choice in choices(drafts, table, context, DEPTHS, TOTALS, stops, kind)]
    return sorted(found, key=lambda c: -c.speedup), table, context
