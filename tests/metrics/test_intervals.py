"""The jackknife against a slow and obvious one, and what it says where there is little to say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from harness.metrics.definitions import estimated
from harness.metrics.intervals import Spread, holm, interval, jackknife, rate_interval


def ratio(sums: np.ndarray) -> np.ndarray:
    return sums[0] / sums[1]


def sample(n: int, seed: int = 0) -> np.ndarray:
    """[2, n]: uneven sizes, and a ratio that varies by 30 % from unit to unit."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(0, 0.4, n)
    return np.array([2 * size * rng.lognormal(0, 0.3, n), size])


def slow(strata: list[np.ndarray]) -> tuple[float, float]:
    """The interval by the book: leave out one unit at a time, a stratum at a time."""
    value, bias, variances, freedoms = 0.0, 0.0, [], []
    for units in strata:
        n = units.shape[1]
        whole = units[0].sum() / units[1].sum()
        left = [np.delete(units[0], i).sum() / np.delete(units[1], i).sum() for i in range(n)]
        value += whole / len(strata)
        bias += (n - 1) * (np.mean(left) - whole) / len(strata)
        variances.append((n - 1) ** 2 / n * np.var(left, ddof=1) / len(strata) ** 2)
        freedoms.append(n - 2)
    welch = sum(variances) ** 2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    half = stats.t.ppf(0.975, welch) * np.sqrt(sum(variances))
    return value - bias - half, value - bias + half


@pytest.mark.parametrize("counts", [(5,), (40,), (8, 15, 30), (5, 5, 5, 5, 5, 5)])
def test_the_interval_is_that_of_leaving_out_one_unit_at_a_time(counts: tuple[int, ...]) -> None:
    strata = [sample(n, seed) for seed, n in enumerate(counts)]
    assert interval(strata, ratio) == pytest.approx(slow(strata), rel=1e-9)


def test_of_a_mean_it_is_students_interval_with_one_degree_less() -> None:
    x = np.random.default_rng(0).normal(3, 1, 12)
    low, high = interval([np.array([x, np.ones(12)])], ratio) or (0.0, 0.0)
    theirs = stats.t.interval(0.95, 10, np.mean(x), stats.sem(x))
    assert (low, high) == pytest.approx(theirs)


def test_p_values_agree_with_the_interval_and_with_each_other() -> None:
    spread = jackknife([sample(9)], ratio)
    assert spread
    for bound, end in itertools.product((0.5, 0.8, 0.95), (0, 1)):
        edge = spread.interval(bound)[end]
        p_above, p_below = spread.p_above(edge), spread.p_below(edge)
        assert (p_below, p_above)[end] == pytest.approx((1 + bound) / 2)
        assert p_above + p_below == pytest.approx(1)


def test_units_that_are_all_alike_give_an_interval_without_width() -> None:
    strata = [np.array([np.full(7, 0.3), np.full(7, 0.1)])] * 3
    spread = jackknife(strata, ratio)
    assert spread and spread.error == 0 and spread.interval() == pytest.approx((3.0, 3.0))
    assert (Spread(1.0, 0.0, 3).p_above(0), Spread(1.0, 0.0, 3).p_above(1.0), Spread(-1.0, 0.0, 3).p_below(0)) == (0, 1, 0)


@pytest.mark.parametrize("n", [0, 1, 4])
def test_too_few_units_give_no_interval(n: int) -> None:
    assert jackknife([np.ones((2, n))], ratio) is None
    assert jackknife([np.ones((2, 9)), np.ones((2, n))], ratio) is None
    assert jackknife([], ratio) is None


def test_a_value_that_hangs_on_one_unit_has_no_interval() -> None:
    only_one = np.array([[1.0] * 6, [1.0, 0, 0, 0, 0, 0]])
    assert np.isfinite(ratio(only_one.sum(axis=1))) and jackknife([only_one], ratio) is None
    assert jackknife([np.array([[1.0] * 6, [0.0] * 6])], ratio) is None
    assert jackknife([np.array([[1.0] * 6, [np.nan] + [1.0] * 5])], ratio) is None


def test_a_share_keeps_within_0_and_1_and_needs_units_that_differ() -> None:
    n, counted = np.array([8.0, 9, 0, 9, 9, 9]), np.array([8.0, 9, 0, 9, 9, 7])
    low, high = rate_interval(n, counted) or (0.0, 0.0)
    assert 0 < low < counted.sum() / n.sum() < high == 1
    assert rate_interval(n, n) is None
    assert rate_interval(n[:5], counted[:5]) is None  # four of them hold something


def test_holm_is_the_closed_testing_procedure() -> None:
    """Adjusted p of a test: the largest Bonferroni p over all subsets of tests that hold it."""
    p_values = [0.01, 0.2, 0.03, 0.004]
    for i, adjusted in enumerate(holm(p_values)):
        subsets = [s for k in range(1, 5) for s in itertools.combinations(range(4), k) if i in s]
        assert adjusted == pytest.approx(max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets))


def test_no_interval_of_a_ratio_reaches_below_what_it_can_be() -> None:
    """One slow run in five: Student's t would go down to -13 times."""
    columns = np.array([[1.0] * 5, [1, 1, 1, 1, 300], [1.0] * 5, [10.0] * 5])
    free, cut = (estimated([columns], lambda s: s[0] / s[1] / (s[2] / s[3]), least).ci95 for least in (-np.inf, 0.0))
    assert free is not None and cut is not None
    assert free[0] < 0 == cut[0] and cut[1] == free[1]
