"""SGLang's adaptive depth (release 0.5.23): as deep as was accepted lately, and one more.

The mean of accepted tokens moves by `weight` of each new one. Every `every` rounds, after `warm_up`, the depth becomes that
mean, rounded, plus one, within 1 and `depth`; it only falls where the mean is at least `slack` under what would round to the
depth before. Their rule serves batches; here a batch is one conversation, and each starts anew with the depth at its most.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from methods import method
from methods.base import Decode
from methods.engine.loop import speculative
from methods.engine.policy import NONE, Draft, Here, Round, beam, best_nodes, policy_tree


@dataclass(slots=True)
class EmaDepth:
    weight: float
    every: int
    warm_up: int
    slack: float
    top_k: int
    depth: int
    total: int
    _mean: float | None = None
    _rounds: int = 0
    _now: int = field(default=0)

    def begin(self, here: Here, last: Round | None) -> int:
        self._now = self._now or self.depth
        if last is not None:
            self._rounds += 1
            self._mean = last.accepted if self._mean is None else self._mean + self.weight * (last.accepted - self._mean)
            if self._rounds > self.warm_up and self._rounds % self.every == 0:
                wanted = min(max(round(self._mean) + 1, 1), self.depth)
                if wanted > self._now or self._mean + 1 <= self._now - 0.5 - self.slack:
                    self._now = wanted
        return self.top_k

    def expand(self, draft: Draft) -> Tensor:
        return beam(draft, self.top_k, self.total) if draft.calls < self._now else NONE

    def keep(self, draft: Draft) -> Tensor:
        return best_nodes(draft, self.total)


@method(
    "ema-depth", line="Policy: SGLang's adaptive depth, by the accept lengths of late", drafter="eagle", group="policies",
    candidates=[{"weight": w, "total": n, "top_k": k} for w in (0.2, 0.4) for n in (4, 8, 16, 24, 40, 59) for k in (2, 4, 10)],
    small=({"top_k": 2, "depth": 2, "total": 4, "every": 1, "warm_up": 0},),
)  # fmt: skip
def ema_depth(
    weight: float = 0.2, every: int = 5, warm_up: int = 10, slack: float = 0.25, top_k: int = 10, depth: int = 8, total: int = 59
) -> Decode:  # fmt: skip
    if min(top_k, depth, total, every) < 1 or warm_up < 0 or not 0 < weight <= 1 or slack < 0:
        raise ValueError(f"weight={weight}, every={every}, warm_up={warm_up}, slack={slack}, top_k={top_k}, depth={depth}, "
                         f"total={total}: counts from 1, a weight over 0 and at most 1, a slack from 0")  # fmt: skip
    return speculative(
        policy_tree(lambda: EmaDepth(weight, every, warm_up, slack, top_k, depth, total), max(total, top_k * depth))
    )  # fmt: skip
