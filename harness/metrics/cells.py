"""All numbers of one cell (a method on a task in a setting), and the means of six cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

import methods
from harness.common.names import BASELINES, SIX_TASKS, method_order, preset_order, task_order
from harness.ledger.record import Record
from harness.ledger.reduced import forwards_of
from harness.metrics.arms import Arms
from harness.metrics.clocks import was_shared
from harness.metrics.definitions import Estimate, Interval, Joined, decode_speed_ratio, point, speed_ratio, tau, tokens_per_s
from harness.metrics.marks import joined, signs_of
from harness.metrics.pairing import (
    Conversation,
    Setting,
    Side,
    Variant,
    compared,
    conversation_of,
    engine_of,
    field,
    is_row_invariant,
    side_of,
    variant_of,
    without_loops,
)
from harness.metrics.reference_formula import Official, official
from harness.metrics.steps import (
    DepthRate,
    StepCosts,
    TimeSplit,
    acceptance_by_depth,
    identical,
    mean_tree_size,
    step_costs,
    time_split,
)


def speed_mark(is_apart: bool, is_shared: bool) -> str:
    """What stands before a speed that is not judged: ≈ where the baseline is of another process, ! where other work ran."""
    return "≈" * is_apart + "!" * is_shared


@dataclass(frozen=True, slots=True)
class CellSummary:
    """All numbers of one method on one task in one setting. What does not apply is None.

    Where the cell has a baseline, all numbers rest on the conversations that both arms have.
    """

    model: str
    target_sha: str
    target_id: str
    head_sha: str | None
    machine: str
    system: str
    task: str
    source: str
    method: str
    preset: str
    exact: bool
    options: Mapping[str, Any]
    temperature: float
    top_p: float
    dtype: str
    threads: int
    max_new_tokens: int
    seed: int
    variant: Variant
    cells: tuple[str, ...]  # cell keys of the records; several where runs took different numbers of prompts
    prompts: int  # conversations
    new_tokens: int
    seconds: float | None
    tokens_per_s: float | None
    baseline_tokens_per_s: float | None
    speedup: float | None
    speedup_ci95: Interval | None
    decode_speedup: float | None
    tau: float | None
    tau_ci95: Interval | None
    tau_no_loop: float | None  # over records where neither arm looped
    identical: int | None  # conversations token-identical to vanilla in all turns; T = 0 only
    n_compared: int | None
    looped: float | None  # share of records
    acceptance: tuple[DepthRate, ...]
    time_split: TimeSplit | None
    step_costs: StepCosts | None
    official: Official  # what the reference's scripts would have printed
    mean_tree_size: float | None
    n_errors: int  # prompts and turns that failed and were not measured since
    n_skipped: int
    n_unpaired: int  # measured conversations left out because their baseline is missing
    n_elsewhere: int  # records whose baseline was measured in another process
    is_apart: bool  # so were most of them: the machine may have been slower or faster then
    is_shared: bool  # other work shared the machine while it, or its baseline, was measured
    n_untold: int  # records without steps beside others with them: τ rests on those
    n_uneven: int  # served pairs whose engines had computed other parts of the prompt before: their prefills differ
    n_incomplete: int  # conversations that lack a turn, as after an interrupted run
    engine: str  # whose forward ran, in words; empty where the records do not say
    is_row_invariant: bool  # so that an exact method's outputs at T = 0 must be vanilla's

    @property
    def is_beside(self) -> bool:
        """Whether it is another's loop, which ran transformers' module and not the row-invariant engine of the others."""
        return self.is_row_invariant and methods.is_external(self.method)

    @property
    def is_served(self) -> bool:
        """Whether an engine elsewhere decoded."""
        return methods.is_served(self.method)

    @property
    def is_lossy(self) -> bool:
        """Whether outputs differ from vanilla's where no rounding can be the cause."""
        differs = self.identical is not None and self.identical < (self.n_compared or 0)
        return differs and self.exact and self.is_row_invariant and not self.is_beside

    @property
    def signs(self) -> str:
        return signs_of(self.method, self.options, self.machine, self.temperature)

    @property
    def mark(self) -> str:
        return joint_mark([self])

    @property
    def setting(self) -> Setting:
        return Setting(*(getattr(self, f.name) for f in fields(Setting)))

    def to_json(self, records: str) -> dict[str, Any]:
        """The object of `harness run --json`; `records` is the path the records are in."""
        stated = ("method", "preset", "task", "model", "source", "temperature", "top_p", "dtype", "threads",
                  "max_new_tokens", "prompts", "new_tokens", "seconds", "tokens_per_s", "baseline_tokens_per_s",
                  "speedup", "speedup_ci95", "tau", "identical", "looped")  # fmt: skip
        ci95 = list(self.speedup_ci95) if self.speedup_ci95 else None
        own = {name: getattr(self, name) for name in stated}
        return {**own, "speedup_ci95": ci95, "settings": dict(self.options), "records": records}


