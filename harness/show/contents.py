"""What a folder of records holds, read once for all tables and plots that are made from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.common.errors import UserError
from harness.common.names import label
from harness.common.progress import Progress
from harness.ledger.audit_words import audit_pages, audits_of
from harness.ledger.ledger import read, read_env
from harness.ledger.record import Record
from harness.ledger.trees import each_drafts
from harness.ledger.tuned_presets import FILE, Entry, stored
from harness.metrics.acceptance import ArmSums, Counts, by_arm, counted, drafting_arms
from harness.metrics.arms import Arms
from harness.metrics.cells import CellSummary, summarise


@dataclass(frozen=True, slots=True)
class Contents:
    """Records and what is computed from them once: summaries, one a cell, and the counts of drafted trees."""

    records: Arms  # reduced
    summaries: tuple[CellSummary, ...]
    counts: Mapping[str, Counts]  # of drafted trees by the record's key; empty where none were kept
    drafted: tuple[ArmSums, ...]  # what the trees tell of acceptance, method by method
    audits: Mapping[str, Mapping[str, str]]  # model -> method -> the audit's word; empty where it was not run
    audit_pages: tuple[str, ...]  # of these audits, as paths in the folder
    footnotes: tuple[str, ...] = ()  # what of the folder could not be read
    tuned: tuple[Entry, ...] = ()  # what `harness tune` had found of the options that were measured
    engines: Mapping[str, str] = field(default_factory=dict)  # of the targets' identities; read where there are such entries


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
    counts = counted(each_drafts(folder))
    progress.expect(len(drafting_arms(arms, counts)))
    drafted = []
    for arm in by_arm(arms, counts):
        progress.step(f"trees of {label(arm[0]['method'], arm[0]['preset'])}")
        drafted.append(arm)
    entries = tuple(stored(folder / FILE))
    engines = _engines(folder, records) if entries else {}
    return Contents(
        arms, tuple(summaries), counts, tuple(drafted), audits, audit_pages(folder), records.footnotes, entries, engines
    )


def _engines(folder: Path, records: Iterable[Record]) -> dict[str, str]:
    """Whose forward ran, in words, by the target's identity; those of environments that say so."""
    found = {}
    for identity, env in {r["target_id"] or "": r["env"] for r in records}.items():
        with suppress(UserError):  # the footnotes name it
            parts = (read_env(folder, env or "") or {}).get("target_parts") or {}
            found[identity] = str(parts.get("engine", ""))
    return found
