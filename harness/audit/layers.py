"""The layers of an audit as plans: which findings each layer needs, and how each is made. Nothing is generated here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import methods
from harness.audit.estimate import PACE_IN_LANES, PACE_SMALLER, Work
from harness.audit.jobs import Job, PlainText, Plan, Sample, ScoreTest, Stage
from harness.audit.keeper import Origin, lanes_sha
from harness.audit.levels import (
    SCORE_TEMPERATURE,
    Case,
    Level,
    Prompt,
    Prompts,
)
from harness.audit.probe import findings, lanes, law
from harness.audit.probe.findings import SCORED_BY_CONTROL, Finding
from harness.audit.probe.ledger_pairs import LedgerPair, LedgerPrompts
from harness.audit.probe.subject import Subject
from harness.audit.verdicts.verdict import Verdict
from harness.common.names import VANILLA
from harness.ledger.record import canonical_hash
from harness.load.model import Loaded
from methods.base import SamplerParams
from methods.engine.sampling import stream_key

AGAIN_TOKENS = 10
REJECTED = 8  # drafts of an output that were not accepted and are looked at all the same, on a row-invariant engine
EXTERNAL_TOKENS = 32  # of others' loops after a long prompt: they took a quarter of a quick audit


@dataclass(frozen=True, slots=True)
class Scope:
    """What every layer's plan is made from. `named`: methods that were asked for by name. `stop_ids`: the model's.
    `whole`: the dtypes in which sampled ids must be vanilla's and rejected drafts are looked at: of those with a row-invariant
    engine the one in which runs measure the model; all of them if that is not audited. `score_dtype`: of the score test and of
    two decodes of one prompt."""

    level: Level
    level_name: str
    subjects: Sequence[Subject]
    named: Collection[str]
    origin: Origin
    stop_ids: frozenset[int]
    prompts: Prompts
    pairs: Sequence[LedgerPair]
    ledger_prompts: LedgerPrompts
    whole: frozenset[str]
    score_dtype: str


def planned(scope: Scope, loaded: Loaded, dtypes: Sequence[str]) -> Plan:
    """The whole plan, in the order of its doing. Of `loaded` only its names and what it lacks are used, whatever its dtype."""
    stages = [law_stage(scope, s) for s in scope.subjects]
    for dtype in dtypes:
        able, rows = able_subjects(scope, loaded, dtype)
        stages.append(greedy_stage(scope, dtype, able, rows))
        if dtype == "float64" or dtype in scope.whole:
            stages.append(coupled_stage(scope, dtype, able))
        if dtype == scope.score_dtype:
            stages += [again_stage(scope, dtype, able), score_stage(scope, dtype, loaded, able)]
        stages.append(ledger_stage(scope, dtype))
    return stages


def able_subjects(scope: Scope, loaded: Loaded, dtype: str) -> tuple[list[Subject], list[Verdict]]:
    """The methods that the model has all for, and a row for each of the others."""
    able, rows = list[Subject](), list[Verdict]()
    for s in scope.subjects:
        if (lacks := s.lacks(loaded)) is None:
            able.append(s)
        elif s.name in scope.named:
            rows.append(Verdict.missing(f"all of {dtype}", s.name, lacks))
        else:
            rows.append(Verdict.not_applicable(f"all of {dtype}", s.name, lacks))
    return able, rows


def law_stage(scope: Scope, s: Subject) -> Stage:
    """Layer 1: the stop rule, then every branch of chance on small trees."""
    if s.external:
        return Stage(f"L1 {s.name}", "", rows=[Verdict.not_applicable("L1 exact law", s.name, "another's loop")])
    level, origin = scope.level, scope.origin
    stop_work = Work("stop", s.name, seconds=level.law_s)
    stop = Job(origin.about_law("stop", s), stop_work, partial(findings.stop_finding, s))
    seconds = level.sampled_law_s if s.samples_drafts else level.law_s
    cases = law.cases(level.law_tokens, scope.level_name, s.samples_drafts)
    deep = law.walks(list(s.deep), law.deep_cases(), "full")
    walks = [
        Job(
            origin.about_law("law", s, case=case.name, tree=tree, n_tokens=case.step if case.is_deep else level.law_tokens),
            Work("law", s.name, seconds=seconds),
            partial(findings.law_finding, s, tree, case),
        )
        for tree, case in (*law.walks(list(s.small), cases, scope.level_name), *deep)
    ]
    return Stage(f"L1 {s.name}", "", [stop, *walks])


def greedy_stage(scope: Scope, dtype: str, able: Sequence[Subject], rows: Sequence[Verdict]) -> Stage:
    """Layers 2, 3 and 5: for each prompt the control, and then every method's greedy output beside it."""
    level, jobs, has_bits = scope.level, list[Job](), dtype in scope.origin.row_invariant
    vanilla = next(s for s in scope.subjects if s.name == VANILLA)
    for case in scope.prompts.greedy(dtype, has_bits):
        prompt, n, n_prompt = case.prompt, case.new_tokens, len(case.prompt[1])
        params, text = greedy_params(case, scope.stop_ids), n_prompt + n
        is_long = not case.stops
        more = {"stops": False} if is_long else {}
        control = Job(
            scope.origin.about("control", vanilla, dtype, prompt, n, width=level.width, **more, **_row_invariant(has_bits)),
            Work("control", VANILLA, dtype, n, n_prompt, text + n_prompt + SCORED_BY_CONTROL * n),
            partial(findings.control_finding, prompt=prompt[1], params=params, width=level.width, has_bits=has_bits),
        )
        jobs.append(control)
        more |= {"guided": True} if case.guided else {}
        for own in able:
            if is_long and own.name == VANILLA:  # its output is the control's
                continue
            s = own.with_options(case.tree)
            own_n = min(n, EXTERNAL_TOKENS) if is_long and s.external else n
            own_params = replace(params, max_new_tokens=own_n)
            work = Work("greedy", s.name, dtype, own_n, n_prompt, n_prompt + own_n, pace=_pace(own, s))
            own_bits = has_bits and not s.external
            rejected = REJECTED if own_bits and dtype in scope.whole else 0
            looked = {"rejected": rejected} if rejected else {}
            about = scope.origin.about("greedy", s, dtype, prompt, own_n, **more, **_row_invariant(own_bits), **looked)
            make = partial(findings.greedy_finding, subject=s, prompt=prompt[1], params=own_params, guided=case.guided,
                           has_bits=own_bits, rejected=rejected)  # fmt: skip
            jobs.append(Job(about, work, make, beside=control))
    if dtype == "float32" and scope.origin.cut(dtype):
        why = "its first layers alone are run: what is accepted there says nothing of drafters that were trained for the whole"
        rows = [*rows, Verdict.not_applicable(f"L5 acceptance, {dtype}", "all", why)]
    return Stage(f"L2, L3 {dtype}", dtype, jobs, rows=rows)


