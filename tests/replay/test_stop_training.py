"""RADAR's reward, gradient and optimum, on tables small enough to know them by hand."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_costs import at as costs_at
from made_up_costs import table

from harness.common.errors import UserError
from harness.costs.table import as_json
from harness.replay.price import prices_named
from harness.replay.round_times import RoundTimes, n_looks, round_times, tree_sizes
from harness.replay.rounds import Rounds
from harness.replay.stop_training import (
    Learner,
    StopSettings,
    at,
    best_fixed,
    best_places,
    drawn,
    entropy,
    law_of,
    outcome,
    policy_loss,
    returns,
    stop_law,
    stop_settings,
    train,
    worth,
)
from methods.engine.stop_net import LOOK_MS


def gradient(learner: Learner, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(learner.parameters()), retain_graph=True)])


@pytest.fixture
def toy() -> tuple[Learner, torch.Tensor, torch.Tensor]:
    """(a network, states [5, 3, 2], rewards [5, 4]) in float64."""
    torch.manual_seed(0)
    learner = Learner(2, 4, dropout=0.0).double()
    return learner, -torch.rand(5, 3, 2).double(), torch.rand(5, 4).double()


# ---- the model of time ----------------------------------------------------------------------------------------------


def test_the_look_that_says_stop_counts_and_after_the_last_call_there_is_none() -> None:
    assert n_looks(8).tolist() == [1, 2, 3, 4, 5, 6, 7, 7]
    times = RoundTimes("toy", np.full(8, 70.67), 2.684, 0.4)
    assert times.of_round[0] == pytest.approx(70.67 + 0.4), "a round that stops at once looked once"
    assert times.of_round[3] == pytest.approx(70.67 + 3 * 2.684 + 4 * 0.4)
    assert times.of_round[7] == pytest.approx(70.67 + 7 * 2.684 + 7 * 0.4)
    assert times.without_looks[3] == pytest.approx(70.67 + 3 * 2.684)


def test_times_come_from_published_splits_or_from_a_table_of_costs(tmp_path: Path) -> None:
    gpu = round_times("gpu-radar", 10, 8, 59)
    assert gpu.call == pytest.approx(2.81 / 65) and gpu.other.tolist() == pytest.approx([(89.5 - 7 * 2.81) / 65] * 8)
    assert gpu.look == 0.4 / 65 and round_times("call=0.1,verify=2", 10, 8, 59, look=0.01).call == pytest.approx(0.1)
    file = tmp_path / "t.json"
    file.write_text(as_json(table(costs_at(100))))
    own, ((_, prices),) = round_times(str(file), 10, 8, 59, context=100, accepted=3), prices_named([str(file)]).items()
    plain = prices.plain(100)
    for calls in (1, 2, 8):
        nodes = 10 if calls == 1 else 59
        t = prices.step([1, *[10] * (calls - 1)], nodes, 3, 100) / plain
        assert own.without_looks[calls - 1] == pytest.approx(t)
    assert tree_sizes(10, 8, 59) == [10, *[59] * 7] and own.look == pytest.approx(LOOK_MS / plain)
    with pytest.raises(UserError, match="costs='nowhere': no such file"):
        round_times("nowhere", 10, 8, 59)


# ---- the gradient ---------------------------------------------------------------------------------------------------


def test_returns_are_a_discounted_reward_less_the_price_of_the_calls_that_follow() -> None:
    found = returns(torch.tensor([[5.0, 7.0, 11.0]]), alpha=0.5, gamma=0.9)[0]
    assert found[0].tolist() == pytest.approx([5.0, 0.0])  # it stops at the first look
    assert found[1].tolist() == pytest.approx([-0.5 + 0.9 * 7, 7.0])
    assert found[2].tolist() == pytest.approx([-0.5 - 0.45 + 0.81 * 11, -0.5 + 0.9 * 11])  # no stop: the last call


def test_ten_times_alpha_and_beta_is_ten_times_the_gradient_and_the_same_optimum(toy) -> None:  # type: ignore[no-untyped-def]
    learner, states, rewards = toy
    weights = stop_law(learner(states)).detach()
    both = [policy_loss(learner(states), returns(s * rewards, s * 0.05, 0.99), weights) for s in (1, 10)]
    once, tenfold = (gradient(learner, loss) for loss in both)
    assert torch.allclose(10 * once, tenfold, rtol=1e-12)
    for s in (1, 10):
        assert best_places_by(s * rewards.numpy(), s * 0.05, 0.99) == best_places_by(rewards.numpy(), 0.05, 0.99)


def best_places_by(rewards: np.ndarray, alpha: float, gamma: float) -> list[int]:
    """Where each round is best stopped, seen from its start."""
    worth = [[-alpha * sum(gamma**j for j in range(k)) + gamma**k * r for k, r in enumerate(row)] for row in rewards]
    return [int(np.argmax(row)) for row in worth]


def test_reinforce_s_gradient_is_that_of_full_enumeration(toy) -> None:  # type: ignore[no-untyped-def]
    """Without a discount it is the gradient of the expected return itself, by automatic differentiation of its closed form."""
    learner, states, rewards = toy
    logits = learner(states)
    law, alpha = stop_law(logits), 0.05
    calls = torch.arange(4.0).double()
    closed = -(law * (rewards - alpha * calls)).sum() / (5 * 3)
    ours = gradient(learner, policy_loss(logits, returns(rewards, alpha, 1.0), law.detach()))
    assert torch.allclose(ours, gradient(learner, closed), rtol=1e-9, atol=1e-12)


def test_drawn_actions_have_the_enumerated_gradient_on_average(toy) -> None:  # type: ignore[no-untyped-def]
    learner, states, rewards = toy
    logits, follows = learner(states), returns(rewards, 0.05, 0.99)
    law = stop_law(logits).detach()
    exact = gradient(learner, policy_loss(logits, follows, law))
    one_by_one = torch.zeros_like(exact)  # every way that five rounds of one text can stop, each with its chance
    for places in itertools.product(range(4), repeat=2):
        chance = law[0, places[0]] * law[1, places[1]]
        one_by_one += chance * gradient(learner, policy_loss(logits[:2], follows[:2], torch.from_numpy(at(np.array(places), 4))))
    assert torch.allclose(one_by_one, gradient(learner, policy_loss(logits[:2], follows[:2], law[:2])), rtol=1e-9, atol=1e-12)
    chance = torch.Generator().manual_seed(0)
    mean = sum(drawn(law, chance) for _ in range(20_000)) / 20_000
    assert torch.allclose(mean, law, atol=0.02)
    assert torch.allclose(gradient(learner, policy_loss(logits, follows, mean)), exact, atol=0.1 * float(exact.abs().max()))


# ---- the optimum ----------------------------------------------------------------------------------------------------

# Three kinds of rounds. Two look alike at the first look, and the second tells them apart: what follows is a tree.
HIGH, LOW, FLAT = (0.0, -3.0), (-3.0, 0.0), (-3.0, -3.0)
SEEN = ((HIGH, HIGH, HIGH), (LOW, LOW, LOW), (LOW, FLAT, FLAT))
ACCEPTED = np.array([[1, 1, 1, 1], [0, 1, 3, 4], [0, 1, 1, 1]])
SHARES = (3, 2, 2)  # how many of each


def made_up() -> Rounds:
    kinds = np.repeat(np.arange(3), np.array(SHARES) * 8)
    n, zeros = len(kinds), np.zeros(len(kinds), np.int64)
    states, accepted = np.array(SEEN, np.float32)[kinds], ACCEPTED[kinds]
    return Rounds(states, accepted, np.full_like(accepted, 4), np.arange(n), zeros, zeros, zeros, np.ones(n, bool))


def optimum(rewards: np.ndarray, alpha: float, gamma: float) -> float:
    """The most that a rule can be worth on average, by backward induction over what it has seen so far."""

    @cache
    def worth(kinds: tuple[int, ...], look: int) -> float:
        shares = np.array([SHARES[k] for k in kinds], float)
        stop = float((shares * rewards[list(kinds), look]).sum() / shares.sum())
        if look == rewards.shape[1] - 1:
            return stop
        if look + 1 == len(SEEN[0]):  # the last call: no look follows
            return max(stop, -alpha + gamma * float((shares * rewards[list(kinds), look + 1]).sum() / shares.sum()))
        groups: dict[tuple[float, ...], list[int]] = {}
        for k in kinds:
            groups.setdefault(SEEN[k][look + 1], []).append(k)
        after = sum(sum(SHARES[k] for k in g) * worth(tuple(g), look + 1) for g in groups.values()) / shares.sum()
        return max(stop, -alpha + gamma * after)

    firsts: dict[tuple[float, ...], list[int]] = {}
    for k in range(3):
        firsts.setdefault(SEEN[k][0], []).append(k)
    return sum(sum(SHARES[k] for k in g) * worth(tuple(g), 0) for g in firsts.values()) / sum(SHARES)


QUICK = StopSettings(
    learning_rate=0.003, epochs=60, batch=14, dropout=0.0, hidden=16, gradient="enumerated", alpha=0.02
)  # fmt: skip


@pytest.mark.parametrize("gradient", ["enumerated", "sampled"])
def test_training_finds_the_optimum_of_backward_induction(gradient: str) -> None:
    rounds, times = made_up(), RoundTimes("toy", np.full(4, 1.0), 0.3, 0.02)
    found = train(rounds, rounds, times, "mean", QUICK.model_copy(update={"gradient": gradient, "epochs": 100}))
    law, rewards = law_of(found.learner, rounds.states), 10 * 0.32 * ACCEPTED / times.of_round
    kinds = np.repeat(np.arange(3), np.array(SHARES) * 8)
    reached, best = worth(law, rewards[kinds], QUICK.alpha, QUICK.gamma), optimum(rewards, QUICK.alpha, QUICK.gamma)
    assert 0.98 * best < reached <= best + 1e-6
    assert law.argmax(1).tolist() == [0] * 24 + [3] * 16 + [1] * 16


def test_what_a_rule_is_worth_is_the_return_from_its_start() -> None:
    rewards = torch.tensor([[5.0, 7.0, 11.0]])
    from_start = returns(rewards, 0.5, 0.9)[0, :, 0].numpy()
    assert [worth(at(np.array([k]), 3), rewards.numpy(), 0.5, 0.9) for k in range(3)] == pytest.approx(from_start.tolist())


def test_the_ratio_s_training_reaches_what_no_rule_exceeds() -> None:
    """Dinkelbach: every deterministic rule on what can be told apart is tried, and the best ratio is what training reaches."""
    rounds, times = made_up(), RoundTimes("toy", np.full(4, 1.0), 0.3, 0.02)
    kinds, t = np.repeat(np.arange(3), np.array(SHARES) * 8), times.of_round
    rules = [p for p in itertools.product(range(4), repeat=3) if (p[1] == 0) == (p[2] == 0)]  # alike at the first look
    best = max(outcome(at(np.array(p)[kinds], 4), rounds.accepted, t).ratio for p in rules)
    found = train(rounds, rounds, times, "ratio", QUICK)
    assert 0.98 * best < found.epochs[found.best].ratio <= best + 1e-9
    assert outcome(law_of(found.learner, rounds.states), rounds.accepted, t).ratio == found.epochs[found.best].ratio


def test_entropy_is_that_of_a_look_s_actions_and_keeps_training_from_being_sure() -> None:
    assert entropy(torch.zeros(2, 3, 2)).item() == pytest.approx(np.log(2))
    assert entropy(torch.tensor([[[40.0, 0.0]]])).item() == pytest.approx(0, abs=1e-6)
    rounds, times = made_up(), RoundTimes("toy", np.full(4, 1.0), 0.3, 0.02)

    def left(**changes: float) -> float:
        found = train(rounds, rounds, times, "mean", QUICK.model_copy(update=changes)).learner
        return entropy(found(torch.from_numpy(rounds.states))).item()

    assert left(entropy=0.5) > 2 * left()


def test_an_oracle_and_the_best_fixed_number_of_calls() -> None:
    accepted, times = np.array([[1, 2, 2], [0, 0, 3], [1, 1, 1]]), np.array([1.0, 1.2, 1.4])
    assert best_places(accepted, times, "mean").tolist() == [1, 2, 0]
    places = best_places(accepted, times, "ratio")
    best = max(outcome(at(np.array(p), 3), accepted, times).ratio for p in itertools.product(range(3), repeat=3))
    assert outcome(at(places, 3), accepted, times).ratio == pytest.approx(best)
    assert best_fixed(accepted, times, "ratio") == 2
    found = outcome(at(np.array([1, 2, 0]), 3), accepted, times)
    assert (found.calls, found.mean) == pytest.approx((2.0, (2 / 1.2 + 3 / 1.4 + 1) / 3))
    assert found.ratio == pytest.approx((3 + 4 + 2) / (1.2 + 1.4 + 1.0))


# ---- settings -------------------------------------------------------------------------------------------------------


def test_the_settings_are_the_authors_and_bad_ones_are_one_line() -> None:
    s = stop_settings(())
    assert (s.gamma, s.learning_rate, s.weight_decay, s.least_rate) == (0.99, 1e-4, 1e-4, 1e-6)
    assert (s.epochs, s.batch, s.hidden) == (100, 64, 128)
    assert s.gradient == "sampled" and s.rounds == "visited" and stop_settings(("alpha=0.09",)).alpha == 0.09
    for change, part in (("speed=1", "unknown training setting 'speed'; known: alpha"), ("gamma=2", "gamma is '2'"),
                         ("gradient=free", "gradient is 'free'"), ("batch=x", "batch is 'x'")):  # fmt: skip
        with pytest.raises(UserError, match=part):
            stop_settings((change,))


def test_too_few_texts_are_refused() -> None:
    rounds = made_up()
    with pytest.raises(UserError, match="0 held out: more texts are needed, two of every 10 are held out"):
        train(rounds, rounds.take(np.zeros(len(rounds), bool)), RoundTimes("toy", np.ones(4), 0.1, 0.0), "mean", QUICK)
