"""Tables from records: for the terminal, as Markdown and LaTeX for people, as CSV for programs.

What is shown is rounded text; the CSV beside it has the numbers. A setting (model, temperature, dtype, threads, budget,
machine) is a section of its own: nothing is averaged over two of them.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from harness.errors import UserError
from harness.fetch import whole_file
from harness.lossless import Divergence, divergences
from harness.metrics import (
    ACROSS_FOLDERS,
    Arm,
    CellSummary,
    Estimate,
    Interval,
    Setting,
    SixTaskMean,
    arm,
    estimate,
    identical,
    mean_estimates,
    measured,
    point,
    setting_of,
    six_task_mean,
    speed_ratio,
    speedup_change,
    summarise,
    tau,
    tau_difference,
    tau_ratio,
    tokens_per_s,
    variant_of,
    without_loops,
)
from harness.records import Record, read
from harness.style import SIX_TASKS, VANILLA, label, method_order, preset_order, task_order

NOTHING = "—"
MEAN = "six-task mean"
APART = "≈ most of the baseline was measured in another process, when the machine may have been slower or faster."
INEXACT = "† not exact: the method does not promise the target's own outputs."
FULL, COUNTERPARTS = "eagle2", ("eagle1", "eagle2-no-both", "eagle2-no-value", "eagle2-no-rerank")

Variant = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Section:
    """One setting's part of a table, as shown."""

    title: str
    facts: tuple[str, ...]  # where the prompts come from, the machine, what was left out
    shown: pd.DataFrame  # text only


@dataclass(frozen=True, slots=True)
class Table:
    """A table in all its forms: `sections` to read, `numbers` to compute with (one row a cell, never rounded)."""

    name: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    numbers: pd.DataFrame


AUDIT = Path("audit") / "lossless.json"  # in a folder of records: each method's word in one line

# How to read each table; under it in every form.
_READING = {
    "audit": """audit: what `harness verify` found on this model (`audit/audit.md`): `lossless`, or the layer that a method
        fails, or `open` where a layer could not judge it; a preset whose outputs it was not given has its method's word.""",
    "main": """Each cell: speedup over vanilla on the same prompts (seconds per token, prefill included) / τ (tokens per
        target forward after prefill); in brackets τ over outputs where neither arm fell into a loop. "on n": on n
        prompts only, fewer than the column's, and so are the means over such cells.""",
    "models": """Each cell: speedup over vanilla / τ, in brackets τ without looping outputs; the mean of the six tasks, or
        MT-bench where not all six were measured.""",
    "cells": """In square brackets 95 % intervals (paired bootstrap over conversations; none under 5). Decode: speedup
        without the prefill and its token. c: what one step costs inside the target's forward, inside the drafter's and
        outside both, in vanilla steps; decode = τ / (c_verify + c_draft + c_other).
        Identical: conversations token for token vanilla's, T = 0 only. Official, official τ: what the reference's own
        scripts would have printed for these generations (table `official`).""",
    "official": """What the reference's own evaluation scripts would have printed for the same generations, and from what it
        differs: official = speedup × per question × past the end × re-tokenised. Per question: means of per-question
        speeds, first repeats only, where we divide totals. Past the end: the method's tokens past stop id and limit
        count, its last bonus token does not. Re-tokenised: vanilla's text tokenised again, minus one, where we count
        vanilla's tokens; the one is for a BOS, and where the tokenizer adds none the baseline is a token a turn short.
        Bookkeeping: official / speedup - 1. Official τ: over the index of the last step, which is from 0. Goes on: turns
        after which the reference would have made one forward more (it sees a stop id drawn as bonus token a step later,
        and stops only past the limit), which is in no number here; nor are its baseline's last, unused forward and its
        longer length limit.""",
    "means": """Unweighted means over the six tasks, with 95 % intervals (paired bootstrap, conversations drawn again within each
        task). Speedup: seconds per token, prefill included; decode: without the prefill and its token. c: what one step costs
        inside the target's forward, inside the drafter's and outside both, in vanilla steps.""",
    "categories": """MT-bench by category. Each cell: speedup / τ; in brackets τ over outputs where neither looped.""",
    "paired": """eagle2 against another method on the same prompts, with paired 95 % intervals: the difference in τ is
        eagle2's less the other's, ratios are eagle2's over the other's. No loops: outputs where neither looped.""",
    "divergences": """Outputs at T = 0 that are not vanilla's: the first token that differs, by token id; what follows
        is not comparable.""",
    "compare": """On the prompts that both hold, with paired 95 % intervals: the difference in τ is B's less A's, ratios
        are B's over A's; speedup is over vanilla in the same folder. No loops: outputs where neither looped.
        Same outputs: conversations token for token equal.
        Differs: what is not the same besides; timings from two machines are not comparable, τ is.""",
    "run": """τ in brackets: over outputs where neither arm looped. Square brackets: 95 % intervals, none under 5
        prompts.""",
}
_READING = {name: " ".join(text.split()) for name, text in _READING.items()}


# ---- the tables -----------------------------------------------------------------------------------------------------


def main_table(records: Iterable[Record]) -> pd.DataFrame:
    """Numbers as in the paper's main table: a row per setting, method and preset; per task speedup and tau."""
    return _main_numbers(shown_cells(summarise(records)))


