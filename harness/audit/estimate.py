"""How long an audit takes: what is missing, at rates measured here. Hours are said before they are spent."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import methods
from harness.audit.probe.replay import head_law, replayed, score_sums
from harness.audit.probe.subject import Subject
from harness.common.names import VANILLA
from harness.load.model import Loaded
from methods.base import SamplerParams

# What a forward costs in each dtype, in those of bfloat16: for dtypes not measured yet.
SLOWER = {"bfloat16": 1.0, "float16": 1.0, "float32": 2.0, "float64": 6.0}
WARM_UP_TOKENS = 8
# shares of a token's time, as found on two cores of an AMD EPYC
PACE_SMALLER = 0.45  # on trees smaller than the measured ones
PACE_ABREAST = 0.35  # of several generations that share forwards


@dataclass(frozen=True, slots=True)
class Work:
    """One finding to be made: `n_tokens` are emitted after a prompt of `n_prompt`; `rows` pass through forwards besides,
    many at a time; `scored`: the score functions are computed at every token. `pace`: what share of the method's usual time a
    token takes. `seconds`: of what runs no model."""

    kind: str
    method: str
    dtype: str = ""
    n_tokens: int = 0
    n_prompt: int = 0
    rows: int = 0
    scored: bool = False
    pace: float = 1.0
    seconds: float = 0.0


@dataclass
class Rates:
    """Seconds, in `dtype`: a token of each method, a row of a wide forward, a token's score functions. `known`: seconds a
    token of findings made before, by (kind, method, dtype); they go before all else."""

    dtype: str = "float32"
    token: Mapping[str, float] = field(default_factory=dict)
    row: float = 0.0
    score: float = 0.0
    known: Mapping[tuple[str, str, str], float] = field(default_factory=dict)

    def seconds(self, work: Work) -> float:
        if not work.dtype:
            return work.seconds
        known = self.known.get((work.kind, work.method, work.dtype))
        if known is not None and work.n_tokens:
            return known * work.n_tokens
        token = self.token.get(work.method, max(self.token.values(), default=0.0))
        forwards = token * work.pace * work.n_tokens + self.row * (work.n_prompt + work.rows)
        return forwards * SLOWER[work.dtype] / SLOWER[self.dtype] + self.score * work.n_tokens * work.scored


def known_rates(findings: Iterable[Mapping[str, Any]], where: Mapping[str, Any]) -> dict[tuple[str, str, str], float]:
    """Seconds a token of the findings made under the same circumstances."""
    sums: dict[tuple[str, str, str], list[float]] = {}
    for f in findings:
        n = f.get("n") or len(f.get("ids", ()))
        if n and "seconds" in f and where.items() <= f.items() and f["kind"] != "ledger":
            entry = sums.setdefault((f["kind"], f["method"], f["dtype"]), [0.0, 0.0])
            entry[0], entry[1] = entry[0] + f["seconds"], entry[1] + n
    return {key: seconds / n for key, (seconds, n) in sums.items()}


def measured(
    loaded: Loaded, subjects: Sequence[Subject], prompt: list[int], known: Mapping[tuple[str, str, str], float]
) -> Rates:  # fmt: skip
    """A few sampled tokens of each method, and vanilla's replay and scores: rates in the dtype at hand.

    A method that raises has no rate here: its error is told when it is audited.
    """
    params = SamplerParams(WARM_UP_TOKENS, temperature=1.0)
    token: dict[str, float] = {}
    row = 0.0
    for s in subjects:
        if s.lacks(loaded) is None:
            decode, drafter = s.full(), s.drafter(loaded)
            try:
                decode(prompt, loaded.target, drafter, replace(params, max_new_tokens=2))  # the first forwards allocate, compile
                started = time.perf_counter()
                made = decode(prompt, loaded.target, drafter, params)
                spent = time.perf_counter() - started
            except Exception:
                continue
            # another's loop does not tell its prefill apart
            token[s.name] = (spent - (made.prefill_s if made.trace else row * len(prompt))) / max(len(made.token_ids) - 1, 1)
            if s.name == VANILLA:
                row = made.prefill_s / len(prompt)
    run = replayed(loaded, methods.get(VANILLA).build(), prompt, params, None)
    started = time.perf_counter()
    score_sums(run, head_law(loaded, run, params), params)
    score = max(time.perf_counter() - started - row * len(prompt), 0.0) / len(run.ids)
    return Rates(loaded.dtype, {name: max(s, 0.0) for name, s in token.items()}, row, score, known)


class Progress:
    """What is planned, what is done, and how long the rest takes at the pace so far."""

    def __init__(self, planned: Sequence[Work], rates: Rates):
        self.rates, self.n, self.done = rates, len(planned), 0
        self.to_go = self.total = sum(map(rates.seconds, planned))
        self.by_layer: dict[str, float] = {}
        for work in planned:
            part = work.dtype or "the exact law"
            self.by_layer[part] = self.by_layer.get(part, 0.0) + rates.seconds(work)
        self.started = time.monotonic()

    def made(self, work: Work) -> None:
        self.done, self.to_go = self.done + 1, max(self.to_go - self.rates.seconds(work), 0.0)

    @property
    def spent(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """At the pace of what is done; by the estimate alone while that is little."""
        so_far = self.total - self.to_go
        return self.to_go * (self.spent / so_far if so_far > 0.02 * self.total else 1.0)
