"""What a step has to do, in calls of the two models. Prices are asked for it, so nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

import methods


@dataclass(frozen=True, slots=True)
class StepWork:
    """Of one step. `rows`: of the target's forward. `levels`: of each of the drafter's, the rows; `root`: how often the logits
    after the root are asked for. `is_plain`: a step of plain decoding, not a tree of one node. `drafter`: its kind."""

    rows: int
    levels: tuple[int, ...] = ()
    root: int = 0
    is_plain: bool = False
    drafter: str = methods.EAGLE

    @property
    def nodes(self) -> int:
        """Drafted nodes that are verified."""
        return self.rows - 1

    @property
    def depth(self) -> int:
        """Calls of the drafter, after each of which children are picked."""
        return self.root + len(self.levels)
