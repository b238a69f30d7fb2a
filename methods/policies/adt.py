"""Adjacency-adaptive trees, after ADT-Tree (Lei et al.): how deep and wide a tree is comes from the trees next to it.

A tree takes depth and width from the tree that drafted an adjacent place, and moves both by how that one went: where at least
`beta` of its levels were accepted, deeper and narrower, else shallower and wider. `step=bisection` goes half way to the bound,
`step=one` one further. A tree of depth d and width k is EAGLE-2's with d calls of the drafter and a beam of k, of which the best
d x k nodes are verified, `total` at most. Where no tree drafted the adjacent place (the prompt, the edge of the picture, the
token of the prefill), it is the first tree again: `depth` and `top_k`, unmoved. It may lie outside the bounds; steps lead in.

`adjacency` says which place of a picture of `row` tokens a row, the first one after `offset` tokens of the text: `left`, `above`,
`both` (the mean of those two), `diagonal` (left of the one above), or without a picture `previous-round`, `random` (any place of
the output, by the policy's own stream) or `none` (always the first tree). The tree of a place is that of the round that made it,
the target's own token at its end included. So `left` is `previous-round` but in the first column.

Theirs: the rule, and adjacency in raster order, for images. What the published code lacks and the paper does not say: beta, how
far a step goes, the bounds, and how many nodes are verified. Those are ours, to be chosen on held-out prompts. For text, which
has one dimension, `previous-round` is our adaptation, and no result of theirs stands behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from methods import method
from methods.base import Decode
from methods.engine.loop import speculative
from methods.engine.policy import NONE, Draft, Here, Round, beam, best_nodes, policy_tree

OF_PICTURES = ("left", "above", "both", "diagonal")
ADJACENCY = (*OF_PICTURES, "previous-round", "random", "none")
STEPS = ("bisection", "one")


@dataclass(frozen=True, slots=True)
class Made:
    """A round's tree: its depth and width, and the share of its levels that was accepted."""

    depth: float
    width: float
    rate: float


@dataclass(slots=True)
class Adjacent:
    adjacency: str
    step: str
    beta: float
    first: tuple[int, int]  # depth and width, as in all of these
    least: tuple[int, int]
    most: tuple[int, int]
    total: int
    row: int = 0
    offset: int = 0
    _made: list[Made] = field(default_factory=list)  # by output position, from 1 on
    _depth: int = 0
    _width: int = 0

    def begin(self, here: Here, last: Round | None) -> int:
        if last is not None:
            self._made += [Made(self._depth, self._width, last.accepted / self._depth)] * (last.accepted + 1)
        near = [self._made[p - 1] for p in self._places(here) if p >= 1]
        self._depth, self._width = self._next(near) if near else self.first
        return self._width

    def _places(self, here: Here) -> list[int]:
        """Output positions of the adjacent places; under 1 where no tree drafted them."""
        at, pixel = here.position, here.length - self.offset
        if self.adjacency == "none" or at == 1:
            return []
        if self.adjacency == "previous-round":
            return [at - 1]
        if self.adjacency == "random":
            return [1 + int(here.random(0) * (at - 1))]
        left = [at - 1] if pixel > 0 and pixel % self.row else []
        above = [at - self.row] if pixel >= self.row else []
        if self.adjacency == "diagonal":
            return [at - self.row - 1] if left and above else []
        return {"left": left, "above": above, "both": left + above}[self.adjacency]

    def _next(self, near: list[Made]) -> tuple[int, int]:
        n = len(near)
        well = sum(m.rate for m in near) / n >= self.beta
        depth, width = round(sum(m.depth for m in near) / n), round(sum(m.width for m in near) / n)
        (least_depth, least_width), (most_depth, most_width) = self.least, self.most
        return self._moved(depth, most_depth if well else least_depth), self._moved(width, least_width if well else most_width)

    def _moved(self, now: int, bound: int) -> int:
        """Towards a bound, and there in the end: half of the way is rounded up."""
        way = abs(bound - now)
        by = (way + 1) // 2 if self.step == "bisection" else min(way, 1)
        return now + by if bound > now else now - by

    def expand(self, draft: Draft) -> Tensor:
        return beam(draft, self._width, self._size) if draft.calls < self._depth else NONE

    def keep(self, draft: Draft) -> Tensor:
        return best_nodes(draft, self._size)

    @property
    def _size(self) -> int:
        return min(self.total, self._depth * self._width)


@method(
    "adt", line="Policy: depth and width from the tree next to it, adjacency-adaptive", drafter="eagle", group="policies",
    presets={"image": {"adjacency": "above", "row": 32, "offset": 1}},
    candidates=[
        {"beta": b, "top_k": k, "most_top_k": k, "most_depth": d, "total": n}
        for b in (0.3, 0.5, 0.7) for k, n in ((2, 8), (2, 59), (4, 16), (4, 59), (10, 24), (10, 59)) for d in (8, 16)
    ],
    small=(
        {"top_k": 2, "depth": 2, "most_top_k": 2, "most_depth": 3, "total": 5},
        {"top_k": 2, "depth": 1, "most_top_k": 3, "most_depth": 2, "total": 4, "step": "one", "beta": 0.1},
        {"top_k": 2, "depth": 2, "most_top_k": 2, "most_depth": 2, "total": 4, "adjacency": "both", "row": 2},
        {"top_k": 1, "depth": 2, "most_top_k": 2, "most_depth": 2, "total": 3, "adjacency": "random"},
    ),
)  # fmt: skip
def adt(
    adjacency: str = "previous-round", step: str = "bisection", beta: float = 0.5, top_k: int = 10, depth: int = 6,
    least_top_k: int = 1, most_top_k: int = 10, least_depth: int = 1, most_depth: int = 10, total: int = 59, row: int = 0,
    offset: int = 0,
) -> Decode:  # fmt: skip
    """row: tokens of a row of the picture, 0 where the text is none; offset: tokens of the text before its first one."""
    if adjacency not in ADJACENCY:
        raise ValueError(f"adjacency={adjacency!r}: expected one of {', '.join(ADJACENCY)}")
    if step not in STEPS:
        raise ValueError(f"step={step!r}: expected one of {', '.join(STEPS)}")
    if adjacency in OF_PICTURES and row < 1:
        raise ValueError(f"adjacency={adjacency} row={row}: it is of pictures, and takes the tokens of a row (preset image: 32)")
    if not 1 <= least_top_k <= most_top_k or not 1 <= least_depth <= most_depth:
        raise ValueError(f"{least_top_k=}, {most_top_k=}, {least_depth=}, {most_depth=}: bounds from 1, the least first")
    if min(top_k, depth, total) < 1 or not 0 <= beta <= 1 or min(row, offset) < 0:
        given = f"{top_k=}, {depth=}, {total=}, {beta=}, {row=}, {offset=}"
        raise ValueError(f"{given}: counts from 1, a beta within 0 and 1, a row and an offset from 0")
    most = max(total, max(top_k, most_top_k) * max(depth, most_depth))
    first, least, bound = (depth, top_k), (least_depth, least_top_k), (most_depth, most_top_k)
    return speculative(policy_tree(lambda: Adjacent(adjacency, step, beta, first, least, bound, total, row, offset), most))
