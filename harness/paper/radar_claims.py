"""RADAR's claims (arXiv 2512.14069; Findings of EMNLP 2026), on what a ledger measured and on replays of it.

Its base is the same tree with every call made. A record does not count draft calls, a replay does. As a replay equals a run
step by step, it tells the speed under any table of costs, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from harness.common.names import SIX_TASKS
from harness.costs.relative import table_name
from harness.costs.table import read_all
from harness.ledger.record import Record, canonical_hash
from harness.metrics.definitions import Totals, estimate
from harness.metrics.groups import MEAN
from harness.metrics.intervals import Array
from harness.metrics.pairing import Side, measured, side_of
from harness.paper.claim_arms import DYNAMIC
from harness.paper.contrast import NOT_MEASURED, NOTHING_THERE, Contrast, Outcome, Row, faster, within
from harness.replay import record, saved
from harness.replay.price import Prices, prices_named
from harness.replay.record import Replay
from methods import EAGLE
from methods.engine.relative_costs import RADAR as SPLITS

RADAR = "radar"
TREE = ("top_k", "depth", "total")
# Its results at T = 1 against EAGLE-3 with 8 calls, over 3 models and 4 tasks: 5.25 to 7.26 calls, 1.03 to 1.13 times as fast
# (LLaMA-3.1-8B: 3.41 / 3.08 to 4.82 / 4.68; Vicuna-13B: 4.05 / 3.74 to 4.36 / 4.24; DeepSeek-8B: 3.86 / 3.42 to 3.17 / 3.08)
CALLS_SAVED, MEAN_SAVED = (1 - 7.26 / 8, 1 - 5.25 / 8), 0.187
FASTER = (0.03, 0.13)
UNMEASURED = {"top_k": 10, "depth": 8, "total": 59}

Options = Mapping[str, Any]


def radar_rows(records: Iterable[Record], folder: Path) -> list[Row]:
    """Calls saved and speed over the base, at each temperature and for each policy that was measured or replayed."""
    records = measured(records)
    models, looped = {r["model"] for r in records}, {r["key"] for r in records if r["looped"]}
    replays = [r for r in record.read(folder) if r.model in models]
    heads = sorted({r["head_id"] or "" for r in records if r["method"] in (RADAR, DYNAMIC)}
                   | {r.head_id or "" for r in replays if r.method in (RADAR, DYNAMIC)})  # fmt: skip
    rows: list[Row] = []
    for t in (0.0, 1.0):
        live = {canonical_hash(r["options"]): r["options"] for r in records if r["method"] == RADAR and r["temperature"] == t}
        again = {canonical_hash(r.options): r.options for r in replays if r.method == RADAR and r.temperature == t}
        policies: dict[str, Options] = {**live, **again}
        for options, head in product(policies.values() or [UNMEASURED], (heads if policies else heads[:1]) or [""]):
            own, base = _sides([r for r in records if (r["head_id"] or "") == head], options, t)
            mine, others = _replays([r for r in replays if (r.head_id or "") == head], options, t)
            if len(heads) > 1 and policies and not (own or mine):
                continue  # of the other head
            of_head = f", head {head}" if len(heads) > 1 else ""
            named = f" ({options['weights']}{of_head})" if policies else ""
            rows += _rows(named, options, t, own, base, mine, others, looped)
    return rows


def is_base(own: Options, radar: Options) -> bool:
    """Whether EAGLE-2's options are those of the same tree, drafted with every call over the whole vocabulary."""
    return all(own.get(name) == radar[name] for name in TREE) and not (own.get("stop_early") or own.get("frequent"))


def _sides(records: Sequence[Record], options: Options, t: float) -> tuple[Side, Side]:
    arms = [r for r in records if r["temperature"] == t]
    return (side_of(r for r in arms if r["method"] == RADAR and r["options"] == options),
            side_of(r for r in arms if r["method"] == DYNAMIC and is_base(r["options"], options)))  # fmt: skip


def _replays(replays: Sequence[Replay], options: Options, t: float) -> tuple[list[Replay], list[Replay]]:
    arms = [r for r in replays if r.temperature == t]
    return ([r for r in arms if r.method == RADAR and r.options == options],
            [r for r in arms if r.method == DYNAMIC and is_base(r.options, options)])  # fmt: skip


def _rows(
    named: str, options: Options, t: float, own: Side, base: Side, mine: list[Replay], others: list[Replay], looped: set[str]
) -> list[Row]:  # fmt: skip
    tree = "/".join(str(options[name]) for name in TREE)
    over = f"over EAGLE-2 with every call of the same tree ({tree})"
    fewer = f"RADAR drafts {MEAN_SAVED:.1%} less (9 to 34 % by model and task){named}"
    gain = f"RADAR is 3 to 13 % faster than its base{named}"
    contrast = Contrast(own, base, faster, True)
    tasks = [task for task in SIX_TASKS if task in contrast.tasks()] or list(SIX_TASKS)
    both = contrast.on(tasks, partial(within, *FASTER)) if own and base else (_nothing(own or base), _nothing(own or base))
    rows = [Row(gain, f"speed {over}, less 1, in the range{contrast.signs}", t, _on(tasks), *both, "{:+.1%}")]
    there = [task for task in SIX_TASKS if task in {r.task for r in mine} & {r.task for r in others}]

    def judged(test: str, claim: str, statistic: Any, low: float, high: float, price: Prices | None = None) -> Row:
        def found(left_out: set[str]) -> Outcome:
            pairs = [[r for r in side if r.answer not in left_out] for side in (mine, others)]
            e = saved.saved(pairs[0], pairs[1], statistic, price)
            return Outcome(e, *within(low, high, e.spread)) if e.prompts else _nothing(mine or others)

        return Row(claim, test, t, _on(there or SIX_TASKS), found(set()), found(looped), "{:+.1%}")

    rows.append(
        judged(f"share of draft calls a round saved {over}, replayed, in 9 to 34 %", fewer, saved.calls_saved, *CALLS_SAVED)
    )
    names = [SPLITS.name]
    if mine and others:
        names += [
            table_name(table)
            for table in read_all(None)
            if table.model == mine[0].model and table.has(EAGLE) and not table.frequent
        ]
    for name, price in prices_named(names).items():
        where = "RADAR's published splits" if name == SPLITS.name else f"the costs of {price.name}"
        rows.append(judged(f"speed {over}, less 1, replayed, by {where}, in the range", gain, saved.faster, *FASTER, price))
    return rows


def _on(tasks: Sequence[str]) -> str:
    return MEAN if list(tasks) == list(SIX_TASKS) else ", ".join(tasks)


def _nothing(is_half: Any) -> Outcome:
    """Where one side is there, or neither."""
    lacking = "one side only: RADAR and EAGLE-2 of the same tree are needed" if is_half else "no policy radar"
    return Outcome(NOTHING_THERE, f"{NOT_MEASURED}: {lacking}")


def measured_saving(own: Side, base: Side) -> float | None:
    """Milliseconds that a round of `own` is shorter than one of `base`, by the clock: beside `saved.predicted_saving`."""

    def shorter(a: Totals, b: Totals) -> Array:
        return 1e3 * (b.decode_seconds / b.forwards - a.decode_seconds / a.forwards)

    return estimate([own, base], shorter, by_task=True).value
