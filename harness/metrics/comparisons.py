"""Paired comparisons of variants: EAGLE-2 against its ablations and its counterparts, and stopping early against not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.common.names import SIX_TASKS, task_order
from harness.ledger.record import Record
from harness.metrics.arms import Arms
from harness.metrics.cells import CellSummary
from harness.metrics.definitions import Estimate, Joined, speed_ratio, tau, tau_difference, tau_ratio
from harness.metrics.groups import MEAN, by_setting, labels, shown_cells
from harness.metrics.marks import signs_of_records
from harness.metrics.pairing import Setting, Side, without_loops

FULL, ABLATIONS = "eagle2", ("eagle2-no-both", "eagle2-no-value", "eagle2-no-rerank")
COUNTERPARTS = ("eagle1", *ABLATIONS)
OPTION = "stop_early"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One method against another on one task (or the mean of six) in one setting."""

    setting: Setting
    method: str  # labels, presets included
    against: str
    names: tuple[str, str]  # of the two methods
    task: str
    source: str
    tau: float | None
    tau_against: float | None
    tau_difference: Estimate
    tau_difference_no_loop: Estimate
    tau_ratio: Estimate
    speed_ratio: Estimate
    signs: str = ""  # of the speed ratio: those of both sides' speeds


def comparisons(records: Iterable[Record], summaries: Iterable[CellSummary]) -> list[Comparison]:
    """EAGLE-2 against EAGLE-1 at every preset of its own, and against each ablation and EAGLE-3 against it at equal presets.

    And each method that stops early against itself at the same options without.
    """
    arms = Arms.of(records)
    found: list[Comparison] = []
    for setting, cells in by_setting(shown_cells(summaries)):
        names = labels(cells)
        options = {s.variant: s.options for s in cells}
        pairs = [(a, b) for a in names for b in names
                 if (a[0] == FULL and b[0] in COUNTERPARTS and (b[0] == "eagle1" or a[1] == b[1]))
                 or (a[0] == "eagle3" and b[0] == FULL and a[1] == b[1])
                 or (a[0] == b[0] and a[3:] == b[3:] and _stops_where_it_did_not(options[a], options[b]))]  # fmt: skip
        for a, b in pairs:
            sides = arms.side(setting, a), arms.side(setting, b)
            found += _comparisons(setting, names[a], names[b], (a[0], b[0]), *sides)
    return found


def _stops_where_it_did_not(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether a is b with drafts that stop early."""
    return b.get(OPTION) is False and dict(a) == {**b, OPTION: True}


def _comparisons(
    setting: Setting, method: str, against: str, names: tuple[str, str], a: Side, b: Side
) -> Iterator[Comparison]:  # fmt: skip
    shared = {key: a[key] for key in a.keys() & b.keys()}
    tasks = sorted({(r["task"], r["source"]) for r in shared.values()}, key=lambda t: (task_order(t[0]), t[1]))
    for task, source in tasks:
        here = {key: r for key, r in shared.items() if (r["task"], r["source"]) == (task, source)}
        yield _comparison(setting, method, against, names, task, source, here, b)
    if sorted(task for task, _ in tasks) == sorted(SIX_TASKS):
        sources = "/".join(sorted({source for _, source in tasks}))
        yield _comparison(setting, method, against, names, MEAN, sources, shared, b)


def _comparison(
    setting: Setting, method: str, against: str, names: tuple[str, str], task: str, source: str, a: Side, b: Side
) -> Comparison:
    b = {key: b[key] for key in a}
    by_task = task == MEAN
    both, loopless = Joined([a, b], by_task=by_task), without_loops(a, b)
    clean = Joined([loopless, b], by_task=by_task) if len(loopless) < len(a) else both
    return Comparison(
        setting, method, against, names, task, source,
        tau=both.point(lambda own, _: tau(own)),
        tau_against=both.point(lambda _, other: tau(other)),
        tau_difference=both.estimate(tau_difference),
        tau_difference_no_loop=clean.estimate(tau_difference),
        tau_ratio=both.estimate(tau_ratio),
        speed_ratio=both.estimate(speed_ratio),
        signs=signs_of_records(r for side in (a, b) for r in side.values()),
    )  # fmt: skip
