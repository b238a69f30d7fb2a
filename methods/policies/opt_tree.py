"""OPT-Tree (Wang et al., arXiv 2406.17276): draft until the expected accept length grows by less than a threshold.

The expected accept length of a tree is the sum of its nodes' values. The `total` nodes of highest value have the greatest one.
After each call of the drafter that sum is compared with the one before; where it grew by less than `threshold`, drafting ends.
The paper gives the threshold as a share of a forward of the target that a call of the drafter takes; 0.04 is that of RADAR's
published splits.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods import method
from methods.base import Decode
from methods.engine.grow import by_score
from methods.engine.loop import speculative
from methods.engine.policy import NONE, Draft, Here, Round, beam, best_nodes, policy_tree


@dataclass(slots=True)
class OptTree:
    threshold: float
    top_k: int
    depth: int
    total: int
    _length: float = 0.0

    def begin(self, here: Here, last: Round | None) -> int:
        self._length = 0.0
        return self.top_k

    def expand(self, draft: Draft) -> Tensor:
        length = float(draft.value[by_score(draft.value, self.total)].double().exp().sum())
        grew, self._length = length - self._length, length
        return beam(draft, self.top_k, self.total) if grew >= self.threshold and draft.calls < self.depth else NONE

    def keep(self, draft: Draft) -> Tensor:
        return best_nodes(draft, self.total)


THRESHOLDS = (0.02, 0.04, 0.1, 0.2, 0.3, 0.5)
TOTALS = (4, 8, 16, 24, 40, 59)


@method(
    "opt-tree", line="Policy: OPT-Tree, draft while the expected accept length grows enough", drafter="eagle", group="policies",
    candidates=[{"threshold": t, "total": n, "top_k": k} for t in THRESHOLDS for n in TOTALS for k in (2, 4, 10)],
    small=({"top_k": 2, "depth": 2, "total": 4}, {"top_k": 2, "depth": 3, "total": 5, "threshold": 0.3}),
)  # fmt: skip
def opt_tree(threshold: float = 0.04, top_k: int = 10, depth: int = 8, total: int = 59) -> Decode:
    if min(top_k, depth, total) < 1 or threshold < 0:
        raise ValueError(f"threshold={threshold}, top_k={top_k}, depth={depth}, total={total}: counts from 1, a threshold from 0")
    return speculative(policy_tree(lambda: OptTree(threshold, top_k, depth, total), max(total, top_k * depth)))
