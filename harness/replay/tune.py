"""`harness tune`: each method's best options on this machine for each temperature, saved as the preset `tuned`.

Three steps, each on held-out training conversations that no other step uses, and never on a task's:

1. Rank. A dynamic tree has a thousand settings: they are replayed from one drafting, over measured costs (`trees`). Of other
   methods a handful of candidates is decoded with (`race`). What comes out is a prediction.
2. Choose. The best five are raced: they decode, interleaved with vanilla in one process. The fastest is chosen.
3. Measure. The one chosen is raced against vanilla once more. What is measured here is what is stored and printed as the result,
   with its interval; the prediction stands beside it, with its error.

The best of many is also the luckiest of them, so a figure that was used to choose is on the high side. That holds for the
ranking and, less, for the fastest of five: hence the third step. It is a split and not a cross-fit, which would choose on all
conversations but one, measure on that one, and go round. A cross-fitted figure uses every conversation. But where its folds
choose differently it is of no single setting; its folds share conversations, so their spread gives no interval; and all five
would have to decode every conversation, where here vanilla and the one that was chosen alone decode the last part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import methods
import tasks
from harness.common.bounds import bounded
from harness.common.errors import UserError, say
from harness.common.machine import keep_freed_memory
from harness.costs.price import Prices
from harness.costs.table import read_all
from harness.ledger import tuned_presets
from harness.load.config import ModelConfig
from harness.load.engine import expected_engine
from harness.load.model import Loaded, load
from harness.load.weights import drafter_folders
from harness.metrics.definitions import Estimate
from harness.replay.prompts import LEAST, LONGEST, Answer, Parts, held_out_prompts, parts_of, vanilla_answers
from harness.replay.race import Raced, race
from harness.replay.trees import ranked_trees
from harness.run import tuned
from harness.run.arms import check_given, check_heads, lacks, make_arms
from harness.run.request import RunRequest, need
from methods import Arm
from tasks.overlap import checked_prompts

RACED = 5  # of those ranked


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRequest:
    """What one `harness tune` asks for. `methods`: `all` is every exact one that was not tuned here yet. `save`: the file to
    save in, instead of the cache folder's. `costs`: tables of costs, instead of measuring them.

    Raises:
        UserError: a value that cannot be.
    """

    methods: tuple[str, ...] = ("eagle2",)
    model: str = "smollm2-135m"
    temperatures: tuple[float, ...] = (0.0,)
    conversations: int = 20
    max_new_tokens: int | None = None
    dtype: str = "auto"
    threads: int | None = None
    head: Path | None = None
    save: Path | None = None
    costs: Path | None = None

    def __post_init__(self) -> None:
        for temperature in self.temperatures:
            RunRequest(
                temperature=temperature, max_new_tokens=self.max_new_tokens, dtype=self.dtype, threads=self.threads
            )  # checks
        bounded("--conversations", self.conversations)
        least = sum(LEAST)
        need(self.conversations >= least, f"--conversations is {self.conversations}; tuning takes at least {least}: {LEAST[0]} "
             f"to rank options on, {LEAST[1]} others to choose on, {LEAST[2]} others to measure what was chosen")  # fmt: skip


class Job(NamedTuple):
    """A method to tune, at the options it begins with, and what the result will hold for."""

    arm: Arm
    key: tuned_presets.Key


class Ranked(NamedTuple):
    """Options, and what was predicted of them: at least tau and decode speedup."""

    options: Mapping[str, Any]
    predicted: Mapping[str, Any]


class Found(NamedTuple):
    """Options to run with, and tau and decode speedup as the race measured them and as they were predicted."""

    options: Mapping[str, Any]
    raced: Mapping[str, Any]
    predicted: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What all jobs have in common. `tell` prints; `budget`: new tokens of an answer. `costs`: where tables of costs are; None:
    they are measured."""

    loaded: Loaded
    parts: Parts
    budget: int
    tell: Callable[[str], None]
    costs: Path | None = None
    _answers: dict[float, list[Answer]] = field(default_factory=dict)

    def answers(self, temperature: float) -> list[Answer]:
        """Vanilla's answers to the prompts that settings are ranked on, decoded once a temperature.

        Raises:
            UserError: none has more than one token.
        """
        if temperature not in self._answers:
            say(f"answering {len(self.parts.rank)} held-out training prompts at T = {temperature:g} ...")
            self._answers[temperature] = vanilla_answers(self.loaded, self.parts.rank, temperature, self.budget)
        if not self._answers[temperature]:
            raise UserError("none of the held-out prompts has an answer of more than one token: there is nothing to tune on")
        return self._answers[temperature]


