"""Dynamic depth decoding (DDD; Brown et al., arXiv 2409.00142): stop where the beam as a whole has become unlikely.

EAGLE-2's tree, but from `first` calls on drafting ends where the log of the sum of the beam's path probabilities is under
`threshold`. The paper's thresholds are of its own heads; this default is ours. The sum is over the newest level's whole beam. Of
that beam those nodes are run below which something can be kept, which is ours, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods import method
from methods.base import Decode
from methods.engine.loop import speculative
from methods.engine.policy import NONE, Draft, Here, Round, beam, best_nodes, policy_tree


@dataclass(slots=True)
class DynamicDepth:
    threshold: float
    first: int
    top_k: int
    depth: int
    total: int

    def begin(self, here: Here, last: Round | None) -> int:
        return self.top_k

    def expand(self, draft: Draft) -> Tensor:
        run = beam(draft, self.top_k)
        goes_on = draft.calls < self.first or float(draft.value[run].double().logsumexp(0)) >= self.threshold
        return beam(draft, self.top_k, self.total) if goes_on and draft.calls < self.depth else NONE

    def keep(self, draft: Draft) -> Tensor:
        return best_nodes(draft, self.total)


@method(
    "ddd", line="Policy: dynamic depth, stop where the beam has become unlikely", drafter="eagle", group="policies",
    candidates=[{"threshold": -t, "first": f, "total": n, "top_k": k} for t in (0.25, 0.5, 1.0, 2.0) for f in (1, 3)
                for n in (4, 8, 16, 24, 40, 59) for k in (2, 4, 10)],
    small=({"top_k": 2, "depth": 2, "total": 4, "first": 1}, {"top_k": 2, "depth": 3, "total": 5, "first": 1}),
)  # fmt: skip
def ddd(threshold: float = -1.0, first: int = 5, top_k: int = 10, depth: int = 8, total: int = 59) -> Decode:
    if min(top_k, depth, total, first) < 1 or not threshold <= 0:
        raise ValueError(f"threshold={threshold}, first={first}, top_k={top_k}, depth={depth}, total={total}: counts from 1, "
                         "and the log of a probability, which is at most 0")  # fmt: skip
    return speculative(policy_tree(lambda: DynamicDepth(threshold, first, top_k, depth, total), max(total, top_k * depth)))
