"""Random stop: EAGLE-2's tree with as many calls of the drafter as a histogram says, drawn anew each round.

The lower control of every policy that decides when to stop: with the histogram of calls that a policy makes, it saves the same
drafting without looking. `histogram` has a weight for one call, for two, and so on. Its draws are a stream of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from methods import method
from methods.base import Decode
from methods.engine.loop import speculative
from methods.engine.policy import NONE, Draft, Here, Round, beam, best_nodes, policy_tree


@dataclass(slots=True)
class RandomStop:
    weights: tuple[float, ...]
    top_k: int
    total: int
    _calls: int = 1

    def begin(self, here: Here, last: Round | None) -> int:
        u = here.random(0) * sum(self.weights)
        self._calls = 1 + sum(end <= u for end in list(accumulate(self.weights))[:-1])
        return self.top_k

    def expand(self, draft: Draft) -> Tensor:
        return beam(draft, self.top_k, self.total) if draft.calls < self._calls else NONE

    def keep(self, draft: Draft) -> Tensor:
        return best_nodes(draft, self.total)


@method(
    "random-stop", line="Control: stop at random, by a given histogram of calls", drafter="eagle", group="policies",
    replay_only=True, small=({"top_k": 2, "total": 4, "histogram": "1 1"},),
)  # fmt: skip
def random_stop(histogram: str = "1 1 1 1 1 1 1 1", top_k: int = 10, total: int = 59) -> Decode:
    try:
        weights = tuple(map(float, histogram.split()))
    except ValueError:
        weights = ()
    if not weights or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"histogram={histogram!r}: expected weights from 0 of one call, of two, ..., such as '0 1 2 1'")
    if min(top_k, total) < 1:
        raise ValueError(f"top_k={top_k}, total={total}: each must be at least 1")
    return speculative(policy_tree(lambda: RandomStop(weights, top_k, total), max(total, top_k * len(weights))))
