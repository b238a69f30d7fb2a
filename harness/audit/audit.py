"""An audit: a plan of findings, a loop that makes what is missing, and the verdicts on all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.audit import page, recorded_taus
from harness.audit.jobs import Plan
from harness.audit.keeper import Finding, Keeper, Origin
from harness.audit.layers import Scope, planned
from harness.audit.levels import LEVELS, Level
from harness.audit.prepare import (
    check_engine,
    chosen,
    computed_here,
    kinds_of,
    ledger_pairs,
    loaded_or_row,
    loop_of,
    measured_dtype,
    not_asked_for,
    rooms,
    scope_of,
)
from harness.audit.probe.ledger_pairs import LedgerPair
from harness.audit.probe.subject import Subject
from harness.audit.request import AuditRequest
from harness.audit.room import Fit, Room
from harness.audit.store import Store
from harness.audit.verdicts.all import in_order, judged
from harness.audit.verdicts.conduct import engine_verdict, pace_verdict
from harness.audit.verdicts.verdict import Verdict, failure, overall, said_on
from harness.cluster.request import ClusterRequest
from harness.common.errors import UserError, say
from harness.common.names import method_order
from harness.load.config import ModelConfig, known_models, model_config
from harness.load.model import Loaded
from harness.load.placement import let_go
from harness.watch import originals, pace

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What an audit came to. `problems`: why it does not hold, a line each; `written`: the files beside the findings."""

    title: str
    level: str
    rows: Sequence[Verdict]
    problems: Sequence[str]
    written: Sequence[Path]


@dataclass(frozen=True, slots=True)
class Ready:
    """What an audit knows before a model is loaded. `measured`: the dtype of runs; `asked`: the dtypes asked for, `lacked`: those
    of the level that are not computed here, `dtypes`: those to do, each as far as `room` says. `rows` grow as more shows."""

    config: ModelConfig
    level: Level
    subjects: Sequence[Subject]
    pairs: Sequence[LedgerPair]
    rows: list[Verdict]
    measured: str | None
    asked: Sequence[str]
    lacked: Sequence[str]
    room: Mapping[str, Room]

    @property
    def dtypes(self) -> list[str]:
        return [dtype for dtype in self.asked if dtype not in self.room or self.room[dtype].fit.layers]

    @property
    def fits(self) -> dict[str, Fit]:
        """Of the dtypes in which not all layers are run."""
        return {dtype: self.room[dtype].fit for dtype in self.dtypes if dtype in self.room and self.room[dtype].fit.is_cut}

    @property
    def cuts(self) -> dict[str, str]:
        return {dtype: fit.words for dtype, fit in self.fits.items()}

    def not_asked_for(self, scope: Scope) -> list[Verdict]:
        """Rows for what the choice of dtypes and methods leaves out."""
        return not_asked_for(scope, [*self.asked, *self.lacked], self.subjects, self.pairs)


def ready_for(request: AuditRequest, tell: Tell) -> Ready:
    """
    Raises:
        UserError: bad input, or nothing fits.
    """
    config, level = model_config(request.model), LEVELS[request.level]
    subjects = chosen(request.methods, config, request.head)
    pairs, rows = ledger_pairs(request.ledgers, config)
    measured = measured_dtype(request, config, rows)
    own = list(level.dtypes) if request.dtypes else computed_here(level.dtypes, rows)
    lacked = [dtype for dtype in level.dtypes if dtype not in own]
    asked = list(dict.fromkeys(request.dtypes or (*(pair.dtype for pair in pairs), *own, *([measured] if measured else ()))))
    room = rooms(request, config, asked, measured, subjects, pairs, rows, tell)
    ready = Ready(config, level, subjects, pairs, rows, measured, asked, lacked, room)
    if not ready.dtypes:
        why = (f"{v.layer.removeprefix('all of ')}: {v.why}" for v in rows if v.layer.startswith("all of "))
        raise UserError(f"{config.name} cannot be judged here: {'; '.join(why)}")
    return ready


def planned_on(request: AuditRequest, ready: Ready, loaded: Loaded) -> tuple[Origin, Scope, Plan]:
    """The plan, once the model is loaded in any of its dtypes."""
    layers = {dtype: fit.layers for dtype, fit in ready.fits.items()}
    origin = Origin.of(loaded, request.n_threads, ready.dtypes, layers)
    scope = scope_of(request, ready.level, ready.config, ready.subjects, ready.pairs, loaded, origin, ready.measured, ready.rows)
    return origin, scope, planned(scope, loaded, ready.dtypes)


def _head_of(request: AuditRequest, config: ModelConfig) -> Path | None:
    """The draft head's folder, whose recorded taus can be read.

    Raises:
        UserError: there is none to record for, or they are spoilt: found out before hours are spent.
    """
    head = request.head or config.head_folder
    if request.record and head is None:
        raise UserError(f"--record keeps taus beside the draft head, and model {config.name} has none")
    if head is not None:
        recorded_taus.taus(head)
    return head


def audit_over(request: AuditRequest, over: ClusterRequest, tell: Tell = say) -> Report:
    """`audit`, with findings made by a cluster's workers. The model is not loaded here.

    Raises:
        UserError: as `audit`, or no node of the cluster can do it.
    """
    from harness.audit.spread import found_over

    config, level = model_config(request.model), LEVELS[request.level]
    head = _head_of(request, config)
    subjects = chosen(request.methods, config, request.head)
    with Store(request.out) as store:
        desk = found_over(request, config, kinds_of(subjects), over, store, tell)
        told, touched = desk.told, desk.touched()
        assert told is not None
        rows = [*desk.rows(), *_judged(touched, level, head, told.cuts)]
        return _reported(request, config, head, subjects, rows, touched, told.facts, told.cuts, tell)


