"""`harness table`: every table of a ledger."""

from __future__ import annotations

from pathlib import Path

from harness.forms.table import write_forms
from harness.ledger.audit_words import audits_of
from harness.ledger.ledger import read
from harness.metrics.cells import summarise
from harness.show.tables.cells import cell_report, mt_bench_by_category, official_report
from harness.show.tables.main import main_report, mean_report, models_report
from harness.show.tables.paired import divergence_report, paired_report


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
