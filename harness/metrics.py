"""Every metric, defined once, from records alone.

A metric is a function of `Totals`, the sums over some records. The same function gives the published value from the
sums over all prompts and, from resampled sums, its interval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError
from harness.official import Official, official
from harness.records import Record, canonical_hash
from harness.stats import paired_bootstrap
from harness.style import SIX_TASKS, VANILLA, method_order, preset_order, task_order

Array = NDArray[np.float64]
Interval = tuple[float, float]

# ---- what is compared with what -------------------------------------------------------------------------------------

# What pairs a record with another method's. Two folders may hold other weights or come from other machines; within one,
# what differs in these is never averaged or divided.
ACROSS_FOLDERS = ("task", "source", "sample_id", "turn", "repeat", "prompt_sha",
                  "model", "temperature", "top_p", "dtype", "threads", "max_new_tokens", "seed")  # fmt: skip
WITHIN_FOLDER = (*ACROSS_FOLDERS, "target_sha", "machine")

Conversation = tuple[str, str, str]
Arm = Mapping[tuple[Any, ...], Record]  # one method's records, by what pairs them with another's


@dataclass(frozen=True, slots=True)
class Setting:
    """What all arms of one comparison have in common, the prompt apart; the fields are a record's."""

    model: str
    target_sha: str
    temperature: float
    top_p: float
    dtype: str
    threads: int
    max_new_tokens: int
    seed: int
    machine: str
    system: str = "paper"

    def title(self) -> str:
        top_p = f", top-p {self.top_p:g}" if self.top_p < 1 else ""
        system = "" if self.system == "paper" else f", {'no' if self.system == 'none' else 'another'} system prompt"
        return (
            f"{self.model}, T = {self.temperature:g}{top_p}, {self.dtype}, {self.threads} threads, "
            f"at most {self.max_new_tokens} new tokens, seed {self.seed}{system}"
        )


def setting_of(record: Record) -> Setting:
    return Setting(*(_field(record, f.name) for f in fields(Setting)))


def variant_of(record: Record) -> tuple[str, str, str, str]:
    """What tells one arm from another within a setting: method, preset, options, head."""
    return record["method"], record["preset"], canonical_hash(record["options"]), record["head_sha"] or ""


def conversation_of(record: Record) -> Conversation:
    return record["task"], record["source"], record["sample_id"]


def measured(records: Iterable[Record]) -> list[Record]:
    """Without warm-ups and without prompts that failed or were skipped."""
    return [r for r in records if r["status"] == "ok" and not r["is_warmup"]]


def arm(records: Iterable[Record], by: Sequence[str] = WITHIN_FOLDER) -> dict[tuple[Any, ...], Record]:
    """The measured records of one method by what pairs them; of two for the same prompt and turn the first stands."""
    found: dict[tuple[Any, ...], Record] = {}
    for record in measured(records):
        found.setdefault(tuple(_field(record, name) for name in by), record)
    return found


def compared(own: Arm, base: Arm) -> Arm:
    """Those of `own` that have a counterpart in `base`, by whole conversations.

    Two-turn tasks need vanilla's first turn even where no baseline was asked for; such a turn alone is no baseline.
    """
    unpaired = {(conversation_of(r), r["repeat"]) for key, r in own.items() if key not in base}
    return {key: r for key, r in own.items() if (conversation_of(r), r["repeat"]) not in unpaired}


def without_loops(own: Arm, base: Arm) -> Arm:
    """Those of `own` where neither arm looped."""
    return {k: r for k, r in own.items() if not r["looped"] and not (k in base and base[k]["looped"])}


def _field(record: Record, name: str) -> Any:
    # a record straight from a run has no machine: it is the one at hand
    return record.get(name, "paper" if name == "system" else "")


# What must be one value over all records of a model before a verdict is given on it.
ONE_ENVIRONMENT = ("machine", "target_sha", "dtype", "threads", "max_new_tokens", "seed", "top_p", "system")


