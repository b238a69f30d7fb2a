"""`harness tune`: each method's best options on this machine for each temperature, saved as the preset `tuned`.

A dynamic tree has hundreds of settings: they are replayed from one drafting (`trees`). Of other methods a handful of candidates
is raced (`race`). Both use held-out training prompts, never a task's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import methods
from harness.common.bounds import bounded
from harness.common.errors import UserError, say
from harness.common.machine import keep_freed_memory
from harness.load.config import ModelConfig
from harness.load.model import Loaded, load
from harness.load.weights import drafter_folders
from harness.replay.prompts import LONGEST, held_out_prompts
from harness.replay.race import race
from harness.replay.trees import ranked_trees
from harness.run import tuned
from harness.run.arms import check_given, check_heads, lacks, make_arms
from harness.run.request import RunRequest, need
from methods import Arm
from tasks.overlap import checked_prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRequest:
    """What one `harness tune` asks for. `methods`: `all` is every exact one that was not tuned here yet. `save`: the file to
    save in, instead of the cache folder's.

    Raises:
        UserError: a value that cannot be.
    """

    methods: tuple[str, ...] = ("eagle2",)
    model: str = "smollm2-135m"
    temperatures: tuple[float, ...] = (0.0,)
    conversations: int = 16
    max_new_tokens: int | None = None
    dtype: str = "auto"
    threads: int | None = None
    head: Path | None = None
    save: Path | None = None

    def __post_init__(self) -> None:
        for temperature in self.temperatures:
            RunRequest(
                temperature=temperature, max_new_tokens=self.max_new_tokens, dtype=self.dtype, threads=self.threads
            )  # checks
        bounded("--conversations", self.conversations)


class Job(NamedTuple):
    """A method to tune, at the options it begins with, and what the result will hold for."""

    arm: Arm
    key: tuned.Key


class Found(NamedTuple):
    """Options to run with, and what is expected of them: at least tau and decode speedup."""

    options: dict[str, Any]
    predicted: dict[str, Any]


def tune(config: ModelConfig, request: TuneRequest, tell: Callable[[str], None]) -> None:
    """Find methods' best options for each temperature, tell what was found, and save it.

    Raises:
        UserError: nothing can be tuned, or the result cannot be saved.
    """
    arms = _arms(config, request)
    budget = request.max_new_tokens or config.max_new_tokens
    need(budget >= 2, f"--max-new-tokens is {budget}; tuning takes at least 2, as the first token comes from the prompt alone")
    tuned.check(request.save)  # found out before hours are spent
    keep_freed_memory()
    jobs = _jobs(arms, config, request)
    if not jobs:
        return
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
    for job in jobs:
        name, key = job.arm.name, job.key
        try:
            found = (_replayed if job.arm.method.dynamic else _raced)(loaded, job, prompts, budget, tell)
        except UserError as e:
            if name in request.methods:
                raise
            say(f"left out: {e}")
            continue
        if found.predicted["speedup"] <= 1:
            tell(f"speculation does not pay on this machine: the best found is at {found.predicted['speedup']:.2f}x of vanilla")
        entry = tuned.Entry(key, found.options, found.predicted | {"conversations": len(prompts)})
        path = tuned.save(entry, request.save)
        say(f"saved in {path}{_use(path, key, config)}")


def _use(path: Path, key: tuned.Key, config: ModelConfig) -> str:
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
    there = tuned.stored(request.save) if request.save else tuned.entries(tuned.shipped_with(config))
    known = {e.key for e in there if e.key.method in arms and tuned.is_current(e)}
    found = []
    for name, arm in arms.items():
        for temperature in request.temperatures:
            key = tuned.tuned_key(
                config, name, request.head or config.head_folder, temperature=temperature, dtype=request.dtype,
                threads=request.threads,
            )  # fmt: skip
            if name not in request.methods and key in known:
                say(f"{name} at T = {temperature:g} was tuned before")
            else:
                found.append(Job(arm, key))
    return found


def _about(job: Job) -> str:
    key = job.key
    return f"{job.arm.name} on {key.model}, T = {key.temperature:g}, {key.dtype}, {key.threads} threads, {key.machine}:"


def _replayed(loaded: Loaded, job: Job, prompts: Sequence[list[int]], budget: int, tell: Callable[[str], None]) -> Found:
    """The best dynamic tree of all.

    On a CPU it is drafted with `stop_early`, where the method has it: that only saves. On a GPU a host sync a level is its price,
    which is not known here.
    """
    arm = job.arm
    stops = "stop_early" in arm.options and loaded.target.device.type == "cpu"
    trees, costs = ranked_trees(
        loaded, temperature=job.key.temperature, frequent=arm.options.get("frequent"), prompts=prompts, max_new_tokens=budget,
        can_stop=stops,
    )  # fmt: skip
    ranked = [c for c in trees if c.stop_early is stops]
    tell(_about(job))
    tell(f"one vanilla step takes {costs.step * 1e3:.1f} ms at a context of {costs.context} tokens")
    given = tuple(arm.options[k] for k in ("top_k", "depth", "total"))
    as_given = arm.options.get("stop_early", False)
    paper = [("paper", c) for c in trees if (c.top_k, c.depth, c.total) == given and c.stop_early is as_given]
    for what, c in [*((f"{i}.", c) for i, c in enumerate(ranked[:5], start=1)), *paper]:
        tell(
            f"{what:6} top_k={c.top_k} depth={c.depth} total={c.total}: tau {c.tau:.2f}, c_verify {c.c_verify:.2f}, "
            f"c_draft {c.c_draft:.2f}, decode speedup {c.speedup:.2f}x"
        )
    best = ranked[0]
    chosen = {"top_k": best.top_k, "depth": best.depth, "total": best.total} | ({"stop_early": True} if stops else {})
    return Found({**arm.options, **chosen}, {
        "tau": round(best.tau, 3), "speedup": round(best.speedup, 3), "c_verify": round(best.c_verify, 3),
        "c_draft": round(best.c_draft, 3), "step_ms": round(costs.step * 1e3, 2), "context": costs.context,
    })  # fmt: skip


def _raced(loaded: Loaded, job: Job, prompts: Sequence[list[int]], budget: int, tell: Callable[[str], None]) -> Found:
    """The best of the method's candidates and of the options it has."""
    arm = job.arm
    tried: list[dict[str, Any]] = []
    for options in (dict(arm.options), *({**arm.options, **c} for c in arm.method.candidates)):
        try:
            check_heads((replace(arm, options=options),), loaded)
        except UserError:  # too few heads for this tree, or none that say how good they are
            continue
        tried += [options] if options not in tried else []
    if not tried:
        raise UserError(f"the heads of {job.key.model} can draft none of the trees that {arm.name} is tuned over")
    ranked = race(loaded, arm.method, tried, temperature=job.key.temperature, prompts=prompts, max_new_tokens=budget)
    tell(_about(job))
    for i, r in enumerate(ranked, start=1):
        what = "paper" if arm.preset == "paper" and r.options == arm.options else f"{i}."
        changed = " ".join(f"{k}={v}" for k, v in r.options.items() if v != arm.options[k])
        tell(f"{what:6} {changed or '(its defaults)'}: tau {r.tau:.2f}, decode speedup {r.speedup:.2f}x")
    best = ranked[0]
    return Found(dict(best.options), {"tau": round(float(best.tau), 3), "speedup": round(float(best.speedup), 3)})
