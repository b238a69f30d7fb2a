"""A run from its request to its records: prompts found, ledger locked, model loaded, everything missing measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
import tasks
from harness.cluster.request import ClusterRequest
from harness.common.cores import usable_cores
from harness.common.errors import UserError, duration, say
from harness.common.hints import hinted
from harness.common.machine import keep_freed_memory
from harness.common.options import parse_changes
from harness.ledger.ledger import Ledger, read
from harness.ledger.planned import add_cells
from harness.ledger.record import Record
from harness.load.config import ModelConfig
from harness.run.engines import check_turns, served_base
from harness.run.progress import Work, interruptible, progress
from harness.run.request import RunRequest
from harness.run.tuned import find_tuned, keep_beside

if TYPE_CHECKING:  # these import torch
    from harness.run.plan import Plan, Recorded, RunSpec
    from harness.run.runner import Runner


def run_spec(config: ModelConfig, request: RunRequest) -> RunSpec:
    """The run that a request asks for; loads no model.

    Raises:
        UserError: an unknown method, task, preset or option, a task that is not for the model, or prompts that are not to be had.
    """
    from harness.run.plan import RunSpec

    names = [n for name in request.tasks for n in (tasks.names_for(config.name) if name == "all" else [name])]
    for name in names:
        tasks.check_model(name, config.name)
    limit, budget = request.limit or config.limit, request.max_new_tokens or config.max_new_tokens
    if budget >= config.context_length:
        raise UserError(f"--max-new-tokens is {budget:,}; the context of {config.name} is {config.context_length:,} tokens, "
                        "the prompt included")  # fmt: skip
    arms = _arms(config, request)
    base = served_base(request, arms)
    prompt_sets = tuple(
        tasks.load(name, source=request.source, limit=limit, prompts_dir=request.prompts_dir, seed=request.seed)
        for name in dict.fromkeys(names)
    )
    spec = RunSpec(
        arms=arms, prompt_sets=prompt_sets,
        temperature=request.temperature, top_p=request.top_p, seed=request.seed, repeats=request.repeats,
        max_new_tokens=budget, threads=1 if base else request.threads or usable_cores(),
        baseline=request.baseline, on_overflow=request.on_overflow, trees=request.trees, shard=request.shard,
        **({"base": base} if base else {}),
    )  # fmt: skip
    check_turns(spec)
    return spec


def _arms(config: ModelConfig, request: RunRequest) -> tuple[methods.Arm, ...]:
    """The methods asked for, and of the settings beside them those the model can draft with and that were tuned here."""
    from harness.run.arms import make_arms

    head = request.head or config.head_folder

    def arms_of(names: Sequence[str], preset: str, changes: Sequence[str]) -> tuple[methods.Arm, ...]:
        def tuned(method: str) -> dict[str, object]:
            found = find_tuned(
                config, method, head, temperature=request.temperature, dtype=request.dtype, threads=request.threads
            )  # fmt: skip
            return dict(found.options)

        return make_arms(names, preset, parse_changes(changes), config, head, tuned)

    arms = arms_of(request.methods, request.preset, request.changes)
    untuned = []
    for more in request.beside:
        if more.is_asked:
            found = arms_of((more.method,), more.preset, more.changes)
            arms += tuple(a for a in found if all((a.name, a.options) != (other.name, other.options) for other in arms))
            continue
        try:
            arms_of((more.method,), "paper", request.changes)
        except UserError:  # nothing for it to draft with
            continue
        try:
            found = arms_of((more.method,), more.preset, (*request.changes, *more.changes))
        except UserError:
            untuned.append(more.method)
            continue
        arms += tuple(a for a in found if all(a.options != other.options for other in arms if other.name == more.method))
    if untuned:
        t = f"{request.temperature:g}"
        tune = hinted("tune", "--model", config.given, "--method", "all", "--temperature", t)
        say(f"left out at T = {t}, as not tuned for this machine: {', '.join(untuned)}, each at its best options; "
            f"{tune} finds them")  # fmt: skip
    return arms


@contextmanager
def session(config: ModelConfig, request: RunRequest, specs: Sequence[RunSpec]) -> Iterator[list[Runner]]:
    """The ledger locked, the model loaded: a runner for each spec. Of `request` the folder, the dtype and the head count."""
    keep_freed_memory()
    with Ledger(request.out) as ledger:  # before anything is loaded: an unwritable folder is found out now
        import torch

        torch.set_num_threads(specs[0].threads)
        from harness.load.model import load
        from harness.load.served import load_served
        from harness.run.plan import drafters_of
        from harness.run.runner import Runner

        if specs[0].is_served:
            say(f"asking what serves {config.title} ...")
            loaded = load_served(config, list({arm.name: arm for spec in specs for arm in spec.measured_arms()}.values()))
        else:
            say(f"loading {config.title} ...")
            loaded = load(config, request.dtype, head=request.head, drafters=drafters_of(specs))
        yield [Runner(loaded, spec, ledger) for spec in specs]


@dataclass(frozen=True, slots=True)
class Done:
    """What a run left: the records of its cells and prompts, vanilla's among them; the cells of the methods asked for."""

    records: list[Record]
    asked: frozenset[str]
    n_failed: int


