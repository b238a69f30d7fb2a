"""An audit: a plan of findings, a loop that makes what is missing, and the verdicts on all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.audit import page, recorded_taus
from harness.audit.jobs import Plan
from harness.audit.keeper import Finding, Keeper, Origin
from harness.audit.layers import planned
from harness.audit.levels import LEVELS
from harness.audit.prepare import (
    check_engine,
    chosen,
    computed_here,
    ledger_pairs,
    loaded_or_row,
    loop_of,
    measured_dtype,
    not_asked_for,
    rooms,
    scope_of,
)
from harness.audit.request import AuditRequest
from harness.audit.store import Store
from harness.audit.verdicts.all import in_order, judged
from harness.audit.verdicts.conduct import engine_verdict, pace_verdict
from harness.audit.verdicts.verdict import Verdict, failure, overall, said_on
from harness.common.errors import UserError, say
from harness.common.names import method_order
from harness.load.config import known_models, model_config
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


def verify(request: AuditRequest) -> list[Verdict]:
    """The verdicts of an audit, a row a layer and method. Findings, tables and figures go to `request.out`; nothing is printed.

    Raises:
        UserError: bad input, or the model cannot be loaded in any dtype.
    """
    return list(audit(request, tell=lambda _: None).rows)


def audit(request: AuditRequest, tell: Tell = say) -> Report:
    """The same with all that the command shows. `tell` gets lines on progress, and one for each layer that fails on the way."""
    config, level = model_config(request.model), LEVELS[request.level]
    head = request.head or config.head_folder
    if request.record and head is None:
        raise UserError(f"--record keeps taus beside the draft head, and model {config.name} has none")
    if head is not None:
        recorded_taus.taus(head)  # a spoilt file is found out before hours are spent
    subjects = chosen(request.methods, config, request.head)
    pairs, rows = ledger_pairs(request.ledgers, config)
    measured = measured_dtype(request, config, rows)
    own = list(level.dtypes) if request.dtypes else computed_here(level.dtypes, rows)
    lacked = [dtype for dtype in level.dtypes if dtype not in own]
    asked = list(dict.fromkeys(request.dtypes or (*(pair.dtype for pair in pairs), *own, *([measured] if measured else []))))
    room = rooms(request, config, asked, measured, subjects, pairs, rows, tell)
    dtypes = [dtype for dtype in asked if dtype not in room or room[dtype].fit.layers]
    if not dtypes:
        why = (f"{v.layer.removeprefix('all of ')}: {v.why}" for v in rows if v.layer.startswith("all of "))
        raise UserError(f"{config.name} cannot be judged here: {'; '.join(why)}")
    fits = {dtype: room[dtype].fit for dtype in dtypes if dtype in room and room[dtype].fit.is_cut}
    cuts = {dtype: fit.words for dtype, fit in fits.items()}
    with Store(request.out) as store:
        keeper = Keeper(store)

        def judge() -> list[Verdict]:
            found = judged(keeper.touched, level.score_tokens, recorded_taus.recorded(head, keeper.touched))
            return said_on(found, cuts)

        inexact = {s.name for s in subjects if not s.exact}
        fails = _Failures(inexact, tell)
        plan: Plan = ()
        origin, loop = None, None
        for dtype in dtypes:
            loaded, stages = None, [dtype]
            if loop is None or loop.lacks(plan, dtype):
                loaded = loaded_or_row(request, config, dtype, subjects, rows, tell, room.get(dtype))
                if loaded is None:
                    continue
            if loop is None:
                assert loaded is not None
                origin = Origin.of(loaded, request.n_threads, dtypes, {dtype: fit.layers for dtype, fit in fits.items()})
                scope = scope_of(request, level, config, subjects, pairs, loaded, origin, measured, rows)
                plan = planned(scope, loaded, dtypes)
                shares = {dtype: fit.layers / fit.of for dtype, fit in fits.items()}
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
        recorded = recorded_taus.recorded(head, keeper.touched)
        let_go()  # plain decoding's speed is taken by processes of their own, which load it too
        rows += _of_included(request, scope.score_dtype, cuts)
        rows = in_order([*rows, *not_asked_for(scope, [*asked, *lacked], subjects, pairs), *judge()])
        if request.record and head is not None:  # after the verdicts: a tau is not compared with itself
            _record(head, keeper.touched, rows, tell)
    written = page.write(request.out, rows, keeper.touched, recorded, origin.facts, config.title, request.level, inexact,
                         cuts)  # fmt: skip
    problems = overall(rows, {s.name: s.exact for s in subjects} | {"all": True})
    return Report(config.title, request.level, rows, problems, written)


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
