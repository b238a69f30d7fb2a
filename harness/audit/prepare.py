"""What an audit needs before its loop can start: methods, ledgers, the model, the scope of the plan, and an estimate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import methods
from harness.audit.estimate import Progress, Rates, known_rates, measured
from harness.audit.jobs import Plan, expected
from harness.audit.keeper import Keeper, Origin
from harness.audit.layers import Scope
from harness.audit.levels import LEVELS, LONG, SCORE_DTYPE, SCORE_LONGEST, Level, Prompts, bundled
from harness.audit.loop import Loop
from harness.audit.probe.ledger_pairs import LedgerPair, LedgerPrompts, compared
from harness.audit.probe.subject import Subject
from harness.audit.request import ALL, AuditRequest
from harness.audit.room import Room, rooms_for
from harness.audit.verdicts.verdict import Verdict
from harness.common.errors import UserError, duration
from harness.common.hints import hinted
from harness.common.names import VANILLA, method_order
from harness.ledger import ledger as records
from harness.load.config import ModelConfig
from harness.load.dtype import resolve_dtype
from harness.load.kinds import drafter_kind
from harness.load.model import Loaded
from harness.load.placement import gb
from harness.load.preflight import architecture

Tell = Callable[[str], None]


def chosen(names: Sequence[str], config: ModelConfig, head: Path | None = None) -> list[Subject]:
    """The methods of these names. `all` is every one of no group, inexact ones and external loops included; a group's word is its
    own, controls that only a replay has left out. Vanilla always is. Policies draft with the kind of EAGLE head in `head`.

    Raises:
        UserError: a method that is not there, or that only a replay has.
    """
    found: set[str] = set()
    for name in names:
        groups = {ALL: "", **{group: group for group in methods.GROUPS}}
        of_group = methods.names(group=groups[name]) if name in groups else [name]
        found |= {n for n in of_group if name not in groups or not methods.get(n).replay_only}
        if name not in groups and (why := methods.only_replayed(methods.get(name))):
            raise UserError(why)
    kind = drafter_kind(head) if head is not None else None
    return [Subject.of(methods.get(n).on(kind), config) for n in sorted({*found, VANILLA}, key=method_order)]


def ledger_pairs(folders: Sequence[Path], config: ModelConfig) -> tuple[list[LedgerPair], list[Verdict]]:
    """The pairs of these ledgers, and a row if some of their outputs cannot be judged. Of two copies of a pair one counts.

    Raises:
        UserError: a ledger has no greedy outputs of this model with vanilla's beside them.
    """
    found: list[LedgerPair] = []
    n_alone = 0
    for folder in folders:
        pairs, n = compared(r for r in records.read(folder) if r["model"] == config.name)
        if not pairs:
            both = hinted("run", "--model", config.given, "--method", "all", "--task", "all", "--out", folder)
            raise UserError(f"{folder} holds no greedy output of {config.name} with vanilla's to the same prompt beside it: "
                            f"{both} records both")  # fmt: skip
        found, n_alone = found + pairs, n_alone + n
    found = list({(pair.ids_sha, pair.key, pair.vanilla_key): pair for pair in found}.values())
    if not n_alone:
        return found, []
    why = f"{n_alone} outputs ended in an error or have no output of vanilla's beside them: run the same command again"
    return found, [Verdict.missing("L3, ledger", "all", why)]


def load_in(
    config: ModelConfig, dtype: str, head: Path | None, threads: int, drafters: Collection[str] = (methods.EAGLE,),
    room: Room | None = None,
) -> Loaded:  # fmt: skip
    """The model in one dtype, with these kinds of drafters, and as many of its layers as `room` says."""
    import torch

    from harness.common.machine import keep_freed_memory
    from harness.load.model import load
    from harness.load.placement import let_go

    keep_freed_memory()
    let_go()  # the model of the dtype before
    torch.set_num_threads(threads)
    if room is None:
        return load(config, dtype, head=head, drafters=drafters)
    layers = room.fit.layers if room.fit.is_cut else None
    return load(config, dtype, head=head, drafters=drafters, layers=layers, context=room.context)


def loaded_or_row(
    request: AuditRequest, config: ModelConfig, dtype: str, subjects: Sequence[Subject], rows: list[Verdict], tell: Tell,
    room: Room | None,
) -> Loaded | None:  # fmt: skip
    """The model in one dtype. None if it cannot be had, and a row then says why."""
    cut = f", its first {room.fit.layers} of {room.fit.of} layers" if room is not None and room.fit.is_cut else ""
    tell(f"loading {config.title} in {dtype}{cut} ...")
    try:
        return load_in(config, dtype, request.head, request.n_threads, kinds_of(subjects), room)
    except (UserError, RuntimeError, TypeError, MemoryError) as e:  # TypeError: a device without float64
        rows.append(Verdict.missing(f"all of {dtype}", "all", " ".join(str(e).split()) or type(e).__name__))
        return None


def kinds_of(subjects: Sequence[Subject]) -> set[str]:
    """The kinds of drafters that are loaded: those of the methods, and the EAGLE head, whose law is the score test's q."""
    return {methods.EAGLE, *(s.kind for s in subjects if s.kind)}