Check = Callable[[Mapping[str | None, Mapping[str, Any]]], None]
"""Whether what shows on loading (`Runner.shown`) may be measured; raises UserError if not."""


def carry_out(
    config: ModelConfig, requests: Sequence[RunRequest], over: ClusterRequest | None = None, check: Check | None = None
) -> Done:  # fmt: skip
    """Measure what is missing of several requests on one model, in one process, with one estimate for all of it.

    The requests differ in what is measured; folder, dtype, threads and head are the first one's. over: the cluster whose workers
    measure it, in place of this process; check: of the first of them, before anything is measured.

    Raises:
        UserError: bad input, or the ledger cannot be written. Generations that fail are counted, not raised.
    """
    from harness.run.arms import check_given

    specs = [run_spec(config, request) for request in requests]
    check_given(requests[0].head, (arm.method for spec in specs for arm in spec.arms))
    if over is not None:
        from harness.run.spread import measure_over

        if specs[0].is_served:
            raise UserError("--ray shares out work that decodes here; an engine over HTTP is one machine: leave --ray out")
        with Ledger(requests[0].out, several_machines=True) as ledger:
            for request, spec in zip(requests, specs, strict=True):
                keep_beside(config, request, spec.arms)
            plans, n_failed = measure_over(config, requests[0], specs, over, ledger, check)
            recorded = ledger.records
    else:
        with session(config, requests[0], specs) as runners:
            for request, spec in zip(requests, specs, strict=True):
                keep_beside(config, request, spec.arms)
            n_failed = measure(runners)
            plans, recorded = [run.plan for run in runners], runners[0].ledger.records
    cells = [(cell, cell.arm in plan.spec.arms, plan.spec) for plan in plans for cell in plan.cells]
    wanted = {(cell.key, prompt.id) for cell, _, spec in cells for prompt in spec.conversations(cell.prompts)}
    records = [r for r in recorded if (r["cell"], r["sample_id"]) in wanted]
    return Done(records, frozenset(cell.key for cell, is_asked, _ in cells if is_asked), n_failed)


