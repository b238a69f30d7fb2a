"""EAGLE-2 with the tree that a grid search on held-out prompts found: the control that papers after EAGLE-2 mostly lack.

Its options are chosen by throughput, for one machine's costs, on prompts that nothing is reported on: by `harness replay
--choose`, and a report has them from there. The defaults are the paper's own tree, not the search's.
"""

from __future__ import annotations

import itertools

from methods import method
from methods.base import Decode
from methods.engine.grow import dynamic_tree
from methods.engine.loop import speculative

GRID = [
    {"top_k": k, "depth": d, "total": n}
    for k, d, n in itertools.product((1, 2, 3, 4, 6, 8, 10), range(1, 9), (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 59))
    if d <= n <= k + (d - 1) * k * k
]


@method(
    "eagle2-grid", line="Policy: EAGLE-2 with the fixed tree of a grid search on held-out prompts", drafter="eagle",
    group="policies", candidates=GRID, small=({"top_k": 2, "depth": 2, "total": 4},),
)  # fmt: skip
def eagle2_grid(top_k: int = 10, depth: int = 6, total: int = 59) -> Decode:
    return speculative(dynamic_tree(top_k, depth, total, stop_early=True))