def joint_mark(cells: Sequence[CellSummary]) -> str:
    """What stands before a speed that rests on these cells."""
    return speed_mark(any(s.is_apart for s in cells), any(s.is_shared for s in cells)) + joined(s.signs for s in cells)


def summarise(records: Iterable[Record]) -> list[CellSummary]:
    """One summary a cell, in the order of tables: settings, then methods, presets and tasks."""
    arms = Arms.of(records)
    cells: list[list[Record]] = []
    for arm in (own for variants in arms.settings.values() for own in variants.values()):
        by_task: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in arm:
            if not record["is_warmup"]:
                by_task[record["task"], record["source"]].append(record)
        cells += by_task.values()
    return sorted((_summary(cell, arms.baseline) for cell in cells), key=_cell_order)


_SAME_IN_A_CELL = ("model", "target_sha", "target_id", "head_sha", "machine", "system", "task", "source", "method", "preset",
                   "exact", "options", "temperature", "top_p", "dtype", "threads", "max_new_tokens", "seed")  # fmt: skip


def _cell_order(s: CellSummary) -> tuple[Any, ...]:
    setting = (s.model, s.dtype, s.max_new_tokens, s.temperature, s.top_p, s.threads, s.seed, s.target_sha, s.target_id,
               s.machine, s.system)  # fmt: skip
    return (setting, method_order(s.method), preset_order(s.preset), s.variant, task_order(s.task), s.source)


def _summary(cell: Sequence[Record], base: Side) -> CellSummary:
    everything = side_of(cell)
    with_baseline = compared(everything, base)
    own = with_baseline or everything
    used = [own[key] for key in sorted(own)]  # sums must not depend on the order of the file
    first = cell[0]
    alone, with_base = Joined([own]), Joined([own, base])
    speed, accept = with_base.estimate(speed_ratio), alone.estimate(tau)
    loopless = without_loops(own, base)
    is_reference = first["method"] in BASELINES  # compared with itself, so the ratio is 1
    greedy = first["temperature"] == 0 and not is_reference and bool(with_baseline)
    n_identical, n_compared = identical(own, base) if greedy else (None, None)
    seconds = sum(r["wall_s"] or 0.0 for r in used)
    return CellSummary(
        **{name: field(first, name) for name in _SAME_IN_A_CELL},
        variant=variant_of(first),
        cells=tuple(sorted({r["cell"] for r in cell})),
        prompts=len({conversation_of(r) for r in used}),
        new_tokens=sum(len(r["token_ids"]) for r in used),
        seconds=seconds or None,
        tokens_per_s=alone.point(tokens_per_s),
        baseline_tokens_per_s=with_base.point(lambda _, b: tokens_per_s(b)) if with_baseline else None,
        speedup=speed.value if with_baseline else None,
        speedup_ci95=speed.ci95 if with_baseline and not is_reference else None,
        decode_speedup=with_base.point(decode_speed_ratio) if with_baseline else None,
        tau=accept.value,
        tau_ci95=accept.ci95 if not is_reference else None,
        tau_no_loop=point([loopless], tau) if len(loopless) < len(own) else accept.value,
        identical=n_identical,
        n_compared=n_compared,
        looped=sum(r["looped"] for r in used) / len(used) if used else None,
        acceptance=acceptance_by_depth(used),
        time_split=time_split(used),
        step_costs=step_costs(with_baseline, base),
        official=official([(conversation_of(own[key]), own[key], base.get(key)) for key in sorted(own)], speed.value),
        mean_tree_size=mean_tree_size(used),
        n_errors=_n_unmeasured(cell, everything, "error"),
        n_skipped=_n_unmeasured(cell, everything, "skipped"),
        n_unpaired=len({conversation_of(r) for r in everything.values()}) - len({conversation_of(r) for r in used}),
        n_elsewhere=(n_elsewhere := sum(r["run"] != base[key]["run"] for key, r in with_baseline.items())),
        is_apart=2 * n_elsewhere > len(with_baseline),
        is_shared=was_shared(used) or was_shared(base[key] for key in with_baseline),
        n_untold=_n_untold(used),
        n_uneven=sum(_n_cached(r) != _n_cached(base[key]) for key, r in with_baseline.items()),
        n_incomplete=_n_incomplete(used),
        engine=engine_of(first),
        is_row_invariant=is_row_invariant(first),
    )


