"""A bandit over a few fixed trees (as BanditSpec and TapOut have it): each round one is played, by UCB1 over tokens a unit of
time.

The reward of a round is tokens over what the step costs by the table, divided by the most that any path could bring. So
the bandit learns from what was accepted and from a table, never from the clock: a replay plays it again, and a run can be
repeated. Trees are `top_k/depth/total` each. `explore` is UCB1's constant; the trees are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from methods import method
from methods.base import Decode
from methods.engine.loop import speculative
from methods.engine.policy import Draft, Fixed, Here, Round, policy_tree
from methods.engine.relative_costs import RelativeCosts, relative_costs

TREES = "10/6/59 8/5/32 6/4/16 4/3/8 2/2/3"
SMALL_TREES = "4/4/10 4/3/6 3/2/4 2/2/2 1/1/1"


@dataclass(slots=True)
class Bandit:
    costs: RelativeCosts
    trees: tuple[Fixed, ...]
    explore: float
    _played: int = -1
    _rows: list[int] = field(default_factory=list)
    _n: list[int] = field(default_factory=list)
    _sum: list[float] = field(default_factory=list)

    def _cost(self, size: int, rows: Sequence[int]) -> float:
        return float(self.costs.verifying[size]) + self.costs.drafting(rows)

    @property
    def _most(self) -> float:
        """Tokens a plain step's time: of a path as deep as a tree can have, where nothing else was drafted."""
        paths = [min(tree.depth, tree.total) for tree in self.trees]
        return max((n + 1) / self._cost(n, [1] * n) for n in paths)

    def begin(self, here: Here, last: Round | None) -> int:
        if not self._n:
            self._n, self._sum = [0] * len(self.trees), [0.0] * len(self.trees)
        if last is not None:
            self._n[self._played] += 1
            self._sum[self._played] += (last.accepted + 1) / self._cost(last.size, self._rows) / self._most
        self._played = max(range(len(self.trees)), key=self._bound)
        self._rows = [1]
        return self.trees[self._played].begin(here, last)

    def _bound(self, i: int) -> float:
        """The first tree that was not played yet, else that of the highest upper bound; the first of equals."""
        if not self._n[i]:
            return math.inf
        return self._sum[i] / self._n[i] + self.explore * math.sqrt(math.log(sum(self._n)) / self._n[i])

    def expand(self, draft: Draft) -> Tensor:
        run = self.trees[self._played].expand(draft)
        if len(run):
            self._rows.append(len(run))
        return run

    def keep(self, draft: Draft) -> Tensor:
        return self.trees[self._played].keep(draft)


def trees_of(words: str) -> tuple[Fixed, ...]:
    """`"10/6/59 4/3/8"` -> the trees.

    Raises:
        ValueError: something else than three whole numbers from 1 each.
    """
    try:
        found = tuple(Fixed(*map(int, word.split("/")), prunes=True) for word in words.split())
    except (TypeError, ValueError):
        found = ()
    if not found or any(min(t.top_k, t.depth, t.total) < 1 for t in found):
        raise ValueError(f"trees={words!r}: expected top_k/depth/total of each, such as '10/6/59 4/3/8'")
    return found


@method(
    "bandit", line="Policy: a bandit over a few fixed trees", drafter="eagle", group="policies",
    candidates=[{"explore": e, "trees": t} for e in (0.05, 0.1, 0.2, 0.5) for t in (TREES, SMALL_TREES)],
    small=({"trees": "2/2/4 1/2/2 2/1/2"},),
)  # fmt: skip
def bandit(costs: str = "gpu-radar", trees: str = TREES, explore: float = 0.2) -> Decode:
    table, found = relative_costs(costs), trees_of(trees)
    if explore < 0:
        raise ValueError(f"explore={explore}: it must be at least 0")
    most = max(max(t.total, t.top_k * t.depth) for t in found)
    return speculative(policy_tree(lambda: Bandit(table, found, explore), most))
