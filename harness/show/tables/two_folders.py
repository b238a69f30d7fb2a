"""`harness table --compare A B`: what changed from one ledger to another, and what makes them incomparable."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import methods
from harness.common.errors import UserError
from harness.common.names import BASELINES, SIX_TASKS, in_words, label, method_order, preset_order, task_order
from harness.forms.table import Section, Table, number, one_line
from harness.ledger.ledger import read
from harness.ledger.record import NEW_IN_3, SCHEMA, Record
from harness.metrics import marks
from harness.metrics.definitions import Estimate, estimate, point, speed_ratio, speedup_change, tau, tau_difference, tokens_per_s
from harness.metrics.engines import BESIDE, SERVED, engine_notes, of_records, served_note
from harness.metrics.groups import INEXACT, MEAN, interval_columns, mark_of
from harness.metrics.marks import joined, signs_of_records
from harness.metrics.pairing import (
    ACROSS_FOLDERS,
    Side,
    engine_of,
    field,
    is_row_invariant,
    measured,
    side_of,
    variant_of,
    without_loops,
)
from harness.metrics.steps import identical
from harness.show.tables.cell_text import estimated_text, marked_text

_NOTE = one_line("""
    On the prompts that both folders hold, with paired 95 % intervals. The difference in τ is B's less A's; the speed ratio is B's
    tokens per second over A's. Speedup: over vanilla in the same folder. Same: conversations whose outputs are equal token for
    token. The CSV has τ without looping outputs, tokens per second and the ratio of speedups besides.""")


def comparison_table(folder_a: Path, folder_b: Path, *, strict: bool = False) -> Table:
    """What changed from folder A to folder B, six-task means before single cells, on the prompts that both measured.

    Weights, heads, options and machines may differ: the facts at the top name what does. A setting that one of the folders has
    from several machines is compared machine by machine, each with itself.

    Raises:
        UserError: a folder without records, or with one method under several options or weights; two folders without a
            cell in common, and why; or `strict` and a line that cannot be read.
    """
    records_a, records_b = (read(folder, strict=strict, reduced=True) for folder in (folder_a, folder_b))
    apart = _on_several_machines(records_a) | _on_several_machines(records_b)
    cells_a, cells_b = _cells_of(records_a, folder_a, apart), _cells_of(records_b, folder_b, apart)
    both = sorted(cells_a.keys() & cells_b.keys(), key=_cell_order)
    sides = _differences(cells_a, cells_b), _one_sided(cells_a, cells_b)
    if not both:
        why = "; ".join(sides[0] or sides[1])
        raise UserError(f"nothing was measured both in A = {folder_a} and in B = {folder_b}: {why[:1].lower()}{why[1:]}")
    changes = {key: _change(cells_a[key], cells_b[key]) for key in both}
    top = (f"A = {folder_a}", f"B = {folder_b}", *sides[0], *sides[1])
    sections, numbers = [], []
    for setting in dict.fromkeys(key.setting for key in both):
        here = [key for key in both if key.setting == setting]
        means = []
        for method, preset in dict.fromkeys((key.method, key.preset) for key in here):
            own = [key for key in here if (key.method, key.preset) == (method, preset)]
            if sorted(key.task for key in own) == sorted(SIX_TASKS):
                change = _change(_together(cells_a[key] for key in own), _together(cells_b[key] for key in own), by_task=True)
                means.append(_row(own[0], cells_a[own[0]], None, change))
                source = "/".join(sorted({key.source for key in own}))
                numbers.append({**own[0]._replace(task=MEAN, source=source)._asdict(), "in": "both", **_numbers(change)})
        title = _setting_title(setting)
        if means:
            sections.append(Section(f"{title}: means over the six tasks", (), pd.DataFrame(means)))
        several = len({key.source for key in here}) > 1
        rows = [_row(key, cells_a[key], _task_name(key, several), changes[key]) for key in here]
        sections.append(Section(f"{title}: task by task", (), pd.DataFrame(rows)))
        numbers += [{**key._asdict(), "in": "both", **_numbers(changes[key])} for key in here]
    for side, mine, theirs in (("A", cells_a, cells_b), ("B", cells_b, cells_a)):
        numbers += [{**key._asdict(), "in": side} for key in sorted(mine.keys() - theirs.keys(), key=_cell_order)]
    sections.insert(0, Section("A against B", top, pd.DataFrame()))
    signs = joined(sign for change in changes.values() for sign in (change.signs_a, change.signs_b))
    engines = [f"{side}: {note}" for side, records in (("A", records_a), ("B", records_b))
               for note in engine_notes(of_records(records))]  # fmt: skip
    notes = (_NOTE, *marks.notes(signs), *([INEXACT] if any(not cells_a[key].exact for key in both) else []),
             *served_note((r["method"], engine_of(r)) for r in (*records_a, *records_b)), *engines, *records_a.footnotes,
             *records_b.footnotes)  # fmt: skip
    return Table("compare", tuple(sections), notes, pd.DataFrame(numbers).drop(columns=[] if apart else "machine"))


class _Key(NamedTuple):
    """What a cell of one folder must share with a cell of the other."""

    model: str
    temperature: float
    top_p: float
    dtype: str
    threads: int
    max_new_tokens: int
    seed: int
    method: str
    preset: str
    task: str
    source: str
    machine: str = ""  # where one of the folders has the setting from several

    @property
    def setting(self) -> tuple[Any, ...]:
        return *self[:7], self.machine

    @classmethod
    def of(cls, record: Record, apart: Collection[tuple[Any, ...]]) -> _Key:
        key = cls(*(field(record, name) for name in cls._fields[:-1]))
        return key._replace(machine=field(record, "machine")) if key.setting in apart else key


def _on_several_machines(records: Sequence[Record]) -> set[tuple[Any, ...]]:
    """The settings that a folder has from several machines."""
    found: dict[tuple[Any, ...], set[str]] = {}
    for r in measured(records):
        found.setdefault(_Key.of(r, ()).setting, set()).add(field(r, "machine"))
    return {setting for setting, machines in found.items() if len(machines) > 1}


@dataclass(frozen=True, slots=True)
class _Cell:
    """One method's records in one folder, on one machine, and all of that folder's vanilla there."""

    own: Side
    base: Side

    @property
    def exact(self) -> bool:
        return next(iter(self.own.values()))["exact"]

    @property
    def is_beside(self) -> bool:
        first = next(iter(self.own.values()))
        return is_row_invariant(first) and methods.is_external(first["method"])

    @property
    def schema(self) -> int:
        return min((r["schema"] for r in self.own.values()), default=SCHEMA)

    def values(self, name: str) -> set[str]:
        return {str(field(r, name)) for r in self.own.values()}


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
    speedup_a: float | None
    speedup_b: float | None
    speed_ratio: Estimate
    speedup_ratio: Estimate
    n_same: int  # conversations with the same output in both
    n_compared: int
    differs: tuple[str, ...]
    signs_a: str  # of its speed
    signs_b: str


def _cells_of(records: Sequence[Record], folder: Path, apart: Collection[tuple[Any, ...]]) -> dict[_Key, _Cell]:
    bases: dict[str, list[Record]] = {}
    for r in records:
        if r["method"] in BASELINES:
            bases.setdefault(field(r, "machine"), []).append(r)
    base = {machine: side_of(own, by=ACROSS_FOLDERS) for machine, own in bases.items()}
    groups: dict[_Key, list[Record]] = {}
    for record in records:
        groups.setdefault(_Key.of(record, apart), []).append(record)
    for key, group in groups.items():
        if len({(variant_of(r), r["target_sha"], r["target_id"]) for r in measured(group)}) > 1:
            raise UserError(
                f"{folder} holds {key.method} ({key.preset}) on {key.task} with several options, "
                "weights or codes: compare folders that hold one of each"
            )
    arms = {key: side_of(group, by=ACROSS_FOLDERS) for key, group in groups.items()}
    return {key: _Cell(own, base.get(field(next(iter(own.values())), "machine"), {})) for key, own in arms.items() if own}


def _cell_order(key: _Key) -> tuple[Any, ...]:
    return (*key.setting, method_order(key.method), preset_order(key.preset), task_order(key.task), key.source)


def _task_name(key: _Key, with_source: bool) -> str:
    return in_words(key.task) + (f" ({key.source})" if with_source else "")


def _setting_title(setting: tuple[Any, ...]) -> str:
    model, temperature, top_p, dtype, threads, max_new_tokens, _, machine = setting
    top, where = f", top-p {top_p:g}" if top_p < 1 else "", f", on {machine}" if machine else ""
    return f"{model}, T = {temperature:g}{top}, {dtype}, {threads} threads, {max_new_tokens} tokens{where}"


# ---- what makes the folders incomparable ----------------------------------------------------------------------------

# Cells that differ in these are not paired at all.
_PAIRED_ON = {"model": "model", "temperature": "temperature", "top_p": "top-p", "dtype": "dtype", "threads": "threads",
              "max_new_tokens": "budget (max_new_tokens)", "seed": "seed", "machine": "machine"}  # fmt: skip
# Paired cells may differ in these; what is then not to be compared.
_REPORTED = {
    "target_sha": ("target weights", "neither speed nor τ tells of the method alone"),
    "target_id": ("target's configuration, tokenizer, prompt format, stop ids or engine", "the target is not the same"),
    "head_sha": ("drafter weights", "τ tells of the drafter, too"),
    "head_id": ("drafter's configuration", "τ tells of the drafter, too"),
    "code_sha": ("code", "the method is not the same"),
    "options": ("options", "the method is not the same"),
    "machine": ("machine", "speeds are not comparable, τ is"),
    "system": ("system prompt", "the prompts are not the same"),
}


def _differences(cells_a: Mapping[_Key, _Cell], cells_b: Mapping[_Key, _Cell]) -> list[str]:
    """A line for each setting in which the folders differ: its values and what follows."""
    lines = []
    for name, said in _PAIRED_ON.items():
        a, b = ({getattr(key, name) for key in cells} - {""} for cells in (cells_a, cells_b))  # "": a machine that is not told
        if a != b:
            follows = "no cell is in both" if not a & b else "only cells with the same value are compared"
            lines.append(f"Differs: {said}: {_listed(a)} in A, {_listed(b)} in B; {follows}")
    both = cells_a.keys() & cells_b.keys()
    for name, (said, follows) in _REPORTED.items():
        changed = [key for key in both if _differ(name, cells_a[key], cells_b[key])]
        if changed:
            methods = sorted({key.method for key in changed}, key=method_order)
            a, b = (set().union(*(cells[key].values(name) for key in changed)) for cells in (cells_a, cells_b))
            values = "" if name in _OF_METHODS else f": {_listed(a)} in A, {_listed(b)} in B"
            whose = f" of {', '.join(methods)}" if name in _OF_METHODS else ""
            lines.append(f"Differs: {said}{whose}{values}; {follows}")
    if both and not lines:
        lines.append("Differs: nothing of settings, machine, weights and options")
    return lines


_OF_METHODS = ("head_sha", "head_id", "code_sha", "options")


def _differ(name: str, a: _Cell, b: _Cell) -> bool:
    """Whether two cells differ in a field. What is not known of schema 2, or is of another formula there, is no difference."""
    is_known = name not in (*NEW_IN_3, "code_sha") or min(cell.schema for cell in (a, b)) > 2
    return is_known and a.values(name) != b.values(name)


def _listed(values: Iterable[Any]) -> str:
    """Each cut at 300 characters: a machine's name, which holds commas, may have 200."""
    names = sorted(str(v)[:300] for v in values)
    return (" and " if any(", " in name for name in names) else ", ").join(names)


def _one_sided(cells_a: Mapping[_Key, _Cell], cells_b: Mapping[_Key, _Cell]) -> list[str]:
    """`only in A: pld (6 cells), hydra (12 cells)`."""
    lines = []
    for side, own, other in (("A", cells_a, cells_b), ("B", cells_b, cells_a)):
        counts: dict[str, int] = {}
        for key in sorted(own.keys() - other.keys(), key=_cell_order):
            counts[label(key.method, key.preset)] = counts.get(label(key.method, key.preset), 0) + 1
        if counts:
            named = ", ".join(f"{name} ({n} {'cell' if n == 1 else 'cells'})" for name, n in counts.items())
            lines.append(f"Measured only in {side}: {named}")
    return lines


# ---- what changed ---------------------------------------------------------------------------------------------------


def _together(cells: Iterable[_Cell]) -> _Cell:
    """Several tasks of one method as one cell."""
    cells = list(cells)
    return _Cell({key: r for cell in cells for key, r in cell.own.items()}, cells[0].base)


def _change(a: _Cell, b: _Cell, by_task: bool = False) -> Change:
    """by_task: unweighted means over the tasks, else all prompts pooled."""
    own_a = {key: r for key, r in a.own.items() if key in b.own}
    own_b = {key: b.own[key] for key in own_a}
    tau_change = estimate([own_b, own_a], tau_difference, by_task=by_task)
    n_same, n_compared = identical(own_b, own_a)
    in_both = _Cell(own_a, a.base), _Cell(own_b, b.base)
    return Change(
        prompts=tau_change.prompts,
        tau_a=point([own_a], tau, by_task=by_task),
        tau_b=point([own_b], tau, by_task=by_task),
        tau_difference=tau_change,
        tau_difference_no_loop=estimate([without_loops(own_b, own_a), own_a], tau_difference, by_task=by_task),
        tokens_per_s_a=point([own_a], tokens_per_s, by_task=by_task),
        tokens_per_s_b=point([own_b], tokens_per_s, by_task=by_task),
        speedup_a=point([own_a, a.base], speed_ratio, by_task=by_task) if own_a.keys() <= a.base.keys() else None,
        speedup_b=point([own_b, b.base], speed_ratio, by_task=by_task) if own_b.keys() <= b.base.keys() else None,
        speed_ratio=estimate([own_b, own_a], speed_ratio, by_task=by_task),
        speedup_ratio=estimate([own_b, b.base, own_a, a.base], speedup_change, by_task=by_task),
        n_same=n_same,
        n_compared=n_compared,
        differs=tuple(name for name in _REPORTED if _differ(name, *in_both)),
        signs_a=signs_of_records(own_a.values()),
        signs_b=signs_of_records(own_b.values()),
    )


