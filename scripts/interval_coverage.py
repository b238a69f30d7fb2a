"""How often the 95 % intervals cover a known truth: the table of docs/definitions.md.

    python scripts/interval_coverage.py [--ledgers 1000] [--seed 0]

Draws ledgers from populations whose true value is known, asks for the interval of each, and counts. The spreads are like those of
results/; lengths are more uneven, as where a task mixes short answers with long ones. A cell reads: per cent of ledgers whose
interval holds the truth, and in brackets of those whose interval lies wholly above it and wholly below it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from harness.metrics.acceptance import N_BINS, fits
from harness.metrics.intervals import Interval, Statistic, interval, rate_interval

Array = NDArray[np.float64]
Random = np.random.Generator
SIZES = (5, 10, 20, 40, 80)


# ---- what a conversation may look like ------------------------------------------------------------------------------


def lengths(rng: Random, n: int) -> Array:
    """Tokens of n conversations of one or two turns; both turns of a talkative one are long. The budget cuts at 256 a turn."""
    talk = rng.lognormal(0, 0.3, n)
    turns = np.clip(np.round(90 * talk * rng.lognormal(0, 0.5, (2, n))), 4, 256)
    return turns[0] + turns[1] * rng.integers(0, 2, n)


def tau_columns(rng: Random, n: int) -> Array:
    """[tokens, forwards]: tau differs by 20 % between conversations and grows a little with their length."""
    tokens = lengths(rng, n)
    rate = 3 * rng.lognormal(0, 0.2, n) * (tokens / 110) ** 0.1 * rng.lognormal(0, 1 / np.sqrt(tokens), n)
    return np.array([tokens, np.ceil(tokens / np.maximum(rate, 1))])


def two_taus_columns(rng: Random, n: int) -> Array:
    """[tokens, forwards, tokens, forwards] of two methods that find the same conversations easy."""
    tokens, ease = lengths(rng, n), rng.lognormal(0, 0.2, n)
    a, b = (np.ceil(tokens / (mean * ease * rng.lognormal(0, 0.06, n))) for mean in (3.2, 3.0))
    return np.array([tokens, a, tokens, b])


def speed_columns(rng: Random, n: int, spread: float = 0.2, mean: float = 2.2, heavy: bool = False) -> Array:
    """[tokens, seconds, tokens, seconds] of a method and of vanilla, which also has a prefill.

    heavy: a run in 33 takes 2.5 times as long, and the noise of the others has the tails of Student's t with 2 degrees.
    """
    tokens = lengths(rng, n)
    if heavy:
        noise = np.exp(0.05 * rng.standard_t(2, (2, n))).clip(0.3, 4) * np.where(rng.random((2, n)) < 0.03, 2.5, 1)
    else:
        noise = rng.lognormal(0, 0.05, (2, n))
    own, plain = noise * rng.lognormal(0, 0.1, n)  # the machine is slower now and then, for both
    return np.array([tokens, tokens / (mean * rng.lognormal(0, spread, n)) * own, tokens, (tokens + 8) * plain])


def six_tasks(rng: Random, n: int, heavy: bool = False) -> list[Array]:
    """Six tasks that differ in speed and in spread; in the last one answers are copied or not."""
    tasks = zip((0.1, 0.15, 0.2, 0.25, 0.3, 0.6), (1.5, 2.0, 2.2, 2.5, 2.8, 3.5), strict=True)
    return [speed_columns(rng, n, spread, mean, heavy) for spread, mean in tasks]


def position_columns(rng: Random, n: int) -> Array:
    """[forwards, accepted] of a position of the tree: conversations differ in their rate."""
    forwards = np.ceil(lengths(rng, n) / 3)
    return np.array([forwards, rng.binomial(forwards.astype(int), rng.beta(8, 4, n))], dtype=float)


BINS = (np.arange(N_BINS) + 0.5) / N_BINS
NODES = np.array([30, 12, 8, 6, 5, *[4, 3] * 6, 4, 8, 25.0])  # in each bin: most nodes are sure or hopeless


def calibration(rng: Random, n: int, slope: float = 0.95) -> Array:
    """[bins, SUMS, n]: the rate is 0.5 + slope * (confidence - 0.5), and higher in some conversations than in others."""
    nodes = rng.poisson(300 * rng.lognormal(0, 0.5, n)) + 20
    held = np.array([rng.multinomial(size, rng.dirichlet(NODES)) for size in nodes]).T
    odds = np.log((0.5 + slope * (BINS - 0.5)) / (0.5 - slope * (BINS - 0.5)))
    accepted = rng.binomial(held, 1 / (1 + np.exp(-odds[:, None] - rng.normal(0, 0.5, n))))
    c = BINS[:, None]
    return np.stack([held, accepted, held * c, held * c**2, accepted * c], axis=1).astype(float)


# ---- what is known of them ------------------------------------------------------------------------------------------


def ratio(s: Array) -> Array:
    return s[0] / s[1]


def ratio_of_ratios(s: Array) -> Array:
    return s[0] / s[1] / (s[2] / s[3])


def difference(s: Array) -> Array:
    return s[0] / s[1] - s[2] / s[3]


@dataclass(frozen=True)
class Population:
    """draw: a ledger of n conversations a task; found: its interval; true: the value over very many (`n_true`)."""

    draw: Callable[[Random, int], Sequence[Array]]
    found: Callable[[Sequence[Array]], Interval | None]
    true: Callable[[Sequence[Array]], float]
    n_true: int = 1_000_000

    @cache  # noqa: B019 - populations live as long as the script
    def truth(self) -> float:
        return self.true(self.draw(np.random.default_rng(99), self.n_true))


def of_sums(draw: Callable[[Random, int], Sequence[Array]], statistic: Statistic) -> Population:
    def true(strata: Sequence[Array]) -> float:
        return float(np.mean([statistic(columns.sum(axis=1)) for columns in strata]))

    return Population(draw, lambda strata: interval(strata, statistic), true)


def of_fit(name: str) -> Population:
    def true(strata: Sequence[Array]) -> float:
        value = fits(strata[0].sum(axis=2, keepdims=True))[name].value
        assert value is not None
        return value

    return Population(lambda rng, n: [calibration(rng, n)], lambda strata: fits(strata[0])[name].ci95, true, 50_000)


POPULATIONS = {
    "τ": of_sums(lambda rng, n: [tau_columns(rng, n)], ratio),
    "difference in τ": of_sums(lambda rng, n: [two_taus_columns(rng, n)], difference),
    "speedup": of_sums(lambda rng, n: [speed_columns(rng, n)], ratio_of_ratios),
    "speedup, heavy tails": of_sums(lambda rng, n: [speed_columns(rng, n, heavy=True)], ratio_of_ratios),
    "six-task speedup": of_sums(six_tasks, ratio_of_ratios),
    "six-task speedup, heavy tails": of_sums(lambda rng, n: six_tasks(rng, n, heavy=True), ratio_of_ratios),
    "acceptance rate": Population(
        lambda rng, n: [position_columns(rng, n)], lambda s: rate_interval(*s[0]), lambda s: float(s[0][1].sum() / s[0][0].sum())
    ),
    "calibration: slope": of_fit("slope"),
    "calibration: ECE": of_fit("ece"),
    "calibration: mean gap": of_fit("mean_gap"),
}


def ends(population: Population, n: int, ledgers: int, seed: int = 0) -> Array:
    """[2, ledgers]: low and high ends of the intervals of ledgers with n conversations a task.

    A ledger without an interval misses the truth on both sides: the populations here have none.
    """
    rng = np.random.default_rng((seed, n))
    return np.array([population.found(population.draw(rng, n)) or (np.inf, -np.inf) for _ in range(ledgers)]).T


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledgers", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"| conversations a task | {' | '.join(map(str, SIZES))} |\n|:--|{'--:|' * len(SIZES)}")
    for name, population in POPULATIONS.items():
        cells = []
        for n in SIZES:
            low, high = ends(population, n, options.ledgers, options.seed)
            above, below = np.mean(low > population.truth()), np.mean(high < population.truth())
            cells.append(f"{100 * (1 - above - below):.1f} ({100 * above:.1f}, {100 * below:.1f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
