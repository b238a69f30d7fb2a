"""Drafted pools over known text: from one drafting pass, the tau of decoding with any dynamic tree.

At every position of an answer the drafter's whole pool is drafted, as decoding would draft it there. `walk` accepts a draft
exactly where it is the token that vanilla draws. So a decode with any smaller depth or total is replayed from the ranks of the
answer's own tokens in the pool: no target forward is run for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

import methods
from harness.load.model import Loaded
from harness.replay.prompts import Answer
from harness.replay.rows import Rows, RowsDrafter
from methods.engine.grow import draft_pool
from methods.engine.loop import prefilled

TOTALS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 59)  # nodes kept, of the trees that are replayed
ABSENT = np.iinfo(np.int64).max  # the rank of a token that no tree holds


def path_ranks(
    tokens: np.ndarray, parents: np.ndarray, value: np.ndarray, levels: Sequence[int], answer: Sequence[int]
) -> np.ndarray:
    """[depth, depth]: entry (m, d - 1) is the rank of the answer's (m+1)-th token among the pool's nodes down to level d, or
    ABSENT where that token is not in it.

    tokens, parents, value: [nodes], the pool, level by level; levels: how many nodes there are down to each level.
    """
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
def drafter_over(
    loaded: Loaded, answer: Answer, top_k: int, depth: int, frequent: int | None, kind: str = methods.EAGLE
) -> RowsDrafter:
    """A drafter that answers from one drafting pass over an answer; what a narrower tree asks for besides is drafted then.
    kind: of the EAGLE head."""
    real = loaded.drafter_of(kind)
    text = [*answer.prompt.ids, *answer.ids]
    with loaded.target.decoding():
        features, _ = prefilled(loaded.target, real, text[:-1], 1)
        drafter = RowsDrafter(real, Rows(), text, len(answer.prompt.ids), lambda: features, frequent)
        drafter.draft(range(1, len(answer.ids)), top_k, depth)
    return drafter


@torch.inference_mode()
def answer_ranks(
    drafter: RowsDrafter, answer: Answer, top_k: int, depth: int
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """At every position of an answer that a step may start from: (`path_ranks` [positions, depth, depth], `levels_run`
    [positions, TOTALS], what is drafted where drafting stops early)."""
    n_prompt, nothing = len(answer.prompt.ids), torch.empty(0, 0)
    text = [*answer.prompt.ids, *answer.ids]
    drafter.start(top_k * depth, drafter.frequent)
    seen, rows, run = 0, [], []
    for j in range(len(answer.ids) - 1):
        now = n_prompt + j
        drafter.observe(text[seen + 1 : now + 1], nothing)
        seen = now
        pool = draft_pool(drafter, top_k, depth)
        columns = (pool.tokens.cpu().numpy(), pool.parents.cpu().numpy(), pool.value.cpu().numpy())
        rows.append(path_ranks(*columns, pool.levels, answer.ids[j + 1 :]))
        run.append([levels_run(columns[2], pool.levels, total) for total in TOTALS])
    return np.array(rows), np.array(run)


def levels_run(value: np.ndarray, levels: Sequence[int], total: int) -> int:
    """How many levels `draft_pool` drafts where it stops early: until nothing more can get among the `total` best. value, levels:
    as in `path_ranks`."""
    for n, (first, end) in enumerate(zip([0, *levels], levels, strict=False), start=1):
        if end > total and value[first:end].max() < np.partition(value[:end], -total)[-total]:
            return n
    return len(levels)


def replayed_tau(ranks: Sequence[np.ndarray], depth: int, total: int) -> float:
    """tau of decoding the answers with a tree of this depth and total: tokens per forward, over all answers.

    ranks: an answer's `path_ranks` each.
    """
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