def tune(config: ModelConfig, request: TuneRequest, tell: Callable[[str], None]) -> None:
    """Find methods' best options for each temperature, tell what was found, and save it.

    Raises:
        UserError: nothing can be tuned, or the result cannot be saved.
    """
    tasks.check_reads_text(config.name, "harness tune")
    arms = _arms(config, request)
    budget = request.max_new_tokens or config.max_new_tokens
    need(budget >= 2, f"--max-new-tokens is {budget}; tuning takes at least 2, as the first token comes from the prompt alone")
    file = request.save or tuned.found_here()
    tuned_presets.check(file)  # found out before hours are spent
    keep_freed_memory()
    jobs = _jobs(arms, config, request)
    if not jobs:
        return
    if request.costs is not None:
        read_all(request.costs)  # found out before anything is loaded
        if not any(job.arm.method.dynamic for job in jobs):
            raise UserError(f"--costs is for dynamic trees, which are replayed; {jobs[0].arm.name} is tuned by decoding")
    evaluation = checked_prompts()
    drafters = {job.arm.method.drafter for job in jobs if job.arm.method.drafter}
    loaded = load(config, jobs[0].key.dtype, head=request.head, drafters=drafters)
    longest = min(LONGEST, config.context_length - budget)
    prompts = held_out_prompts(loaded, request.conversations, longest, evaluation)
    if not prompts:
        raise UserError(f"no held-out prompt of at most {longest} tokens, which is what --max-new-tokens {budget} leaves of the "
                        f"model's {config.context_length}")  # fmt: skip
    if len(prompts) < request.conversations:
        say(f"only {len(prompts)} held-out prompts are there; --conversations is {request.conversations}")
    tuning = Tuning(loaded, parts_of(prompts), budget, tell, request.costs)
    for job in (job._replace(key=replace(job.key, engine=loaded.identity.engine)) for job in jobs):
        try:
            found = _found(tuning, job)
        except UserError as e:
            if job.arm.name in request.methods:
                raise
            say(f"left out: {e}")
            continue
        if found.raced["speedup"] <= 1:
            tell(f"speculation does not pay on this machine: the fastest found is at {found.raced['speedup']:.2f}x of vanilla")
        path = tuned_presets.save(tuned_presets.Entry(job.key, *found), file)
        say(f"saved in {path}{_use(path, job.key, config)}")


def _use(path: Path, key: tuned_presets.Key, config: ModelConfig) -> str:
    """Which command takes what was saved, or why none does."""
    read = (tuned.found_here(), tuned.shipped_with(config))
    if path.resolve() not in [file.resolve() for file in read]:
        return f", where no run looks: `--preset tuned` reads {read[0]} and {read[1]}"
    return f"; {tuned.command('run', key, config.given, '--task', 'all', '--preset', 'tuned')} uses it"


def _arms(config: ModelConfig, request: TuneRequest) -> dict[str, Arm]:
    """The methods to tune, by name, each at the options it begins with; of `all` those the model has weights for."""
    head = request.head or config.head_folder
    folders = drafter_folders(config, head)
    found: dict[str, Arm] = {}
    for name in request.methods:
        if name != "all" and not methods.get(name).tunable:
            has = ", ".join(n for n in methods.names() if methods.get(n).tunable)
            raise UserError(f"method {name} has no options that can be tuned; these have: {has}")
        for n in [n for n in methods.names(exact=True) if methods.get(n).tunable] if name == "all" else [name]:
            lacking = lacks(methods.get(n), config, folders)
            if lacking and n not in request.methods:
                say(f"left out: {lacking}")
            else:
                found[n] = _first_arm(methods.get(n), config, head)
    check_given(request.head, (arm.method for arm in found.values()))
    return found


def _first_arm(m: methods.Method, config: ModelConfig, head: Path | None) -> Arm:
    """The method at the paper's options, or, where the heads are too few for its tree, at those chosen by their accuracies."""
    try:
        return make_arms((m.name,), "paper", {}, config, head)[0]
    except UserError:
        if "chosen" not in m.presets:
            raise
        return make_arms((m.name,), "chosen", {}, config, head)[0]