def _n_unmeasured(cell: Iterable[Record], own: Side, status: str) -> int:
    done = {(r["sample_id"], r["turn"], r["repeat"]) for r in own.values()}
    return len({(r["sample_id"], r["turn"], r["repeat"]) for r in cell if r["status"] == status} - done)


def _n_untold(own: Sequence[Record]) -> int:
    n = sum(forwards_of(r) is None for r in own)
    return n if n < len(own) else 0


def _n_cached(record: Record) -> int:
    """Tokens of the prompt that an engine elsewhere had computed before; 0 where it does not say."""
    served = record.get("served")
    return (served["n_cached"] or 0) if served else 0


def _n_incomplete(own: Iterable[Record]) -> int:
    lacking: dict[tuple[Conversation, int], int] = {}
    for r in own:
        unit = (conversation_of(r), r["repeat"])
        lacking[unit] = lacking.get(unit, r["n_turns"]) - 1
    return len({conversation for (conversation, _), n in lacking.items() if n > 0})


@dataclass(frozen=True, slots=True)
class SixTaskMean:
    """Unweighted means of the six tasks' values; None where a task is absent, has no value, or comes twice."""

    speedup: float | None
    decode_speedup: float | None
    tau: float | None
    tau_no_loop: float | None
    step_costs: StepCosts | None
    is_apart: bool
    is_shared: bool
    mark: str


def six_task_mean(summaries: Iterable[CellSummary]) -> SixTaskMean:
    """The mean over the six tasks. summaries: those of one method in one setting."""
    cells = list(summaries)
    complete = sorted(s.task for s in cells) == sorted(SIX_TASKS)

    def mean(name: str) -> float | None:
        values = [getattr(s, name) for s in cells]
        return float(np.mean(values)) if complete and None not in values else None

    costs = [s.step_costs for s in cells if s.step_costs]
    split = StepCosts(*(float(np.mean([getattr(c, f.name) for c in costs])) for f in fields(StepCosts))) if costs else None
    return SixTaskMean(
        mean("speedup"), mean("decode_speedup"), mean("tau"), mean("tau_no_loop"),
        split if complete and len(costs) == len(cells) else None, any(s.is_apart for s in cells), any(s.is_shared for s in cells),
        joint_mark(cells),
    )  # fmt: skip


def mean_estimates(own: Side, base: Side) -> tuple[Estimate, Estimate]:
    """The six-task means of speedup and tau with intervals.

    There is no speedup where a task has no baseline.
    """
    used: dict[tuple[Any, ...], Record] = {}
    for task in SIX_TASKS:
        mine = {key: r for key, r in own.items() if r["task"] == task}
        used |= compared(mine, base) or mine
    if not used:
        return Estimate(None, None, 0), Estimate(None, None, 0)
    has_baseline = used.keys() <= base.keys()
    speed = Joined([used, base], by_task=True).estimate(speed_ratio) if has_baseline else Estimate(None, None, 0)
    return speed, Joined([used], by_task=True).estimate(tau)


def means_of(arms: Arms, setting: Setting, variant: Variant) -> tuple[Estimate, Estimate]:
    """`mean_estimates` of an arm, found once."""
    key = setting, variant
    if key not in arms.means:
        arms.means[key] = mean_estimates(arms.side(*key), arms.base(setting))
    return arms.means[key]
