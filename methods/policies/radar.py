"""RADAR (Ma and Li, arXiv 2512.14069): after each call of the drafter a trained network says whether to stop.

EAGLE-2's tree, cut off: after a call the network sees the cumulative log-probabilities of the `top_k` nodes that would be run
next. `sample` draws stop or continue by its probabilities, as the authors do, from a stream of the policy's own; else the
likelier is taken. After the `depth`-th call there is nothing left to decide. Stopped after the first call, the tree is flat:
the best tokens of the first level, `top_k` of them, as each node gets no more children here. The authors' flat tree has 59.

The beam stays whole: nodes below which nothing can be kept are run, too. The network was trained on whole beams. Other policies
leave such nodes out, so with a small `total` this one pays for more rows than they do.

`weights`: a policy of models/policies, or a file of `harness train-policy radar`. A policy is trained for one head and for what
steps cost on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from methods import method
from methods.base import Decode
from methods.engine.loop import speculative
from methods.engine.policy import NONE, Draft, Here, Round, beam, best_nodes, policy_tree
from methods.engine.stop_net import Seen, StopNet, pinned, shipped, stop_net

DEFAULT, AUDITED = "radar-gpu-mean-t1", "radar-audit"
OTHERS = [name for name in shipped() if name.startswith("radar-") and name not in (DEFAULT, AUDITED)]
LEAST = np.float32(-1e4)  # a log-probability that the network is shown: a token may have none


@dataclass(slots=True)
class Radar:
    net: StopNet
    sample: bool
    top_k: int
    depth: int
    total: int
    _here: Here | None = None
    _seen: Seen | None = None

    def begin(self, here: Here, last: Round | None) -> int:
        self._here, self._seen = here, self.net.start()
        return self.top_k

    def expand(self, draft: Draft) -> Tensor:
        if draft.calls == self.depth:
            return NONE
        assert self._here is not None and self._seen is not None
        run = beam(draft, self.top_k)
        frontier = np.maximum(draft.value[run].numpy(), LEAST)
        if len(frontier) < self.net.dim:  # of a narrower tree: as if its last node were there again and again
            frontier = np.pad(frontier, (0, self.net.dim - len(frontier)), mode="edge")
        p_stop, self._seen = self.net.stop(frontier, self._seen)
        stops = self._here.random(draft.calls - 1) < p_stop if self.sample else p_stop > 0.5
        return NONE if stops else run

    def keep(self, draft: Draft) -> Tensor:
        return best_nodes(draft, self.total)


@method(
    "radar", line="Policy: RADAR, a trained network that says when to stop drafting", drafter="eagle", group="policies",
    pins={"weights": pinned},
    candidates=[
        {"weights": w, "sample": s, "total": n} for w in (DEFAULT, *OTHERS) for s in (True, False) for n in (4, 8, 16, 24, 40, 59)
    ],
    small=tuple({"weights": AUDITED, "top_k": 2, "depth": d, "total": n} for d, n in ((2, 4), (3, 5))),
)  # fmt: skip
def radar(
    weights: str = DEFAULT, sample: bool = True, top_k: int = 10, depth: int = 8, total: int = 59
) -> Decode:  # fmt: skip
    if min(top_k, depth, total) < 1:
        raise ValueError(f"top_k={top_k}, depth={depth}, total={total}: each must be at least 1")
    net = stop_net(weights)
    if net.dim < top_k:
        raise ValueError(f"weights={weights!r} look at {net.dim} nodes, and top_k={top_k}: train a policy for this tree")
    return speculative(policy_tree(lambda: Radar(net, sample, top_k, depth, total), max(total, top_k * depth)))