def _main_numbers(summaries: Sequence[CellSummary]) -> pd.DataFrame:
    rows = []
    for setting, group in by_setting(summaries):
        for variant, cells in by_variant(group):
            row = {**_setting_columns(setting), "method": variant[0], "preset": variant[1], "exact": cells[0].exact}
            for cell in cells:
                row |= {f"{_task_label(cell)} {name}": getattr(cell, name) for name in _MAIN_VALUES}
            mean = six_task_mean(cells)
            rows.append(row | {f"{MEAN} {name}": getattr(mean, name) for name in _MAIN_VALUES})
    return pd.DataFrame(rows)


_MAIN_VALUES = ("speedup", "tau", "tau_no_loop")


def main_report(summaries: Iterable[CellSummary], audits: Mapping[str, Mapping[str, str]] | None = None) -> Table:
    """Methods by tasks, each with speedup and tau; what the README shows. audits: model -> method -> the audit's word."""
    summaries = shown_cells(summaries)
    sections = []
    for setting, group in by_setting(summaries):
        tasks = sorted({(c.task, c.source) for c in group}, key=lambda t: (task_order(t[0]), t[1]))
        most = {key: max(c.prompts for c in group if (c.task, c.source) == key) for key in tasks}
        rows = []
        for name, cells in _labelled(group):
            by_task = {(c.task, c.source): _speedup_and_tau(c) + _fewer(c.prompts, most[c.task, c.source]) for c in cells}
            audit = (audits or {}).get(setting.model)
            row = {"method": name} | ({"audit": _audited(audit, cells[0])} if audit else {})
            row |= {f"{task} ({source})": by_task.get((task, source), "") for task, source in tasks}
            if {task for task, _ in tasks} >= set(SIX_TASKS):
                row[MEAN] = _speedup_and_tau(six_task_mean(cells))
            rows.append(row)
        sections.append(Section(setting.title(), facts(group), pd.DataFrame(rows)))
    read = (_READING["audit"],) if audits else ()
    return Table("main", tuple(sections), (_READING["main"], *read, *_notes(summaries)), _main_numbers(summaries))


def mean_report(
    records: Sequence[Record], summaries: Iterable[CellSummary], audits: Mapping[str, Mapping[str, str]] | None = None
) -> Table:
    """A row an arm: its six-task means with intervals, what a step costs, and the audit's word."""
    summaries = shown_cells(summaries)
    sections, numbers = [], []
    for setting, group in by_setting(summaries):
        of_variant: dict[Variant, list[Record]] = defaultdict(list)
        for r in records:
            if setting_of(r) == setting:
                of_variant[variant_of(r)].append(r)
        base = arm(r for own in of_variant.values() for r in own if r["method"] == VANILLA)
        names, audit, rows = labels(group), (audits or {}).get(setting.model), []
        for variant, cells in by_variant(group):
            mean = six_task_mean(cells)
            costs = mean.step_costs
            if mean.tau is None and mean.speedup is None:
                continue
            speed, length = (e.ci95 for e in mean_estimates(arm(of_variant[variant]), base))
            if variant[0] == VANILLA:
                speed = length = None  # against itself
            n = sum(c.prompts for c in cells)
            row = {"method": names[variant]} | ({"audit": _audited(audit, cells[0])} if audit else {})
            row |= {"prompts": str(n), "speedup": bracketed(_speedup(mean), speed), "decode": _times(mean.decode_speedup),
                    "τ": bracketed(number(mean.tau), length), "τ, no loops": number(mean.tau_no_loop)}  # fmt: skip
            rows.append(row | {f"c_{part}": number(getattr(costs, part) if costs else None) for part in _COSTS})
            values = {value: getattr(mean, value) for value in (*_MAIN_VALUES, "decode_speedup")}
            values |= _interval_columns("speedup", mean.speedup, speed) | _interval_columns("tau", mean.tau, length)
            values |= {f"c_{part}": getattr(costs, part) if costs else None for part in _COSTS}
            numbers.append({**_setting_columns(setting), "method": variant[0], "preset": variant[1], "prompts": n, **values})
        if rows:
            sections.append(Section(setting.title(), facts(group), pd.DataFrame(rows)))
    read = (_READING["audit"],) if audits else ()
    return Table("means", tuple(sections), (_READING["means"], *read, *_notes(summaries)), pd.DataFrame(numbers))


_COSTS = ("verify", "draft", "other")


def models_report(summaries: Iterable[CellSummary]) -> Table:
    """A row a model and temperature, a column a method: the six-task mean, or MT-bench where not all six were measured."""
    summaries = shown_cells(summaries)
    rows, numbers = [], []
    for setting, group in by_setting(summaries):
        by_name = dict(_labelled(group))
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
        rows.append(row | {name: _speedup_and_tau(one) for name, one in shown.items()})
        for name, one in shown.items():
            values = {value: getattr(one, value) for value in _MAIN_VALUES}
            numbers.append({**_setting_columns(setting), "on": row["on"], "method": name, **values})
    frame = pd.DataFrame(rows).fillna(NOTHING)
    return Table("models", (Section("Models", (), frame),), (_READING["models"], *_notes(summaries)), pd.DataFrame(numbers))


def _audited(audit: Mapping[str, str], cell: CellSummary) -> str:
    """A preset's own word where the audit looked at its cells, else its method's."""
    return audit.get(label(cell.method, cell.preset)) or audit.get(cell.method, "not audited")