def _judged(touched: Sequence[Finding], level: Level, head: Path | None, cuts: Mapping[str, str]) -> list[Verdict]:
    return said_on(judged(touched, level.score_tokens, recorded_taus.recorded(head, touched)), cuts)


def _reported(
    request: AuditRequest, config: ModelConfig, head: Path | None, subjects: Sequence[Subject], rows: Sequence[Verdict],
    touched: Sequence[Finding], facts: Mapping[str, Any], cuts: Mapping[str, str], tell: Tell,
) -> Report:  # fmt: skip
    """The end of an audit, wherever its findings were made: tables and figures, taus kept if asked for, and whether it holds.

    Raises:
        UserError: they cannot be written.
    """
    rows, recorded = in_order(rows), recorded_taus.recorded(head, touched)
    if request.record and head is not None:  # after the verdicts: a tau is not compared with itself
        _record(head, touched, rows, tell)
    inexact = {s.name for s in subjects if not s.exact}
    written = page.write(request.out, rows, touched, recorded, facts, config.title, request.level, inexact, cuts)
    return Report(config.title, request.level, rows, overall(rows, {s.name: s.exact for s in subjects} | {"all": True}), written)


def verify(request: AuditRequest) -> list[Verdict]:
    """The verdicts of an audit, a row a layer and method. Findings, tables and figures go to `request.out`; nothing is printed.

    Raises:
        UserError: bad input, or the model cannot be loaded in any dtype.
    """
    return list(audit(request, tell=lambda _: None).rows)


def audit(request: AuditRequest, tell: Tell = say) -> Report:
    """The same with all that the command shows. `tell` gets lines on progress, and one for each layer that fails on the way."""
    config, level = model_config(request.model), LEVELS[request.level]
    head = _head_of(request, config)
    ready = ready_for(request, tell)
    subjects, rows, cuts = ready.subjects, ready.rows, ready.cuts
    with Store(request.out) as store:
        keeper = Keeper(store)

        def judge() -> list[Verdict]:
            return _judged(keeper.touched, level, head, cuts)

        fails = _Failures({s.name for s in subjects if not s.exact}, tell)
        plan: Plan = ()
        origin, loop = None, None
        for dtype in ready.dtypes:
            loaded, stages = None, [dtype]
            if loop is None or loop.lacks(plan, dtype):
                loaded = loaded_or_row(request, config, dtype, subjects, rows, tell, ready.room.get(dtype))
                if loaded is None:
                    continue
            if loop is None:
                assert loaded is not None
                origin, scope, plan = planned_on(request, ready, loaded)
                shares = {dtype: fit.layers / fit.of for dtype, fit in ready.fits.items()}
                loop = loop_of(plan, scope, loaded, keeper, tell, shares)
                stages = ["", dtype]  # layer 1 runs no model: it comes once, and first
            if loaded is not None:
                assert origin is not None
                check_engine(loaded, origin)
            for stage in (stage for stage in plan if stage.dtype in stages):
                rows += loop.run(stage, loaded)
                fails.tell_new(judge())
            del loaded  # two models need not fit side by side
        if origin is None:
            raise UserError(rows[-1].why)
        let_go()  # plain decoding's speed is taken by processes of their own, which load it too
        rows += _of_included(request, scope.score_dtype, cuts)
        rows = [*rows, *ready.not_asked_for(scope), *judge()]
        return _reported(request, config, head, subjects, rows, keeper.touched, origin.facts, cuts, tell)


def _of_included(request: AuditRequest, dtype: str, cuts: Mapping[str, str]) -> list[Verdict]:
    """Whether a user's files left the harness as it is, and plain decoding as fast: rows of their own, where there are any.

    cuts: dtype -> words, of those in which only a part of the target fits. The speed takes two whole ones side by side.
    """
    if not request.includes:
        return []
    rows = [engine_verdict(originals.replaced())]
    if request.level == "quick" and dtype in cuts:
        why = f"it takes the whole target twice at once, and in {dtype} the audit runs {cuts[dtype]}"
        rows.append(Verdict.not_applicable("L6 conduct, vanilla's speed", "all", why))
    elif request.level == "quick":
        model = str(known_models().get(request.model, request.model))
        try:
            rows.append(pace_verdict(pace.pace(model, dtype, request.n_threads, request.includes)))
        except UserError as e:
            rows.append(Verdict.not_applicable("L6 conduct, vanilla's speed", "all", str(e)))
    return rows


class _Failures:
    """Tells each failing layer of a method once, as soon as it fails."""

    def __init__(self, inexact: Collection[str], tell: Tell):
        self._inexact, self._tell, self._told = inexact, tell, set[tuple[str, str]]()

    def tell_new(self, rows: Sequence[Verdict]) -> None:
        for v in rows:
            if v.passed is False and (v.layer, v.method) not in self._told:
                self._told.add((v.layer, v.method))
                declared = ", as it should: it declares itself inexact" if v.method in self._inexact else ""
                self._tell(f"so far {failure(v)}{declared}")


def _record(head: Path, touched: Sequence[Finding], rows: Sequence[Verdict], tell: Tell) -> None:
    failing = {v.method for v in rows if v.passed is False}
    if failing:
        tell(f"--record leaves out what failed: {', '.join(sorted(failing, key=method_order))}")
    recorded_taus.record(head, touched, failing)