def measured_dtype(request: AuditRequest, config: ModelConfig, rows: list[Verdict]) -> str | None:
    """The dtype in which `harness run` measures the model here: what tables show is judged as it was measured. None where no
    run can measure it as configured, and the dtypes to judge are given: `rows` get one that says why.

    Raises:
        UserError: no run can, and none are given.
    """
    import torch

    torch.set_num_threads(request.n_threads)  # what `auto` means may depend on it
    try:
        return resolve_dtype(config.dtype)
    except UserError as e:
        if not request.dtypes:
            raise
        rows.append(Verdict.not_applicable("the dtype of runs", "all", str(e)))
        return None


def computed_here(dtypes: Iterable[str], rows: list[Verdict]) -> list[str]:
    """Those of a level's dtypes that this device computes in; `rows` get the others. Nothing that is shown was made in them."""
    found = []
    for dtype in dtypes:
        try:
            resolve_dtype(dtype)
        except UserError as e:
            rows.append(Verdict.not_applicable(f"all of {dtype}", "all", str(e)))
        else:
            found.append(dtype)
    return found


def score_dtype(dtypes: Sequence[str], measured: str | None, pairs: Sequence[LedgerPair]) -> str:
    """The one of these dtypes in which layer 4's score test runs: a ledger's, else that of runs. The test takes the logits that
    tokens were drawn from as they are, so it is valid in any."""
    of_ledgers = {pair.dtype for pair in pairs}
    first = [measured] if measured in of_ledgers else sorted(of_ledgers)
    return next(dtype for dtype in (*first, measured, SCORE_DTYPE, *dtypes) if dtype is not None and dtype in dtypes)


def rooms(
    request: AuditRequest, config: ModelConfig, dtypes: Sequence[str], measured: str | None, subjects: Sequence[Subject],
    pairs: Sequence[LedgerPair], rows: list[Verdict], tell: Tell,
) -> dict[str, Room]:  # fmt: skip
    """dtype -> how much of the target is run in it, as memory allows; told where that is not all. `rows` get what is not judged.
    Empty if the target's sizes are not known: then its loading shows whether it fits."""
    sizes = architecture(config)
    if sizes is None:
        return {}
    of_ledgers = {pair.dtype for pair in pairs}
    found = rooms_for(config, sizes, dtypes, level=LEVELS[request.level], kinds=kinds_of(subjects), head=request.head,
                      measured={*([measured] if measured else ()), *of_ledgers}, ledgers=of_ledgers)  # fmt: skip
    if any(r.fit.words for r in found.values()):
        for dtype, r in found.items():
            tell(f"{dtype}: {r.fit.words or f'the whole target, {gb(r.fit.needed)} of {gb(r.fit.free)} free'}")
    rows += [Verdict.missing(f"all of {dtype}", "all", r.fit.words) for dtype, r in found.items() if not r.fit.layers]
    return found


def check_engine(loaded: Loaded, origin: Origin) -> None:
    """
    Raises:
        UserError: another engine runs the model in this dtype than was planned for.
    """
    planned, found = origin.targets[loaded.dtype].engine, loaded.identity.engine
    if planned != found:
        raise UserError(f"in {loaded.dtype} the engine is {found}, and the audit was planned for {planned}: run it again")


