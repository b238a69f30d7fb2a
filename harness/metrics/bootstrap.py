"""The paired bootstrap: intervals for ratios of totals, with the conversation as the unit that is drawn again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

Array = NDArray[np.float64]
# Takes one array of sums [n_columns, ...] per stratum and gives [...], broadcast over strata: the same function serves the
# point estimate, the resamples and the jackknife.
Statistic = Callable[..., Array]

MIN_UNITS = 5  # with fewer conversations no bootstrap interval means anything


def paired_bootstrap(
    strata: Sequence[Array],
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    widen: bool = True,
) -> tuple[float, float] | None:
    """Interval of `statistic` over sums of columns, by resampling units: BCa, or percentile where BCa is degenerate.

    Args:
        strata: per stratum [n_columns, n_units], one unit a conversation with the columns of all arms, which keeps the
            arms paired. Units are drawn again within their stratum.
        statistic: from the strata's column sums to the value.
        widen: correct for few units (`_nominal_levels`). In simulations of a ratio of totals, intervals called 95 %
            covered 79, 89 and 91 % of the time at 5, 10 and 20 units without it, and 89, 94 and 94 % with it.

    Returns:
        (low, high), or None under 5 units in any stratum or where a resample has no value (as with no forwards at all).
    """
    if not strata or min(columns.shape[1] for columns in strata) < MIN_UNITS:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        totals = [columns.sum(axis=1) for columns in strata]
        value = statistic(*totals)
        # how often each unit is drawn: the sums of a resample are then one matrix product
        drawn = [rng.multinomial(n, np.full(n, 1 / n), size=n_resamples) for n in (c.shape[1] for c in strata)]
        resampled = statistic(*(columns @ counts.T for columns, counts in zip(strata, drawn, strict=True)))
        if not np.all(np.isfinite(resampled)) or not np.isfinite(value):
            return None
        left_out = [
            statistic(*(t[:, None] if i != j else t[:, None] - columns for j, t in enumerate(totals)))
            for i, columns in enumerate(strata)
        ]
    influence = [(len(values) - 1) * (values.mean() - values) for values in left_out]
    # half of the ties count as below: with few units the value itself comes up among the resamples
    below = float(np.mean(resampled < value) + np.mean(resampled == value) / 2)
    levels = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    spread = sum(float(np.sum(u**2)) for u in influence)
    rounding = 1e-12 * max(1.0, abs(float(value)))
    if 0 < below < 1 and np.isfinite(spread) and spread > rounding**2:
        levels = _bca_levels(_nominal_levels(levels, influence) if widen else levels, below, influence)
    low, high = np.quantile(resampled, levels)
    return float(low), float(high)


def _nominal_levels(levels: Array, influence: Sequence[Array]) -> Array:
    """The levels of a t interval with unbiased variance, as levels of the normal one that a bootstrap comes near.

    A resample of n units varies (n - 1) / n times as much as it should, and its quantiles know nothing of the doubt about
    the variance itself (Hesterberg 2015, the "expanded percentile interval"; degrees of freedom after Welch).
    """
    counts = np.array([len(u) for u in influence])
    as_drawn = np.array([np.sum(u**2) for u in influence]) / counts**2
    unbiased = as_drawn * counts / (counts - 1)
    freedom = unbiased.sum() ** 2 / np.sum(unbiased**2 / (counts - 1))
    return ndtr(stdtrit(freedom, levels) * np.sqrt(unbiased.sum() / as_drawn.sum()))


def _bca_levels(levels: Array, below: float, influence: Sequence[Array]) -> Array:
    """The quantiles to read off for nominal `levels`: corrected for bias and skew (Efron 1987).

    Args:
        below: share of resamples below the value.
        influence: per stratum [n_units], from the jackknife.
    """
    cubes = sum(float(np.sum(u**3)) / len(u) ** 3 for u in influence)
    squares = sum(float(np.sum(u**2)) / len(u) ** 2 for u in influence)
    bias, acceleration = ndtri(below), cubes / (6 * squares**1.5)
    shifted = bias + ndtri(levels)
    # strong skew in few units can push a level past the pole of the formula: the end is then the outermost resample
    divisor = np.maximum(1 - acceleration * shifted, 1e-9)
    return ndtr(bias + shifted / divisor)
