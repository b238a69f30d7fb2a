"""Cells grouped as tables show them: by setting and by variant, with labels and notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.common.identities import shown_id
from harness.common.names import BASELINES, SIX_TASKS, label, method_order, task_order
from harness.metrics import marks
from harness.metrics.cells import CellSummary
from harness.metrics.clocks import SHARED
from harness.metrics.definitions import Interval
from harness.metrics.engines import BESIDE, LOSSY_NOTE, SERVED, served_note
from harness.metrics.pairing import Setting, Variant

MEAN = "six-task mean"
APART = "≈ most of the baseline was measured in another process, when the machine may have been slower or faster."
SHARED_MACHINE = (
    f"! other work shared the machine: the wall time is over {SHARED:g} times the CPU time of the thread that decodes. "
    "Claims on speed leave such cells out."
)
INEXACT = "† not exact: the method does not promise the target's own outputs."


def shown_cells(summaries: Iterable[CellSummary]) -> list[CellSummary]:
    """Without vanilla cells of first turns alone, which are measured only to build second-turn prompts from."""
    return [s for s in summaries if not (s.method in BASELINES and s.prompts and s.n_incomplete == s.prompts)]


def by_setting(summaries: Iterable[CellSummary]) -> list[tuple[Setting, list[CellSummary]]]:
    """In the order given."""
    groups: dict[Setting, list[CellSummary]] = {}
    for s in summaries:
        groups.setdefault(s.setting, []).append(s)
    return list(groups.items())


def by_variant(summaries: Iterable[CellSummary]) -> list[tuple[Variant, list[CellSummary]]]:
    """In the order given."""
    groups: dict[Variant, list[CellSummary]] = {}
    for s in summaries:
        groups.setdefault(s.variant, []).append(s)
    return list(groups.items())


def labels(summaries: Sequence[CellSummary]) -> dict[Variant, str]:
    """A label for each variant: method and preset, with a hash of options, head or code only where two would read alike."""
    marks_of = {s.variant: mark_of(s.exact) + BESIDE * s.is_beside + SERVED * s.is_served for s in summaries}
    names = {}
    for variant in marks_of:
        method, preset, options, head, code = variant
        twins = [v for v in marks_of if v[:2] == variant[:2] and v != variant]
        text = label(method, preset) + marks_of[variant]
        if any(v[2] != options for v in twins):
            text += f" options {options[:6]}"
        if any(v[3] != head for v in twins):
            text += f" head {head[:6]}"
        if any(v[4] != code for v in twins):
            text += f" code {code[:6]}"
        names[variant] = text
    return names


def mark_of(exact: bool) -> str:
    return "" if exact else " †"


def labelled(summaries: Sequence[CellSummary]) -> list[tuple[str, list[CellSummary]]]:
    """Each variant's label with its cells."""
    names = labels(summaries)
    return [(names[variant], cells) for variant, cells in by_variant(summaries)]


def labelled_cells(summaries: Sequence[CellSummary]) -> list[tuple[str, CellSummary]]:
    return [(name, cell) for name, cells in labelled(summaries) for cell in cells]


def task_label(cell: CellSummary) -> str:
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
        "n_untold": "answers not in τ, as the engine tells of no steps",
        "n_uneven": "pairs in which one engine had more of the prompt in its cache: their speedup is not of the same work",
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
    """`Weights: target 123; eagle1, eagle2 456`. drafters: (method, hash of what it drafted with)."""
    users: dict[str, set[str]] = {}
    for method, sha in drafters:
        if sha:
            users.setdefault(shown_id(sha), set()).add(method)
    named = (", ".join(sorted(names, key=method_order)) + f" {sha}" for sha, names in users.items())
    return "; ".join((f"Weights: target {shown_id(target_sha)}", *sorted(named)))


def notes_of(summaries: Sequence[CellSummary]) -> tuple[str, ...]:
    """What the marks and words in a table of these cells mean, where they occur."""
    notes = []
    if any(s.source == "bundled" and s.task in SIX_TASKS for s in summaries):
        notes.append("bundled: prompts written for this project in the task's form, not the benchmark's own.")
    if any(s.is_apart for s in summaries):
        notes.append(APART)
    if any(s.is_shared for s in summaries):
        notes.append(SHARED_MACHINE)
    notes += marks.notes(marks.joined(s.signs for s in summaries))
    if any(not s.exact for s in summaries):
        notes.append(INEXACT)
    if any(s.is_lossy for s in summaries):
        notes.append(LOSSY_NOTE)
    notes += served_note((s.method, s.engine) for s in summaries)
    if any(s.looped for s in summaries):
        notes.append("looped: share of outputs whose last 64 tokens hold at most half distinct 8-grams; loops flatter τ.")
    return tuple(notes)


def interval_columns(name: str, value: float | None, ci95: Interval | None) -> dict[str, float | None]:
    low, high = ci95 or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
