"""The first thing that the page says: how fast, how long the accepts, whether lossless, and how the claims stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from harness.common.names import SIX_TASKS, label_in_words
from harness.forms.table import number
from harness.metrics.cells import CellSummary
from harness.metrics.groups import by_setting, shown_cells
from harness.metrics.pairing import titles
from harness.show.contents import Contents
from harness.show.tables.cell_text import audit_text, marked_text
from harness.show.tables.meaning import MethodMeans, arms_of, conclusions, rivals_of, subject_of


@dataclass(frozen=True, slots=True)
class Headline:
    """One setting's: a few rows of the main table and what they mean."""

    title: str
    rows: pd.DataFrame  # text only
    conclusions: tuple[str, ...]


def headlines(contents: Contents) -> list[Headline]:
    """EAGLE-2, its fastest variant and the fastest method of each setting; settings without a drafting method have none."""
    found = []
    groups = by_setting(shown_cells(contents.summaries))
    title_of = titles(setting for setting, _ in groups)
    for setting, group in groups:
        arms = [a for a in arms_of(group) if a.tau is not None or a.speedup is not None]
        subject = subject_of(arms)
        if subject is None:
            continue
        chosen = [subject, *_fastest(rivals_of(subject, arms)), *_fastest([a for a in arms if a.tasks == subject.tasks])]
        audit = contents.audits.get(setting.model)
        cells = {c.variant: c for c in group}
        rows = [_row(a, cells[a.variant], audit) for a in {a.variant: a for a in chosen}.values()]
        where = "means over the six tasks" if len(subject.tasks) == len(SIX_TASKS) else f"mean over {len(subject.tasks)} tasks"
        where = f"on {next(iter(subject.tasks))[0]}" if len(subject.tasks) == 1 else where
        machine = f", on {setting.machine}" if title_of[setting] != setting.title() else ""
        title = f"{setting.model}, T = {setting.temperature:g}, {where}{machine}"
        found.append(Headline(title, pd.DataFrame(rows), conclusions(group)))
    return found


def _fastest(arms: Sequence[MethodMeans]) -> list[MethodMeans]:
    return sorted((a for a in arms if a.speedup is not None), key=lambda a: -(a.speedup or 0.0))[:1]


def _row(arm: MethodMeans, cell: CellSummary, audit: Mapping[str, str] | None) -> dict[str, str]:
    row = {
        "method": label_in_words(arm.variant[0], arm.name),
        "speedup": marked_text(arm.speedup, arm.mark),
        "τ": number(arm.tau),
    }
    return row | ({"lossless?": audit_text(audit, cell)} if audit else {})
