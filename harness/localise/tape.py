"""What watches a forward: it is shown what each operator makes, in order, and keeps it or compares it with plain steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness.localise.bits import RowDifferences, row_differences


class Operator(NamedTuple):
    """A place in a forward. layer: None outside the layers."""

    layer: int | None
    name: str

    def __str__(self) -> str:
        return self.name if self.layer is None else f"layer {self.layer}'s {self.name}"


class Tape(ABC):
    """Is called with each operator and what it made; what is no floating number is passed over."""

    def __init__(self) -> None:
        self._times: Counter[Operator] = Counter()

    def __call__(self, operator: Operator, made: Tensor) -> None:
        if not made.is_floating_point():
            return
        self._times[operator] += 1
        times = self._times[operator]
        self.take(operator if times == 1 else Operator(operator.layer, f"{operator.name}, call {times}"), made)

    @abstractmethod
    def take(self, operator: Operator, made: Tensor) -> None:
        """made: of an operator whose name is its own within this forward."""


class Recorder(Tape):
    """Keeps what each operator of a plain step made: `values`, in the order of computing.

    What passes unchanged from one operator into the next (the same tensor, with the same bits) is kept once, under the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[Operator, Tensor] = {}
        self._shown: dict[int, tuple[Tensor, Operator]] = {}  # by id; the tensors stay alive, so that no id is used again

    def take(self, operator: Operator, made: Tensor) -> None:
        shown, first = self._shown.get(id(made), (None, operator))
        if shown is made and torch.equal(made, self.values[first]):
            return
        self._shown[id(made)] = (made, operator)
        self.values[operator] = made.clone()


class Comparer(Tape):
    """Compares each row of a forward with the plain step of the same token after the same path.

    plain: `Recorder.values` of each row's plain step. correct: after comparing, every row is overwritten with its plain step's.
    Then each operator has the plain steps' inputs in all rows, in the cache too, and a difference is its own making.
    `found`: by operator, in the order of computing. `not_compared`: whose shape is not that of one row, n times.
    """

    def __init__(self, plain: Sequence[Mapping[Operator, Tensor]], *, correct: bool):
        super().__init__()
        self.found: dict[Operator, RowDifferences] = {}
        self.not_compared: set[Operator] = set()
        self._plain, self._correct = plain, correct

    def take(self, operator: Operator, made: Tensor) -> None:
        plain = [values[operator] for values in self._plain if operator in values]
        if not plain:
            return  # passed on unchanged in the plain steps: compared where it was made
        rows = by_row(made, plain[0].shape, len(self._plain))
        if rows is None or len(plain) < len(self._plain) or made.dtype != plain[0].dtype:
            self.not_compared.add(operator)
            return
        wanted = torch.stack(plain)
        self.found[operator] = row_differences(rows, wanted)
        if self._correct and self.found[operator].differs.any():
            rows.copy_(wanted)


def by_row(made: Tensor, one: torch.Size, n: int) -> Tensor | None:
    """made, of n rows at once -> [n, *one]: a view, one row's shape behind the rows. None where it is not of n rows.

    one: what a single row makes, with a 1 where `made` has its n rows. No other dimension may differ.
    """
    if n == 1:
        return made[None] if made.shape == one else None
    if made.dim() != len(one):
        return None
    other = [dim for dim in range(made.dim()) if made.shape[dim] != one[dim]]
    if len(other) != 1 or one[other[0]] != 1 or made.shape[other[0]] != n:
        return None
    return made.movedim(other[0], 0).unsqueeze(other[0] + 1)
