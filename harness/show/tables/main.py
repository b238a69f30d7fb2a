"""The main table in three forms: methods by tasks, the six-task means with what a step costs, and several models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import pandas as pd

from harness.common.names import BASELINES, SIX_TASKS, task_order
from harness.forms.table import NOTHING, Section, Table, bracketed, number, one_line
from harness.ledger.record import Record
from harness.metrics.arms import Arms
from harness.metrics.cells import CellSummary, SixTaskMean, means_of, six_task_mean
from harness.metrics.groups import (
    MEAN,
    by_setting,
    by_variant,
    facts,
    interval_columns,
    labelled,
    labels,
    notes_of,
    shown_cells,
    task_label,
)
from harness.show.tables.cell_text import audit_text, fewer_prompts_mark, marked_text, speedup_and_tau_text, speedup_text
from harness.show.tables.meaning import conclusions

Audits = Mapping[str, Mapping[str, str]]  # model -> method -> the audit's word

_MAIN_NOTE = one_line("""
    Each cell: speedup over vanilla / τ. Speedup compares seconds per token on the same prompts, prefill included. τ is tokens per
    target forward after the prefill. In brackets: τ without looping outputs, where neither arm fell into a loop. "on n": the
    method has only n prompts there, fewer than others of the column. Its six-task mean rests on those.""")
_MEANS_NOTE = one_line("""
    Unweighted means over the six tasks. Square brackets: 95 % intervals (jackknife over conversations, task by task). Speedup:
    seconds per token, prefill included. Decode: without the prefill and its token. c: what one step costs inside the target's
    forward, inside the drafter's and outside both, in vanilla steps.""")
_AUDIT_NOTE = one_line("""
    audit: what `harness verify` found on this model{}. `lossless`: every layer holds. `fails`: a layer does not,
    and is named. `open`: a layer could not judge it. A preset that was not audited has its method's word.""")
_MODELS_NOTE = one_line("""
    Each cell: speedup over vanilla / τ; in brackets τ without looping outputs. It is the mean of the six tasks, or MT-bench alone
    where not all six were measured.""")

_MAIN_VALUES = ("speedup", "tau", "tau_no_loop")
_COSTS = ("verify", "draft", "other")


def main_table(summaries: Iterable[CellSummary], audits: Audits | None = None, audit_pages: Sequence[str] = ()) -> Table:
    """Methods by tasks, each with speedup and τ. audits: adds the audit's word on each method; a note names their pages."""
    summaries = shown_cells(summaries)
    sections = []
    for setting, group in by_setting(summaries):
        tasks = sorted({(c.task, c.source) for c in group}, key=lambda t: (task_order(t[0]), t[1]))
        most = {key: max(c.prompts for c in group if (c.task, c.source) == key) for key in tasks}
        audit = (audits or {}).get(setting.model)
        rows = []
        for name, cells in labelled(group):
            row = {"method": name}
            if {task for task, _ in tasks} >= set(SIX_TASKS):
                row[MEAN] = speedup_and_tau_text(six_task_mean(cells))
            by_task = {
                (c.task, c.source): speedup_and_tau_text(c) + fewer_prompts_mark(c.prompts, most[c.task, c.source]) for c in cells
            }
            row |= {f"{task} ({source})": by_task.get((task, source), "") for task, source in tasks}
            rows.append(row | ({"audit": audit_text(audit, cells[0])} if audit else {}))
        sections.append(Section(setting.title(), facts(group), pd.DataFrame(rows), conclusions(group)))
    notes = (_MAIN_NOTE, *_audit_notes(audits, audit_pages), *notes_of(summaries))
    return Table("main", tuple(sections), notes, _main_numbers(summaries))


def _audit_notes(audits: Audits | None, pages: Sequence[str]) -> list[str]:
    named = f" ({', '.join(f'`{page}`' for page in pages)})" if pages else ""
    return [_AUDIT_NOTE.format(named)] if audits else []


def _main_numbers(summaries: Sequence[CellSummary]) -> pd.DataFrame:
    """As in the paper's main table: a row per setting, method and preset; speedup and τ of each task and of the mean."""
    rows = []
    for setting, group in by_setting(summaries):
        for variant, cells in by_variant(group):
            row = {**asdict(setting), "method": variant[0], "preset": variant[1], "exact": cells[0].exact}
            for cell in cells:
                row |= {f"{task_label(cell)} {name}": getattr(cell, name) for name in _MAIN_VALUES}
            mean = six_task_mean(cells)
            rows.append(row | {f"{MEAN} {name}": getattr(mean, name) for name in _MAIN_VALUES})
    return pd.DataFrame(rows)


