"""Intervals and tests for ratios of totals: a jackknife over conversations, with Student's t.

Each conversation is left out once. How far the value moves tells its standard error and its bias (Quenouille, Tukey 1958; Efron
and Stein 1981). How often these intervals cover a known truth: docs/definitions.md, by `scripts/interval_coverage.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Array = NDArray[np.float64]
Interval = tuple[float, float]
Statistic = Callable[[Array], Array]  # sums of columns [n_columns, ...] -> values [...]

MIN_UNITS = 5  # with fewer conversations no interval means anything


@dataclass(frozen=True, slots=True)
class Spread:
    """How well a value is known. `(centre - truth) / error` follows Student's t with `freedom` degrees of freedom.

    centre: the value less its bias. error: its standard error, 0 where no unit differs from another.
    """

    centre: float
    error: float
    freedom: float

    def interval(self, confidence: float = 0.95) -> Interval:
        half = self.error * float(stdtrit(self.freedom, 0.5 + confidence / 2))
        return self.centre - half, self.centre + half

    def p_above(self, bound: float) -> float:
        """The p-value of "the truth is above `bound`": the chance of such a centre where it is not. One-sided."""
        if self.error == 0:
            return 0.0 if self.centre > bound else 1.0
        return float(stdtr(self.freedom, (bound - self.centre) / self.error))

    def p_below(self, bound: float) -> float:
        """The same of "the truth is below `bound`"."""
        return Spread(-self.centre, self.error, self.freedom).p_above(-bound)


def jackknife(strata: Sequence[Array], statistic: Statistic, *, least: int = MIN_UNITS) -> Spread | None:
    """How well the unweighted mean over strata of `statistic` of each stratum's column sums is known.

    The sum of the strata's variances has Welch's degrees of freedom. A stratum of n units counts n - 2: its spread and its bias
    are estimated, and with n - 1 the intervals of 5 uneven conversations cover 92 to 94 %.

    Args:
        strata: per stratum [n_columns, n_units], one unit a conversation with the columns of all arms, which keeps them paired.
        least: units that a stratum must have, at least 3.

    Returns:
        None where a stratum has fewer units, or where the value of a stratum, or of one less a unit, is not finite.
    """
    counts = np.array([columns.shape[1] for columns in strata])
    if not len(counts) or counts.min() < least:
        return None
    starts = np.cumsum(counts) - counts
    columns = np.concatenate(strata, axis=1)
    sums = np.add.reduceat(columns, starts, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        values, left_out = statistic(sums), statistic(np.repeat(sums, counts, axis=1) - columns)
    if not (np.all(np.isfinite(values)) and np.all(np.isfinite(left_out))):
        return None
    means = np.add.reduceat(left_out, starts) / counts
    squares = np.add.reduceat((left_out - np.repeat(means, counts)) ** 2, starts)
    variances = (counts - 1) / counts * squares / len(counts) ** 2  # of each stratum's share of the mean
    error, value = float(np.sqrt(variances.sum())), float(values.mean())
    if error <= 1e-12 * max(1.0, abs(value)):  # rounding
        return Spread(value, 0.0, float(counts.sum() - 2 * len(counts)))
    bias = (counts - 1) * (means - values)
    freedom = variances.sum() ** 2 / np.sum(variances**2 / (counts - 2))
    return Spread(value - float(bias.mean()), error, float(freedom))


def interval(strata: Sequence[Array], statistic: Statistic) -> Interval | None:
    """The 95 % interval; see `jackknife`."""
    spread = jackknife(strata, statistic)
    return spread.interval() if spread else None


def rate_interval(n: Array, counted: Array) -> Interval | None:
    """The 95 % interval of sum(counted) / sum(n), a share, over units [units]. Units with n = 0 are left out.

    None under 5 units, or where no unit differs from the whole: rates of 0 and 1 are not known without doubt.
    """
    held = n > 0
    spread = jackknife([np.array([n, counted])[:, held]], lambda sums: sums[1] / sums[0])
    if not spread or spread.error == 0:
        return None
    low, high = spread.interval()
    return max(0.0, low), min(1.0, high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: under a level, at most so often is any of them under it by chance."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted
