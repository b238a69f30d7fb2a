"""SGLang's adaptive depth (release 0.5.23, `AdaptiveStepSlot`): about as deep as was accepted lately, of a few depths.

The mean of accepted tokens moves by `weight` of each round's; it starts at the first depth less one. After `warm_up` rounds the
depth is looked at again every `every` rounds. It falls to the next lower one of `steps` while the mean is at most that less a
half and less `slack`. It rises to the next higher one while the mean is over the present one less a half. Theirs are 1, 3 and 7
for one request. Their rule serves batches; here a batch is one conversation, and each starts anew at the deepest.

Nodes below which nothing can be kept are not run, which is ours.
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
    """steps: depths, rising."""

    weight: float
    every: int
    warm_up: int
    slack: float
    steps: tuple[int, ...]
    top_k: int
    total: int
    _mean: float = field(init=False)
    _at: int = field(init=False)
    _rounds: int = 0

    def __post_init__(self) -> None:
        self._at = len(self.steps) - 1
        self._mean = self.depth - 1.0

    @property
    def depth(self) -> int:
        return self.steps[self._at]

    def begin(self, here: Here, last: Round | None) -> int:
        if last is not None:
            self._rounds += 1
            self._mean += self.weight * (last.accepted - self._mean)
            over = self._rounds - self.warm_up
            if over > 0 and over % self.every == 0:
                self._move()
        return self.top_k

    def _move(self) -> None:
        while self._at and self._mean <= self.steps[self._at - 1] - 0.5 - self.slack:
            self._at -= 1
        while self._at < len(self.steps) - 1 and self._mean > self.depth - 0.5:
            self._at += 1

    def expand(self, draft: Draft) -> Tensor:
        return beam(draft, self.top_k, self.total) if draft.calls < self.depth else NONE

    def keep(self, draft: Draft) -> Tensor:
        return best_nodes(draft, self.total)


def steps_of(words: str) -> tuple[int, ...]:
    """`"1 3 7"` -> the depths, rising.

    Raises:
        ValueError: something else than whole numbers from 1, rising.
    """
    found = tuple(int(word) if word.isdecimal() else 0 for word in words.split())
    if not found or found[0] < 1 or list(found) != sorted(set(found)):
        raise ValueError(f"steps={words!r}: expected depths from 1, rising, such as '1 3 7'")
    return found


@method(
    "ema-depth", line="Policy: SGLang's adaptive depth, by the accept lengths of late", drafter="eagle", group="policies",
    candidates=[
        {"weight": w, "steps": s, "total": n, "top_k": k}
        for w in (0.2, 0.4) for s in ("1 3 7", "1 2 3 4 5 6 7 8") for n in (4, 8, 16, 24, 40, 59) for k in (2, 4, 10)
    ],
    small=({"top_k": 2, "steps": "1 2", "total": 4, "every": 1, "warm_up": 0},),
)  # fmt: skip
def ema_depth(
    weight: float = 0.2, every: int = 5, warm_up: int = 10, slack: float = 0.25, steps: str = "1 3 7", top_k: int = 10,
    total: int = 59,
) -> Decode:  # fmt: skip
    depths = steps_of(steps)
    if min(top_k, total, every) < 1 or warm_up < 0 or not 0 < weight <= 1 or slack < 0:
        raise ValueError(f"weight={weight}, every={every}, warm_up={warm_up}, slack={slack}, top_k={top_k}, total={total}: "
                         "counts from 1, a weight over 0 and at most 1, a slack from 0")  # fmt: skip
    return speculative(
        policy_tree(lambda: EmaDepth(weight, every, warm_up, slack, depths, top_k, total), max(total, top_k * depths[-1]))
    )