def one_environment(records: Iterable[Record], where: object) -> list[Record]:
    """The measured records of one model, as they are.

    Raises:
        UserError: they were measured in several environments, methods that draft with the same head with several of them, or an
            arm with several options; names the key.
    """
    found = measured(records)
    arms: dict[str, list[Record]] = defaultdict(list)
    heads: dict[str, list[Record]] = defaultdict(list)
    for r in found:
        arms[f"{r['method']} ({r['preset']}) at T = {r['temperature']:g}"].append(r)  # tuned options are a temperature's own
        heads["all eagle methods" if r["method"].startswith("eagle") else r["method"]].append(r)
    checks = [("the records", key, found) for key in ONE_ENVIRONMENT]
    checks += [(whose, "head_sha", own) for whose, own in heads.items()]
    checks += [(whose, "options", own) for whose, own in arms.items()]
    for whose, key, own in checks:
        values = sorted({str(value) for r in own if (value := _field(r, key)) is not None})  # plain decoding has no head
        if len(values) > 1:
            raise UserError(f"{where} holds mixed environments: {key} of {whose} of {found[0]['model']} is "
                            f"{' and '.join(values)}; give a folder whose records agree in it")  # fmt: skip
    return found


def one_source(records: Sequence[Record]) -> list[Record]:
    """For each task those on the paper's prompts where there are any, else on the source with most: sources are not mixed."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for r in records:
        counts[r["task"]][r["source"]] += 1
    chosen = {task: max(found, key=lambda s: (s == "paper", found[s], s)) for task, found in counts.items()}
    return [r for r in records if r["source"] == chosen[r["task"]]]


# ---- the definitions ------------------------------------------------------------------------------------------------


class Totals(NamedTuple):
    """Sums over records: scalars, or arrays [n_resamples]."""

    tokens: Array
    seconds: Array
    decode_tokens: Array  # without the one token of the prefill
    decode_seconds: Array  # without the prefill; nan where it was not timed
    traced_tokens: Array  # decode tokens of the records that have a trace
    forwards: Array  # target forwards after prefill


def totals(record: Record) -> tuple[float, ...]:
    """One record's summands, in the order of `Totals`."""
    n, trace, wall, prefill = len(record["token_ids"]), record["trace"], record["wall_s"], record["prefill_s"]
    assert wall is not None  # measured records only
    return (n, wall, n - 1, np.nan if prefill is None else wall - prefill,
            n - 1 if trace else 0, len(trace["accepted"]) if trace else 0)  # fmt: skip


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


# ---- estimates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; None where there is nothing to compute it from."""

    value: float | None
    ci95: Interval | None
    prompts: int  # conversations it rests on


def point(arms: Sequence[Arm], statistic: Callable[..., Array], *, by_task: bool = False) -> float | None:
    """`statistic` of the arms' totals over the prompts that all of them have, without an interval; see `estimate`."""
    return _value(_unit_totals(arms, by_task), _mean_over_strata(statistic, len(arms)))


def estimate(arms: Sequence[Arm], statistic: Callable[..., Array], *, by_task: bool = False, rng_seed: int = 0) -> Estimate:
    """`statistic` of the arms' totals over the prompts that all of them have.

    Args:
        statistic: takes one `Totals` per arm.
        by_task: the unweighted mean over tasks of each task's value, resampled within tasks; else all prompts pooled.
    """
    strata = _unit_totals(arms, by_task)
    mean = _mean_over_strata(statistic, len(arms))
    ci95 = paired_bootstrap(strata, mean, np.random.default_rng(rng_seed))
    return Estimate(_value(strata, mean), ci95, sum(columns.shape[1] for columns in strata))


