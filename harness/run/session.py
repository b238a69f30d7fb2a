"""A run from its options to its records: prompts loaded, ledger locked, model loaded, everything missing measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import methods
import tasks
from harness.common.errors import UserError, duration, say
from harness.common.machine import usable_cores
from harness.common.options import parse_changes
from harness.run.arms import make_arms
from harness.run.plan import RunSpec
from harness.run.progress import interruptible, progress
from harness.run.tuned import find_tuned

# what a run's options are where a tier, a table or a tuning does not say
MATRIX_DEFAULTS: dict[str, Any] = {
    "task_names": ("all",), "preset": "paper", "changes": (), "top_p": 1.0, "source": "auto", "prompts_dir": None, "limit": None,
    "max_new_tokens": None, "dtype": "auto", "threads": None, "seed": 0, "repeats": 1, "no_baseline": False,
    "on_overflow": "skip", "head": None, "trees": False, "beside": (),
}  # fmt: skip


def run_spec(config: Any, o: dict[str, Any]) -> Any:
    """The run that these options ask for, a `runner.RunSpec`; loads no model."""

    head = o["head"] or config.head_folder

    def arms_of(names: Sequence[str], preset: str, changes: Sequence[str]) -> tuple[Any, ...]:
        return make_arms(
            names, preset, parse_changes(changes), config, head, lambda method: find_tuned(config, method, head, o).options
        )

    arms = arms_of(o["names"], o["preset"], o["changes"])
    untuned = []
    for name, preset, changes in o.get("beside", ()):
        try:
            arms_of((name,), "paper", o["changes"])
        except UserError:  # nothing for it to draft with
            continue
        try:
            more = arms_of((name,), preset, (*o["changes"], *changes))
        except UserError:
            untuned.append(name)
            continue
        arms += tuple(a for a in more if all(a.options != other.options for other in arms if other.name == name))
    if untuned:
        t = f"{o['temperature']:g}"
        say(f"left out at T = {t}, as not tuned for this machine: {', '.join(untuned)}, each at its best options; "
            f"`harness tune --model {config.name} --method all --temperature {t}` finds them")  # fmt: skip
    names: list[str] = []
    for name in o["task_names"]:
        names += [n for n in (tasks.names() if name == "all" else [name]) if n not in names]
    for name in names:
        tasks.get(name)
    prompt_sets = tuple(
        tasks.load(n, source=o["source"], limit=o["limit"] or config.limit, prompts_dir=o["prompts_dir"], seed=o["seed"])
        for n in names
    )
    return RunSpec(
        arms=arms, prompt_sets=prompt_sets, temperature=o["temperature"], top_p=o["top_p"],
        max_new_tokens=o["max_new_tokens"] or config.max_new_tokens, seed=o["seed"], repeats=o["repeats"],
        threads=o["threads"] or usable_cores(), baseline=not o["no_baseline"], on_overflow=o["on_overflow"],
        trees=o["trees"],
    )  # fmt: skip


def drafters_of(parts: Sequence[Any]) -> set[str]:
    """The kinds of drafters that runs need."""
    return {a.method.drafter for part in parts for a in part.arms if a.method.drafter is not None}


@contextmanager
def session(config: Any, o: dict[str, Any], parts: Sequence[Any]) -> Iterator[list[Any]]:
    """The ledger locked, the model loaded: a runner for each part."""
    from harness.common.machine import keep_freed_memory
    from harness.ledger import ledger as records
    from harness.run import runner

    keep_freed_memory()
    with records.Ledger(o["out"]) as ledger:  # before anything is loaded: an unwritable folder is found out now
        import torch

        torch.set_num_threads(parts[0].threads)
        from harness.load.model import load

        say(f"loading {config.title} ...")
        loaded = load(config, o["dtype"], head=o["head"], drafters=drafters_of(parts))
        yield [runner.Runner(loaded, part, ledger) for part in parts]


def measure(runners: Sequence[Any]) -> int:
    """Everything missing, after one estimate for all of it; -> number of generations that failed."""
    planned: set[tuple[str, str, int, int]] = set()
    missing = [run.n_missing(planned) for run in runners]
    total = sum(sum(m.values()) for m in missing)
    if not total:
        say("everything asked for is in the ledger already: nothing to measure")
        return 0
    say(f"{total} generations to measure in {runners[0].loaded.dtype}; warming up each method ...")
    _tell_apart(runners, missing)
    failed = 0
    with interruptible():
        costs: list[dict[str, float]] = []  # seconds a generation, by method
        for run, m in zip(runners, missing, strict=True):
            run.check_lengths()
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
                    failed += run.run(tick, lambda name, i=i: advance((i, name)))
    return failed


def _tell_apart(runners: Sequence[Any], missing: Sequence[dict[str, int]]) -> None:
    """Before hours are spent: speeds beside a baseline from an earlier process are worth little."""
    from harness.run.arms import BASELINE

    late = sorted({name for run, m in zip(runners, missing, strict=True) if run.spec.baseline and not m.get(BASELINE)
                   for name, n in m.items() if n > run.n_treeless(name)})  # fmt: skip
    if late:
        say(f"note: {BASELINE} on these prompts is in the ledger already, from another process: speedups of {', '.join(late)} "
            "will be marked ≈ and not judged; methods whose speeds are to be compared are measured by one command")  # fmt: skip


def tell_failures(failed: int) -> None:
    if failed:
        raise UserError(
            f"{failed} generations failed; they are recorded with status 'error', and the same command tries them again"
        )


def preflight_lines(config: Any, names: Iterable[str], o: dict[str, Any]) -> Iterator[str]:
    """What a run of these methods takes and what of it is missing."""
    from harness.load import preflight

    needed = {kind for name in names if (kind := methods.get(name).drafter)}
    return preflight.report(config, kinds=needed, head=o["head"], dtype=o["dtype"] or "auto")


def known_rates(folder: Path, model: str, records: Any, preset: str | None = None) -> dict[str, float]:
    """Seconds per token of each method in a ledger, of one preset if one is named."""
    try:
        known = [r for r in records.read(folder) if r["model"] == model and r["status"] == "ok" and r["token_ids"]]
    except UserError:
        return {}
    known = [r for r in known if preset in (None, r["preset"])]
    seconds: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for r in known:
        seconds[r["method"]] = seconds.get(r["method"], 0.0) + r["wall_s"]
        tokens[r["method"]] = tokens.get(r["method"], 0) + len(r["token_ids"])
    return {name: seconds[name] / tokens[name] for name in seconds}
