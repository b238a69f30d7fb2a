"""One value of a cell as text, with its interval and marks."""

from __future__ import annotations

from collections.abc import Mapping

from harness.common.names import label
from harness.forms.table import NOTHING, bracketed, number, times
from harness.metrics.cells import CellSummary, SixTaskMean
from harness.metrics.definitions import Estimate
from harness.metrics.engines import LOSSY


def audit_text(audit: Mapping[str, str], cell: CellSummary) -> str:
    """The audit's word on a preset, or on its method where the audit did not look at the preset."""
    return audit.get(label(cell.method, cell.preset)) or audit.get(cell.method, "not audited")


def estimated_text(e: Estimate, form: str = "{:.2f}") -> str:
    return bracketed(number(e.value, form), e.ci95, form)


def tau_text(cell: CellSummary | SixTaskMean) -> str:
    """τ, and in brackets τ without looping outputs where that is another number."""
    text = number(cell.tau)
    differs = cell.tau is not None and cell.tau_no_loop != cell.tau
    return f"{text} ({number(cell.tau_no_loop)})" if differs else text


def speedup_and_tau_text(cell: CellSummary | SixTaskMean) -> str:
    return NOTHING if cell.speedup is None and cell.tau is None else f"{speedup_text(cell)} / {tau_text(cell)}"


def speedup_text(cell: CellSummary | SixTaskMean) -> str:
    return marked_text(cell.speedup, cell.mark)


def marked_text(value: float | None, mark: str) -> str:
    return (mark if value is not None else "") + times(value)


def fewer_prompts_mark(prompts: int, most: int) -> str:
    """` on 3` where a method has fewer prompts than another of the same column."""
    return f" on {prompts}" if prompts < most else ""


def fraction_text(cell: CellSummary) -> str:
    if cell.identical is None:
        return NOTHING
    return f"{cell.identical}/{cell.n_compared}" + (f" {LOSSY}" if cell.is_lossy else "")