def _unit_totals(arms: Sequence[Arm], by_task: bool) -> list[Array]:
    """Per stratum [n_arms * n_totals, n_conversations]: all arms' totals of a conversation are one column."""
    strata: dict[str, dict[Conversation, Array]] = defaultdict(dict)
    # in an order of its own: an interval must not depend on the order of the file
    for key in sorted(set.intersection(*(set(a) for a in arms))):
        record = arms[0][key]
        units = strata[record["task"] if by_task else ""]
        summands = np.array([x for a in arms for x in totals(a[key])])
        units[conversation_of(record)] = units.get(conversation_of(record), 0) + summands
    return [np.array(list(units.values())).T for units in strata.values()]


def _mean_over_strata(statistic: Callable[..., Array], n_arms: int) -> Callable[..., Array]:
    def mean(*strata: Array) -> Array:
        values = [statistic(*(Totals(*rows) for rows in np.split(sums, n_arms))) for sums in strata]
        return sum(values[1:], start=values[0]) / len(values)

    return mean


def _value(strata: Sequence[Array], statistic: Callable[..., Array]) -> float | None:
    if not strata:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(*(columns.sum(axis=1) for columns in strata)))
    return value if np.isfinite(value) else None


def paired(
    records_a: Iterable[Record],
    records_b: Iterable[Record],
    statistic: Callable[[Totals, Totals], Array],
    *,
    by_task: bool = False,
    rng_seed: int = 0,
) -> Estimate:
    """Two methods on the same prompts: `tau_difference`, `tau_ratio`, `speed_ratio` or another function of both."""
    return estimate([arm(records_a), arm(records_b)], statistic, by_task=by_task, rng_seed=rng_seed)


# ---- beyond totals --------------------------------------------------------------------------------------------------


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


