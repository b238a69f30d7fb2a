"""Intervals hold a known truth about as often as they say, and a narrower one would be found out.

The populations are those of `scripts/interval_coverage.py`, which makes the table of docs/definitions.md.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
try:
    from interval_coverage import POPULATIONS, ends
finally:
    sys.path.pop(0)

LEDGERS = 400


@pytest.fixture(scope="module")
def off() -> np.ndarray:
    """[intervals]: how far the truth is from an interval's middle, in half widths. Over 1 it is missed."""
    found = []
    for name in ("τ", "difference in τ", "speedup", "six-task speedup"):
        population = replace(POPULATIONS[name], n_true=200_000)
        for n in (5, 10):
            low, high = ends(population, n, LEDGERS)
            found.append(np.abs(population.truth() - (low + high) / 2) / ((high - low) / 2))
    return np.concatenate(found)


def too_often(missed: np.ndarray) -> bool:
    """Whether so many misses have a chance under 1 in 1,000 where the true share is 6.5 %, the most in the table."""
    return bool(stats.binom.sf(missed.sum() - 1, len(missed), 0.065) < 0.001)


def too_rarely(missed: np.ndarray) -> bool:
    """The same of so few misses, where the true share is 4 %."""
    return bool(stats.binom.cdf(missed.sum(), len(missed), 0.04) < 0.001)


def test_intervals_of_few_conversations_cover_as_often_as_they_say(off: np.ndarray) -> None:
    assert not too_often(off > 1) and not too_rarely(off > 1), np.mean(off > 1)


@pytest.mark.parametrize("width", [0.85, 0.7])
def test_narrower_intervals_would_fail_that_test(off: np.ndarray, width: float) -> None:
    assert too_often(off > width), np.mean(off > width)


def test_wider_intervals_would_fail_it_too(off: np.ndarray) -> None:
    assert too_rarely(off > 1.3), np.mean(off > 1.3)
