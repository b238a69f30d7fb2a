"""Layer 4's statistics: what they are under the law, what they find beside it, and what stands beside a verdict."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from harness.audit.probe import scores
from harness.audit.probe.scores import FUNCTIONS, more_often, rate_bound, score, tokens_needed

VOCAB = 12


def laws(n: int, seed: int, spread: float = 1.5) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, spread, (n, VOCAB))
    p = np.exp(logits)
    return p / p.sum(-1, keepdims=True)


def drawn(p: np.ndarray, seed: int) -> np.ndarray:
    u = np.random.default_rng(seed).random((len(p), 1))
    return (p.cumsum(-1) < u).sum(-1).clip(max=VOCAB - 1)


def summands(p: np.ndarray, q: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    deviations, variances = scores.summands(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (p, q, tokens)))
    return deviations.numpy(), variances.numpy()


def z_values(p: np.ndarray, q: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    deviations, variances = summands(p, q, tokens)
    return deviations.sum(0) / np.sqrt(variances.sum(0))


def test_over_all_tokens_deviations_have_mean_zero_and_the_variance_stated() -> None:
    p, q = laws(1, 1), laws(1, 2)
    p[0, 3] = 0.0  # as top-p leaves it
    p /= p.sum()
    each = np.arange(VOCAB)
    deviations, variances = summands(np.repeat(p, VOCAB, 0), np.repeat(q, VOCAB, 0), each)
    assert np.abs(p[0] @ deviations).max() < 1e-12
    assert np.allclose(p[0] @ deviations**2, variances[0]) and np.isfinite(deviations).all()


def test_the_size_of_the_test_is_what_it_says() -> None:
    found = np.array([z_values(laws(400, s), laws(400, s + 1), drawn(laws(400, s), s + 2)) for s in range(0, 3000, 3)])
    assert np.abs(found.mean(0)).max() < 0.12 and np.abs(found.std(0) - 1).max() < 0.1
    assert 0.03 < (np.abs(found) > 1.96).mean() < 0.07


@pytest.mark.parametrize(
    ("fault", "function"),
    [("temperature", "log p"), ("draft", "log q/p"), ("argmax", "argmax p"), ("draft argmax", "argmax q")],
)
def test_each_kind_of_fault_is_found_by_a_function(fault: str, function: str) -> None:
    n = 6000
    p, q = laws(n, 7), laws(n, 8)
    wrong = {
        "temperature": p**1.15 / (p**1.15).sum(-1, keepdims=True),
        "draft": 0.93 * p + 0.07 * q,
        "argmax": 0.90 * p + 0.10 * np.eye(VOCAB)[p.argmax(-1)],
        "draft argmax": 0.95 * p + 0.05 * np.eye(VOCAB)[q.argmax(-1)],
    }[fault]
    z = dict(zip(FUNCTIONS, z_values(p, q, drawn(wrong, 9)), strict=True))
    assert abs(z[function]) > 4.5


def test_a_shift_of_the_detectable_size_is_found_as_often_as_stated() -> None:
    n, tests = 2000, 10
    s = score("g", n, 0.0, 0.25 * n, tests)
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(2000):
        x = rng.normal(s.detectable * n, math.sqrt(0.25 * n))
        found += score("g", n, x, 0.25 * n, tests).p_value < 1e-3 / tests
    assert 0.93 < found / 2000 < 0.97
    assert tokens_needed(s.detectable, s.detectable / 2, n) == 4 * n


def test_a_function_that_never_varied_has_tested_nothing() -> None:
    s = score("g", 50, 0.0, 0.0, 5)
    assert (s.p_value, s.detectable) == (1.0, math.inf)
    assert score("g", 50, 3.0, 0.0, 5).p_value == 0.0


def test_no_fault_in_480_outputs_bounds_the_rate() -> None:
    assert rate_bound(0, 480) == pytest.approx(1 - 0.05 ** (1 / 480))
    assert rate_bound(5, 100) > 0.05 and rate_bound(0, 0) == 1.0


def test_more_divergences_than_the_control_is_unlikely_by_chance() -> None:
    assert more_often(30, 100, 3, 100) < 1e-6 and more_often(3, 100, 3, 100) > 0.5
