"""tau, tokens per second, speedup: each defined once, as a function of totals.

The same function gives the published value from the sums over all prompts and, from sums less one conversation, its interval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from harness.ledger.record import Record
from harness.ledger.reduced import forwards_of
from harness.metrics.intervals import Array, Interval, Spread, Statistic, jackknife
from harness.metrics.pairing import Conversation, Side, conversation_of, side_of


class Totals(NamedTuple):
    """Sums over records: scalars, or arrays of sums."""

    tokens: Array
    seconds: Array
    decode_tokens: Array  # without the one token of the prefill
    decode_seconds: Array  # without the prefill; nan where it was not timed
    traced_tokens: Array  # decode tokens of the records whose forwards are known
    forwards: Array  # target forwards after prefill


def totals(record: Record) -> tuple[float, ...]:
    """One record's summands, in the order of `Totals`."""
    n, forwards, wall, prefill = len(record["token_ids"]), forwards_of(record), record["wall_s"], record["prefill_s"]
    assert wall is not None  # measured records only
    return (n, wall, n - 1, np.nan if prefill is None else wall - prefill,
            0 if forwards is None else n - 1, forwards or 0)  # fmt: skip


def tokens_per_s(t: Totals) -> Array:
    return t.tokens / t.seconds


def tau(t: Totals) -> Array:
    """Accept length: tokens per target forward after prefill, the bonus token included."""
    return t.traced_tokens / t.forwards


def speed_ratio(a: Totals, b: Totals) -> Array:
    """How many times as fast as b a is: (b's seconds / b's tokens) / (a's seconds / a's tokens)."""
    return tokens_per_s(a) / tokens_per_s(b)


def decode_speed_ratio(a: Totals, b: Totals) -> Array:
    """The same without the prefill and its token."""
    return (a.decode_tokens / a.decode_seconds) / (b.decode_tokens / b.decode_seconds)


def tau_difference(a: Totals, b: Totals) -> Array:
    return tau(a) - tau(b)


def tau_ratio(a: Totals, b: Totals) -> Array:
    return tau(a) / tau(b)


def speedup_change(a: Totals, base_a: Totals, b: Totals, base_b: Totals) -> Array:
    """a's speedup over its baseline, divided by b's over its own."""
    return speed_ratio(a, base_a) / speed_ratio(b, base_b)


NEVER_NEGATIVE = (tokens_per_s, tau, speed_ratio, decode_speed_ratio, tau_ratio, speedup_change)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; None where there is nothing to compute it from."""

    value: float | None
    ci95: Interval | None
    prompts: int  # conversations it rests on
    spread: Spread | None = None  # what the interval was made of


class Joined:
    """Arms on the prompts that all of them have, summed once for all statistics of them. A statistic takes a `Totals` an arm.

    by_task: a value is the unweighted mean over tasks of each task's value; else all prompts are pooled.
    """

    def __init__(self, arms: Sequence[Side], *, by_task: bool = False) -> None:
        self._strata, self._n_arms = _unit_totals(arms, by_task), len(arms)

    def point(self, statistic: Callable[..., Array]) -> float | None:
        return value_of(self._strata, _of_sums(statistic, self._n_arms))

    def estimate(self, statistic: Callable[..., Array]) -> Estimate:
        least = 0.0 if statistic in NEVER_NEGATIVE else -np.inf
        return estimated(self._strata, _of_sums(statistic, self._n_arms), least)


def point(arms: Sequence[Side], statistic: Callable[..., Array], *, by_task: bool = False) -> float | None:
    """`statistic` of the arms' totals over the prompts that all of them have, without an interval; see `estimate`."""
    return Joined(arms, by_task=by_task).point(statistic)


def estimate(arms: Sequence[Side], statistic: Callable[..., Array], *, by_task: bool = False) -> Estimate:
    """`statistic` of the arms' totals over the prompts that all of them have.

    Args:
        statistic: takes one `Totals` per arm.
        by_task: the unweighted mean over tasks of each task's value; else all prompts pooled.
    """
    return Joined(arms, by_task=by_task).estimate(statistic)


def estimated(strata: Sequence[Array], statistic: Statistic, least: float = -np.inf) -> Estimate:
    """The unweighted mean over strata of `statistic` of their sums. strata: as in `jackknife`.

    least: what the value cannot be under. An interval that reaches below is cut there, and covers no less.
    """
    spread = jackknife(strata, statistic)
    low, high = spread.interval() if spread else (0.0, 0.0)
    prompts = sum(columns.shape[1] for columns in strata)
    return Estimate(value_of(strata, statistic), (max(low, least), max(high, least)) if spread else None, prompts, spread)


def value_of(strata: Sequence[Array], statistic: Statistic) -> float | None:
    """The same without an interval; None where it is not finite."""
    if not strata:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.mean([statistic(columns.sum(axis=1)) for columns in strata]))
    return value if np.isfinite(value) else None


def _unit_totals(arms: Sequence[Side], by_task: bool) -> list[Array]:
    """Per stratum [n_arms * n_totals, n_conversations]: all arms' totals of a conversation are one column."""
    units: dict[str, dict[Conversation, int]] = defaultdict(dict)  # per stratum the column of each conversation
    summands: dict[str, list[tuple[int, tuple[float, ...]]]] = defaultdict(list)
    # sorted: an interval must not depend on the order of the file
    for key in sorted(key for key in min(arms, key=len) if all(key in a for a in arms)):
        record = arms[0][key]
        stratum = record["task"] if by_task else ""
        columns = units[stratum]
        column = columns.setdefault(conversation_of(record), len(columns))
        summands[stratum].append((column, sum((totals(a[key]) for a in arms), start=())))
    strata = []
    for stratum, rows in summands.items():
        sums = np.zeros((len(units[stratum]), len(rows[0][1])))
        np.add.at(sums, [column for column, _ in rows], [row for _, row in rows])  # in this order
        strata.append(sums.T)
    return strata


def _of_sums(statistic: Callable[..., Array], n_arms: int) -> Statistic:
    """`statistic` as a function of sums [n_arms * n_totals, ...]."""
    return lambda sums: statistic(*(Totals(*rows) for rows in np.split(sums, n_arms)))


def paired(
    records_a: Iterable[Record],
    records_b: Iterable[Record],
    statistic: Callable[[Totals, Totals], Array],
    *,
    by_task: bool = False,
) -> Estimate:
    """Two methods on the same prompts: `tau_difference`, `tau_ratio`, `speed_ratio` or another function of both."""
    return estimate([side_of(records_a), side_of(records_b)], statistic, by_task=by_task)
