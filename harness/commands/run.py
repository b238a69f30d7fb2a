"""`harness run` and `harness matrix`: what is asked for, measured where it is not there yet, one estimate for all of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import methods
import tasks
from harness import config as model_configs
from harness.commands.options import MATRIX_DEFAULTS, checked, include_all, parse_changes
from harness.commands.tune import find_tuned
from harness.errors import UserError, duration, say, unknown


def run_command(**o: Any) -> None:
    checked(o)
    include_all(o["includes"])
    config = model_configs.model_config(o["model"])
    part = run_spec(config, o)
    from harness.runner import check_given

    check_given(o["head"], (arm.method for arm in part.arms))
    if o["dry_run"]:
        _dry_run(config, part, o)
        return
    from harness import metrics, records, tables

    with session(config, o, [part]) as (run,):
        failed = measure([run])
        wanted = {c.key for c in run.cells()}
        asked = {c.key for c in run.cells() if any(c.arm.name == a.name for a in part.arms)}
        mine = [r for r in records.read(o["out"]) if r["cell"] in wanted]
    ids = {(ps.task, p.id) for ps in part.prompt_sets for p in ps.prompts}
    mine = [r for r in mine if (r["task"], r["sample_id"]) in ids]
    summaries = metrics.summarise(mine)
    tables.print_run_table(summaries)
    _compare_with_prediction(config, summaries, o)
    path = str(o["out"] / records.RECORDS)
    say(f"records: {path}")
    if o["as_json"]:
        shown = {r["method"] for r in mine if r["cell"] in asked}
        values = [s.to_json(path) for s in summaries if s.method in shown]
        click.echo(json.dumps(values[0] if len(values) == 1 else values))
    tell_failures(failed)


def matrix_command(tier: str, **o: Any) -> None:
    """All runs of a tier in one process: the model is loaded once, and one estimate covers them all."""
    include_all(o["includes"])
    config = model_configs.model_config(o["model"])
    given = {k: v for k, v in o.items() if v is not None}
    asked = [{**MATRIX_DEFAULTS, **row, **given} for row in tier_rows(tier)]
    for options in asked:
        checked(options)
    parts = [run_spec(config, options) for options in asked]
    from harness import metrics, records

    with session(config, asked[0], parts) as runners:
        failed = measure(runners)
        wanted = {c.key for run in runners for c in run.cells()}
        summaries = metrics.summarise([r for r in records.read(o["out"]) if r["cell"] in wanted])
    for options in {options["temperature"]: options for options in asked}.values():
        _compare_with_prediction(config, summaries, options)
    tell_failures(failed)


# More trees of a method, timed along with the others: (method, preset, changes). EAGLE-2 with the 25 draft nodes and 5 levels of
# EAGLE-1's tree is the claim at equal budget; tuned options are left out where `harness tune` was not run.
EQUAL_BUDGET = (("eagle2", "paper", ("total=25", "depth=5")),)
TUNED = tuple((name, "tuned", ()) for name in ("sps", "pld", "lookahead", "medusa", "hydra", "eagle1", "eagle2", "eagle2-fr"))
# What Table 3 and the claims ledger are about.
CORE = tuple((name, "paper", ()) for name in ("eagle1", "eagle2", "eagle2-no-value", "eagle2-no-rerank", "eagle2-no-both"))
CLAIMS: tuple[dict[str, Any], ...] = (
    {"names": ("vanilla",), "temperature": 0.0, "limit": 40, "beside": CORE + EQUAL_BUDGET},
    {"names": ("vanilla",), "temperature": 1.0, "limit": 20, "beside": CORE},
)
# What a tier runs; a row's keys are options of `harness run`, and `beside`. The length budget of `full` and `claims` is the
# model's own. The last rows of `full` go on with the methods that the claims are about where the first two end: the prompts of a
# smaller limit are the first of a larger one.
TIERS: dict[str, tuple[dict[str, Any], ...]] = {
    "quick": ({"names": ("all",), "temperature": 0.0, "limit": 1, "max_new_tokens": 32},),
    "default": (
        {"names": ("all",), "temperature": 0.0, "limit": 5, "max_new_tokens": 128, "beside": EQUAL_BUDGET + TUNED},
        {"names": ("all",), "temperature": 1.0, "limit": 5, "max_new_tokens": 128, "beside": TUNED},
    ),
    "full": (
        {"names": ("all", "hf-generate"), "temperature": 0.0, "limit": 10, "beside": EQUAL_BUDGET + TUNED},
        {"names": ("all", "hf-generate"), "temperature": 1.0, "limit": 5, "beside": TUNED},
        *CLAIMS,
    ),
    "claims": CLAIMS,
}


def tier_rows(tier: str) -> tuple[dict[str, Any], ...]:
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    return TIERS[tier]


def _compare_with_prediction(config: Any, summaries: Sequence[Any], o: dict[str, Any]) -> None:
    """One line a tuned method: what `harness tune` expected on held-out training prompts, and what was measured now."""
    from harness.runner import TUNED

    measured = [s for s in summaries if s.preset == TUNED and s.temperature == o["temperature"] and s.tau is not None]
    for method in dict.fromkeys(s.method for s in measured):
        predicted = find_tuned(config, method, o["head"] or config.head_folder, o).predicted
        cells = [s for s in measured if s.method == method]
        tau = sum(s.tau for s in cells) / len(cells)
        ratios = [s.decode_speedup for s in cells if s.decode_speedup is not None]
        speed = f", decode speedup {sum(ratios) / len(ratios):.2f}x" if ratios else ""
        say(
            f"{method}, T = {o['temperature']:g}: predicted on training prompts: tau {predicted['tau']:.2f}, "
            f"decode speedup {predicted['speedup']:.2f}x; "
            f"measured here (mean over {len(cells)} tasks): tau {tau:.2f}{speed}"
        )


def run_spec(config: Any, o: dict[str, Any]) -> Any:
    """The run that these options ask for, a `runner.RunSpec`; loads no model."""
    from harness import runner

    head = o["head"] or config.head_folder

    def arms_of(names: Sequence[str], preset: str, changes: Sequence[str]) -> tuple[Any, ...]:
        return runner.make_arms(
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
    return runner.RunSpec(
        arms=arms, prompt_sets=prompt_sets, temperature=o["temperature"], top_p=o["top_p"],
        max_new_tokens=o["max_new_tokens"] or config.max_new_tokens, seed=o["seed"], repeats=o["repeats"],
        threads=o["threads"] or os.cpu_count() or 1, baseline=not o["no_baseline"], on_overflow=o["on_overflow"],
        trees=o["trees"],
    )  # fmt: skip


def drafters_of(parts: Sequence[Any]) -> set[str]:
    """The kinds of drafters that runs need."""
    return {a.method.drafter for part in parts for a in part.arms if a.method.drafter is not None}


@contextmanager
def session(config: Any, o: dict[str, Any], parts: Sequence[Any]) -> Iterator[list[Any]]:
    """The ledger locked, the model loaded: a runner for each part."""
    from harness import records, runner
    from harness.environment import keep_freed_memory

    keep_freed_memory()
    with records.Ledger(o["out"]) as ledger:  # before anything is loaded: an unwritable folder is found out now
        import torch

        torch.set_num_threads(parts[0].threads)
        from harness.loading import load

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
    with _interruptible():
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
        with _progress(total, cost_of, work) as (tick, advance):
            for i, (run, m) in enumerate(zip(runners, missing, strict=True)):
                if any(m.values()):
                    failed += run.run(tick, lambda name, i=i: advance((i, name)))
    return failed


def _tell_apart(runners: Sequence[Any], missing: Sequence[dict[str, int]]) -> None:
    """Before hours are spent: speeds beside a baseline from an earlier process are worth little."""
    from harness.runner import BASELINE

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


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C: the prompt under way is dropped, what is written stays whole."""
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


