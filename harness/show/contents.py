"""What a folder of records holds, read once for all tables and plots that are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.common.names import label
from harness.common.progress import Progress
from harness.ledger.audit_words import audit_pages, audits_of
from harness.ledger.ledger import read
from harness.ledger.trees import each_drafts
from harness.ledger.tuned_presets import FILE, Entry, stored
from harness.metrics.acceptance import ArmSums, Counts, by_arm, counted, drafting_arms
from harness.metrics.arms import Arms
from harness.metrics.cells import CellSummary, summarise
from harness.metrics.engines import engine_notes, of_cells


@dataclass(frozen=True, slots=True)
class Contents:
    """Records and what is computed from them once: summaries, one a cell, and the counts of drafted trees."""

    records: Arms  # reduced
    summaries: tuple[CellSummary, ...]
    counts: Mapping[str, Counts]  # of drafted trees by the record's key; empty where none were kept
    drafted: tuple[ArmSums, ...]  # what the trees tell of acceptance, method by method
    audits: Mapping[str, Mapping[str, str]]  # model -> method -> the audit's word; empty where it was not run
    audit_pages: tuple[str, ...]  # of these audits, as paths in the folder
    footnotes: tuple[str, ...] = ()  # which engine the records ran on, and what of the folder could not be read
    tuned: tuple[Entry, ...] = ()  # what `harness tune` had found of the options that were measured


def read_contents(folder: Path, progress: Progress, strict: bool = False) -> Contents:
    """Read a folder, a step of `progress` for the records and one for each method with trees.

    Raises:
        UserError: no records, a file of records, trees or audits that cannot be read, or `strict` and a line that cannot.
    """
    folder = Path(folder)
    progress.expect(1)
    progress.step("records")
    records = read(folder, strict=strict, reduced=True)
    audits = audits_of(folder)
    arms = Arms(records)
    summaries = summarise(arms)
    footnotes = (*engine_notes(of_cells(summaries)), *records.footnotes)
    counts = counted(each_drafts(folder))
    progress.expect(len(drafting_arms(arms, counts)))
    drafted = []
    for arm in by_arm(arms, counts):
        progress.step(f"trees of {label(arm[0]['method'], arm[0]['preset'])}")
        drafted.append(arm)
    return Contents(
        arms, tuple(summaries), counts, tuple(drafted), audits, audit_pages(folder), footnotes, tuple(stored(folder / FILE))
    )
