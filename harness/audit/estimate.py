"""How long an audit takes: what is missing, at rates measured here. So hours are announced before they are spent."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import methods
from harness.audit.probe.replay import head_law, replayed, score_sums
from harness.audit.probe.subject import Subject
from harness.common.errors import duration
from harness.common.names import VANILLA
from harness.load.model import Loaded
from methods.base import SamplerParams

# What a forward costs in each dtype, as a multiple of bfloat16's. For dtypes that were not measured yet.
SLOWER = {"bfloat16": 1.0, "float16": 1.0, "float32": 2.0, "float64": 6.0}
WARM_UP_TOKENS = 8
USUAL_PACE = 1.6  # a method's seconds a token over vanilla's, in the middle of what a CPU showed
TIMED_OVER = 900.0  # seconds of work for which every method is timed
# Shares of a token's usual time, as found on two cores of an AMD EPYC.
PACE_SMALLER = 0.45  # on smaller trees than tables measure
PACE_IN_LANES = 0.35  # if several generations share forwards


@dataclass(frozen=True, slots=True)
class Work:
    """What one finding costs: `n_tokens` emitted after a prompt of `n_prompt`, and `rows` more that pass through wide forwards.

    `scored`: the score functions are computed at every token. `pace`: a token's share of the method's usual time. `dtype`: empty
    where no model is run; then `seconds` is the whole cost.
    """

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
    """Seconds in `dtype`: of a token of each method, of a row of a wide forward, of a token's score functions.

    `known`: seconds a token in findings made before, by (kind, method, dtype). They go before all else. `shares`: dtype -> what
    share of the target's layers is run in it, where not all are.
    """

    dtype: str = "float32"
    token: Mapping[str, float] = field(default_factory=dict)
    row: float = 0.0
    score: float = 0.0
    known: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, work: Work) -> float:
        if not work.dtype:
            return work.seconds
        known = self.known.get((work.kind, work.method, work.dtype))
        if known is not None and work.n_tokens:
            return known * work.n_tokens
        token = self.token.get(work.method, max(self.token.values(), default=0.0))
        forwards = token * work.pace * work.n_tokens + self.row * (work.n_prompt + work.rows)
        slower = SLOWER[work.dtype] / SLOWER[self.dtype] * self.shares.get(work.dtype, 1.0) / self.shares.get(self.dtype, 1.0)
        return forwards * slower + self.score * work.n_tokens * work.scored


def known_rates(
    findings: Iterable[Mapping[str, Any]], where: Mapping[str, Any], layers: Mapping[str, int] = MappingProxyType({})
) -> dict[tuple[str, str, str], float]:  # fmt: skip
    """Seconds a token, by (kind, method, dtype), in the findings that were made on the same machine, with as many of the target's
    layers. layers: by dtype, where not all are run."""
    sums: dict[tuple[str, str, str], list[float]] = {}
    for f in findings:
        n = f.get("n") or len(f.get("ids", ()))
        is_here = where.items() <= f.items() and f["kind"] != "ledger"
        if n and "seconds" in f and is_here and f.get("layers") == layers.get(f["dtype"]):
            entry = sums.setdefault((f["kind"], f["method"], f["dtype"]), [0.0, 0.0])
            entry[0], entry[1] = entry[0] + f["seconds"], entry[1] + n
    return {key: seconds / n for key, (seconds, n) in sums.items()}


def measured(
    loaded: Loaded, subjects: Sequence[Subject], prompt: list[int], known: Mapping[tuple[str, str, str], float],
    missing: Sequence[Work], shares: Mapping[str, float] = MappingProxyType({}),
) -> Rates:  # fmt: skip
    """Rates in the dtype at hand, from a few sampled tokens, and from vanilla's replay and scores.

    If what is missing takes minutes, only vanilla is timed: timing every method took a tenth of a quick audit. Other methods
    then have its rate times `USUAL_PACE`. A method that raises an error has no rate; its error is told when it is audited.
    """
    vanilla = next(s for s in subjects if s.name == VANILLA)
    own, row = _seconds_a_token(loaded, vanilla, prompt)
    params = SamplerParams(WARM_UP_TOKENS, temperature=1.0)
    run = replayed(loaded, methods.get(VANILLA).build(), prompt, params, None)
    started = time.perf_counter()
    score_sums(run, head_law(loaded, run, params), params)
    score = max(time.perf_counter() - started - row * len(prompt), 0.0) / len(run.ids)
    token = {s.name: own * (1.0 if s is vanilla else USUAL_PACE) for s in subjects}
    rates = Rates(loaded.dtype, token, row, score, known, shares)
    if sum(map(rates.seconds, missing)) < TIMED_OVER:
        return rates
    for s in subjects:
        if s is not vanilla and s.lacks(loaded) is None:
            try:
                token[s.name], _ = _seconds_a_token(loaded, s, prompt, row)
            except Exception:
                del token[s.name]
    return rates


def _seconds_a_token(loaded: Loaded, s: Subject, prompt: list[int], row: float = 0.0) -> tuple[float, float]:
    """(seconds of a token, of a row of the prefill). `row`: known seconds of a row, for a loop that tells no prefill apart."""
    params = SamplerParams(WARM_UP_TOKENS, temperature=1.0)
    decode, drafter = s.full(), s.drafter(loaded)
    with loaded.target.decoding():
        decode(prompt, loaded.target, drafter, replace(params, max_new_tokens=2))  # the first forwards allocate, compile
        started = time.perf_counter()
        made = decode(prompt, loaded.target, drafter, params)
        spent = time.perf_counter() - started
    prefill_s = made.prefill_s if made.trace else row * len(prompt)
    return max((spent - prefill_s) / max(len(made.token_ids) - 1, 1), 0.0), prefill_s / len(prompt)


class Progress:
    """What is planned, what is done, and how long the rest takes at the pace so far.

    The plan may grow (`more`) and shrink (`dropped`) on the way, so that `done` never exceeds `n`.
    """

    def __init__(self, planned: Sequence[Work], rates: Rates):
        self.rates, self.n, self.done = rates, len(planned), 0
        self.to_go = self.total = sum(map(rates.seconds, planned))
        self.by_layer: dict[str, float] = {}
        for work in planned:
            part = work.dtype or "the exact law"
            self.by_layer[part] = self.by_layer.get(part, 0.0) + rates.seconds(work)
        self.started = self._told = time.monotonic()

    def made(self, work: Work) -> None:
        self.done += 1
        self.to_go = max(self.to_go - self.rates.seconds(work), 0.0)

    def more(self, work: Work) -> None:
        """Another finding is needed."""
        self._change(work, 1)

    def dropped(self, work: Work) -> None:
        """A planned finding is not made after all."""
        self._change(work, -1)

    def _change(self, work: Work, sign: int) -> None:
        seconds = sign * self.rates.seconds(work)
        self.n += sign
        self.total, self.to_go = max(self.total + seconds, 0.0), max(self.to_go + seconds, 0.0)

    def line(self, last: str) -> str | None:
        """How far it is, if that was not told in the last half minute; the first line comes after 5 seconds."""
        now = time.monotonic()
        if now - self._told < (30.0 if self._told > self.started else 5.0):
            return None
        self._told = now
        return f"{self.done}/{self.n} findings, {duration(self.spent)} spent, about {duration(self.left)} left; the last: {last}"

    @property
    def spent(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """At the pace of what is done; by the estimate alone while that is little."""
        so_far = self.total - self.to_go
        return self.to_go * (self.spent / so_far if so_far > 0.02 * self.total else 1.0)
