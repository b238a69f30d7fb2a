"""What makes findings in a worker of a cluster: an audit prepared as on one machine, whose stages it does piece by piece.

Its store is a stand-in: findings that are there come with a piece, and those made go to the driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.audit.audit import Ready, planned_on, ready_for
from harness.audit.estimate import Progress, Rates
from harness.audit.jobs import Job, Stage, expected
from harness.audit.keeper import Finding, Keeper, Origin
from harness.audit.loop import Loop
from harness.audit.prepare import check_engine, loaded_or_row
from harness.audit.request import AuditRequest
from harness.audit.store import Store
from harness.audit.verdicts.conduct import engine_verdict
from harness.audit.verdicts.verdict import Verdict
from harness.cluster.host import LINE, Send
from harness.common.errors import UserError, say
from harness.ledger.record import canonical_hash
from harness.load.model import Loaded
from harness.watch import originals
from harness.watch.include import include_all

FINDING, DONE = "finding", "done"
"""Kinds of messages: what a finding is about and its values, and what a piece came to."""


class Setup(NamedTuple):
    """What a bench is made of."""

    request: AuditRequest
    includes: tuple[Path, ...]


class Piece(NamedTuple):
    """A part of a stage, by their numbers. `dtype`: of the model that it runs, empty for none."""

    dtype: str
    stage: int
    part: int


class Given(NamedTuple):
    """A piece, and the findings that are there and may be its own."""

    piece: Piece
    stored: tuple[Finding, ...]


class Came(NamedTuple):
    """What a piece came to: the keys of its findings in the order of the plan, and rows that need none."""

    touched: tuple[str, ...]
    rows: tuple[Verdict, ...]


class Opened(NamedTuple):
    """What a worker's bench tells. `pieces`: in the order of the plan, each with its stage's name and how many findings it is
    thought to have. `rows`: known before anything is made. `facts`: for the page. `cuts`: dtype -> words, where not all layers
    are run. `sha`: of what all findings are about: another worker's are the same."""

    pieces: tuple[tuple[Piece, str, int], ...]
    rows: tuple[Verdict, ...]
    facts: Mapping[str, Any]
    cuts: Mapping[str, str]
    sha: str


def parts_of(stage: Stage) -> list[Stage]:
    """A stage in parts that any worker can do: what stands beside the same control, or the same text of vanilla's. The law of a
    method ends where a case is refused, and the score test's methods share forwards: both stay whole. Rows go with the first."""
    if not stage.dtype or stage.tests or not stage.jobs:
        return [stage]
    parts: list[list[Job]] = []
    for job in stage.jobs:
        if parts and job.beside is not None and job.beside in (parts[-1][0], parts[-1][0].beside):
            parts[-1].append(job)
        else:
            parts.append([job])
    return [replace(stage, jobs=jobs, rows=stage.rows if i == 0 else ()) for i, jobs in enumerate(parts)]


class StandIn:
    """In place of a `Store`, in a worker."""

    path = Path()
    key_of = staticmethod(Store.key_of)

    def __init__(self, stored: Iterable[Finding], send: Send) -> None:
        self._found, self._send = {f["key"]: f for f in stored}, send

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found.values())

    def get(self, about: Mapping[str, Any]) -> Finding | None:
        return self._found.get(self.key_of(about))

    def add(self, about: Mapping[str, Any], values: Mapping[str, Any]) -> Finding:
        self._send(FINDING, (dict(about), dict(values)))
        found = self._found[self.key_of(about)] = {"key": self.key_of(about), **about, **values}
        return found


class _Silent(Progress):
    """The driver tells how far it is."""

    def line(self, last: str) -> str | None:
        return None


class AuditBench:
    """Makes the findings of pieces. One model is loaded at a time: that of the last piece's dtype."""

    def __init__(self, setup: Setup) -> None:
        include_all(setup.includes)
        self._request = setup.request
        self._ready: Ready = ready_for(setup.request, say)
        self._loaded: Loaded | None = None
        self._origin: Origin | None = None
        for dtype in self._ready.dtypes:
            if self._in(dtype, self._ready.rows) is not None:
                break
        if self._loaded is None:
            raise UserError(self._ready.rows[-1].why)
        self._origin, scope, plan = planned_on(setup.request, self._ready, self._loaded)
        self._parts: dict[Piece, Stage] = {}
        pieces: list[tuple[Piece, str, int]] = []
        for i, stage in enumerate(plan):
            for j, part in enumerate(parts_of(stage)):
                piece = Piece(stage.dtype, i, j)
                self._parts[piece] = part
                pieces.append((piece, stage.name, sum(1 for _ in expected([part], lambda job: None))))
        rows = [*self._ready.rows, *self._ready.not_asked_for(scope)]
        if setup.includes:
            rows.append(engine_verdict(originals.replaced()))
        jobs = [Store.key_of(job.about) for job in expected(plan, lambda job: None)]
        self.opened = Opened(tuple(pieces), tuple(rows), self._origin.facts, self._ready.cuts, canonical_hash(jobs))

    def do(self, given: Given, send: Send) -> None:
        stage, rows = self._parts[given.piece], list[Verdict]()
        loaded = self._in(stage.dtype, rows) if stage.dtype else None
        keeper = Keeper(StandIn(given.stored, send))
        if loaded is not None or not stage.dtype:
            loop = Loop(keeper, _Silent([], Rates()), (), lambda text: send(LINE, text))
            rows += loop.run(stage, loaded)
        send(DONE, Came(tuple(f["key"] for f in keeper.touched), tuple(rows)))

    def _in(self, dtype: str, rows: list[Verdict]) -> Loaded | None:
        """The model in a dtype; None where it cannot be had, and `rows` say why."""
        if self._loaded is None or self._loaded.dtype != dtype:
            self._loaded = None  # two models need not fit side by side
            r = self._ready
            self._loaded = loaded_or_row(self._request, r.config, dtype, r.subjects, rows, say, r.room.get(dtype))
            if self._loaded is not None and self._origin is not None:
                check_engine(self._loaded, self._origin)
        return self._loaded
