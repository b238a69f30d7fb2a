"""What watches a forward: it is shown what each operator makes, in order, and keeps it or compares it with plain steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness.localise.bits import RowDifferences, row_differences


class Operator(NamedTuple):
    """A place in a forward. layer: None outside the layers. call: which, where it is called several times."""

    layer: int | None
    name: str
    call: int = 1

    @property
    def label(self) -> str:
        """Its name in any layer."""
        return self.name if self.call == 1 else f"{self.name}, call {self.call}"

    def __str__(self) -> str:
        return f"the {self.label}" if self.layer is None else f"layer {self.layer}'s {self.label}"


class Tape(ABC):
    """Is called with each operator and what it made; what is no floating number is passed over."""

    def __init__(self) -> None:
        self._times: Counter[Operator] = Counter()

    def __call__(self, operator: Operator, made: Tensor) -> None:
        if not made.is_floating_point():
            return
        self._times[operator] += 1
        self.take(operator._replace(call=self._times[operator]), made)

    @abstractmethod
    def take(self, operator: Operator, made: Tensor) -> None:
        """Each operator comes once in a forward: its calls are told apart."""


class Shapes(Tape):
    """Keeps the shape of what each operator made: `shapes`."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[Operator, torch.Size] = {}

    def take(self, operator: Operator, made: Tensor) -> None:
        self.shapes[operator] = made.shape


class Recorder(Tape):
    """Keeps what each operator of a plain step made: `values`, in the order of computing.

    What passes unchanged from one operator into the next (the same tensor, with the same bits) is kept once, under the first.
    left_out: operators, by their first calls, of which nothing is kept.
    """

    def __init__(self, left_out: Container[Operator] = ()) -> None:
        super().__init__()
        self._left_out = left_out
        self.values: dict[Operator, Tensor] = {}
        self._shown: dict[int, tuple[Tensor, Operator]] = {}  # by id; the tensors stay alive, so that no id is used again

    def take(self, operator: Operator, made: Tensor) -> None:
        if operator._replace(call=1) in self._left_out:
            return
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
            return  # left out; or passed on unchanged in the plain steps, and compared where it was made
        rows = by_row(made, plain[0].shape, len(self._plain))
        if rows is None or len(plain) < len(self._plain) or made.dtype != plain[0].dtype:
            self.not_compared.add(operator)
            return
        wanted = torch.stack(plain)
        self.found[operator] = row_differences(rows, wanted)
        if self._correct and self.found[operator].differs.any():
            rows.copy_(wanted)


def not_by_row(one: Mapping[Operator, torch.Size], many: Mapping[Operator, torch.Size], n: int) -> set[Operator]:
    """By the shapes of a plain step and of a forward over n rows, the operators that do not make one row for each row.

    They are named by their first calls. An expert is one: it is called for the rows that are sent to it, in an order of its own.
    """
    return {
        operator._replace(call=1)
        for operator in {**one, **many}
        if operator not in one or operator not in many or row_dim(one[operator], many[operator], n) is None
    }


def by_row(made: Tensor, one: torch.Size, n: int) -> Tensor | None:
    """made, of n rows at once -> [n, *one]: a view, one row's shape behind the rows. None where it is not of n rows.

    one: what a single row makes, with a 1 where `made` has its n rows. No other dimension may differ.
    """
    if n == 1:
        return made[None] if made.shape == one else None
    dim = row_dim(one, made.shape, n)
    return None if dim is None else made.movedim(dim, 0).unsqueeze(dim + 1)


def row_dim(one: torch.Size, many: torch.Size, n: int) -> int | None:
    """The dimension of n > 1 rows: the only one in which these shapes differ, 1 in one and n in the other. None without one."""
    if len(one) != len(many):
        return None
    other = [dim for dim, sizes in enumerate(zip(one, many, strict=True)) if sizes[0] != sizes[1]]
    return other[0] if len(other) == 1 and (one[other[0]], many[other[0]]) == (1, n) else None
