"""RADAR's model of time: what a round takes that makes so many calls of the drafter, by a table of costs or published splits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.replay.price import prices_named

Array = NDArray[np.float64]


def n_looks(most: int) -> NDArray[np.int64]:
    """[most]: how often the policy looks in a round of 1 .. most calls, the look that says stop among them. After the last there
    is nothing to decide."""
    return np.minimum(np.arange(1, most + 1), most - 1)


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """In steps of plain decoding: t(k) = T_o + k T_d + n_p(k) T_p, for k = 0 .. K calls after the drafter's first.

    n_p(k) = k + 1, and K at k = K: the look that says stop counts. `other` [K + 1], T_o: the target, the drafter's first call and
    all else; the authors have one number, a table knows what a smaller tree saves. `call`, T_d; `look`, T_p.
    """

    name: str
    other: Array
    call: float
    look: float

    @property
    def of_round(self) -> Array:
        """t [K + 1]."""
        return self.without_looks + n_looks(len(self.other)) * self.look

    @property
    def without_looks(self) -> Array:
        """[K + 1]: of a rule that runs no network."""
        return self.other + np.arange(len(self.other)) * self.call


def tree_sizes(top_k: int, depth: int, total: int) -> list[int]:
    """Nodes that EAGLE-2's tree keeps after 1 .. depth calls."""
    return [min(total, top_k + k * top_k**2) for k in range(depth)]


def round_times(
    costs: str, top_k: int, depth: int, total: int, *, look: float | None = None, context: int = 1, accepted: int = 0
) -> RoundTimes:  # fmt: skip
    """costs: as `harness.costs.relative.named` takes them. look: T_p in plain steps; None: that of the prices. context,
    accepted: at which a table is read.

    Raises:
        UserError: no such costs or a table without a draft head.
    """
    ((name, prices),) = prices_named([costs]).items()
    plain = prices.plain(context)
    sizes = tree_sizes(top_k, depth, total)
    other = np.array([prices.step([1], size, accepted, context) for size in sizes])
    call = prices.step([1, top_k], sizes[0], accepted, context) - other[0]
    return RoundTimes(name, other / plain, call / plain, prices.look / plain if look is None else look)
