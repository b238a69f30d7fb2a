"""The paired bootstrap: intervals for ratios of totals, with the conversation as the unit that is drawn again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Takes one array of sums [n_columns, ...] per stratum and gives [...]: the same function serves the point estimate,
# the resamples and the jackknife.
Statistic = Callable[..., Array]

MIN_UNITS = 5  # with fewer conversations a bootstrap interval is far too short to be shown


def paired_bootstrap(
    strata: Sequence[Array],
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    n_resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float] | None:
    """Interval of `statistic` over sums of columns, by resampling units: BCa, or percentile where BCa is degenerate.

    Args:
        strata: per stratum [n_columns, n_units], one unit a conversation with the columns of all arms, which keeps the
            arms paired. Units are drawn again within their stratum.
        statistic: from the strata's column sums to the value.

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
        jackknife = [
            statistic(*(t[:, None] if i != j else t[:, None] - columns for j, t in enumerate(totals)))
            for i, columns in enumerate(strata)
        ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, _bca_levels(value, resampled, jackknife, (tail, 1 - tail)))
    return float(low), float(high)


def _bca_levels(value: Array, resampled: Array, jackknife: Sequence[Array], levels: tuple[float, float]) -> Array:
    """The quantiles to read off for the nominal `levels` (Efron 1987; several samples: Davison and Hinkley)."""
    normal = NormalDist()
    # half of the ties count as below: with few units the value itself comes up among the resamples
    below = float(np.mean(resampled < value) + np.mean(resampled == value) / 2)
    influence = [(len(left_out) - 1) * (left_out.mean() - left_out) for left_out in jackknife]
    cubes = sum(float(np.sum(u**3)) / len(u) ** 3 for u in influence)
    squares = sum(float(np.sum(u**2)) / len(u) ** 2 for u in influence)
    # no spread, up to rounding: nothing to correct
    if not 0 < below < 1 or not np.isfinite(cubes) or squares <= (1e-12 * max(1.0, abs(float(value)))) ** 2:
        return np.array(levels)
    bias, acceleration = normal.inv_cdf(below), cubes / (6 * squares**1.5)
    corrected = []
    for level in levels:
        shifted = bias + normal.inv_cdf(level)
        corrected.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    return np.array(corrected)
