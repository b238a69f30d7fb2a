"""Expected gain: draft and verify whatever earns more tokens than it costs.

A node's value estimates the chance that it is accepted. So a step that keeps nodes of values v_1 .. v_n brings about 1 + sum(v)
tokens, and a table says what the step costs. After each call of the drafter the policy compares the best ratio of both that it
can have now with the one that another call promises: each node run would have a best child whose confidence is the mean that
best children had in the newest level. It runs as many nodes as promise most, or stops; and it keeps as many as give the best
ratio.

`calibration` is a power that confidences are raised to: under 1 the head is taken to be too modest. It is ours.

DySpec (arXiv 2410.11744) and OPT-Tree (arXiv 2406.17276) stop by a threshold on values; here the threshold is the cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from methods import method
from methods.base import Decode
from methods.engine.loop import speculative
from methods.engine.policy import NONE, Draft, Here, Round, beam, best_nodes, policy_tree
from methods.engine.relative_costs import RelativeCosts, relative_costs


@dataclass(slots=True)
class ExpectedGain:
    costs: RelativeCosts
    top_k: int
    depth: int
    total: int
    calibration: float
    _calls: list[int] = field(default_factory=list)

    def begin(self, here: Here, last: Round | None) -> int:
        self._calls = [1]
        return self.top_k

    def _chances(self, values: Tensor) -> NDArray[np.float64]:
        """Of being accepted: logs of path products -> probabilities."""
        return (values.double() * self.calibration).exp().numpy()

    def _best(self, values: NDArray[np.float64], drafting: float) -> tuple[float, int]:
        """(tokens a plain step's time, how many nodes): of the best number of nodes. values: falling."""
        n = min(self.total, len(values))
        tokens = 1 + np.concatenate([[0.0], values[:n].cumsum()])
        rate = tokens / (self.costs.verifying[: n + 1] + drafting)
        rate[0] = 0.0  # a draft that is there costs as much whether it is verified or not; a tree has a node
        best = int(rate.argmax())
        return float(rate[best]), best

    def expand(self, draft: Draft) -> Tensor:
        if draft.calls == self.depth:
            return NONE
        values = np.sort(self._chances(draft.value))[::-1]
        now, _ = self._best(values, self.costs.drafting(self._calls))
        level = self._chances(draft.value[draft.newest])
        best = level.reshape(len(draft.expanded[-1]) if draft.expanded else 1, -1).max(axis=1)
        above = self._chances(draft.value[draft.expanded[-1]]) if draft.expanded else np.ones(1)
        confidence = float(best.sum() / above.sum())
        run = beam(draft, self.top_k, self.total)
        promised = self._chances(draft.value[run]) * confidence
        m, most = 0, now
        for n in range(1, len(run) + 1):
            then = np.sort(np.concatenate([values, promised[:n]]))[::-1]
            rate, _ = self._best(then, self.costs.drafting([*self._calls, n]))
            if rate > most:
                m, most = n, rate
        if m:
            self._calls.append(m)
        return run[:m]

    def keep(self, draft: Draft) -> Tensor:
        values = np.sort(self._chances(draft.value))[::-1]
        return best_nodes(draft, self._best(values, self.costs.drafting(self._calls))[1])


@method(
    "expected-gain", line="Policy: draft and verify what earns more tokens than it costs", drafter="eagle", group="policies",
    candidates=[{"calibration": c} for c in (0.6, 0.8, 1.25, 1.6)],
    small=({"top_k": 2, "depth": 2, "total": 4}, {"top_k": 2, "depth": 3, "total": 5}),
)  # fmt: skip
def expected_gain(
    costs: str = "gpu-radar", calibration: float = 1.0, top_k: int = 10, depth: int = 8, total: int = 59
) -> Decode:  # fmt: skip
    if min(top_k, depth, total) < 1 or calibration <= 0:
        raise ValueError(f"calibration={calibration}, top_k={top_k}, depth={depth}, total={total}: counts from 1, more than 0")
    table = relative_costs(costs)
    return speculative(policy_tree(lambda: ExpectedGain(table, top_k, depth, total, calibration), max(total, top_k * depth)))