def _row_invariant(has_bits: bool) -> dict[str, Any]:
    """What a finding says of the engine that it is of, where no rounding is an excuse for other tokens."""
    return {"row_invariant": True} if has_bits else {}


def greedy_params(case: Case, stop_ids: frozenset[int]) -> SamplerParams:
    return SamplerParams(case.new_tokens, stop_ids if case.stops else frozenset())


def score_params(level: Level, name: str, repeat: int, stop_ids: frozenset[int]) -> SamplerParams:
    """Of the score test's outputs to the prompt `name`."""
    stops = stop_ids if level.score_stops else frozenset[int]()
    return SamplerParams(level.score_length, stops, temperature=SCORE_TEMPERATURE, key=stream_key(2, name, 1, repeat))


def coupled_stage(scope: Scope, dtype: str, able: Sequence[Subject]) -> Stage:
    """Layer 4 in float64 and on a row-invariant engine: methods that draw the target's own tokens emit vanilla's ids at T = 1."""
    level, jobs, has_bits = scope.level, list[Job](), dtype in scope.origin.row_invariant
    prompts, n_whole = scope.prompts.coupled, level.coupled_whole
    if has_bits:
        prompts, n_whole = scope.prompts.coupled_bits, max(n_whole, 1)
    if not prompts:
        return Stage(f"L4 {dtype}", dtype)
    rows = [Verdict.not_applicable(f"L4 same ids at T = 1, {dtype}", s.name, why) for s in able if (why := _not_vanillas(s))]
    coupled = [s for s in able if s.name != VANILLA and not _not_vanillas(s)]
    for i, prompt in enumerate(prompts):
        name, ids = prompt
        params = SamplerParams(level.new_tokens, scope.stop_ids, temperature=1.0, key=stream_key(1, name, 1, 0))
        plain = PlainText(ids, params)
        for own in coupled:
            s = own if i < n_whole else own.with_options(level.exact_tree)
            work = Work("coupled", s.name, dtype, level.new_tokens, len(ids), pace=_pace(own, s))
            about = scope.origin.about("coupled", s, dtype, prompt, level.new_tokens, **_row_invariant(has_bits))
            make = partial(findings.coupled_finding, subject=s, prompt=ids, params=params)
            jobs.append(Job(about, work, make, beside=plain))
    return Stage(f"L4 same ids {dtype}", dtype, jobs, rows=rows)


def again_stage(scope: Scope, dtype: str, able: Sequence[Subject]) -> Stage:
    """Layer 6: every method decodes a prompt that no other layer has, and then the same prompt again."""
    name, ids = scope.prompts.usual[0].prompt
    cut = len(ids) // 2
    prompt, n, jobs = (f"{name}, one token less", [*ids[:cut], *ids[cut + 1 :]]), AGAIN_TOKENS, list[Job]()
    params = SamplerParams(n, scope.stop_ids)
    for s in (own.with_options(scope.level.score_tree) for own in able if not own.external):
        work = Work("again", s.name, dtype, 2 * n, len(ids), len(ids))
        make = partial(findings.again_finding, subject=s, prompt=prompt[1], params=params)
        jobs.append(Job(scope.origin.about("again", s, dtype, prompt, n), work, make))
    return Stage(f"L6 {dtype}", dtype, jobs)


