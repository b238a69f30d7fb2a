"""RADAR's training (arXiv 2512.14069, and its released settings): REINFORCE on recorded rounds, where every outcome is known.

An episode is a round. To go on costs `alpha`, to stop after k calls beyond the first pays a reward. Two objectives:

- `mean`, the authors': the reward is beta * accepted / t(k), the bonus token not counted. It raises the mean of ratios.
- `ratio`, the harness's: tokens over time of all rounds together, E[a + 1] / E[t], which is what speed is. Dinkelbach (1967):
  with the reward (a + 1) - rate * t(k), and the rate set to the ratio reached, again and again, the optimum of both is the
  same.

Training draws actions as the authors do, without a baseline (`gradient=sampled`). As every outcome is in the table, the same
gradient can be had without chance, summed over all that could have been drawn (`gradient=enumerated`).

Such training tends to end where a network is sure of one action everywhere: its gradient is gone there. `entropy`, which the
authors do not have, keeps it from being so sure (Williams and Peng, 1991).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.common.errors import UserError
from harness.common.options import parse_changes
from harness.replay.round_times import RoundTimes
from harness.replay.rounds import Rounds
from methods.engine.stop_net import CONTINUE, STOP

Array = NDArray[np.float64]
Objective = Literal["mean", "ratio"]
SCALE = 10.0  # the authors' of both alpha and beta; beta's unit is a call and a look
HELD_OUT = 10  # of so many conversations one chooses the epoch, and one is for what is told


class StopSettings(pydantic.BaseModel, extra="forbid", frozen=True):
    """The authors' values where they tell them. alpha: of a further call, at `SCALE`; they search 0.01 to 0.09, and `ratio` takes
    none. entropy: what a nat of a look's entropy is worth, in units of the reward. rounds: those that a decode starts, as theirs,
    or every position of the answers."""

    alpha: float = pydantic.Field(0.01, ge=0)
    gamma: float = pydantic.Field(0.99, gt=0, le=1)
    learning_rate: float = pydantic.Field(1e-4, gt=0)
    least_rate: float = pydantic.Field(1e-6, ge=0)
    weight_decay: float = pydantic.Field(1e-4, ge=0)
    entropy: float = pydantic.Field(0.0, ge=0)
    clip_norm: float = pydantic.Field(1.0, gt=0)
    dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    batch: int = pydantic.Field(64, ge=1)
    epochs: int = pydantic.Field(100, ge=1)
    hidden: int = pydantic.Field(128, ge=1)
    gradient: Literal["sampled", "enumerated"] = "sampled"
    rounds: Literal["visited", "every"] = "visited"
    seed: int = pydantic.Field(0, ge=0)


def stop_settings(changes: Sequence[str]) -> StopSettings:
    """`KEY=VALUE` each.

    Raises:
        UserError: no such setting, or a value that cannot be.
    """
    try:
        return StopSettings(**parse_changes(changes))  # type: ignore[arg-type]
    except pydantic.ValidationError as e:
        first = e.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UserError(f"unknown training setting {name!r}; known: {', '.join(StopSettings.model_fields)}") from None
        raise UserError(f"training setting {name} is {first['input']!r}: {first['msg']}") from None


class Learner(nn.Module):
    """`StopNet` as torch trains it."""

    def __init__(self, dim: int, hidden: int = 128, dropout: float = 0.1):
        super().__init__()
        self.lstm = nn.LSTM(dim, hidden, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(hidden + dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 2))

    def forward(self, states: Tensor) -> Tensor:
        """states [n, K, dim] -> logits [n, K, 2] of stop and continue."""
        return self.mlp(torch.cat([self.lstm(states)[0], states], dim=-1))


def stop_law(logits: Tensor) -> Tensor:
    """logits [n, K, 2] -> [n, K + 1]: the chance to stop after so many calls beyond the first."""
    logs = logits.log_softmax(-1)
    on = torch.cat([torch.zeros_like(logs[:, :1, 0]), logs[..., CONTINUE].cumsum(1)], dim=1)
    return (on + torch.cat([logs[..., STOP], torch.zeros_like(logs[:, :1, 0])], dim=1)).exp()


def returns(rewards: Tensor, alpha: float, gamma: float) -> Tensor:
    """rewards [n, K + 1], of stopping there -> [n, K + 1, K]: of a round that stops there, what follows from each look on."""
    n_looks = rewards.shape[1] - 1
    k, i = torch.arange(n_looks + 1)[:, None], torch.arange(n_looks)
    left = (k - i).clamp(min=0)  # calls that follow
    paid = sum((gamma**j * (left > j) for j in range(n_looks)), torch.zeros(left.shape, dtype=rewards.dtype))
    return torch.where(i <= k, gamma**left * rewards[..., None] - alpha * paid, 0.0)


def policy_loss(logits: Tensor, follows: Tensor, weights: Tensor) -> Tensor:
    """REINFORCE's loss: minus the mean over looks of log pi(action) times what follows from it.

    follows: `returns`. weights [n, K + 1]: 1 at the place to stop that was drawn; or each place's chance, for all draws at once.
    """
    logs = logits.log_softmax(-1)
    n, n_looks, _ = logs.shape
    k, i = torch.arange(n_looks + 1)[:, None], torch.arange(n_looks)
    taken = (i < k) * logs[:, None, :, CONTINUE] + (i == k) * logs[:, None, :, STOP]
    return -(weights[..., None] * taken * follows).sum() / (n * n_looks)


def entropy(logits: Tensor) -> Tensor:
    """logits [n, K, 2] -> the mean over looks of the entropy of their actions, in nats."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).mean()


