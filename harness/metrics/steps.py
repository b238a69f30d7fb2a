"""What a step costs and accepts: by depth, by part, against vanilla's step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.ledger.record import Record
from harness.ledger.reduced import steps_of
from harness.metrics.definitions import Totals, totals
from harness.metrics.intervals import Interval, rate_interval
from harness.metrics.pairing import Conversation, Side, conversation_of


@dataclass(frozen=True, slots=True)
class DepthRate:
    """Acceptance at one depth of the tree: of the forwards that accepted depth - 1, how many accepted one more."""

    depth: int  # from 1
    n_reached: int
    n_accepted: int
    ci95: Interval | None = None

    @property
    def rate(self) -> float:
        return self.n_accepted / self.n_reached


def acceptance_by_depth(records: Iterable[Record], *, intervals: bool = False) -> tuple[DepthRate, ...]:
    """P(accepted >= d | accepted >= d - 1) over forwards, up to the deepest token ever accepted.

    A forward without a draft counts as one that accepted nothing. intervals: adds them where at least 5
    conversations reached the depth.
    """
    accepted: dict[Conversation, list[tuple[int, ...]]] = defaultdict(list)
    for record in sorted(records, key=lambda r: r["key"]):
        if steps := steps_of(record):
            accepted[conversation_of(record)].append(steps.accepted)
    deepest = max((len(counts) for own in accepted.values() for counts in own), default=1) - 1
    # [depths from 0, conversations]: forwards that accepted at least so many
    reaching = np.zeros((deepest + 1, len(accepted)))
    for place, own in enumerate(accepted.values()):
        for counts in own:
            reaching[: len(counts), place] += np.cumsum(counts[::-1])[::-1]

    def rate_at(depth: int) -> DepthRate:
        n_reached, n_accepted = (int(n) for n in reaching[depth - 1 : depth + 1].sum(axis=1))
        ci95 = rate_interval(*reaching[depth - 1 : depth + 1]) if intervals else None
        return DepthRate(depth, n_reached, n_accepted, ci95)

    return tuple(rate_at(depth) for depth in range(1, deepest + 1))


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Seconds per generated token: inside the drafter's forwards, inside the target's, in the prefill, and everything else.

    The prefill includes the drafter's pass over the prompt.
    """

    draft: float
    verify: float
    prefill: float
    other: float

    @property
    def total(self) -> float:
        return self.draft + self.verify + self.prefill + self.other


def time_split(records: Sequence[Record]) -> TimeSplit | None:
    """Where the time of these records went, or None where one of them has no trace or no prefill time."""
    steps = [found for r in records if (found := steps_of(r))]
    if not records or len(steps) < len(records) or any(r["prefill_s"] is None for r in records):
        return None
    tokens = sum(len(r["token_ids"]) for r in records)
    draft, verify = sum(s.drafter_s for s in steps), sum(s.target_s for s in steps)
    prefill = sum(r["prefill_s"] or 0.0 for r in records)
    other = sum(r["wall_s"] or 0.0 for r in records) - draft - verify - prefill
    return TimeSplit(*(seconds / tokens for seconds in (draft, verify, prefill, other)))


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What one drafting step costs in units of one vanilla step: decode speedup = tau / (verify + draft + other)."""

    verify: float  # inside the target's forward, LM head included
    draft: float  # inside the drafter's forwards, its prompt pass excluded (that is prefill)
    other: float  # growing the tree, acceptance, the cache and the loop


def step_costs(own: Side, base: Side) -> StepCosts | None:
    """Over the prompts both have, or None where one side lacks traces or took no step."""
    keys = sorted(key for key in own if key in base)
    a, b = totals_of([own[key] for key in keys]), totals_of([base[key] for key in keys])
    steps = [found for key in keys if (found := steps_of(own[key]))]
    if a is None or b is None or len(steps) < len(keys):
        return None
    target, drafter = sum(s.target_s for s in steps), sum(s.drafter_s for s in steps)
    vanilla_step = b.decode_seconds / b.decode_tokens * a.forwards
    return StepCosts(*(float(x / vanilla_step) for x in (target, drafter, a.decode_seconds - target - drafter)))


def totals_of(records: Iterable[Record]) -> Totals | None:
    """Sums over records, or None where no decoding was timed."""
    sums = np.array([totals(r) for r in records])
    if not len(sums):
        return None
    t = Totals(*sums.sum(axis=0))
    return t if t.decode_tokens > 0 and t.decode_seconds > 0 and t.forwards > 0 else None


def mean_tree_size(records: Iterable[Record]) -> float | None:
    """Draft nodes per target forward, root excluded."""
    steps = [found for r in records if (found := steps_of(r))]
    forwards = sum(s.forwards for s in steps)
    return sum(s.nodes for s in steps) / forwards if forwards else None


def identical(own: Side, base: Side) -> tuple[int, int]:
    """(conversations whose turns are all token-identical to the baseline's, conversations with all turns in both)."""
    turns: dict[tuple[Conversation, int], dict[int, bool]] = defaultdict(dict)
    for key, record in own.items():
        if key in base:
            turns[conversation_of(record), record["repeat"]][record["turn"]] = record["token_ids"] == base[key]["token_ids"]
    n_turns = {conversation_of(r): r["n_turns"] for r in own.values()}
    verdicts: dict[Conversation, list[bool]] = defaultdict(list)
    for (conversation, _), by_turn in turns.items():
        if len(by_turn) == n_turns[conversation]:
            verdicts[conversation].append(all(by_turn.values()))
    return sum(map(all, verdicts.values())), len(verdicts)