def measure(runners: Sequence[Runner]) -> int:
    """Everything missing, after one estimate for all of it; -> the number of generations that failed."""
    from harness.run.plan import Wanted

    add_cells(runners[0].ledger.folder, [one for run in runners for one in run.plan.told(run.loaded.config.name)])
    planned: set[Wanted] = set()
    missing = [run.plan.missing(run.recorded, planned) for run in runners]
    total = sum(sum(m.values()) for m in missing)
    if not any(run.plan.wanted(cell) for run in runners for cell in run.plan.cells):
        say(f"shard {runners[0].spec.shard} has no conversation of these tasks: nothing to measure")
        return 0
    if not total:
        say("everything asked for is in the ledger already: nothing to measure")
        return 0
    how = "" if runners[0].spec.is_served else f" in {runners[0].loaded.dtype}"
    say(f"{total} generations to measure{how}; warming up each method ...")
    tell_apart([run.plan for run in runners], [run.recorded for run in runners], missing)
    failed = 0
    with interruptible():
        costs: list[dict[str, float]] = []  # seconds a generation, by method
        for run, m in zip(runners, missing, strict=True):
            run.check_prompts()
            rates = run.warm_up() if any(m.values()) else {}
            costs.append({name: rates.get(name, 0.0) * run.spec.max_new_tokens for name in m})
        seconds = [sum(n * cost[name] for name, n in m.items()) for m, cost in zip(missing, costs, strict=True)]
        at: dict[float, float] = {}
        for s, run in zip(seconds, runners, strict=True):
            at[run.spec.temperature] = at.get(run.spec.temperature, 0.0) + s
        apart = ", ".join(f"{duration(s)} at T = {temperature:g}" for temperature, s in at.items())
        say(f"about {duration(sum(seconds))} if every answer uses its tokens" + (f" ({apart})" if len(at) > 1 else ""))
        work = {(i, name): n for i, m in enumerate(missing) for name, n in m.items()}
        cost_of = {(i, name): cost for i, by_name in enumerate(costs) for name, cost in by_name.items()}
        with progress(total, cost_of, work) as (tick, advance):
            for i, (run, m) in enumerate(zip(runners, missing, strict=True)):
                if any(m.values()):
                    failed += run.run(tick, partial(_advance, advance, i))
    return failed


def _advance(advance: Callable[[Work], None], run: int, method: str) -> None:
    advance((run, method))


def tell_apart(plans: Sequence[Plan], recorded: Sequence[Recorded], missing: Sequence[dict[str, int]]) -> None:
    """Before hours are spent: speeds beside a baseline from an earlier process are worth little."""
    late = sorted({
        name for plan, there, m in zip(plans, recorded, missing, strict=True)
        if plan.spec.baseline and not m.get(plan.spec.base.name)
        for name, n in m.items() if n > plan.n_treeless(there, name)
    })  # fmt: skip
    if late:
        base = plans[0].spec.base.name
        say(f"note: {base} on these prompts is in the ledger already, from another process: speedups of {', '.join(late)} "
            "will be marked ≈ and not judged; methods whose speeds are to be compared are measured by one command")  # fmt: skip


def tell_failures(failed: int) -> None:
    """Raises UserError where generations failed."""
    if failed:
        raise UserError(
            f"{failed} generations failed; they are recorded with status 'error', and the same command tries them again"
        )


def preflight_lines(config: ModelConfig, names: Iterable[str], *, head: Path | None, dtype: str) -> Iterator[str]:
    """What a run of these methods takes and what of it is missing."""
    from harness.load import preflight

    needed = {kind for name in names if (kind := methods.get(name).drafter)}
    return preflight.report(config, kinds=needed, head=head, dtype=dtype)


def known_rates(folder: Path, model: str, preset: str | None = None) -> dict[str, float]:
    """Seconds per token of each method in a ledger, of one preset if one is named."""
    try:
        records = read(folder, quiet=True, reduced=True)
    except UserError:
        return {}
    known = [r for r in records if r["model"] == model and r["status"] == "ok" and r["token_ids"]]
    seconds: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for r in known:
        if preset in (None, r["preset"]):
            seconds[r["method"]] = seconds.get(r["method"], 0.0) + (r["wall_s"] or 0.0)
            tokens[r["method"]] = tokens.get(r["method"], 0) + len(r["token_ids"])
    return {name: seconds[name] / tokens[name] for name in seconds}