Work = tuple[int, str]  # which run, which method


Progress = tuple[Callable[[str], None], Callable[[Work], None]]


@contextmanager
def _progress(total: int, estimate: dict[Work, float], missing: dict[Work, int]) -> Iterator[Progress]:
    """A bar with time left on a terminal, else a plain line about every twentieth of the work."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                   TextColumn("{task.description}"))  # fmt: skip
        # drawn between generations only: a thread that redraws would run inside the intervals that are measured
        with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
            row = bar.add_task("", total=total)
            yield (
                lambda text: bar.update(row, description=text, refresh=True),
                lambda _: bar.update(row, advance=1, refresh=True),
            )
        return
    done, started, shown = 0, time.monotonic(), 0
    left = dict(missing)
    guessed_total = sum(estimate[m] * n for m, n in missing.items()) or 1.0

    def advance(name: Work) -> None:
        nonlocal done, shown
        done += 1
        left[name] -= 1
        if done * 20 // total > shown or done == total:
            shown = done * 20 // total
            spent = time.monotonic() - started
            to_go = sum(estimate[m] * n for m, n in left.items())
            so_far = guessed_total - to_go
            say(f"{done}/{total} generations, {duration(spent)} spent, {duration(spent * to_go / max(so_far, 1e-9))} left")

    yield lambda _: None, advance


def _dry_run(config: Any, part: Any, o: dict[str, Any]) -> None:
    """Cells, a rough time, memory, and what is missing; loads no model."""
    from harness import records
    from harness.runner import BASELINE

    arms, prompt_sets, max_new_tokens = part.arms, part.prompt_sets, part.max_new_tokens
    arm_names = [f"{a.name} ({a.preset})" for a in arms]
    if not o["no_baseline"] and all(a.name != BASELINE for a in arms):
        arm_names.insert(0, f"{BASELINE} (baseline)")
    turns = 0
    for ps in prompt_sets:
        n = sum(len(p.turns) for p in ps.prompts)
        turns += n
        for name in arm_names:
            where = f"{ps.task} ({ps.source}, {len(ps.prompts)} prompts, {n} turns)"
            click.echo(f"cell: {config.name} x {where} x {name} at T = {o['temperature']:g}")
    names = [a.name for a in arms] + ([BASELINE] if len(arm_names) > len(arms) else [])
    generations = turns * len(names) * o["repeats"]
    click.echo(f"generations: {generations} of at most {max_new_tokens} tokens")
    rates = known_rates(o["out"], config.name, records)
    if lacking := [name for name in names if name not in rates]:
        click.echo(f"time: unknown until the warm-up has run ({o['out']} has no record of {', '.join(lacking)} on {config.name})")
    else:
        seconds = turns * o["repeats"] * max_new_tokens * sum(rates[name] for name in names)
        click.echo(f"time: at most {duration(seconds)}, by the records in {o['out']}; what is measured already is not taken off")
    for line in preflight_lines(config, names, o):
        click.echo(line)


def preflight_lines(config: Any, names: Iterable[str], o: dict[str, Any]) -> Iterator[str]:
    """What a run of these methods takes and what of it is missing."""
    from harness import preflight

    needed = {kind for name in names if (kind := methods.get(name).drafter)}
    return preflight.report(config, head=o["head"], needs_head=methods.EAGLE in needed, dtype=o["dtype"] or "auto",
                            others=needed - {methods.EAGLE})  # fmt: skip


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
