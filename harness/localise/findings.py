"""What was found: by setting and operator, how many rows differ from their plain steps, and by how many ulp."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from harness.localise.bits import RowDifferences, same_bits
from harness.localise.tape import Operator

AGAIN, PREFILL, CHAIN, TREE = "plain step, again", "prefill", "chain", "tree"


class Setting(NamedTuple):
    """A shape of forwards, one of the four above, and their rows."""

    shape: str
    rows: int


@dataclass(slots=True)
class Sum:
    """Over all forwards of a setting: rows compared, rows that differ, and the most ulp."""

    compared: int = 0
    differing: int = 0
    ulp: float = 0.0

    def add(self, found: RowDifferences) -> None:
        self.compared += len(found.differs)
        self.differing += int(found.differs.sum())
        self.ulp = max(self.ulp, float(found.ulp.max()))


@dataclass(slots=True)
class End:
    """Logits at the end of all forwards of a setting: rows compared, rows that differ, rows whose argmax is another."""

    compared: int = 0
    differing: int = 0
    flips: int = 0

    def add(self, found: Tensor, wanted: Tensor) -> None:
        """found, wanted: logits [n, vocab]."""
        self.compared += len(found)
        self.differing += int((~same_bits(found, wanted)).any(dim=1).sum())
        self.flips += int((found.argmax(dim=1) != wanted.argmax(dim=1)).sum())


Sums = defaultdict[Operator, Sum]


class First(NamedTuple):
    """The first operator of a forward that differs, in how many rows of how many, and by how many ulp."""

    operator: Operator
    sum: Sum


@dataclass(slots=True)
class Findings:
    """Of one engine. operators: in the order of computing.

    own: what differs where every operator has its inputs from the plain steps; empty where the engine cannot be given them.
    carried: what differs when forwards simply run. left_out: operators, by their first calls, that do not make one row for each
    row, and were not compared.
    """

    operators: dict[Operator, None] = field(default_factory=dict)
    own: defaultdict[Setting, Sums] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Sum)))
    carried: defaultdict[Setting, Sums] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Sum)))
    end: defaultdict[Setting, End] = field(default_factory=lambda: defaultdict(End))
    left_out: set[Operator] = field(default_factory=set)

    @property
    def settings(self) -> list[Setting]:
        return list(self.end)

    @property
    def blamed(self) -> defaultdict[Setting, Sums]:
        """`own`, or `carried` where there is none: its first operator is to blame too, as all before it are equal in all rows."""
        return self.own or self.carried

    def first(self, setting: Setting) -> First | None:
        """The first operator to blame in a setting; None where there is none."""
        return first(self.operators, self.blamed[setting])

    def first_carried(self, setting: Setting) -> First | None:
        """The first operator that differs in forwards that simply run; None where there is none."""
        return first(self.operators, self.carried[setting])

    def at_rows(self, rows: int) -> list[Setting]:
        """The settings of so many rows, but for the plain step that is done again."""
        return [s for s in self.settings if s.rows == rows and s.shape != AGAIN]


def first(operators: Iterable[Operator], sums: Sums) -> First | None:
    return next((First(o, sums[o]) for o in operators if o in sums and sums[o].differing), None)