def means_table(
    records: Sequence[Record], summaries: Iterable[CellSummary], audits: Audits | None = None, audit_pages: Sequence[str] = ()
) -> Table:  # fmt: skip
    """A row a method and preset: its six-task means with intervals, what a step costs, and the audit's word."""
    arms, summaries = Arms.of(records), shown_cells(summaries)
    sections, numbers = [], []
    for setting, group in by_setting(summaries):
        names, audit, rows = labels(group), (audits or {}).get(setting.model), []
        for variant, cells in by_variant(group):
            mean = six_task_mean(cells)
            costs = mean.step_costs
            if mean.tau is None and mean.speedup is None:
                continue
            speed, length = (e.ci95 for e in means_of(arms, setting, variant))
            if variant[0] in BASELINES:
                speed = length = None  # against itself
            n = sum(c.prompts for c in cells)
            row = {"method": names[variant], "speedup": bracketed(speedup_text(mean), speed),
                   "decode": marked_text(mean.decode_speedup, mean.mark), "τ": bracketed(number(mean.tau), length),
                   "τ, no loops": number(mean.tau_no_loop)}  # fmt: skip
            row |= {f"c_{part}": number(getattr(costs, part) if costs else None) for part in _COSTS}
            rows.append(row | {"prompts": str(n)} | ({"audit": audit_text(audit, cells[0])} if audit else {}))
            values = {value: getattr(mean, value) for value in (*_MAIN_VALUES, "decode_speedup")}
            values |= interval_columns("speedup", mean.speedup, speed) | interval_columns("tau", mean.tau, length)
            values |= {f"c_{part}": getattr(costs, part) if costs else None for part in _COSTS}
            numbers.append(
                {**asdict(setting), "method": variant[0], "preset": variant[1], "prompts": n, **values, "mark": mean.mark}
            )
        if rows:
            sections.append(Section(setting.title(), facts(group), pd.DataFrame(rows), conclusions(group)))
    notes = (_MEANS_NOTE, *_audit_notes(audits, audit_pages), *notes_of(summaries))
    return Table("means", tuple(sections), notes, pd.DataFrame(numbers))


def models_table(summaries: Iterable[CellSummary]) -> Table:
    """A row a model and temperature, a column a method: the six-task mean, or MT-bench where not all six were measured.

    Without sections where there is only one model.
    """
    summaries = shown_cells(summaries)
    rows, numbers = [], []
    for setting, group in by_setting(summaries):
        by_name = dict(labelled(group))
        means = {name: six_task_mean(cells) for name, cells in by_name.items()}
        whole = any(mean.speedup is not None for mean in means.values())
        shown: dict[str, CellSummary | SixTaskMean] = {}
        for name, cells in by_name.items():
            one = means[name] if whole else next((c for c in cells if c.task == SIX_TASKS[0]), None)
            if one is not None and one.speedup is not None:
                shown[name] = one
        row = {
            "model": setting.model,
            "T": f"{setting.temperature:g}",
            "dtype": setting.dtype,
            "tokens": str(setting.max_new_tokens),
        }
        row["on"] = MEAN if whole else SIX_TASKS[0]
        rows.append(row | {name: speedup_and_tau_text(one) for name, one in shown.items()})
        for name, one in shown.items():
            values = {value: getattr(one, value) for value in _MAIN_VALUES}
            numbers.append({**asdict(setting), "on": row["on"], "method": name, **values})
    several = len({s.model for s in summaries}) > 1
    machines = list(dict.fromkeys(s.machine for s in summaries))
    if len(machines) > 1:  # a row each; numbered, as their names are long
        for row, (setting, _) in zip(rows, by_setting(summaries), strict=True):
            row["machine"] = str(1 + machines.index(setting.machine))
    named = tuple(f"Machine {i}: {machine}" for i, machine in enumerate(machines, start=1)) if len(machines) > 1 else ()
    sections = (Section("Models", named, pd.DataFrame(rows).fillna(NOTHING)),) if several else ()
    return Table("models", sections, (_MODELS_NOTE, *notes_of(summaries)), pd.DataFrame(numbers))