def _jobs(arms: dict[str, Arm], config: ModelConfig, request: TuneRequest) -> list[Job]:
    """One a method and temperature, without those of `all` that were tuned before."""
    there = tuned_presets.stored(request.save) if request.save else tuned.entries(tuned.shipped_with(config))
    known = {e.key for e in there if e.key.method in arms and tuned.is_current(e)}
    engine = ""
    found = []
    for name, arm in arms.items():
        for temperature in request.temperatures:
            key = tuned.tuned_key(
                config, name, request.head or config.head_folder, temperature=temperature, dtype=request.dtype,
                threads=request.threads,
            )  # fmt: skip
            engine = engine or expected_engine(config, key.dtype)
            key = replace(key, engine=engine)
            if name not in request.methods and key in known:
                say(f"{name} at T = {temperature:g} was tuned before")
            else:
                found.append(Job(arm, key))
    return found


def _found(tuning: Tuning, job: Job) -> Found:
    """A job's best options: ranked, chosen by a race, and measured."""
    return _settled(tuning, job, (_replayed if job.arm.method.dynamic else _decoded)(tuning, job))


def _about(job: Job) -> str:
    key = job.key
    where = f"{key.dtype}, {key.threads} threads, engine {key.engine}, {key.machine}"
    return f"{job.arm.name} on {key.model}, T = {key.temperature:g}, {where}:"


def _replayed(tuning: Tuning, job: Job) -> list[Ranked]:
    """The best dynamic trees of all, by replay.

    On a CPU they are drafted with `stop_early`, where the method has it: that only saves. On a GPU a host sync a level is its
    price, which is not known here.
    """
    arm, answers = job.arm, tuning.answers(job.key.temperature)
    as_given = arm.options.get("stop_early", False)
    stops = "stop_early" in arm.options and (as_given or tuning.loaded.target.device.type == "cpu")
    options = {**arm.options, **({"stop_early": stops} if "stop_early" in arm.options else {})}
    trees, table, context = ranked_trees(
        tuning.loaded, options, temperature=job.key.temperature, answers=answers, threads=job.key.threads, costs=tuning.costs,
        kind=arm.method.drafter or methods.EAGLE,
    )  # fmt: skip
    plain_ms = Prices(table).plain(context)
    best = [c for c in trees if c.stop_early is stops][:RACED]
    given = tuple(arm.options[k] for k in ("top_k", "depth", "total"))
    paper = [c for c in trees if (c.top_k, c.depth, c.total) == given and c.stop_early is as_given]
    tuning.tell(_about(job))
    tuning.tell(f"predicted on {len(answers)} conversations, where a vanilla step takes {plain_ms:.1f} ms "
                f"at a context of {context} tokens:")  # fmt: skip
    for what, c in [*((f"{i}.", c) for i, c in enumerate(best, start=1)), *(("paper", c) for c in paper)]:
        tuning.tell(
            f"  {what:6} top_k={c.top_k} depth={c.depth} total={c.total}: tau {c.tau:.2f}, c_verify {c.c_verify:.2f}, "
            f"c_draft {c.c_draft:.2f}, c_other {c.c_other:.2f}, decode speedup {c.speedup:.2f}x"
        )
    return [
        Ranked({**options, "top_k": c.top_k, "depth": c.depth, "total": c.total}, {
            "by": "replay", "tau": round(c.tau, 3), "speedup": round(c.speedup, 3), "c_verify": round(c.c_verify, 3),
            "c_draft": round(c.c_draft, 3), "c_other": round(c.c_other, 3), "step_ms": round(plain_ms, 2),
            "context": context, "conversations": len(answers),
        }) for c in best
    ]  # fmt: skip