def drawn(law: Tensor, generator: torch.Generator) -> Tensor:
    """law [n, K + 1] -> [n, K + 1]: 1 at the place that was drawn, 0 elsewhere."""
    return torch.zeros_like(law).scatter(1, torch.multinomial(law, 1, generator=generator), 1.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule to stop gives over rounds. calls: of the drafter a round, its first among them; mean: E[a / t]; ratio:
    E[a + 1] / E[t], tokens in the time of a plain step."""

    calls: float
    mean: float
    ratio: float

    def of(self, objective: Objective) -> float:
        return self.mean if objective == "mean" else self.ratio


def outcome(law: Array, accepted: NDArray[Any], times: Array) -> Outcome:
    """law, accepted [n, K + 1], times [K + 1]."""
    calls = float((law * np.arange(1, law.shape[1] + 1)).sum(1).mean())
    mean = float((law * accepted / times).sum(1).mean())
    return Outcome(calls, mean, float((law * (accepted + 1)).sum() / (law * times).sum()))


def at(places: NDArray[np.int64], n: int) -> Array:
    """places [rounds] -> the law [rounds, n] that stops there."""
    return np.eye(n)[places]


def best_places(accepted: NDArray[Any], times: Array, objective: Objective) -> NDArray[np.int64]:
    """Where an oracle stops each round: [n]. The fewest calls of equals."""
    if objective == "mean":
        return (accepted / times).argmax(1)
    rate, places = -1.0, np.zeros(len(accepted), np.int64)
    while (now := float((accepted[np.arange(len(places)), places] + 1).sum() / times[places].sum())) > rate:
        rate = now
        places = (accepted + 1 - rate * times).argmax(1)
    return places


def best_fixed(accepted: NDArray[Any], times: Array, objective: Objective) -> int:
    """The number of calls beyond the first that does best in every round alike."""
    n = accepted.shape[1]
    return max(range(n), key=lambda k: outcome(at(np.full(len(accepted), k), n), accepted, times).of(objective))


def worth(law: Array, rewards: Array, alpha: float, gamma: float) -> float:
    """law, rewards [n, K + 1] -> the mean return of a round from its start."""
    k = np.arange(law.shape[1])
    paid = alpha * np.concatenate([[0.0], (gamma ** k[:-1]).cumsum()])
    return float((law * (gamma**k * rewards - paid)).sum(1).mean())


@dataclass(frozen=True, slots=True)
class Trained:
    """The network of the epoch `best` that did best on the held-out rounds by what it is trained for, and what every epoch gave
    there."""

    learner: Learner
    best: int
    epochs: list[Outcome]


def train(
    learn: Rounds, judge: Rounds, times: RoundTimes, objective: Objective, settings: StopSettings,
    told: Callable[[int, Outcome], None] = lambda epoch, found: None,
) -> Trained:  # fmt: skip
    """learn: what it is trained on; judge: held-out rounds, by which the best epoch is chosen. What it gives is told on others.

    Raises:
        UserError: there are no rounds.
    """
    if not len(learn) or not len(judge):
        raise UserError(f"{len(learn)} rounds to learn from and {len(judge)} held out: more texts are needed, two of every "
                        f"{HELD_OUT} are held out")  # fmt: skip
    torch.manual_seed(settings.seed)
    chance = torch.Generator().manual_seed(settings.seed)
    learner = Learner(learn.states.shape[2], settings.hidden, settings.dropout)
    adam = torch.optim.Adam(learner.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings.epochs, settings.least_rate)
    t = times.of_round
    states, accepted = torch.from_numpy(learn.states), torch.from_numpy(learn.accepted).float()
    beta = SCALE * (times.call + times.look)
    alpha, gamma = (settings.alpha, settings.gamma) if objective == "mean" else (0.0, 1.0)
    found, worths, kept = list[Outcome](), list[float](), dict[str, Tensor]()
    fixed = at(np.full(len(learn), best_fixed(learn.accepted, times.of_round, "ratio")), learn.most)
    least = outcome(fixed, learn.accepted, times.of_round).ratio  # what a network that always says the same reaches
    for epoch in range(settings.epochs):
        if objective == "mean":
            rewards = beta * accepted / torch.from_numpy(t).float()
        else:
            rate = max(outcome(law_of(learner, learn.states), learn.accepted, t).ratio, least)
            rewards = accepted + 1 - rate * torch.from_numpy(t).float()
        learner.train()
        for rows in torch.randperm(len(learn), generator=chance).split(settings.batch):
            logits = learner(states[rows])
            chances = stop_law(logits).detach()
            weights = chances if settings.gradient == "enumerated" else drawn(chances, chance)
            loss = policy_loss(logits, returns(rewards[rows], alpha, gamma), weights)
            if settings.entropy:
                loss = loss - settings.entropy * entropy(logits)
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learner.parameters(), settings.clip_norm)
            adam.step()
        cosine.step()
        law = law_of(learner, judge.states)
        found.append(outcome(law, judge.accepted, t))
        told(epoch, found[-1])
        now = found[-1].ratio if objective == "ratio" else worth(law, beta * judge.accepted / t, alpha, gamma)
        if not worths or now > max(worths):
            kept = {k: v.clone() for k, v in learner.state_dict().items()}
        worths.append(now)
    learner.load_state_dict(kept)
    return Trained(learner.eval(), int(np.argmax(worths)), found)


@torch.inference_mode()
def law_of(learner: Learner, states: NDArray[np.float32]) -> Array:
    """[n, K + 1] of `stop_law`, without dropout."""
    learner.eval()
    return stop_law(learner(torch.from_numpy(states))).double().numpy()
