"""Which dynamic trees should pay best: every tree's tau, replayed from drafted pools, over what its steps should cost.

1. Vanilla answers some held-out prompts at the temperature asked for.
2. At every position of those answers, and for every top_k, a pool is drafted to the greatest depth (`pools`).
3. What a step costs is measured at one context, the mean of those conversations (`costs`).
4. Trees are ranked by tokens per second: tau / (c_verify + c_draft + c_other). The first is the best of a thousand on few
   prompts, so what is predicted of it is on the high side. That is why the first few are raced on other prompts (`tune`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import methods
from harness.common.errors import say
from harness.costs.outside import Work
from harness.load.model import Loaded
from harness.replay.costs import Costs, measure_costs
from harness.replay.pools import TOTALS, answer_ranks, replayed_tau
from harness.replay.prompts import Answer

TOP_KS = (1, 2, 3, 4, 5, 6, 8, 10)
DEPTHS = tuple(range(1, 9))

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
    drafts: Mapping[int, Sequence[Ranks]], costs: Costs, depths: Sequence[int], totals: Sequence[int], stop_early: bool = False
) -> list[Choice]:  # fmt: skip
    """Every tree that the drafts and the costs cover, best first. drafts: the answers' ranks by top_k; stop_early: as in
    `dynamic_tree`."""
    found = []
    for top_k, answers in drafts.items():
        ranks, run = [r for r, _ in answers], np.concatenate([r for _, r in answers])
        for depth in depths:
            most = top_k + (depth - 1) * top_k * top_k
            for total in sorted({min(t, most) for t in totals}):
                tau = replayed_tau(ranks, depth, total)
                # of a total that was cut to the pool's size nothing is ever out of reach
                stops = stop_early and total in TOTALS
                levels = np.minimum(run[:, TOTALS.index(total)], depth) if stops else np.full(1, depth)
                drafting = float(np.mean([costs.draft[top_k, int(n)] for n in levels]))
                work = Work(1, float(levels.mean()), float(1 + (levels.mean() - 1) * top_k), total, tau)
                verify, draft, other = (s / costs.step for s in (costs.verify_s(total + 1), drafting, costs.outside_s(work)))
                found.append(Choice(top_k, depth, total, tau, verify, draft, other, stop_early))
    return sorted(found, key=lambda c: -c.speedup)


def ranked_trees(
    loaded: Loaded, m: methods.Method, options: Mapping[str, Any], *, temperature: float, answers: Sequence[Answer]
) -> tuple[list[Choice], Costs]:  # fmt: skip
    """(all trees, best first; the costs that they were judged by). options: the method's, at which the rest of it is kept.

    Where the method can stop early, every tree is there twice, without and with it.
    """
    context = int(np.mean([len(a.prompt.ids) + len(a.ids) / 2 for a in answers]))
    say(f"measuring what steps cost at a context of {context} tokens ...")
    costs = measure_costs(
        loaded, m, options, [a.prompt for a in answers], context=context, top_ks=TOP_KS, depths=DEPTHS, temperature=temperature
    )
    drafts: dict[int, list[Ranks]] = {}
    n = sum(len(a.ids) - 1 for a in answers)
    for top_k in TOP_KS:
        say(f"drafting at {n} positions with top_k {top_k} ...")
        drafts[top_k] = [answer_ranks(loaded, a, top_k, max(DEPTHS), options.get("frequent")) for a in answers]
    kinds = (False, True) if "stop_early" in options else (False,)
    found = [choice for stops in kinds for choice in choices(drafts, costs, DEPTHS, TOTALS, stops)]
    return sorted(found, key=lambda c: -c.speedup), costs