def audits_of(folder: Path) -> dict[str, dict[str, str]]:
    """What `harness verify --out FOLDER/audit` found: model -> method -> its word; nothing where it was not run. Where there are
    several models, each one's audit is in a folder of its own, FOLDER/audit/MODEL.

    Raises:
        UserError: a file there is something else.
    """
    audits: dict[str, dict[str, str]] = {}
    for file in (Path(folder) / AUDIT, *sorted((Path(folder) / AUDIT.parent).glob(f"*/{AUDIT.name}"))):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            audits[found["model"]] = {str(k): str(v) for k, v in found["methods"].items()}
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(f"{file} is not what `harness verify` writes ({e}); run it again") from None
    return audits


def cell_report(summaries: Iterable[CellSummary]) -> Table:
    """Every cell with its intervals and checks."""
    summaries = shown_cells(summaries)
    sections = tuple(
        Section(setting.title(), facts(group), pd.DataFrame([_cell_row(name, c) for name, c in _labelled_cells(group)]))
        for setting, group in by_setting(summaries)
    )
    return Table("cells", sections, (_READING["cells"], *_notes(summaries)), tidy_table(summaries))


def official_report(summaries: Iterable[CellSummary]) -> Table:
    """Our speedup and τ beside the reference's formulas on the same generations, with what each difference amounts to."""
    summaries = [s for s in shown_cells(summaries) if s.method != VANILLA]
    sections = []
    for setting, group in by_setting(summaries):
        rows = []
        for name, cells in _labelled(group):
            rows += [_official_row(name, c.task, c.source, [c], c.official.lacks) for c in cells]
            if sorted(c.task for c in cells) == sorted(SIX_TASKS):
                rows.append(_official_row(name, MEAN, "", cells, ""))
        sections.append(Section(setting.title(), facts(group), pd.DataFrame(rows)))
    numbers = [
        {**_setting_columns(s.setting), "method": s.method, "preset": s.preset, "task": s.task, "source": s.source,
         **_official_numbers([s]), "n_turns": s.official.n_turns, "lacks": s.official.lacks}
        for s in summaries
    ]  # fmt: skip
    return Table("official", tuple(sections), (_READING["official"], *_notes(summaries)), pd.DataFrame(numbers))


