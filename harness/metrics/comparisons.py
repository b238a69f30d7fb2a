"""Paired comparisons of variants: EAGLE-2 against its ablations and its counterparts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.common.names import SIX_TASKS, task_order
from harness.ledger.record import Record
from harness.metrics.arms import Arms
from harness.metrics.cells import CellSummary
from harness.metrics.definitions import Estimate, Joined, speed_ratio, tau, tau_difference, tau_ratio
from harness.metrics.groups import MEAN, by_setting, labels, shown_cells
from harness.metrics.pairing import Setting, Side, without_loops

FULL, COUNTERPARTS = "eagle2", ("eagle1", "eagle2-no-both", "eagle2-no-value", "eagle2-no-rerank")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One method against another on one task (or the mean of six) in one setting."""

    setting: Setting
    method: str  # labels, presets included
    against: str
    against_method: str
    task: str
    source: str
    tau: float | None
    tau_against: float | None
    tau_difference: Estimate
    tau_difference_no_loop: Estimate
    tau_ratio: Estimate
    speed_ratio: Estimate


def comparisons(records: Iterable[Record], summaries: Iterable[CellSummary]) -> list[Comparison]:
    """EAGLE-2 against EAGLE-1 at every preset of its own, and against each ablation at equal presets."""
    arms = Arms.of(records)
    found: list[Comparison] = []
    for setting, cells in by_setting(shown_cells(summaries)):
        names = labels(cells)
        full = [v for v in names if v[0] == FULL]
        others = [v for v in names if v[0] in COUNTERPARTS]
        for a in full:
            for b in others:
                if b[0] == "eagle1" or a[1] == b[1]:
                    sides = arms.side(setting, a), arms.side(setting, b)
                    found += _comparisons(setting, names[a], names[b], b[0], *sides)
    return found


def _comparisons(setting: Setting, method: str, against: str, against_method: str, a: Side, b: Side) -> Iterator[Comparison]:
    shared = {key: a[key] for key in a.keys() & b.keys()}
    tasks = sorted({(r["task"], r["source"]) for r in shared.values()}, key=lambda t: (task_order(t[0]), t[1]))
    for task, source in tasks:
        here = {key: r for key, r in shared.items() if (r["task"], r["source"]) == (task, source)}
        yield _comparison(setting, method, against, against_method, task, source, here, b)
    if sorted(task for task, _ in tasks) == sorted(SIX_TASKS):
        sources = "/".join(sorted({source for _, source in tasks}))
        yield _comparison(setting, method, against, against_method, MEAN, sources, shared, b)


def _comparison(
    setting: Setting, method: str, against: str, against_method: str, task: str, source: str, a: Side, b: Side
) -> Comparison:
    b = {key: b[key] for key in a}
    by_task = task == MEAN
    both, loopless = Joined([a, b], by_task=by_task), without_loops(a, b)
    clean = Joined([loopless, b], by_task=by_task) if len(loopless) < len(a) else both
    return Comparison(
        setting, method, against, against_method, task, source,
        tau=both.point(lambda own, _: tau(own)),
        tau_against=both.point(lambda _, other: tau(other)),
        tau_difference=both.estimate(tau_difference),
        tau_difference_no_loop=clean.estimate(tau_difference),
        tau_ratio=both.estimate(tau_ratio),
        speed_ratio=both.estimate(speed_ratio),
    )  # fmt: skip
