"""Two tables: EAGLE-2 against its counterparts, paired by prompt, and where greedy outputs leave vanilla's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import pandas as pd

import methods
from harness.common.names import label
from harness.forms.table import Section, Table, number, one_line
from harness.ledger.record import Record
from harness.metrics.cells import CellSummary
from harness.metrics.comparisons import Comparison, comparisons
from harness.metrics.definitions import Estimate
from harness.metrics.divergences import Divergence, divergences
from harness.metrics.engines import BESIDE, SERVED
from harness.metrics.groups import (
    by_setting,
    facts,
    interval_columns,
    mark_of,
    notes_of,
    shown_cells,
)
from harness.metrics.pairing import Setting, is_row_invariant, setting_of
from harness.show.tables.cell_text import estimated_text

_PAIRED_NOTE = one_line("""
    eagle2 against another method on the same prompts, or a method with `stop_early` against itself without; 95 % intervals.
    The difference in τ is the first's less the other's; ratios are the first's over the other's. No loops: outputs where neither
    arm looped.""")
_EAGLE3_NOTE = "eagle3 against eagle2: each with its own head, whose training may differ."
_DIVERGENCES_NOTE = one_line("""
    Outputs at T = 0 that are not vanilla's: the first token that differs, by token id. What follows it is not comparable.""")


def paired_table(records: Iterable[Record], summaries: Iterable[CellSummary]) -> Table:
    """EAGLE-2 against EAGLE-1 and each ablation on the same prompts, per task and as the six-task mean.

    Ablations are compared at equal presets, and so is EAGLE-3 against EAGLE-2. Against EAGLE-1 every preset of EAGLE-2
    stands, since trees of equal size need one that is not the paper's. A method with `stop_early` stands against itself
    without. Differences are the first's value less the other's.
    """
    summaries = shown_cells(summaries)
    found = comparisons(records, summaries)
    rows: dict[Setting, list[dict[str, str]]] = defaultdict(list)
    for c in found:
        rows[c.setting].append(_comparison_row(c))
    sections = [Section(setting.title(), facts(group), pd.DataFrame(rows[setting]))
                for setting, group in by_setting(summaries) if setting in rows]  # fmt: skip
    notes = (_PAIRED_NOTE, *([_EAGLE3_NOTE] if any("eagle3" in c.names for c in found) else []), *notes_of(summaries))
    return Table("paired", tuple(sections), notes, _paired_numbers(found))


def _paired_numbers(found: Iterable[Comparison]) -> pd.DataFrame:
    rows = []
    for comparison in found:
        row = {**asdict(comparison.setting), "method": comparison.method, "against": comparison.against}
        row |= {"task": comparison.task, "source": comparison.source, "prompts": comparison.tau_difference.prompts}
        row |= {"tau": comparison.tau, "tau_against": comparison.tau_against}
        for name in ("tau_difference", "tau_difference_no_loop", "tau_ratio", "speed_ratio"):
            value: Estimate = getattr(comparison, name)
            row |= interval_columns(name, value.value, value.ci95)
        rows.append(row | {"mark": comparison.signs})
    return pd.DataFrame(rows)


def divergences_table(records: Sequence[Record], summaries: Sequence[CellSummary]) -> Table:
    """Where greedy outputs leave vanilla's: one line for each first difference."""
    found = divergences(records)
    keys = {d.key for d in found}
    settings = {r["key"]: setting_of(r) for r in records if r["key"] in keys}
    beside = {r["key"] for r in records if r["key"] in keys and is_row_invariant(r) and methods.is_external(r["method"])}
    rows: dict[Setting, list[dict[str, str]]] = defaultdict(list)
    for d in found:
        rows[settings[d.key]].append(_divergence_row(d, BESIDE * (d.key in beside) + SERVED * methods.is_served(d.method)))
    sections = [Section(setting.title(), facts(group), pd.DataFrame(rows[setting]))
                for setting, group in by_setting(shown_cells(summaries)) if setting in rows]  # fmt: skip
    numbers = [{**asdict(settings[d.key]), **asdict(d)} for d in found]
    notes = (_DIVERGENCES_NOTE, *(notes_of(summaries) if found else ["There are none in these records."]))
    return Table("divergences", tuple(sections), notes, pd.DataFrame(numbers))


def _comparison_row(c: Comparison) -> dict[str, str]:
    return {
        "method": c.method,
        "against": c.against,
        "task": c.task,
        "speed ratio": c.signs * (c.speed_ratio.value is not None) + estimated_text(c.speed_ratio),
        "τ": number(c.tau),
        "τ against": number(c.tau_against),
        "difference in τ": estimated_text(c.tau_difference, "{:+.2f}"),
        "no loops": estimated_text(c.tau_difference_no_loop, "{:+.2f}"),
        "τ ratio": estimated_text(c.tau_ratio),
        "source": c.source,
        "prompts": str(c.tau_difference.prompts),
    }


def _divergence_row(d: Divergence, mark: str) -> dict[str, str]:
    return {
        "method": label(d.method, d.preset) + mark_of(d.exact) + mark,
        "task": d.task,
        "source": d.source,
        "sample": d.sample_id,
        "turn": str(d.turn),
        "repeat": str(d.repeat),
        "position": str(d.position),
        "vanilla's token": "end" if d.vanilla_token is None else str(d.vanilla_token),
        "its token": "end" if d.token is None else str(d.token),
        "lengths": f"{d.n_vanilla} / {d.n_tokens}",
    }
