"""Which dynamic tree pays best: every tree's tau, replayed from drafted pools, over what its steps cost.

1. Vanilla answers some held-out prompts at the temperature asked for.
2. At every position of those answers, and for every top_k, a pool is drafted to the greatest depth (`pools`).
3. What a step costs is measured at one context, the mean of those conversations (`costs`): a target forward by rows, a draft by
   top_k and depth.
4. The best tree is the one with the most tokens per second: tau / (c_verify + c_draft). It is the best of hundreds on few
   prompts, so what is predicted of it is on the high side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.common.errors import UserError, say
from harness.load.model import Loaded
from harness.replay.costs import Costs, measure_costs
from harness.replay.pools import TOTALS, answer_ranks, replayed_tau
from harness.replay.prompts import vanilla_answers

TOP_KS = (1, 2, 3, 4, 5, 6, 8, 10)
DEPTHS = tuple(range(1, 9))

Ranks = tuple[np.ndarray, np.ndarray]
"""What `answer_ranks` gives of one answer."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A tree, and what is expected of it. Costs are in vanilla steps. stop_early: drafted with that option."""

    top_k: int
    depth: int
    total: int
    tau: float
    c_verify: float
    c_draft: float
    stop_early: bool = False

    @property
    def speedup(self) -> float:
        """Tokens per second of decoding, over vanilla's."""
        return self.tau / (self.c_verify + self.c_draft)


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
                verify = costs.verify_s(total + 1) + (tau - 1) * costs.token
                # of a total that was cut to the pool's size nothing is ever out of reach
                stops = stop_early and total in TOTALS
                levels = np.minimum(run[:, TOTALS.index(total)], depth) if stops else np.full(1, depth)
                drafting = float(np.mean([costs.draft[top_k, int(n)] for n in levels]))
                found.append(Choice(top_k, depth, total, tau, verify / costs.step, drafting / costs.step, stop_early))
    return sorted(found, key=lambda c: -c.speedup)


def ranked_trees(
    loaded: Loaded, *, temperature: float, frequent: int | None, prompts: Sequence[list[int]], max_new_tokens: int,
    top_ks: Sequence[int] = TOP_KS, depths: Sequence[int] = DEPTHS, rounds: int | None = None, can_stop: bool = False,
) -> tuple[list[Choice], Costs]:  # fmt: skip
    """(all trees, best first; the costs that they were judged by). prompts: token ids; frequent: as `Drafter.start` has it.

    can_stop: the method can stop early. Every tree is then there twice, without and with it.

    Raises:
        UserError: no prompt has an answer of more than one token.
    """
    say(f"answering {len(prompts)} held-out training prompts at T = {temperature:g} ...")
    answers = vanilla_answers(loaded, prompts, temperature, max_new_tokens)
    if not answers:
        raise UserError("none of the held-out prompts has an answer of more than one token: there is nothing to tune on")
    context = int(np.mean([len(a.prompt) + len(a.ids) / 2 for a in answers]))
    say(f"measuring what steps cost at a context of {context} tokens ...")
    costs = measure_costs(loaded, context, top_ks, depths, temperature, frequent, rounds)
    drafts: dict[int, list[Ranks]] = {}
    n = sum(len(a.ids) - 1 for a in answers)
    for top_k in top_ks:
        say(f"drafting at {n} positions with top_k {top_k} ...")
        drafts[top_k] = [answer_ranks(loaded, a, top_k, max(depths), frequent) for a in answers]
    found = [choice for stops in (False, True)[: 1 + can_stop] for choice in choices(drafts, costs, depths, TOTALS, stops)]
    return sorted(found, key=lambda c: -c.speedup), costs