def acceptance_by_depth(records: Iterable[Record], *, intervals: bool = False, rng_seed: int = 0) -> tuple[DepthRate, ...]:
    """P(accepted >= d | accepted >= d - 1) over forwards, up to the deepest token ever accepted.

    A forward without a draft counts as one that accepted nothing. `intervals` adds them (bootstrap over conversations).
    """
    accepted: dict[Conversation, list[int]] = defaultdict(list)
    for record in sorted(records, key=lambda r: r["key"]):
        if record["trace"]:
            accepted[conversation_of(record)] += record["trace"]["accepted"]
    deepest = max((n for counts in accepted.values() for n in counts), default=0)
    # [depths from 0, conversations]: forwards that accepted at least so many
    reaching = np.array([[sum(n >= d for n in counts) for counts in accepted.values()] for d in range(deepest + 1)], float)

    def rate_at(depth: int) -> DepthRate:
        n_reached, n_accepted = (int(n) for n in reaching[depth - 1 : depth + 1].sum(axis=1))
        rng = np.random.default_rng(rng_seed)
        ci95 = paired_bootstrap([reaching[depth - 1 : depth + 1]], lambda n: n[1] / n[0], rng) if intervals else None
        return DepthRate(depth, n_reached, n_accepted, ci95)

    return tuple(rate_at(depth) for depth in range(1, deepest + 1))


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Seconds per generated token by where they went, as in `StepCosts`: inside the drafter's forwards, the target's, the prefill
    (the drafter's prompt pass included), and everything else."""

    draft: float
    verify: float
    prefill: float
    other: float

    @property
    def total(self) -> float:
        return self.draft + self.verify + self.prefill + self.other


def time_split(records: Sequence[Record]) -> TimeSplit | None:
    """Where the time of these records went, or None where one of them has no trace or no prefill time."""
    if not records or any(r["trace"] is None or r["prefill_s"] is None for r in records):
        return None
    tokens = sum(len(r["token_ids"]) for r in records)
    draft, verify = (sum(sum(r["trace"][column]) for r in records if r["trace"]) for column in ("drafter_s", "target_s"))
    prefill = sum(r["prefill_s"] or 0.0 for r in records)
    other = sum(r["wall_s"] or 0.0 for r in records) - draft - verify - prefill
    return TimeSplit(*(seconds / tokens for seconds in (draft, verify, prefill, other)))


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What one drafting step costs in units of one vanilla step: decode speedup = tau / (verify + draft + other)."""

    verify: float  # inside the target's forward, LM head included
    draft: float  # inside the drafter's forwards, its prompt pass excluded (that is prefill)
    other: float  # growing the tree, acceptance, the cache, the loop


def step_costs(own: Arm, base: Arm) -> StepCosts | None:
    """Over the prompts both have, or None where one side lacks traces or took no step."""
    keys = sorted(own.keys() & base.keys())
    a, b = totals_of([own[key] for key in keys]), totals_of([base[key] for key in keys])
    traces = [trace for key in keys if (trace := own[key]["trace"])]
    if a is None or b is None or len(traces) < len(keys):
        return None
    target, drafter = (sum(sum(t[column]) for t in traces) for column in ("target_s", "drafter_s"))
    step = b.decode_seconds / b.decode_tokens * a.forwards
    return StepCosts(*(float(x / step) for x in (target, drafter, a.decode_seconds - target - drafter)))


def totals_of(records: Iterable[Record]) -> Totals | None:
    """Sums over records, or None where no decoding was timed."""
    sums = np.array([totals(r) for r in records])
    if not len(sums):
        return None
    t = Totals(*sums.sum(axis=0))
    return t if t.decode_tokens > 0 and t.decode_seconds > 0 and t.forwards > 0 else None


def mean_tree_size(records: Iterable[Record]) -> float | None:
    """Draft nodes per target forward, root excluded."""
    sizes = [n for r in records if r["trace"] for n in r["trace"]["tree_size"]]
    return float(np.mean(sizes)) if sizes else None


def identical(own: Arm, base: Arm) -> tuple[int, int]:
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


# ---- one line per cell ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CellSummary:
    """All numbers of one method on one task in one setting. What does not apply is None.

    Where the cell has a baseline, all of them rest on the conversations that both arms have: one set of prompts a line.
    """

    model: str
    target_sha: str
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
    n_incomplete: int  # conversations that lack a turn, as after an interrupted run

    @property
    def setting(self) -> Setting:
        return Setting(*(getattr(self, f.name) for f in fields(Setting)))

    @property
    def variant(self) -> tuple[str, str, str, str]:
        return self.method, self.preset, canonical_hash(self.options), self.head_sha or ""

    def to_json(self, records: str) -> dict[str, Any]:
        """The object of `harness run --json`; `records` is the path the records are in."""
        stated = ("method", "preset", "task", "model", "source", "temperature", "top_p", "dtype", "threads",
                  "max_new_tokens", "prompts", "new_tokens", "seconds", "tokens_per_s", "baseline_tokens_per_s",
                  "speedup", "speedup_ci95", "tau", "identical", "looped")  # fmt: skip
        ci95 = list(self.speedup_ci95) if self.speedup_ci95 else None
        own = {name: getattr(self, name) for name in stated}
        return {**own, "speedup_ci95": ci95, "settings": dict(self.options), "records": records}


def summarise(records: Iterable[Record], *, rng_seed: int = 0) -> list[CellSummary]:
    """One summary a cell, in the order of tables: settings, then methods, presets and tasks."""
    records = list(records)
    base = arm(r for r in records if r["method"] == VANILLA)
    cells: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        if not record["is_warmup"]:
            cells[setting_of(record), variant_of(record), record["task"], record["source"]].append(record)
    return sorted((_summary(cell, base, rng_seed) for cell in cells.values()), key=_cell_order)


_SAME_IN_A_CELL = ("model", "target_sha", "head_sha", "machine", "system", "task", "source", "method", "preset", "exact",
                   "options", "temperature", "top_p", "dtype", "threads", "max_new_tokens", "seed")  # fmt: skip


def _cell_order(s: CellSummary) -> tuple[Any, ...]:
    setting = (s.model, s.dtype, s.max_new_tokens, s.temperature, s.top_p, s.threads, s.seed, s.target_sha, s.machine, s.system)
    return (setting, method_order(s.method), preset_order(s.preset), s.variant, task_order(s.task), s.source)


def _summary(cell: Sequence[Record], base: Arm, rng_seed: int) -> CellSummary:
    everything = arm(cell)
    with_baseline = compared(everything, base)
    own = with_baseline or everything
    used = [own[key] for key in sorted(own)]  # sums must not depend on the order of the file
    first = cell[0]
    speed = estimate([own, base], speed_ratio, rng_seed=rng_seed)
    accept = estimate([own], tau, rng_seed=rng_seed)
    is_reference = first["method"] == VANILLA  # compared with itself: the ratio is 1 and says nothing more
    greedy = first["temperature"] == 0 and not is_reference and bool(with_baseline)
    n_identical, n_compared = identical(own, base) if greedy else (None, None)
    seconds = sum(r["wall_s"] or 0.0 for r in used)
    return CellSummary(
        **{name: _field(first, name) for name in _SAME_IN_A_CELL},
        cells=tuple(sorted({r["cell"] for r in cell})),
        prompts=len({conversation_of(r) for r in used}),
        new_tokens=sum(len(r["token_ids"]) for r in used),
        seconds=seconds or None,
        tokens_per_s=point([own], tokens_per_s),
        baseline_tokens_per_s=point([with_baseline, base], lambda _, b: tokens_per_s(b)),
        speedup=speed.value if with_baseline else None,
        speedup_ci95=speed.ci95 if with_baseline and not is_reference else None,
        decode_speedup=point([with_baseline, base], decode_speed_ratio),
        tau=accept.value,
        tau_ci95=accept.ci95 if not is_reference else None,
        tau_no_loop=point([without_loops(own, base)], tau),
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
        n_incomplete=_n_incomplete(used),
    )


def _n_unmeasured(cell: Iterable[Record], own: Arm, status: str) -> int:
    done = {(r["sample_id"], r["turn"], r["repeat"]) for r in own.values()}
    return len({(r["sample_id"], r["turn"], r["repeat"]) for r in cell if r["status"] == status} - done)


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


def six_task_mean(summaries: Iterable[CellSummary]) -> SixTaskMean:
    """The mean over the six tasks of one method in one setting (the caller chooses the summaries)."""
    cells = list(summaries)
    complete = sorted(s.task for s in cells) == sorted(SIX_TASKS)

    def mean(name: str) -> float | None:
        values = [getattr(s, name) for s in cells]
        return float(np.mean(values)) if complete and None not in values else None

    apart, costs = any(s.is_apart for s in cells), [s.step_costs for s in cells if s.step_costs]
    split = StepCosts(*(float(np.mean([getattr(c, f.name) for c in costs])) for f in fields(StepCosts))) if costs else None
    return SixTaskMean(
        mean("speedup"), mean("decode_speedup"), mean("tau"), mean("tau_no_loop"),
        split if complete and len(costs) == len(cells) else None, apart,
    )  # fmt: skip


def mean_estimates(own: Arm, base: Arm) -> tuple[Estimate, Estimate]:
    """The six-task means of speedup and tau with intervals, prompts drawn again within each task; no speedup where a task has no
    baseline."""
    used: dict[tuple[Any, ...], Record] = {}
    for task in SIX_TASKS:
        mine = {key: r for key, r in own.items() if r["task"] == task}
        used |= compared(mine, base) or mine
    if not used:
        return Estimate(None, None, 0), Estimate(None, None, 0)
    has_baseline = used.keys() <= base.keys()
    speed = estimate([used, base], speed_ratio, by_task=True) if has_baseline else Estimate(None, None, 0)
    return speed, estimate([used], tau, by_task=True)
