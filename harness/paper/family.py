"""All tests of one ledger of claims as a family: how many there are, and what holds if they are taken together."""

from __future__ import annotations

from collections.abc import Sequence

from harness.metrics.intervals import holm
from harness.paper.contrast import LEVEL, NOT_SO, OPPOSITE, SHOWN, Outcome, Row

Pair = tuple[float | None, float | None]  # of a row's outcome over all outputs, and of that without loops


def taken_together(rows: Sequence[Row]) -> list[Pair]:
    """Holm's adjusted p-values of what the rows' verdicts say, over all tests of the rows; None where nothing was tested.

    Each side is a family of its own: all claims, and all their opposites.
    """
    tests, sides = _tests(rows), []
    for name in ("p_for", "p_against"):
        found = {key: p for key, f in tests.items() if (p := getattr(f, name)) is not None}
        sides.append(dict(zip(found, holm(list(found.values())), strict=True)))

    def p_of(i: int, outcome: Outcome, is_clean: bool) -> float | None:
        is_same = is_clean and outcome == rows[i].all
        return sides[outcome.verdict.startswith((OPPOSITE, NOT_SO))].get((i, is_clean and not is_same))

    return [(p_of(i, row.all, False), p_of(i, row.no_loops, True)) for i, row in enumerate(rows)]


def _tests(rows: Sequence[Row]) -> dict[tuple[int, bool], Outcome]:
    """(row, whether without loops) -> what was tested. Where no output looped a row is one test, not two."""
    both = {(i, is_clean): f for i, row in enumerate(rows) for is_clean, f in ((False, row.all), (True, row.no_loops))}
    return {(i, is_clean): f for (i, is_clean), f in both.items() if f.p_for is not None and not (is_clean and f == rows[i].all)}


def family_line(rows: Sequence[Row]) -> str:
    """How many tests there are, and how many verdicts chance alone would give."""
    tests = _tests(rows).values()
    return (
        f"Tests: {len(tests)}, made of {sum(f.comparisons for f in tests)} comparisons. "
        f"By chance alone about {LEVEL * len(tests):.1f} would come out shown, and as many the opposite"
    )


def is_weak(outcome: Outcome, p_together: float | None) -> bool:
    """Whether a verdict is so by its own test only."""
    return outcome.verdict.startswith((SHOWN, OPPOSITE, NOT_SO)) and p_together is not None and p_together >= LEVEL