def _numbers(c: Change) -> dict[str, Any]:
    row: dict[str, Any] = {"prompts": c.prompts, "tau_a": c.tau_a, "tau_b": c.tau_b}
    row |= {"tokens_per_s_a": c.tokens_per_s_a, "tokens_per_s_b": c.tokens_per_s_b}
    row |= {"speedup_a": c.speedup_a, "speedup_b": c.speedup_b}
    for name in ("tau_difference", "tau_difference_no_loop", "speed_ratio", "speedup_ratio"):
        value: Estimate = getattr(c, name)
        row |= interval_columns(name, value.value, value.ci95)
    return row | {"n_same": c.n_same, "n_compared": c.n_compared, "differs": " ".join(c.differs)}


def _row(key: _Key, cell: _Cell, task: str | None, c: Change) -> dict[str, str]:
    mark = mark_of(cell.exact) + BESIDE * cell.is_beside + SERVED * methods.is_served(key.method)
    row = {"method": label(key.method, key.preset) + mark} | ({"task": task} if task else {})
    return (
        row
        | {
            "speedup": f"{marked_text(c.speedup_a, c.signs_a)} → {marked_text(c.speedup_b, c.signs_b)}",
            "speed ratio": joined([c.signs_a, c.signs_b]) * (c.speed_ratio.value is not None) + estimated_text(c.speed_ratio),
            "τ": f"{number(c.tau_a)} → {number(c.tau_b)}",
            "difference in τ": estimated_text(c.tau_difference, "{:+.2f}"),
        }
        | ({} if task else {"same": f"{c.n_same}/{c.n_compared}"})
    )
