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

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

import methods
from harness.errors import UserError, say
from harness.loading import Loaded
from harness.train import sharegpt
from methods.base import SamplerParams
from methods.engine.draft_head import EagleDrafter
from methods.engine.grow import by_score, draft_pool, kept_tree
from methods.engine.sampling import Chooser, stream_key
from methods.engine.tree import chain
from methods.engine.verify import walk

TOP_KS = (1, 2, 3, 4, 5, 6, 8, 10)
DEPTHS = tuple(range(1, 9))
TOTALS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 59)
ROWS = (1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 16, 17, 21, 25, 29, 32, 33, 41, 49, 60)  # a matmul's cost steps at tiles of 16
LONGEST = 1100  # tokens of a prompt: articles are among the tasks' prompts, so among these too
ABSENT = np.iinfo(np.int64).max  # the rank of a token that no tree holds
ROUNDS = 9  # repeats of every timing; medians are used


# ---- prompts ----


def held_out_prompts(loaded: Loaded, n: int, longest: int, evaluation: Iterable[str], seed: int = 0) -> list[list[int]]:
    """`n` prompts (token ids) that no training has seen: of held dialogues (`sharegpt.split`), reserved by their words
    (`sharegpt.is_reserved`: the rule of heads trained before dialogues were split); none is a task's."""
    held = sharegpt.split(sharegpt.conversations()).held
    reserved = [text for text in sharegpt.prompts(held, seed) if sharegpt.is_reserved(text)]
    texts, _ = sharegpt.without_overlap(reserved[: 6 * n], evaluation)
    encoded = (loaded.encode(loaded.render([("user", text)])) for text in texts)
    return list(itertools.islice((ids for ids in encoded if len(ids) <= longest), n))


# ---- 1, 2: answers and pools ----


@dataclass(frozen=True, slots=True)
class Answer:
    prompt: list[int]
    ids: list[int]  # what vanilla answered


def _params(loaded: Loaded, i: int, temperature: float, max_new_tokens: int) -> SamplerParams:
    stop = frozenset(loaded.config.stop_ids)
    return SamplerParams(max_new_tokens, stop, temperature=temperature, key=stream_key(0, f"tune/{i}", 1, 0))


def vanilla_answers(loaded: Loaded, prompts: Sequence[list[int]], temperature: float, max_new_tokens: int) -> list[Answer]:
    decode = methods.get("vanilla").build()
    found = []
    for i, prompt in enumerate(prompts):
        ids = decode(prompt, loaded.target, None, _params(loaded, i, temperature, max_new_tokens)).token_ids
        if len(ids) > 1:
            found.append(Answer(prompt, ids))
    return found


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


# ---- 3: costs ----


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds on this machine. `verify[rows]`: target forward, acceptance and commit; `draft[top_k, depth]`: growing a tree
    and running the head over the tokens accepted; `step`: plain decoding of one token; at a context of `context` tokens."""

    context: int
    step: float
    token: float  # drawing one token from its logits: a step of tau tokens does it tau times, `verify` has the first
    verify: dict[int, float]
    draft: dict[tuple[int, int], float]

    def verify_s(self, rows: int) -> float:
        return float(np.interp(rows, sorted(self.verify), [self.verify[r] for r in sorted(self.verify)]))


@torch.inference_mode()
def measure_costs(
    loaded: Loaded, context: int, top_ks: Sequence[int], depths: Sequence[int], temperature: float, frequent: int | None,
    rounds: int | None = None, rows: Sequence[int] = ROWS,
) -> Costs:  # fmt: skip
    """Medians over `rounds` passes, everything interleaved, so that a drift of the machine hits all alike."""
    target, drafter = loaded.target, loaded.drafter
    assert drafter is not None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, len(target.embedding), (context,), generator=generator).tolist()
    chooser = Chooser(SamplerParams(1, temperature=temperature, key=1))
    features, _ = target.prefill(ids, max(rows) + 64)
    drafter.start(context + max(top_ks) * max(depths) + 8, frequent)
    drafter.observe([*ids[1:], ids[0]], features)
    draw = ids[:2]
    drafts = torch.randint(100, len(target.embedding), (max(rows),), generator=generator).tolist()
    samples: dict[Any, list[float]] = {}

    def timed(name: Any, work: Callable[[], object]) -> None:
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


# ---- 4: the best ----


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


# ---- methods without a dynamic tree ----


# after so many prompts options leave the race that are this far behind the best
FAIR_TRIAL = 2
HOPELESS = 0.8


@dataclass(frozen=True, slots=True)
class Raced:
    """Options, and what decoding with them gave: tau and decode speedup over vanilla, pooled over the prompts they decoded."""

    options: Mapping[str, Any]
    tau: float
    speedup: float


def race(
    loaded: Loaded, m: methods.Method, tried: Sequence[Mapping[str, Any]], *, temperature: float, prompts: Sequence[list[int]],
    max_new_tokens: int,
) -> list[Raced]:  # fmt: skip
    """Sets of options decode prompt after prompt, as does vanilla, in an order that rotates; the hopeless ones leave.

    Best first; those that left come last.

    Raises:
        UserError: no prompt has an answer of more than one token.
    """
    drafter = loaded.drafter_of(m.drafter)
    decodes = [methods.get("vanilla").build(), *(m.build(**options) for options in tried)]
    n = len(decodes)
    running = np.ones(n, bool)
    seconds, tokens, forwards, speedups = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    for i, prompt in enumerate([prompts[0], *prompts]):  # the first one warms up
        say(f"decoding prompt {max(i, 1)} of {len(prompts)} with {running.sum() - 1} sets of options and without drafts ...")
        for j in np.roll(np.flatnonzero(running), i):
            started = time.perf_counter()
            made = decodes[j](prompt, loaded.target, drafter if j else None, _params(loaded, i, temperature, max_new_tokens))
            loaded.target.synchronise()
            spent = time.perf_counter() - started - made.prefill_s
            if i and made.trace is not None:
                seconds[j], tokens[j] = seconds[j] + spent, tokens[j] + len(made.token_ids) - 1
                forwards[j] += len(made.trace.accepted)
        if forwards.all():
            rates = tokens / seconds
            speedups[running] = rates[running] / rates[0]  # of those out of the race as they stood when they left it
            if i >= FAIR_TRIAL:
                running[1:] &= speedups[1:] >= HOPELESS * speedups[1:][running[1:]].max()
    if not forwards.all():
        raise UserError("none of the held-out prompts has an answer of more than one token: there is nothing to tune on")
    # what left has decoded fewer prompts, at which its speed is no rival to that of the others
    ranked = sorted(range(1, n), key=lambda j: (not running[j], -speedups[j]))
    return [Raced(tried[j - 1], tokens[j] / forwards[j], speedups[j]) for j in ranked]
