"""Replays beside the runs they replay: the same steps, turn by turn, or an error of the harness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

import methods
from harness.common.names import VANILLA
from harness.ledger.record import Record, canonical_hash
from harness.metrics.definitions import Estimate, estimated
from harness.metrics.intervals import Array, holm
from harness.replay.record import Replay

LEVEL = 0.05  # Holm's over all methods and temperatures


@dataclass(frozen=True, slots=True)
class Beside:
    """One method's replays and its runs of the same turns.

    `alike`: turns whose run has the very accept lengths and tree sizes of its replay. `live`, `replayed`: tau, the mean over
    tasks; `difference`: live less replayed, paired by conversation. `is_fault`: steps differ though they cannot, or tau does by
    more than chance.
    """

    method: str
    turns: int
    alike: int
    live: Estimate
    replayed: Estimate
    difference: Estimate
    is_fault: bool

    @property
    def shown(self) -> str:
        if self.alike == self.turns:
            return f"the same in all {self.turns}"
        live, replayed = (f"{e.value:.2f}" for e in (self.live, self.replayed))
        return f"{'!! ' if self.is_fault else ''}the same in {self.alike} of {self.turns}: tau {live}, replayed {replayed}"


def beside(replays: Iterable[Replay], records: Iterable[Record]) -> dict[tuple[float, str, str], Beside]:
    """What runs there are of what was replayed, by (temperature, method, hash of the options). records: of the same ledger."""
    records = list(records)
    answers = {r["key"]: r for r in records if r["method"] == VANILLA}
    runs = {_turn(r, r["method"], canonical_hash(r["options"])): r for r in records
            if r["status"] == "ok" and not r["is_warmup"] and r["trace"] and "foreign" not in r}  # fmt: skip
    pairs: dict[tuple[float, str, str], list[tuple[Replay, Record, Record]]] = {}
    for replay in replays:
        sha = canonical_hash(replay.options)
        answer = answers.get(replay.answer)
        run = runs.get(_turn(answer, replay.method, sha)) if answer and replay.method != VANILLA else None
        if answer and run and run["head_id"] == replay.head_id:
            pairs.setdefault((replay.temperature, replay.method, sha), []).append((replay, run, answer))
    found = {key: _of(key[1], own) for key, own in pairs.items()}
    judged = {key: b.difference.spread for key, b in found.items() if b.difference.spread}
    differs = holm([min(2 * min(s.p_above(0.0), s.p_below(0.0)), 1.0) for s in judged.values()])
    beyond = {key for key, p in zip(judged, differs, strict=True) if p < LEVEL}
    return {key: replace(b, is_fault=b.is_fault or key in beyond) for key, b in found.items()}


def _turn(r: Record, method: str, sha: str) -> tuple[object, ...]:
    """One turn as one method decodes it; what a run of another target or another draw would differ in is part of it."""
    return (method, sha, r["target_id"], r["dtype"], r["task"], r["source"], r["sample_id"], r["turn"], r["repeat"], r["seed"],
            r["prompt_sha"], r["temperature"], r["top_p"], r["max_new_tokens"])  # fmt: skip


def _of(method: str, pairs: Sequence[tuple[Replay, Record, Record]]) -> Beside:
    alike, fault, code = 0, False, methods.code_sha(method)
    sums: dict[str, dict[str, Array]] = {}
    for replay, run, answer in pairs:
        trace = run["trace"]
        assert trace is not None
        same = trace["accepted"] == replay.accepted and trace["tree_size"] == replay.sizes
        alike += same
        exact = bool(run.get("row_invariant") and answer.get("row_invariant")) and run["code_sha"] == code
        fault |= exact and not same
        columns = np.array([len(run["token_ids"]) - 1, len(trace["accepted"]), replay.tokens - 1, len(replay.accepted)], float)
        own = sums.setdefault(replay.task, {})
        own[replay.sample_id] = own.get(replay.sample_id, 0.0) + columns
    strata = [np.stack(list(own.values()), axis=1) for own in sums.values()]
    difference = estimated(strata, lambda s: s[0] / s[1] - s[2] / s[3])
    return Beside(
        method, len(pairs), alike, estimated(strata, lambda s: s[0] / s[1], 0.0), estimated(strata, lambda s: s[2] / s[3], 0.0),
        difference, fault,
    )  # fmt: skip


def faults(found: Mapping[tuple[float, str, str], Beside]) -> list[str]:
    """A line for each method whose replays and runs disagree."""
    return [f"{b.method} at T = {t:g}: a run's steps are those of its replay in {b.alike} of {b.turns} turns, and tau differs by "
            f"{b.difference.value:+.3f}" for (t, *_), b in found.items() if b.is_fault]  # fmt: skip
