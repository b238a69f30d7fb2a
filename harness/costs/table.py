"""What the parts of a step cost on one machine for one target, by rows and by level: the table, and the file that keeps it.

A part is a table and not a line: real costs go in steps (tiles of a matmul, widths of a kernel). Between two numbers of rows that
were measured, and between two contexts, a cost is read off the straight line through both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pydantic

import methods
from harness.common.errors import UserError, in_one_line
from harness.load.architecture import Architecture


class Figure(NamedTuple):
    """Milliseconds: the median of several rounds, and the ends of its 95% interval."""

    ms: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Figure:
        """Of one figure a round. The interval is that of order statistics, which presumes no law; of few rounds, all of them."""
        from scipy.stats import binom  # 50 MB, and claims and tables read costs that are there

        n, ordered = len(rounds), sorted(rounds)
        outside = int(binom.ppf(0.025, n, 0.5))  # at the most so many of n lie beyond each end
        first = max(outside - 1, 0)
        return cls(median(ordered), ordered[first], ordered[n - 1 - first])

    @property
    def variance(self) -> float:
        """That of the median, as if its law were normal."""
        return ((self.high - self.low) / (2 * 1.96)) ** 2


class Sum(NamedTuple):
    """Milliseconds of parts that follow one another, and the variance of that."""

    ms: float
    variance: float

    @classmethod
    def of(cls, figures: Sequence[Figure]) -> Sum:
        """Of parts that were measured apart: their errors are taken for independent. One that counts twice errs twice."""
        return cls(sum(f.ms for f in figures), sum(n**2 * f.variance for f, n in Counter(figures).items()))


def _checked(figure: Figure) -> Figure:
    if not (all(map(math.isfinite, figure)) and 0 <= figure.low <= figure.ms <= figure.high):
        raise ValueError(f"{list(figure)}: expected milliseconds, and an interval around them")
    return figure


def _over_nothing(figure: Figure) -> Figure:
    if figure.low <= 0:
        raise ValueError(f"{list(figure)}: expected more than no time")
    return figure


_Figure = Annotated[Figure, pydantic.AfterValidator(_checked)]
_Rows = Annotated[dict[Annotated[int, pydantic.Field(ge=1)], _Figure], pydantic.Field(min_length=1)]


class OfDrafter(pydantic.BaseModel, extra="forbid", frozen=True):
    """What is inside a drafter. `root`: its logits after the root. `levels`: each level below, by drafted nodes; a deeper one
    costs what the last does. `observe[tokens]`: its run over so many accepted tokens. `prefill`: over the whole context."""

    root: _Figure
    levels: Annotated[list[_Rows], pydantic.Field(min_length=1)]
    observe: _Rows
    prefill: _Figure


class AtContext(pydantic.BaseModel, extra="forbid", frozen=True):
    """What is inside the two models at a context of `tokens` tokens.

    `plain`: a step of plain decoding. `verify[rows]`: the target over a tree, root included. `root`: the draft head's logits
    after the root. `level[rows]`: a level of so many drafted nodes, with its best children. `observe[rows]`: the head over so
    many accepted tokens. `prefill`: the target over all the tokens. `head_prefill`: the head over them; None without a head.
    `drafters`: those of other kinds, by kind.
    """

    tokens: int = pydantic.Field(ge=1)
    plain: Annotated[_Figure, pydantic.AfterValidator(_over_nothing)]
    verify: _Rows
    root: _Figure | None = None
    level: _Rows | None = None
    observe: _Rows | None = None
    prefill: _Figure
    head_prefill: _Figure | None = None
    drafters: dict[str, OfDrafter] = {}

    def of(self, kind: str) -> OfDrafter | None:
        """A drafter's costs, an EAGLE head's among them; None where it was not measured."""
        if kind != methods.EAGLE:
            return self.drafters.get(kind)
        if self.root is None or self.level is None or self.observe is None or self.head_prefill is None:
            return None
        return OfDrafter.model_construct(root=self.root, levels=[self.level], observe=self.observe, prefill=self.head_prefill)


class Outside(pydantic.BaseModel, extra="forbid", frozen=True):
    """Milliseconds outside both models. `plain`: of a plain step. The others: of each of `Work`'s counts."""

    plain: float = pydantic.Field(ge=0)
    step: float = pydantic.Field(ge=0)
    level: float = pydantic.Field(ge=0)
    row: float = pydantic.Field(ge=0)
    node: float = pydantic.Field(ge=0)
    token: float = pydantic.Field(ge=0)


class Machine(pydantic.BaseModel, extra="forbid", frozen=True):
    """What it was measured on. `engine`: whose forward ran; `mode`: launched call by call, or as CUDA graphs."""

    cpu: str
    gpu: str | None = None
    threads: int = pydantic.Field(ge=1)
    dtype: str
    engine: str
    mode: Literal["eager", "graphs"] = "eager"
    versions: dict[str, str | None] = {}

    @property
    def label(self) -> str:
        """In words: `AMD EPYC, 2 threads, bfloat16, native avx512_bf16`."""
        where = self.gpu or f"{self.cpu}, {self.threads} threads"
        return f"{where}, {self.dtype}, {self.engine}{', CUDA graphs' if self.mode == 'graphs' else ''}"


