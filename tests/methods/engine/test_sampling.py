"""From logits to tokens: the processed law, the inverse CDF, the streams of random numbers."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from scipy import stats

from methods.base import SamplerParams
from methods.engine.sampling import Chooser, _Urn, argmax, draft_probabilities, inverse_cdf, probabilities, stream_key, uniform

ALMOST_ONE = 1 - 2**-53
SAMPLED = SamplerParams(8, temperature=1.0, key=123)


# ---- the law ----


def slow_probabilities(logits: list[float], temperature: float, top_p: float) -> list[float]:
    most = max(logits)
    weights = [math.exp((x - most) / temperature) for x in logits]
    p = [w / math.fsum(weights) for w in weights]
    kept: list[int] = []
    for token in sorted(range(len(p)), key=lambda t: (-p[t], t)):
        if top_p < 1 and math.fsum(p[t] for t in kept) >= top_p:
            break
        kept.append(token)
    mass = math.fsum(p[t] for t in kept)
    return [p[t] / mass if t in kept else 0.0 for t in range(len(p))]


@given(
    logits=st.lists(st.integers(-6, 6), min_size=1, max_size=9),
    temperature=st.sampled_from([0.2, 0.7, 1.0, 1.7]),
    top_p=st.sampled_from([0.05, 0.501, 0.803, 0.97, 1.0]),
)
def test_temperature_and_top_p_give_the_law_of_the_slow_version(logits: list[int], temperature: float, top_p: float) -> None:
    wanted = slow_probabilities([float(x) for x in logits], temperature, top_p)
    # a nucleus whose mass is top_p up to rounding may end on either side of it
    masses = np.cumsum(sorted(slow_probabilities([float(x) for x in logits], temperature, 1.0), reverse=True))
    assume(top_p == 1.0 or min(abs(masses - top_p)) > 1e-9)
    p = probabilities(torch.tensor(logits, dtype=torch.float32), temperature, top_p)
    assert p.dtype == torch.float64
    assert np.allclose(p.numpy(), wanted, atol=1e-14)


def test_of_equal_tokens_top_p_keeps_those_of_lower_index() -> None:
    p = probabilities(torch.zeros(8), 1.0, 0.4)
    assert p.nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert p.max() == 0.25


def test_a_tiny_top_p_keeps_the_best_token() -> None:
    assert probabilities(torch.tensor([0.0, 2.0, 1.0]), 1.0, 1e-9).tolist() == [0.0, 1.0, 0.0]


def test_a_batch_of_rows_has_the_laws_of_its_rows() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([probabilities(row, 0.8, 0.9) for row in logits])
    assert torch.allclose(probabilities(logits, 0.8, 0.9), rows, atol=1e-15)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_argmax_of_equal_logits_is_the_lowest_index(logits: list[int], dtype: torch.dtype) -> None:
    assert argmax(torch.tensor(logits, dtype=dtype)) == logits.index(max(logits))


def test_the_argmax_of_a_whole_vocabulary_of_ties_is_the_first() -> None:
    logits = torch.full((49_152,), -1.0)
    assert argmax(logits) == 0
    logits[[40_000, 31, 49_151]] = 2.0
    assert argmax(logits) == 31
    assert Chooser(SamplerParams(1)).token(logits, 0) == 31


# ---- the inverse CDF ----


@given(weights=st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_every_token_has_an_interval_as_long_as_its_probability(weights: list[int]) -> None:
    assume(sum(weights) > 0)
    total = sum(weights)
    p = torch.tensor(weights, dtype=torch.float64) / total
    drawn = [inverse_cdf(p, (i + 0.5) / total) for i in range(total)]
    assert drawn == [token for token, w in enumerate(weights) for _ in range(w)]


@pytest.mark.parametrize("u", [0.0, 2**-53, 0.5, ALMOST_ONE])
@pytest.mark.parametrize("weights", [[1.0], [0.0, 1.0, 0.0], [0.0, 0.5, 0.0, 0.5, 0.0], [1e-300, 1.0], [1.0, 1e-300], [0.1] * 10])
def test_a_token_without_mass_is_never_drawn(weights: list[float], u: float) -> None:
    p = torch.tensor(weights, dtype=torch.float64)
    assert p[inverse_cdf(p, u)] > 0


def test_the_ends_of_the_unit_interval_draw_the_first_and_the_last_token_with_mass() -> None:
    p = torch.tensor([0.0, 0.25, 0.5, 0.25, 0.0], dtype=torch.float64)
    assert inverse_cdf(p, 0.0) == 1
    assert inverse_cdf(p, ALMOST_ONE) == 3
    assert inverse_cdf(p, 0.25) == 2  # a boundary belongs to the token above it


def test_mass_that_sums_to_less_than_one_by_rounding_is_no_hole() -> None:
    p = torch.full((49_152,), 1 / 49_152, dtype=torch.float64) * (1 - 1e-12)
    assert inverse_cdf(p, ALMOST_ONE) == 49_151


# ---- the streams ----


def test_random_numbers_are_those_that_recorded_results_were_drawn_with() -> None:
    """Pinned: another value here means that no sampled result on file can be reproduced."""
    assert stream_key(0, "gsm8k/1", 1, 0) == 2988722099848425758
    assert [uniform(7, b"token", 0), uniform(7, b"accept", 3, 2)] == [0.24006139007815974, 0.5482242835073033]
    q = torch.tensor([0.1, 0.4, 0.0, 0.3, 0.2], dtype=torch.float64)
    assert Chooser(SAMPLED).children(q, 9, 4, 1) == [3, 1, 4, 0]  # since each child has a uniform of its own


def test_a_stream_is_named_by_everything_that_makes_a_sample() -> None:
    names = itertools.product([0, 1], ["a", "a1", "1"], [1, 2, 11], [0, 1])
    assert len({stream_key(*name) for name in names}) == 2 * 3 * 3 * 2
    assert 0 <= stream_key(5, "é", 1, 1) < 2**63


def test_uniforms_are_uniform_and_apart_by_key_purpose_position_and_attempt() -> None:
    tokens = [uniform(1, b"token", i) for i in range(4000)]
    others = [
        [uniform(2, b"token", i) for i in range(4000)],
        [uniform(1, b"accept", i) for i in range(4000)],
        [uniform(1, b"token", i, 1) for i in range(4000)],
        tokens[1:] + tokens[:1],
    ]
    assert all(0 <= u < 1 for u in tokens)
    assert stats.kstest(tokens, "uniform").pvalue > 1e-3
    for other in others:
        assert abs(stats.pearsonr(tokens, other).statistic) < 4 / math.sqrt(4000)


def test_what_was_drawn_before_does_not_matter() -> None:
    p = torch.full((50,), 0.02, dtype=torch.float64)
    forwards, backwards = Chooser(SAMPLED), Chooser(SAMPLED)
    backwards.children(p, 3, 0, 0)
    there = [forwards.draw(p, i) for i in range(20)]
    back = [backwards.draw(p, i) for i in reversed(range(20))]
    assert there == back[::-1]
    assert len(set(there)) > 5


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_no_temperature_is_greedy(temperature: float) -> None:
    assert Chooser(SamplerParams(1, temperature=temperature)).greedy


@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.3, 1.0, 2.0]), top_p=st.sampled_from([0.7, 1.0]))
def test_a_drafts_law_is_the_processed_one_but_for_rounding_and_sums_to_one(seed: int, temperature: float, top_p: float) -> None:
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(seed)) * 4
    exact, drafts = probabilities(logits, temperature, top_p), draft_probabilities(logits, temperature, top_p)
    assert drafts.dtype == torch.float64 and float((drafts.sum(-1) - 1).abs().max()) < 1e-14
    if top_p == 1:  # a cut may fall between two that rounding swaps
        assert float((exact - drafts).abs().max()) < 1e-6
    assert torch.equal(
        draft_probabilities(logits.double(), temperature, top_p), probabilities(logits.double(), temperature, top_p)
    )


# ---- sampled children ----


def test_children_are_distinct_possible_and_as_many_as_there_are() -> None:
    q = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0], dtype=torch.float64)
    for position in range(50):
        children = Chooser(SAMPLED).children(q, 10, position, 0)
        assert sorted(children) == [1, 3, 4]
        assert Chooser(SAMPLED).children(q, 2, position, 0) == children[:2]


def test_children_over_several_blocks_are_drawn_as_the_numbers_say() -> None:
    """u lies in the interval of one token of what is left; a token that was drawn has none."""
    q = torch.zeros(700, dtype=torch.float64)
    q[[3, 300, 301, 699]] = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    for position in range(40):
        left, found = q.clone(), Chooser(SAMPLED).children(q, 9, position, 5)
        assert sorted(found) == [3, 300, 301, 699]
        for rank, token in enumerate(found):
            at = uniform(SAMPLED.key, b"draft", position, 5 + (rank << 32)) * float(left.sum())
            assert float(left[:token].sum()) - 1e-12 <= at <= float(left[: token + 1].sum()) + 1e-12
            left[token] = 0


def test_rounding_at_the_ends_draws_no_token_without_mass() -> None:
    q = torch.zeros(49_152, dtype=torch.float64)
    q[[7, 256, 40_000]] = 1e-300
    for u in (0.0, 0.5, ALMOST_ONE):
        urn = _Urn(q)
        assert sorted(urn.draw(u) for _ in range(3)) == [7, 256, 40_000] and urn.draw(u) == -1


def test_nodes_and_positions_draw_their_own_children() -> None:
    q = torch.full((30,), 1 / 30, dtype=torch.float64)
    drawn = [Chooser(SAMPLED).children(q, 3, position, node) for position in range(4) for node in range(4)]
    assert len({tuple(children) for children in drawn}) == 16


def test_the_first_two_children_have_the_law_of_drawing_without_replacement() -> None:
    q = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
    n = 4000
    pairs = [tuple(Chooser(SAMPLED).children(q, 2, position, 3)) for position in range(n)]
    orders = list(itertools.permutations(range(4), 2))
    expected = [float(q[a] * q[b] / (1 - q[a])) for a, b in orders]
    observed = [pairs.count(order) for order in orders]
    assert sum(observed) == n
    assert stats.chisquare(observed, [n * p for p in expected]).pvalue > 1e-3
