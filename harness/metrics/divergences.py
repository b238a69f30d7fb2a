"""Token-level comparison of a method's outputs with its baseline's, vanilla's as a rule, from records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.common.names import BASELINES, method_order, preset_order, task_order
from harness.ledger.record import Record
from harness.metrics.arms import Arms


def first_divergence(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Index of the first id that differs, the shorter length where one is a prefix of the other, None where equal.

    Lengths count: a comparison that stops at the shorter output calls a truncated one equal.
    """
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


@dataclass(frozen=True, slots=True)
class Divergence:
    """A greedy output that is not vanilla's. What follows the first difference is not comparable and not kept."""

    method: str
    preset: str
    exact: bool
    task: str
    source: str
    sample_id: str
    turn: int
    repeat: int
    position: int  # index in the generated ids
    vanilla_token: int | None  # None where vanilla's output ended before
    token: int | None
    n_vanilla: int
    n_tokens: int
    key: str  # sample keys of the two records
    vanilla_key: str


def divergences(records: Iterable[Record]) -> list[Divergence]:
    """Every first divergence from vanilla at temperature 0, in the order of methods, tasks and prompts."""
    arms = Arms.of(records)
    greedy = [(variant, setting) for setting, own in arms.settings.items() if setting.temperature == 0 for variant in own]
    found = []
    for variant, setting in sorted(greedy, key=lambda arm: arm[0]):
        if variant[0] not in BASELINES:
            for key, record in arms.side(setting, variant).items():
                if key in arms.baseline and (divergence := _divergence(record, arms.baseline[key])):
                    found.append(divergence)
    return sorted(found, key=lambda d: (method_order(d.method), preset_order(d.preset), task_order(d.task), d.source,
                                        d.sample_id, d.turn, d.repeat, d.key))  # fmt: skip


def _divergence(record: Record, vanilla: Record) -> Divergence | None:
    ids, reference = record["token_ids"], vanilla["token_ids"]
    position = None if ids == reference else first_divergence(reference, ids)
    if position is None:
        return None
    return Divergence(
        record["method"], record["preset"], record["exact"], record["task"], record["source"],
        record["sample_id"], record["turn"], record["repeat"], position,
        reference[position] if position < len(reference) else None,
        ids[position] if position < len(ids) else None,
        len(reference), len(ids), record["key"], vanilla["key"],
    )  # fmt: skip