class CostTable(pydantic.BaseModel, extra="forbid", frozen=True):
    """One target on one machine.

    `layers_measured`: of the target's; where they are fewer than it has, costs are scaled, by the difference that half of them
    make. `random_weights`: whether no weights were there. `frequent`: the draft head's logits are over so many tokens only.
    `temperature`: of the decodes that `outside` is fitted to; it is in nothing else. `architecture`: None where it is no LLaMA's.
    """

    schema_version: Literal[1] = 1
    model: str
    architecture: Architecture | None
    random_weights: bool
    layers_measured: int = pydantic.Field(ge=1)
    frequent: int | None = None
    temperature: float = pydantic.Field(default=0.0, ge=0)
    machine: Machine
    contexts: Annotated[list[AtContext], pydantic.Field(min_length=1)]
    outside: Outside
    rounds: int = pydantic.Field(ge=1)
    command: str
    created: str
    commit: str | None = None

    @property
    def title(self) -> str:
        """In words: `vicuna-7b on AMD EPYC, 2 threads, bfloat16, native`, and what else is not the usual."""
        over = f", drafts over {self.frequent:,} frequent tokens" if self.frequent else ""
        return f"{self.model} on {self.machine.label}{over}{f', T = {self.temperature:g}' if self.temperature else ''}"

    @property
    def is_scaled(self) -> bool:
        """Whether some layers were not measured."""
        return self.layers_measured < self.layers

    @property
    def layers(self) -> int:
        """Those that the target has."""
        return self.architecture.num_hidden_layers if self.architecture else self.layers_measured

    def has(self, kind: str) -> bool:
        """Whether a drafter of this kind was measured, too."""
        return all(c.of(kind) is not None for c in self.contexts)

    def at(self, context: int, part: Callable[[AtContext], Figure | None]) -> Figure:
        """A part at a context: on the line through the two measured nearest to it; before the first, its own."""
        found = {c.tokens: f for c in self.contexts if (f := part(c)) is not None}
        return _between(found, context)

    def plain(self, context: int) -> Figure:
        return self.at(context, lambda c: c.plain)

    def verify(self, rows: int, context: int) -> Figure:
        return self.at(context, lambda c: _between(c.verify, rows))

    def level(self, rows: int, context: int, kind: str = methods.EAGLE, number: int = 1) -> Figure:
        """number: which level of the drafter's, from 1 for the first below the root."""
        return self.at(context, lambda c: _between(d.levels[min(number, len(d.levels)) - 1], rows) if (d := c.of(kind)) else None)

    def root(self, context: int, kind: str = methods.EAGLE) -> Figure:
        return self.at(context, lambda c: d.root if (d := c.of(kind)) else None)

    def observe(self, tokens: float, context: int, kind: str = methods.EAGLE) -> Figure:
        """tokens: those accepted and the bonus; a mean of steps may lie between two numbers."""
        return self.at(context, lambda c: _between(d.observe, tokens) if (d := c.of(kind)) else None)


def _between(figures: Mapping[int, Figure], x: float) -> Figure:
    """On the line through the two neighbours; beyond the last, on that through the last two, but not under the last."""
    known = sorted(figures)
    if x <= known[-1] or len(known) < 2:
        return Figure(*(float(np.interp(x, known, [figures[k][i] for k in known])) for i in range(3)))
    (k, before), (last, end) = ((n, figures[n]) for n in known[-2:])
    more = max(end.ms - before.ms, 0.0) * (x - last) / (last - k)
    return Figure(end.ms + more, end.low + more, end.high + more)


def read(file: Path) -> CostTable:
    """
    Raises:
        UserError: there is no such file, or it is no table of costs.
    """
    try:
        return CostTable.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{file}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        first = e.errors()[0] if isinstance(e, pydantic.ValidationError) else None
        why = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}" if first else in_one_line(e)
        raise UserError(f"{file} is no table of costs that `harness costs` writes: {why}") from None


def read_all(where: Path | None) -> list[CostTable]:
    """The tables of costs in a folder or a file; those that are part of the package if none is named.

    Raises:
        UserError: there is none, or one that cannot be read.
    """
    if where is None:
        with resources.as_file(resources.files("harness.costs") / "tables") as folder:
            return [read(file) for file in sorted(folder.rglob("*.json"))]
    if not where.exists():
        raise UserError(f"--costs {where}: no such file or folder")
    files = [where] if where.is_file() else sorted(where.rglob("*.json"))
    if not files:
        raise UserError(f"--costs {where}: no table of costs there")
    return [read(file) for file in files]


def as_json(table: CostTable) -> str:
    """The file's text: a line a figure, at 4 digits."""
    import json

    def short(value: object) -> object:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, list | tuple):
            return [short(x) for x in value]
        return {k: short(v) for k, v in value.items()} if isinstance(value, dict) else value

    def lines(value: object, indent: str) -> str:
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"{indent} {json.dumps(str(k))}: {lines(v, indent + ' ')}" for k, v in value.items())
            return f"{{\n{inner}\n{indent}}}"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[" + ", ".join(lines(v, indent + " ") for v in value) + "]"
        return json.dumps(value)

    return lines(short(table.model_dump(mode="json")), "") + "\n"
