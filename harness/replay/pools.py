"""`harness tune`: the options that pay best on this machine, found on held-out training prompts, never on a task's.

Of methods without a dynamic tree a handful of candidates is raced: all decode the same prompts, interleaved with vanilla. A
dynamic tree has hundreds of settings; they are replayed from one drafting:

1. Vanilla answers some held-out ShareGPT prompts at the temperature asked for.
2. At every position of those answers, and for every top_k, the drafter's whole pool is drafted to the greatest depth, as
   decoding would draft it there. `walk` accepts a draft exactly where it is the token vanilla draws, so a decode with any
   smaller depth or total is replayed from the ranks of the answer's own tokens in the pool: no forward is run for it.
3. What a step costs is measured at one context, the mean of those conversations': a target forward by rows, a draft by top_k
   and depth.
4. The best of all trees is the one with the most tokens per second: tau / (c_verify + c_draft). It is the best of hundreds on
   few prompts, so what is predicted of it is on the high side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harness.common.errors import UserError, say
from harness.load.model import Loaded
from harness.replay.costs import Costs, measure_costs
from harness.replay.prompts import Answer, vanilla_answers
from methods.engine.draft_head import EagleDrafter
from methods.engine.grow import draft_pool

TOP_KS = (1, 2, 3, 4, 5, 6, 8, 10)
DEPTHS = tuple(range(1, 9))
TOTALS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 59)

LONGEST = 1100  # tokens of a prompt: articles are among the tasks' prompts, so among these too
ABSENT = np.iinfo(np.int64).max  # the rank of a token that no tree holds


def path_ranks(
    tokens: np.ndarray, parents: np.ndarray, value: np.ndarray, levels: Sequence[int], answer: Sequence[int]
) -> np.ndarray:
    """[depth, depth]: entry (m, d - 1) is the rank of the answer's (m+1)-th token among the pool's nodes down to level d,
    or ABSENT where that token is not in it."""
    depth = len(levels)
    ranks = np.full((depth, depth), ABSENT, dtype=np.int64)
    node = -1
    for m in range(min(depth, len(answer))):
        found = np.flatnonzero((parents == node) & (tokens == answer[m]))
        if not len(found):
            break
        node = int(found[0])
        better = value > value[node]
        equal = value[:node] == value[node]
        for d in range(m + 1, depth + 1):
            ranks[m, d - 1] = int(better[: levels[d - 1]].sum()) + int(equal.sum())
    return ranks


@torch.inference_mode()
def answer_ranks(
    loaded: Loaded, answer: Answer, top_k: int, depth: int, frequent: int | None
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """At every position of an answer a step may start from: `path_ranks` [positions, depth, depth], and `levels_run`
    [positions, TOTALS]."""
    drafter, n_prompt = loaded.drafter, len(answer.prompt)
    assert drafter is not None
    text = [*answer.prompt, *answer.ids]
    features, _ = loaded.target.prefill(text[:-1], 1)
    drafter.start(len(text) + top_k * depth, frequent)
    seen, rows, run = 0, [], []
    for j in range(len(answer.ids) - 1):
        now = n_prompt + j
        drafter.observe(text[seen + 1 : now + 1], features[seen:now])
        seen = now
        pool = draft_pool(drafter, top_k, depth)
        columns = (pool.tokens.cpu().numpy(), pool.parents.cpu().numpy(), pool.value.cpu().numpy())
        rows.append(path_ranks(*columns, pool.levels, answer.ids[j + 1 :]))
        run.append([levels_run(columns[2], pool.levels, total, pool.value.device.type) for total in TOTALS])
    return np.array(rows), np.array(run)


def levels_run(value: np.ndarray, levels: Sequence[int], total: int, device: str = "cpu") -> int:
    """How many levels `draft_pool` drafts before nothing more can get among the `total` best; off the CPU it does not look."""
    if device != "cpu":
        return len(levels)
    for n, (first, end) in enumerate(zip([0, *levels], levels, strict=False), start=1):
        if end > total and value[first:end].max() < np.partition(value[:end], -total)[-total]:
            return n
    return len(levels)


def replayed_tau(ranks: Sequence[np.ndarray], depth: int, total: int) -> float:
    """tau of decoding the answers with a tree of this depth and total: tokens per forward, over all answers."""
    tokens = forwards = 0
    for answer in ranks:
        # a path's values never rise, so its ranks never fall: what is in the tree is a run from the root
        accepted = (answer[:, :depth, depth - 1] < total).cumprod(axis=1).sum(axis=1).tolist()
        at, n = 0, len(accepted)
        tokens += n
        while at < n:
            forwards += 1
            at += accepted[at] + 1
    return tokens / forwards


@dataclass(frozen=True, slots=True)
class Choice:
    """A tree with what is expected of it; costs in vanilla steps."""

    top_k: int
    depth: int
    total: int
    tau: float
    c_verify: float
    c_draft: float

    @property
    def speedup(self) -> float:
        return self.tau / (self.c_verify + self.c_draft)


def choices(
    drafts: dict[int, list[tuple[np.ndarray, np.ndarray]]], costs: Costs, depths: Sequence[int], totals: Sequence[int]
) -> list[Choice]:  # fmt: skip
    """Every tree that the drafts (by top_k: `answer_ranks` of all answers) and costs cover, best first."""
    found = []
    for top_k, answers in drafts.items():
        ranks, run = [r for r, _ in answers], np.concatenate([r for _, r in answers])
        for depth in depths:
            most = top_k + (depth - 1) * top_k * top_k
            for total in sorted({min(t, most) for t in totals}):
                tau = replayed_tau(ranks, depth, total)
                verify = costs.verify_s(total + 1) + (tau - 1) * costs.token
                # of a total that was cut to the pool's size nothing is ever out of reach
                levels = np.minimum(run[:, TOTALS.index(total)], depth) if total in TOTALS else np.full(1, depth)
                drafting = float(np.mean([costs.draft[top_k, int(n)] for n in levels]))
                found.append(Choice(top_k, depth, total, tau, verify / costs.step, drafting / costs.step))
    return sorted(found, key=lambda c: -c.speedup)


def tune(
    loaded: Loaded, *, temperature: float, frequent: int | None, prompts: Sequence[list[int]], max_new_tokens: int,
    top_ks: Sequence[int] = TOP_KS, depths: Sequence[int] = DEPTHS, rounds: int | None = None,
) -> tuple[list[Choice], Costs]:  # fmt: skip
    """All trees, best first, and the costs they were judged by."""
    assert isinstance(loaded.drafter, EagleDrafter)
    say(f"answering {len(prompts)} held-out training prompts at T = {temperature:g} ...")
    answers = vanilla_answers(loaded, prompts, temperature, max_new_tokens)
    if not answers:
        raise UserError("none of the held-out prompts has an answer of more than one token: there is nothing to tune on")
    context = int(np.mean([len(a.prompt) + len(a.ids) / 2 for a in answers]))
    say(f"measuring what steps cost at a context of {context} tokens ...")
    costs = measure_costs(loaded, context, top_ks, depths, temperature, frequent, rounds)
    drafts: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    n = sum(len(a.ids) - 1 for a in answers)
    for top_k in top_ks:
        say(f"drafting at {n} positions with top_k {top_k} ...")
        drafts[top_k] = [answer_ranks(loaded, a, top_k, max(depths), frequent) for a in answers]
    return choices(drafts, costs, depths, TOTALS), costs
