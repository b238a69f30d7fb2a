"""The score test of layer 4, and the bounds beside every verdict. Numbers in, numbers out.

A token's law p is known from the text before it, so no second sample is needed. Take any function g that is fixed before the
token is drawn: g(y) - E_p g has mean zero. The sum over all tokens, divided by the root of the summed variances, tends to a
standard normal (martingale central limit theorem). The tokens need not be independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

# Each sees faults that the others miss. "place" is where the token lies in the law cumulated by id. Tokens are drawn by inverse
# CDF, so it alone sees a random number that is used twice.
FUNCTIONS = ("q > p", "log q/p", "log p", "argmax p", "argmax q", "place")
ALPHA = 1e-3  # of the whole family of tests in one audit, by Holm's procedure
POWER = 0.95
LEAST_Q = 1e-9  # log q/p stays finite where the drafter gives a token no mass


def summands(p: Tensor, q: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """g(y) - E_p g and Var_p g of the six functions at every position.

    Args:
        p: [n, vocab] float64, the processed law of each token; q: [n, vocab] the drafter's; tokens: [n] what was emitted.

    Returns:
        deviations [n, 6], variances [n, 6].
    """
    found: list[tuple[Tensor, Tensor]] = []

    def of(g: Tensor) -> None:
        own, mean = g.gather(-1, tokens[:, None])[:, 0], (p * g).sum(-1)
        found.append((own - mean, (p * (g - mean[:, None]).square_()).sum(-1)))

    def of_set(is_in: Tensor, mass: Tensor) -> None:
        """The same, for the indicator of a set with mass `mass`."""
        found.append((is_in.double() - mass, mass * (1 - mass)))

    larger = q > p
    of_set(larger.gather(-1, tokens[:, None])[:, 0], (p * larger).sum(-1))
    log_p = torch.where(p > 0, p, 1.0).log_()
    of(torch.where(p > 0, q.clamp(min=LEAST_Q).log_() - log_p, 0.0))
    of(log_p)
    for best in (p.max(-1).indices, q.max(-1).indices):
        of_set(tokens == best, p.gather(-1, best[:, None])[:, 0])
    of((p.cumsum(-1) - p / 2).contiguous())
    deviations, variances = (torch.stack(column, dim=-1) for column in zip(*found, strict=True))
    return deviations, variances


@dataclass(frozen=True, slots=True)
class Score:
    """One function over all tokens of one method. `mean`: how far its average lies from what the law says, with a 95 % interval.
    `detectable`: the smallest shift that the whole family of tests finds 95 times in 100."""

    function: str
    n: int
    mean: float
    ci95: tuple[float, float]
    z: float
    p_value: float
    detectable: float


def score(function: str, n: int, deviation: float, variance: float, n_tests: int) -> Score:
    """The score from the sums over `n` tokens. `n_tests`: the size of the family, for `detectable`."""
    if variance <= 0:  # the function never varied: nothing was tested
        return Score(function, n, deviation / max(n, 1), (0.0, 0.0), 0.0 if deviation == 0 else math.inf,
                     1.0 if deviation == 0 else 0.0, math.inf)  # fmt: skip
    error = math.sqrt(variance) / n
    z = deviation / math.sqrt(variance)
    reach = float(stats.norm.isf(ALPHA / n_tests / 2) + stats.norm.isf(1 - POWER))
    mean = deviation / n
    half = float(stats.norm.isf(0.025)) * error
    return Score(function, n, mean, (mean - half, mean + half), z, float(2 * stats.norm.sf(abs(z))), reach * error)


def tokens_needed(detectable: float, wanted: float, n: int) -> int:
    """Tokens that bring the smallest detectable shift down from `detectable` (at n tokens) to `wanted`."""
    return math.ceil(n * (detectable / wanted) ** 2)


def rate_bound(failures: int, trials: int, confidence: float = 0.95) -> float:
    """Exact (Clopper-Pearson) one-sided upper bound of a fault rate."""
    if trials == 0:
        return 1.0
    return float(stats.binomtest(failures, trials, alternative="less").proportion_ci(confidence, "exact").high)


def more_often(failures: int, trials: int, control_failures: int, control_trials: int) -> float:
    """p-value of Fisher's exact test that the first rate is greater than the control's."""
    table = [[failures, trials - failures], [control_failures, control_trials - control_failures]]
    return float(stats.fisher_exact(table, alternative="greater").pvalue)