def _official_numbers(cells: Sequence[CellSummary]) -> dict[str, float | None]:
    """Means over cells, None where one lacks the value; factors are of the means, so that they multiply to the whole."""

    def mean(values: Iterable[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return sum(known) / len(cells) if len(known) == len(cells) else None

    def along(*factors: str) -> float | None:
        values = []
        for c in cells:
            value = c.speedup
            for factor in factors:
                part = getattr(c.official, factor)
                value = None if value is None or part is None else value * part
            values.append(value)
        return mean(values)

    steps = [along(*_WAY[:n]) for n in range(len(_WAY) + 1)]
    numbers: dict[str, float | None] = {"speedup": steps[0]}
    for name, before, after in zip(_WAY, steps, steps[1:], strict=False):
        numbers[name] = after / before if after is not None and before else None
    numbers |= {"official_speedup": steps[-1], "tau": mean(c.tau for c in cells)}
    numbers |= {"official_tau": mean(c.official.tau for c in cells)}
    return numbers | {"goes_on": mean(c.official.n_going_on / c.official.n_turns if c.official.n_turns else None for c in cells)}


_WAY = ("per_question", "past_end", "retokenised")


def _official_row(name: str, task: str, source: str, cells: Sequence[CellSummary], lacks: str) -> dict[str, str]:
    n = _official_numbers(cells)
    ours, theirs = n["speedup"], n["official_speedup"]
    apart = any(c.is_apart for c in cells)
    return {
        "method": name,
        "task": task,
        "source": source,
        "speedup": _marked(ours, apart),
        "per question": number(n["per_question"], "{:.3f}"),
        "past the end": number(n["past_end"], "{:.3f}"),
        "re-tokenised": number(n["retokenised"], "{:.3f}"),
        "official": f"{NOTHING} ({lacks})" if lacks else _marked(theirs, apart),
        "bookkeeping": number(theirs / ours - 1 if theirs and ours else None, "{:+.1%}"),
        "τ": number(n["tau"]),
        "official τ": number(n["official_tau"]),
        "goes on": number(n["goes_on"], "{:.0%}"),
    }


def tidy_table(summaries: Iterable[CellSummary]) -> pd.DataFrame:
    """All numbers, one row a cell."""
    rows = []
    for s in summaries:
        row = {**_setting_columns(s.setting), "method": s.method, "preset": s.preset, "exact": s.exact,
               "task": s.task, "source": s.source, "head_sha": s.head_sha, "prompts": s.prompts}  # fmt: skip
        row |= {name: getattr(s, name) for name in _TIDY_VALUES}
        row |= _interval_columns("speedup", s.speedup, s.speedup_ci95) | _interval_columns("tau", s.tau, s.tau_ci95)
        split = s.time_split
        row |= {f"{part}_s_per_token": split and getattr(split, part) for part in ("draft", "verify", "prefill", "other")}
        row |= {"official_speedup": s.official.speedup, "official_tau": s.official.tau}
        costs = s.step_costs
        row |= {f"c_{part}": costs and getattr(costs, part) for part in ("verify", "draft", "other")}
        rows.append(row)
    return pd.DataFrame(rows)


_TIDY_VALUES = ("new_tokens", "seconds", "tokens_per_s", "baseline_tokens_per_s", "decode_speedup", "tau_no_loop",
                "identical", "n_compared", "looped", "mean_tree_size", "n_errors", "n_skipped", "n_unpaired",
                "n_elsewhere", "n_incomplete")  # fmt: skip


def mt_bench_by_category(records: Iterable[Record]) -> Table:
    """MT-bench's categories apart: what a method gains depends on how predictable the answers are."""
    records = [r for r in records if r["task"] == "mt_bench"]
    summaries = shown_cells(summarise(records))
    by_category = {
        category: shown_cells(summarise(r for r in records if r["category"] == category))
        for category in sorted({r["category"] for r in records})
    }
    by_row = [tidy_table(group).assign(category=category) for category, group in by_category.items()]
    sections = []
    for setting, whole in by_setting(summaries):
        rows: dict[str, dict[str, str]] = {}
        in_setting = {category: [s for s in group if s.setting == setting] for category, group in by_category.items()}
        for category, group in in_setting.items():
            for name, cell in _labelled_cells(group):
                rows.setdefault(name, {"method": name})[f"{category} ({cell.source})"] = _speedup_and_tau(cell)
        shown = pd.DataFrame(list(rows.values())).fillna("")
        sections.append(Section(setting.title(), facts(whole), shown))
    numbers = pd.concat(by_row) if by_row else pd.DataFrame()
    return Table("mt_bench_by_category", tuple(sections), (_READING["categories"], *_notes(summaries)), numbers)


def paired_table(records: Iterable[Record]) -> pd.DataFrame:
    """EAGLE-2 against EAGLE-1 and each ablation on the same prompts, per task and as the six-task mean, in numbers.

    Ablations are compared at equal presets; against EAGLE-1 every preset of EAGLE-2 stands, since trees of equal size
    need one that is not the paper's. Differences are EAGLE-2's value less the other's.
    """
    records = list(records)
    return _paired_numbers(comparisons(records, summarise(records)))


def _paired_numbers(found: Iterable[Comparison]) -> pd.DataFrame:
    rows = []
    for comparison in found:
        row = {**_setting_columns(comparison.setting), "method": comparison.method, "against": comparison.against}
        row |= {"task": comparison.task, "source": comparison.source, "prompts": comparison.tau_difference.prompts}
        row |= {"tau": comparison.tau, "tau_against": comparison.tau_against}
        for name in ("tau_difference", "tau_difference_no_loop", "tau_ratio", "speed_ratio"):
            value: Estimate = getattr(comparison, name)
            row |= _interval_columns(name, value.value, value.ci95)
        rows.append(row)
    return pd.DataFrame(rows)


def paired_report(records: Iterable[Record], summaries: Iterable[CellSummary]) -> Table:
    summaries = shown_cells(summaries)
    sections = []
    found = comparisons(records, summaries)
    for setting, group in by_setting(summaries):
        rows = [_comparison_row(c) for c in found if c.setting == setting]
        if rows:
            sections.append(Section(setting.title(), facts(group), pd.DataFrame(rows)))
    return Table("paired", tuple(sections), (_READING["paired"], *_notes(summaries)), _paired_numbers(found))


def divergence_report(records: Sequence[Record], summaries: Sequence[CellSummary]) -> Table:
    """Where greedy outputs leave vanilla's: one line for each first difference."""
    found = divergences(records)
    settings = {r["key"]: setting_of(r) for r in records}
    sections = []
    for setting, group in by_setting(shown_cells(summaries)):
        rows = [_divergence_row(d) for d in found if settings[d.key] == setting]
        if rows:
            sections.append(Section(setting.title(), facts(group), pd.DataFrame(rows)))
    numbers = [{**_setting_columns(settings[d.key]), **_named(d)} for d in found]
    notes = (_READING["divergences"], *(_notes(summaries) if found else ["There are none in these records."]))
    return Table("divergences", tuple(sections), notes, pd.DataFrame(numbers))


def compare(folder_a: Path, folder_b: Path) -> Table:
    """What changed from folder A to folder B, cell by cell, on the prompts both measured.

    Weights, heads, options and machines may differ: the table says which do.
    """
    cells_a, cells_b = _comparable_cells(folder_a), _comparable_cells(folder_b)
    rows: list[dict[str, str]] = []
    numbers: list[dict[str, Any]] = []
    for key in sorted(cells_a.keys() | cells_b.keys(), key=_comparable_order):
        named = dict(zip(_COMPARABLE, key, strict=True))
        if key in cells_a and key in cells_b:
            change = _change(cells_a[key], cells_b[key])
            rows.append(_change_labels(named, cells_b[key]) | _change_row(change))
            numbers.append({**named, "in": "both", **_change_numbers(change)})
        else:
            only = "A" if key in cells_a else "B"
            cell = cells_a.get(key) or cells_b[key]
            rows.append(_change_labels(named, cell) | {"prompts": f"only in {only}"})
            numbers.append({**named, "in": only})
    notes = (f"A = {folder_a}, B = {folder_b}.", _READING["compare"], INEXACT)
    section = Section("A against B", (), pd.DataFrame(rows).fillna(NOTHING))
    return Table("compare", (section,), notes, pd.DataFrame(numbers))


def run_table(summaries: Iterable[CellSummary]) -> str:
    """What `harness run` prints, as plain text with aligned columns."""
    return plain(_run_report(summaries))


def print_run_table(summaries: Iterable[CellSummary], file: TextIO | None = None) -> None:
    """Print it: drawn by rich on a terminal, plain lines elsewhere."""
    out = file or sys.stdout
    table = _run_report(summaries)
    if not out.isatty():
        print(plain(table), file=out)
        return
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(file=out)
    for section in table.sections:
        drawn = RichTable(title=section.title, title_justify="left", caption="\n".join(section.facts))
        for column in section.shown.columns:
            drawn.add_column(column, justify="left" if column in _TEXT_COLUMNS else "right", overflow="fold")
        for row in section.shown.itertuples(index=False):
            drawn.add_row(*row)
        console.print(drawn)
    for note in table.notes:
        console.print(note, markup=False, highlight=False)


def _run_report(summaries: Iterable[CellSummary]) -> Table:
    summaries = list(summaries)
    sections = tuple(
        Section(setting.title(), facts(group), pd.DataFrame([_run_row(c) for c in group]))
        for setting, group in by_setting(summaries)
    )
    return Table("run", sections, (_READING["run"], *_notes(summaries)), tidy_table(summaries))


def write_tables(folder: Path, out: Path | None = None) -> list[Path]:
    """Draw every table of a folder's records as Markdown, CSV and LaTeX into `out` (default: `tables` in the folder).

    Raises:
        UserError: no records, or `out` cannot be written.
    """
    records = read(folder)
    summaries = summarise(records)
    audits = audits_of(folder)
    tables = [
        main_report(summaries, audits), mean_report(records, summaries, audits), cell_report(summaries),
        mt_bench_by_category(records), official_report(summaries), paired_report(records, summaries),
        divergence_report(records, summaries),
    ]  # fmt: skip
    if len({s.model for s in summaries}) > 1:
        tables.append(models_report(summaries))
    target = out or Path(folder) / "tables"
    # that there are no divergences is worth a file
    return [path for t in tables if t.sections or t.name == "divergences" for path in write_forms(t, target)]


def write_forms(table: Table, folder: Path) -> list[Path]:
    """One table as Markdown, CSV and LaTeX; -> the files.

    Raises:
        UserError: names the folder that cannot be written.
    """
    forms = {"md": markdown(table), "csv": csv(table), "tex": latex(table)}
    return [write_file(folder / f"{table.name}.{suffix}", text) for suffix, text in forms.items()]


# ---- cells as text --------------------------------------------------------------------------------------------------


def number(value: float | None, form: str = "{:.2f}") -> str:
    return NOTHING if value is None else form.format(value)


def _times(value: float | None) -> str:
    return number(value, "{:.2f}×")


def bracketed(text: str, ci95: Interval | None, form: str = "{:.2f}") -> str:
    return f"{text} [{form.format(ci95[0])}, {form.format(ci95[1])}]" if ci95 else text


def _estimated(e: Estimate, form: str = "{:.2f}") -> str:
    return bracketed(number(e.value, form), e.ci95, form)


def _tau(cell: CellSummary | SixTaskMean) -> str:
    """τ, and without loops in brackets where that is another number."""
    text = number(cell.tau)
    differs = cell.tau is not None and cell.tau_no_loop != cell.tau
    return f"{text} ({number(cell.tau_no_loop)})" if differs else text


def _speedup_and_tau(cell: CellSummary | SixTaskMean) -> str:
    return NOTHING if cell.speedup is None and cell.tau is None else f"{_speedup(cell)} / {_tau(cell)}"


def _speedup(cell: CellSummary | SixTaskMean) -> str:
    return _marked(cell.speedup, cell.is_apart)


def _marked(value: float | None, is_apart: bool) -> str:
    return ("≈" if is_apart and value is not None else "") + _times(value)


def _fewer(prompts: int, most: int) -> str:
    """Said where a method was measured on fewer prompts than another of the same column."""
    return f" on {prompts}" if prompts < most else ""


def _fraction(cell: CellSummary) -> str:
    return NOTHING if cell.identical is None else f"{cell.identical}/{cell.n_compared}"


def _run_row(c: CellSummary) -> dict[str, str]:
    return {
        "method": c.method + _mark(c.exact),
        "preset": c.preset,
        "task": c.task,
        "source": c.source,
        "T": f"{c.temperature:g}",
        "prompts": str(c.prompts),
        "tokens/s": number(c.tokens_per_s, "{:.1f}"),
        "speedup": bracketed(_speedup(c), c.speedup_ci95),
        "τ": _tau(c),
        "identical": _fraction(c),
        "looped": number(c.looped, "{:.0%}"),
    }


def _cell_row(name: str, c: CellSummary) -> dict[str, str]:
    costs = c.step_costs
    return {
        "method": name,
        "task": c.task,
        "source": c.source,
        "prompts": str(c.prompts),
        "tokens": str(c.new_tokens),
        "tokens/s": number(c.tokens_per_s, "{:.1f}"),
        "vanilla's": number(c.baseline_tokens_per_s, "{:.1f}"),
        "speedup": bracketed(_speedup(c), c.speedup_ci95),
        "official": f"{NOTHING} ({c.official.lacks})" if c.official.lacks else _marked(c.official.speedup, c.is_apart),
        "decode": _times(c.decode_speedup),
        "τ": bracketed(number(c.tau), c.tau_ci95),
        "official τ": number(c.official.tau),
        "τ, no loops": number(c.tau_no_loop),
        "looped": number(c.looped, "{:.0%}"),
        "identical": _fraction(c),
        "tree": number(c.mean_tree_size, "{:.1f}"),
        "c_verify": number(costs.verify if costs else None),
        "c_draft": number(costs.draft if costs else None),
        "c_other": number(costs.other if costs else None),
    }


_TEXT_COLUMNS = {"model", "method", "preset", "against", "task", "source", "setting", "sample", "differs", "verdict", "checked",
                 "audit",
                 "figure", "from",
                 "claim", "test", "on", "verdict, no loops",
                 "layer", "worst value", "threshold", "smallest detectable effect", "function", "what"}  # fmt: skip


# ---- paired comparisons ---------------------------------------------------------------------------------------------


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
    """EAGLE-2 against its counterparts; see `paired_table`."""
    groups: dict[tuple[Setting, Variant], list[Record]] = {}
    for record in records:
        groups.setdefault((setting_of(record), variant_of(record)), []).append(record)
    found: list[Comparison] = []
    for setting, cells in by_setting(shown_cells(summaries)):
        names = labels(cells)
        full = [v for v in names if v[0] == FULL]
        others = [v for v in names if v[0] in COUNTERPARTS]
        for a in full:
            for b in others:
                if b[0] == "eagle1" or a[1] == b[1]:
                    arms = arm(groups[setting, a]), arm(groups[setting, b])
                    found += _comparisons(setting, names[a], names[b], b[0], *arms)
    return found


def _comparisons(setting: Setting, method: str, against: str, against_method: str, a: Arm, b: Arm) -> Iterator[Comparison]:
    shared = {key: a[key] for key in a.keys() & b.keys()}
    tasks = sorted({(r["task"], r["source"]) for r in shared.values()}, key=lambda t: (task_order(t[0]), t[1]))
    for task, source in tasks:
        here = {key: r for key, r in shared.items() if (r["task"], r["source"]) == (task, source)}
        yield _comparison(setting, method, against, against_method, task, source, here, b)
    if sorted(task for task, _ in tasks) == sorted(SIX_TASKS):
        sources = "/".join(sorted({source for _, source in tasks}))
        yield _comparison(setting, method, against, against_method, MEAN, sources, shared, b)


def _comparison(
    setting: Setting, method: str, against: str, against_method: str, task: str, source: str, a: Arm, b: Arm
) -> Comparison:
    both = [a, {key: b[key] for key in a}]
    by_task = task == MEAN
    loopless = without_loops(*both)
    return Comparison(
        setting, method, against, against_method, task, source,
        tau=point(both[:1], tau, by_task=by_task),
        tau_against=point(both[1:], tau, by_task=by_task),
        tau_difference=estimate(both, tau_difference, by_task=by_task),
        tau_difference_no_loop=estimate([loopless, b], tau_difference, by_task=by_task),
        tau_ratio=estimate(both, tau_ratio, by_task=by_task),
        speed_ratio=estimate(both, speed_ratio, by_task=by_task),
    )  # fmt: skip


def _comparison_row(c: Comparison) -> dict[str, str]:
    return {
        "method": c.method,
        "against": c.against,
        "task": c.task,
        "source": c.source,
        "prompts": str(c.tau_difference.prompts),
        "τ": number(c.tau),
        "τ against": number(c.tau_against),
        "difference in τ": _estimated(c.tau_difference, "{:+.2f}"),
        "no loops": _estimated(c.tau_difference_no_loop, "{:+.2f}"),
        "τ ratio": _estimated(c.tau_ratio),
        "speed ratio": _estimated(c.speed_ratio),
    }


def _divergence_row(d: Divergence) -> dict[str, str]:
    return {
        "method": label(d.method, d.preset) + _mark(d.exact),
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


# ---- two folders ----------------------------------------------------------------------------------------------------

_COMPARABLE = ("model", "temperature", "top_p", "dtype", "threads", "max_new_tokens", "seed", "method", "preset",
               "task", "source")  # fmt: skip
_ONE_SIDED = ("target_sha", "head_sha", "options", "machine")  # reported where they differ between the folders


@dataclass(frozen=True, slots=True)
class _Cell:
    own: Arm
    base: Arm


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a cell from folder A to folder B."""

    prompts: int
    tau_a: float | None
    tau_b: float | None
    tau_difference: Estimate
    tau_difference_no_loop: Estimate
    tokens_per_s_a: float | None
    tokens_per_s_b: float | None
    speed_ratio: Estimate
    speedup_ratio: Estimate
    n_same: int  # conversations with the same output in both
    n_compared: int
    differs: tuple[str, ...]


def _comparable_cells(folder: Path) -> dict[tuple[Any, ...], _Cell]:
    records = read(folder)
    base = arm((r for r in records if r["method"] == VANILLA), by=ACROSS_FOLDERS)
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(dict(record)[name] for name in _COMPARABLE), []).append(record)
    for group in groups.values():
        first = group[0]
        if len({(variant_of(r), r["target_sha"], r.get("machine")) for r in measured(group)}) > 1:
            raise UserError(
                f"{folder} holds {first['method']} ({first['preset']}) on {first['task']} with several options, "
                "weights or machines: compare folders that hold one of each"
            )
    arms = {key: arm(group, by=ACROSS_FOLDERS) for key, group in groups.items()}
    return {key: _Cell(own, base) for key, own in arms.items() if own}


def _comparable_order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    *setting, method, preset, task, source = key
    return (*setting, method_order(method), preset_order(preset), task_order(task), source)


def _change(a: _Cell, b: _Cell) -> Change:
    own_a = {key: r for key, r in a.own.items() if key in b.own}
    own_b = {key: b.own[key] for key in own_a}
    tau_change = estimate([own_b, own_a], tau_difference)
    n_same, n_compared = identical(own_b, own_a)
    return Change(
        prompts=tau_change.prompts,
        tau_a=point([own_a], tau),
        tau_b=point([own_b], tau),
        tau_difference=tau_change,
        tau_difference_no_loop=estimate([without_loops(own_b, own_a), own_a], tau_difference),
        tokens_per_s_a=point([own_a], tokens_per_s),
        tokens_per_s_b=point([own_b], tokens_per_s),
        speed_ratio=estimate([own_b, own_a], speed_ratio),
        speedup_ratio=estimate([own_b, b.base, own_a, a.base], speedup_change),
        n_same=n_same,
        n_compared=n_compared,
        differs=tuple(name for name in _ONE_SIDED if _values(own_a, name) != _values(own_b, name)),
    )


def _values(own: Arm, name: str) -> set[str]:
    return {str(r.get(name)) for r in own.values()}


def _change_labels(named: Mapping[str, Any], cell: _Cell) -> dict[str, str]:
    setting = "{model}, T = {temperature:g}, {dtype}, {threads} threads, {max_new_tokens} tokens".format(**named)
    method = label(named["method"], named["preset"]) + _mark(next(iter(cell.own.values()))["exact"])
    return {"method": method, "task": named["task"], "source": named["source"], "setting": setting}


def _change_numbers(c: Change) -> dict[str, Any]:
    row: dict[str, Any] = {"prompts": c.prompts, "tau_a": c.tau_a, "tau_b": c.tau_b}
    row |= {"tokens_per_s_a": c.tokens_per_s_a, "tokens_per_s_b": c.tokens_per_s_b}
    for name in ("tau_difference", "tau_difference_no_loop", "speed_ratio", "speedup_ratio"):
        value: Estimate = getattr(c, name)
        row |= _interval_columns(name, value.value, value.ci95)
    return row | {"n_same": c.n_same, "n_compared": c.n_compared, "differs": " ".join(c.differs)}


def _change_row(c: Change) -> dict[str, str]:
    return {
        "prompts": str(c.prompts),
        "τ": f"{number(c.tau_a)} → {number(c.tau_b)}",
        "difference in τ": _estimated(c.tau_difference, "{:+.2f}"),
        "no loops": _estimated(c.tau_difference_no_loop, "{:+.2f}"),
        "tokens/s": f"{number(c.tokens_per_s_a, '{:.1f}')} → {number(c.tokens_per_s_b, '{:.1f}')}",
        "speed ratio": _estimated(c.speed_ratio),
        "speedup ratio": _estimated(c.speedup_ratio),
        "same outputs": f"{c.n_same}/{c.n_compared}",
        "differs": ", ".join(c.differs) or "nothing",
    }


# ---- rows, facts and notes ------------------------------------------------------------------------------------------


def shown_cells(summaries: Iterable[CellSummary]) -> list[CellSummary]:
    """Without vanilla cells of first turns alone, which are measured only to build second-turn prompts from."""
    return [s for s in summaries if not (s.method == VANILLA and s.prompts and s.n_incomplete == s.prompts)]


def by_setting(summaries: Iterable[CellSummary]) -> list[tuple[Setting, list[CellSummary]]]:
    groups: dict[Setting, list[CellSummary]] = {}
    for s in summaries:
        groups.setdefault(s.setting, []).append(s)
    return list(groups.items())


def by_variant(summaries: Iterable[CellSummary]) -> list[tuple[Variant, list[CellSummary]]]:
    groups: dict[Variant, list[CellSummary]] = {}
    for s in summaries:
        groups.setdefault(s.variant, []).append(s)
    return list(groups.items())


def labels(summaries: Sequence[CellSummary]) -> dict[Variant, str]:
    """A label a row: method and preset, with a hash of options or head only where these alone would be ambiguous."""
    exact = {s.variant: s.exact for s in summaries}
    names = {}
    for variant in exact:
        method, preset, options, head = variant
        twins = [v for v in exact if v[:2] == variant[:2] and v != variant]
        text = label(method, preset) + _mark(exact[variant])
        if any(v[2] != options for v in twins):
            text += f" options {options[:6]}"
        if any(v[3] != head for v in twins):
            text += f" head {head[:6]}"
        names[variant] = text
    return names


def _mark(exact: bool) -> str:
    return "" if exact else " †"


def _labelled(summaries: Sequence[CellSummary]) -> list[tuple[str, list[CellSummary]]]:
    names = labels(summaries)
    return [(names[variant], cells) for variant, cells in by_variant(summaries)]


def _labelled_cells(summaries: Sequence[CellSummary]) -> list[tuple[str, CellSummary]]:
    return [(name, cell) for name, cells in _labelled(summaries) for cell in cells]


def _task_label(cell: CellSummary) -> str:
    return f"{cell.task} ({cell.source})"


def facts(summaries: Sequence[CellSummary]) -> tuple[str, ...]:
    """Where the prompts come from, what measured them, and what is not in the numbers."""
    prompts: dict[str, int] = {}
    for s in sorted(summaries, key=lambda s: (task_order(s.task), s.source)):
        name = f"{s.task} {s.source}"
        prompts[name] = max(prompts.get(name, 0), s.prompts)
    lines = ["Prompts: " + ", ".join(f"{name} ({n})" for name, n in prompts.items())]
    lines += [*weights_and_machine(summaries), *not_in_the_numbers(summaries)]
    apart: dict[str, int] = {}
    for s in summaries:
        if s.n_elsewhere:
            name = label(s.method, s.preset)
            apart[name] = apart.get(name, 0) + s.n_elsewhere
    if apart:
        counts = ", ".join(f"{name} ({n})" for name, n in apart.items())
        lines.append(f"Records whose baseline was measured in another process: {counts}")
    return tuple(lines)


def not_in_the_numbers(summaries: Sequence[CellSummary]) -> list[str]:
    """One line on the prompts that were left out and why, or none."""
    reasons = {
        "n_errors": "failed",
        "n_skipped": "skipped",
        "n_unpaired": "without a baseline",
        "n_incomplete": "lack a turn",
    }
    left_out = [
        f"{s.method} {s.task}: {getattr(s, name)} {reason}"
        for s in summaries
        for name, reason in reasons.items()
        if getattr(s, name)
    ]
    return ["Not in the numbers, or not whole: " + "; ".join(left_out)] if left_out else []


def weights_and_machine(summaries: Sequence[CellSummary]) -> list[str]:
    weights = weights_line(summaries[0].target_sha, ((s.method, s.head_sha) for s in summaries))
    return [weights, f"Machine: {summaries[0].machine}"] if summaries[0].machine else [weights]


def weights_line(target_sha: str, drafters: Iterable[tuple[str, str | None]]) -> str:
    """drafters: (method, hash of what it drafted with); several have one and the same."""
    users: dict[str, set[str]] = {}
    for method, sha in drafters:
        if sha:
            users.setdefault(sha[:16], set()).add(method)
    named = (", ".join(sorted(names, key=method_order)) + f" {sha}" for sha, names in users.items())
    return "; ".join((f"Weights: target {target_sha[:16]}", *sorted(named)))


def _notes(summaries: Sequence[CellSummary]) -> tuple[str, ...]:
    notes = []
    if any(s.source == "bundled" for s in summaries):
        notes.append("bundled: prompts written for this project in the task's form, not the benchmark's own.")
    if any(s.is_apart for s in summaries):
        notes.append(APART)
    if any(not s.exact for s in summaries):
        notes.append(INEXACT)
    if any(s.looped for s in summaries):
        notes.append("looped: share of outputs whose last 64 tokens hold at most half distinct 8-grams; loops flatter τ.")
    return tuple(notes)


def _setting_columns(setting: Setting) -> dict[str, Any]:
    return _named(setting)


def _named(record: Any) -> dict[str, Any]:
    return dict(zip((f.name for f in fields(record)), astuple(record), strict=True))


def _interval_columns(name: str, value: float | None, ci95: Interval | None) -> dict[str, float | None]:
    low, high = ci95 or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


# ---- forms ----------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """GitHub's dialect: a heading and facts a section, notes at the end."""
    parts = []
    for section in table.sections:
        header = "| " + " | ".join(map(_markdown_cell, section.shown.columns)) + " |"
        rule = "|" + "|".join(" :-- " if column in _TEXT_COLUMNS else " --: " for column in section.shown.columns) + "|"
        rows = ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in section.shown.itertuples(index=False)]
        facts = "  \n".join(section.facts)
        parts.append("\n\n".join(filter(None, (f"### {section.title}", facts, "\n".join([header, rule, *rows])))))
    parts += table.notes
    return "\n\n".join(parts) + "\n"


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|")


def latex(table: Table) -> str:
    """One `table` float a section, with the facts and notes in its caption."""
    parts = ["% needs \\usepackage{booktabs}"]
    for section in table.sections:
        columns = section.shown.columns
        caption = " ".join(f"{text.rstrip('.')}." for text in (section.title, *section.facts, *table.notes))
        body = [" & ".join(map(_latex_cell, row)) + r" \\" for row in section.shown.itertuples(index=False)]
        parts += [
            r"\begin{table}",
            r"\centering\small",
            r"\begin{tabular}{" + "".join("l" if column in _TEXT_COLUMNS else "r" for column in columns) + "}",
            r"\toprule",
            " & ".join(map(_latex_cell, columns)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{_latex_cell(caption)}}}",
            r"\end{table}",
        ]
    if not table.sections:
        parts += [f"% {note}" for note in table.notes]
    return "\n".join(parts) + "\n"


_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "τ": r"$\tau$", "—": "---",
    "†": r"\textsuperscript{\dag}", "‡": r"\textsuperscript{\ddag}", "≈": r"$\approx$", "→": r"$\to$",
})  # fmt: skip


def _latex_cell(text: str) -> str:
    return text.translate(_LATEX)


def csv(table: Table) -> str:
    """The numbers; an empty field where there is none. 10 digits: more would be the processor's rounding."""
    return table.numbers.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def plain(table: Table) -> str:
    """For a terminal or a log: columns aligned with spaces."""
    parts = []
    for section in table.sections:
        rows = [list(section.shown.columns), *section.shown.values.tolist()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        left = [column in _TEXT_COLUMNS for column in section.shown.columns]
        lines = [
            "  ".join(c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in zip(row, widths, left, strict=True)).rstrip()
            for row in rows
        ]
        parts.append("\n".join([section.title, *section.facts, *lines]))
    return "\n\n".join([*parts, "\n".join(table.notes)])


def write_file(path: Path, content: str | bytes) -> Path:
    """Put `content` in place whole.

    Raises:
        UserError: names the folder that cannot be written.
    """
    try:
        with whole_file(path) as tmp:
            tmp.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror or error}") from error
    return path