def scope_of(
    request: AuditRequest, level: Level, config: ModelConfig, subjects: Sequence[Subject], pairs: Sequence[LedgerPair],
    loaded: Loaded, origin: Origin, measured: str | None, rows: list[Verdict],
) -> Scope:  # fmt: skip
    """What the plan is made from. What cannot be done is found out here, before hours are spent; `rows` get what is missing.

    Raises:
        UserError: no bundled prompt fits, or the ledger's prompts or weights are not those at hand.
    """
    ledger_prompts = LedgerPrompts(request.prompts_dir)
    for pair in pairs:
        here = origin.targets[pair.dtype].id if pair.dtype in origin.targets else loaded.identity_in(pair.dtype).id
        known = pair.record["target_id"] or here  # schema 2 does not say
        if (pair.record["target_sha"], known) != (loaded.target_sha, here):
            raise UserError(f"the ledger's records are of another {config.name} than the one at hand: weights, configuration, "
                            "tokenizer, prompt format, stop ids or engine differ")  # fmt: skip
        ledger_prompts.ids(pair, loaded)
    found = bundled(loaded, level.most_prompts, level.room, level.shortest)
    if not found:
        raise UserError(f"no bundled prompt with {level.new_tokens} new tokens and a tree of {level.width} nodes fits into the "
                        f"{config.context_length} tokens of {config.name}")  # fmt: skip
    if len(found) < level.most_prompts:
        rows.append(Verdict.missing("prompts", "all", f"only {len(found)} of {level.most_prompts} fit the context"))
    prompts = Prompts.of(loaded, level)
    if not prompts.has_long:
        fits = LONG + level.long_tokens + level.width <= config.context_length
        why = f"a prompt of {LONG} tokens and {level.long_tokens} new ones do not fit the context of {config.context_length}"
        why = f"no bundled prompt has over {LONG} tokens" if fits else why
        rows.append(Verdict.not_applicable("L2, L3 after a long prompt", "all", why))
    if len(prompts.scored) < level.score_prompts:
        why = f"only {len(prompts.scored)} of {level.score_prompts} prompts have at most {SCORE_LONGEST} tokens"
        rows.append(Verdict.missing("L4 score test", "all", why))
    stop_ids, named = frozenset(config.stop_ids), set(request.methods)
    own = {dtype for dtype in origin.row_invariant if dtype == measured}  # what tables show is then judged as it was measured
    return Scope(level, request.level, subjects, named, origin, stop_ids, prompts, pairs, ledger_prompts,
                 frozenset(own) or origin.row_invariant, score_dtype(list(origin.targets), measured, pairs))  # fmt: skip


def loop_of(
    plan: Plan, scope: Scope, loaded: Loaded, keeper: Keeper, tell: Tell, shares: Mapping[str, float] = MappingProxyType({})
) -> Loop:  # fmt: skip
    """The loop that will do the plan. Told here: how much is missing, how long that takes, what in the store does not count.

    shares: as `Rates` has them.
    """
    jobs = list(expected(plan, keeper.found))
    planned = {keeper.key(job) for job in jobs}
    for why, n in keeper.apart(planned, scope.origin, scope.subjects).items():
        tell(f"{keeper.path} holds {n:,} findings made {why}: they are kept and not judged here")
    missing = [job.work for job in jobs if keeper.found(job) is None]
    if not missing:
        tell(f"everything asked for is in {keeper.path} already: nothing to run")
        return Loop(keeper, Progress([], Rates()), planned, tell)
    rates, how_long = Rates(), ""
    if any(work.dtype for work in missing):
        known = known_rates(keeper.store, scope.origin.where, scope.origin.layers)
        try:
            rates = measured(loaded, scope.subjects, scope.prompts.usual[0].prompt[1], known, missing, shares)
        except Exception as e:  # told again, as a finding
            how_long = f"how long that takes is not known: plain decoding raised {type(e).__name__}: {' '.join(str(e).split())}"
    progress = Progress(missing, rates)
    parts = ", ".join(f"{duration(seconds)} {part}" for part, seconds in progress.by_layer.items())
    there = f", {len(jobs) - len(missing):,} are there" if len(jobs) > len(missing) else ""
    how_long = how_long or f"about {duration(progress.total)} if every answer uses its tokens ({parts})"
    tell(f"{len(missing):,} findings to make{there}: {how_long}")
    return Loop(keeper, progress, planned, tell)


def not_asked_for(
    scope: Scope, dtypes: Sequence[str], subjects: Sequence[Subject], pairs: Sequence[LedgerPair]
) -> list[Verdict]:  # fmt: skip
    """Rows for what the choice of dtypes and methods leaves out."""
    rows = []
    goes_too = {"float64": ", vanilla's own ids with it"}
    for dtype in scope.level.dtypes:
        if dtype not in dtypes:
            why = f"this dtype was not asked for{goes_too.get(dtype, '')}"
            rows.append(Verdict.not_applicable(f"all of {dtype}", "all", why))
    names = {s.name for s in subjects}
    skipped = sum(pair.dtype not in dtypes for pair in pairs if pair.method in names)
    if skipped:
        rows.append(Verdict.missing("L3, ledger", "all", f"{skipped} outputs are in dtypes not asked for"))
    others = {pair.method for pair in pairs} - names
    if others:
        why = f"the ledger's outputs of {', '.join(sorted(others))} were not asked for"
        rows.append(Verdict.not_applicable("L3, ledger", "all", why))
    return rows