def _not_vanillas(s: Subject) -> str:
    """Why a method's ids need not be vanilla's at T > 0; empty where they must be."""
    if s.external:
        return "another's loop draws with its own generator"
    if s.samples_drafts:
        return "its drafts are sampled: the law is the target's, the ids are not vanilla's"
    return "" if s.exact else "it declares itself inexact"


def score_stage(scope: Scope, dtype: str, loaded: Loaded, able: Sequence[Subject]) -> Stage:
    """Layer 4's score test: sampled outputs, until there are enough tokens."""
    level, tests = scope.level, list[ScoreTest]()
    own_draws = f"L4 own draws, T > 0, {dtype}"
    rows = [Verdict.not_applicable(own_draws, s.name, why) for s in able if (why := _not_vanillas(s))]
    for own, s in ((own, own.with_options(level.score_tree)) for own in able if scope.prompts.scored):
        n_lanes = lanes.LANES if lanes.can_run_in_lanes(loaded, s, dtype) else 1
        sample = partial(_sample, scope, s, n_lanes, _pace(own, s))
        tests.append(ScoreTest(s, scope.prompts.scored, level.score_tokens, level.score_length, n_lanes, sample))
    return Stage(f"L4 {dtype}", dtype, tests=tests, rows=rows)


def _sample(scope: Scope, s: Subject, n_lanes: int, pace: float, repeat: int, prompt: Prompt) -> Sample:
    (name, ids), n, origin = prompt, scope.level.score_length, scope.origin
    params = score_params(scope.level, name, repeat, scope.stop_ids)
    shared: dict[str, Any] = {"abreast": lanes_sha()} if n_lanes > 1 else {}  # the key by which stored findings name it
    shared |= {} if scope.level.score_stops else {"stops": False}
    about = origin.about("sampled", s, scope.score_dtype, prompt, n, repeat=repeat, temperature=SCORE_TEMPERATURE, lanes=n_lanes,
                         **shared)  # fmt: skip
    # the test's q is the EAGLE head's, whatever the method drafts with
    own = origin.drafters.get(s.kind or "") if s.kind != methods.EAGLE else None
    about["head"] = f"{own} {origin.head}" if own else origin.head
    in_lanes = PACE_IN_LANES if n_lanes > 1 else 1.0
    work = Work("sampled", s.name, scope.score_dtype, n, len(ids), len(ids) + n, scored=True, pace=pace * in_lanes)
    make = partial(findings.sampled_finding, subject=s, prompt=ids, params=params)
    return Sample(Job(about, work, make), ids, params)


def ledger_stage(scope: Scope, dtype: str) -> Stage:
    """Layer 3 on a ledger's greedy outputs, and the control over vanilla's texts in it: it checks as many positions, twice."""
    width, about, names = scope.level.width, scope.origin.about_ledger, {s.name for s in scope.subjects}
    own = {s.name for s in scope.subjects if not s.external}
    pairs = [pair for pair in scope.pairs if pair.dtype == dtype and pair.method in names]
    texts = {(pair.vanilla_key, tuple(pair.vanilla["token_ids"])): pair for pair in pairs}
    jobs = []
    for (key, ids), pair in texts.items():
        n_prompt = pair.vanilla["n_prompt"]
        of = about("control", VANILLA, dtype, of=key, ids=canonical_hash(list(ids))[:16], width=width)
        work = Work("control", VANILLA, dtype, 0, n_prompt, n_prompt + (1 + SCORED_BY_CONTROL) * len(ids))
        jobs.append(Job(of, work, partial(_control_in_ledger, scope.ledger_prompts, pair, width)))
    for pair in pairs:
        r = pair.record
        # a record of schema 2 does not say which engine made it
        has_bits = dtype in scope.origin.row_invariant and pair.method in own and r["target_id"] is not None
        of = about("ledger", pair.label, dtype, of=pair.key, vanilla=pair.vanilla_key, ids=pair.ids_sha, cell=r["cell"],
                   prompt=f"{r['task']}/{r['sample_id']} turn {r['turn']}", **_row_invariant(has_bits))  # fmt: skip
        work = Work("ledger", pair.method, dtype, rows=0 if pair.at is None else r["n_prompt"] + pair.at)
        jobs.append(Job(of, work, partial(_in_ledger, scope.ledger_prompts, pair)))
    return Stage(f"L3 {dtype}, ledger", dtype, jobs)


def _pace(own: Subject, s: Subject) -> float:
    """A token's share of the time that it takes with the method's own options, which is what is measured."""
    return 1.0 if s.options == own.options else PACE_SMALLER


def _in_ledger(prompts: LedgerPrompts, pair: LedgerPair, loaded: Loaded) -> Finding:
    if pair.at is None:
        return {"n": pair.n, "divergence": None}
    prefix = [*prompts.ids(pair, loaded), *pair.common]
    return {"n": pair.n, "divergence": {"at": pair.at, **findings.explained(loaded, prefix, pair.tokens)}}


def _control_in_ledger(prompts: LedgerPrompts, pair: LedgerPair, width: int, loaded: Loaded) -> Finding:
    return findings.ledger_control_finding(loaded, prompts.ids(pair, loaded), pair.vanilla["token_ids"], width)