def _decoded(tuning: Tuning, job: Job) -> list[Ranked]:
    """The best of the method's candidates and of the options it has, by decoding."""
    arm = job.arm
    tried: list[dict[str, Any]] = []
    for options in (dict(arm.options), *({**arm.options, **c} for c in arm.method.candidates)):
        try:
            check_heads((replace(arm, options=options),), tuning.loaded)
        except UserError:  # too few heads for this tree, or none that say how good they are
            continue
        tried += [options] if options not in tried else []
    if not tried:
        raise UserError(f"the heads of {job.key.model} can draft none of the trees that {arm.name} is tuned over")
    ranked = race(
        tuning.loaded, arm.method, tried, temperature=job.key.temperature, prompts=tuning.parts.rank, max_new_tokens=tuning.budget
    )
    tuning.tell(_about(job))
    tuning.tell(f"predicted on {len(tuning.parts.rank)} conversations:")
    for i, r in enumerate(ranked, start=1):
        what = "paper" if arm.preset == "paper" and r.options == arm.options else f"{i}."
        tuning.tell(f"  {what:6} {_changed(job, r.options)}: tau {_value(r.tau):.2f}, decode speedup {_value(r.speedup):.2f}x")
    return [
        Ranked(r.options, {
            "by": "decoding", "tau": round(_value(r.tau), 3), "speedup": round(_value(r.speedup), 3),
            "step_ms": round(r.vanilla_step * 1e3, 2), "conversations": r.prompts,
        }) for r in ranked[:RACED]
    ]  # fmt: skip


def _settled(tuning: Tuning, job: Job, ranked: Sequence[Ranked]) -> Found:
    """The fastest of those ranked best, by a race on other conversations, and its figures from a race on others again."""

    def raced(tried: Sequence[Ranked], part: Sequence[Any]) -> list[tuple[Raced, Ranked]]:
        found = race(
            tuning.loaded, job.arm.method, [r.options for r in tried], temperature=job.key.temperature, prompts=part,
            max_new_tokens=tuning.budget,
        )  # fmt: skip
        return [(r, next(given for given in tried if given.options == r.options)) for r in found]

    chosen = ranked[0]
    if len(ranked) > 1:
        heat = raced(ranked, tuning.parts.choose)
        tuning.tell(f"raced on {len(tuning.parts.choose)} others, to choose:")
        for i, (r, given) in enumerate(heat, start=1):
            tuning.tell(
                f"  {f'{i}.':6} {_changed(job, r.options)}: tau {_value(r.tau):.2f}, decode speedup {_value(r.speedup):.2f}x "
                f"(predicted {given.predicted['tau']:.2f} and {given.predicted['speedup']:.2f}x)"
            )
        chosen = heat[0][1]
    (result, _), *_ = raced([chosen], tuning.parts.measure)
    made = {
        "tau": round(_value(result.tau), 3), "tau_ci95": _ends(result.tau), "speedup": round(_value(result.speedup), 3),
        "speedup_ci95": _ends(result.speedup), "step_ms": round(result.vanilla_step * 1e3, 2), "conversations": result.prompts,
        "chosen_on": len(tuning.parts.choose) if len(ranked) > 1 else 0,
    }  # fmt: skip
    tuning.tell(
        f"raced on {result.prompts} others that no choice has used: {_changed(job, result.options)}: "
        f"tau {_with_ends(result.tau)}, decode speedup {_with_ends(result.speedup, 'x')}"
    )
    tuning.tell(f"  {_errors(made, chosen.predicted)}")
    return Found(dict(chosen.options), made, dict(chosen.predicted))


def _errors(raced: Mapping[str, Any], predicted: Mapping[str, Any]) -> str:
    """What was predicted, and by how much of what was raced it is off, in tau, in the cost of a step, and in speed."""

    def off(ratio: Callable[[Mapping[str, Any]], float]) -> str:
        return f"{ratio(predicted) / ratio(raced) - 1:+.1%}"

    return (
        f"predicted: tau {predicted['tau']:.2f} ({off(lambda x: x['tau'])}), decode speedup {predicted['speedup']:.2f}x "
        f"({off(lambda x: x['speedup'])}); cost of a step {off(lambda x: x['tau'] / x['speedup'])}"
    )


def _changed(job: Job, options: Mapping[str, Any]) -> str:
    changed = " ".join(f"{k}={v}" for k, v in options.items() if v != job.arm.options[k])
    return changed or "(its defaults)"


def _value(estimate: Estimate) -> float:
    assert estimate.value is not None  # a race without a step is refused
    return estimate.value


def _ends(estimate: Estimate) -> list[float] | None:
    return [round(end, 3) for end in estimate.ci95] if estimate.ci95 else None


def _with_ends(estimate: Estimate, unit: str = "") -> str:
    interval = f" [{estimate.ci95[0]:.2f}, {estimate.ci95[1]:.2f}]" if estimate.ci95 else " (no interval)"
    return f"{_value(estimate):.2f}{unit}{interval}"
