"""What the commands do: check the input, load, run, print. No arithmetic on results here."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import methods
import tasks
from harness import config as model_configs
from harness.errors import UserError, unknown

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")


def include_all(paths: tuple[Path, ...]) -> None:
    """Register users' files: YAMLs as models, .py files with a `TASK` as tasks, others as methods."""
    for path in paths:
        if not path.exists():
            raise UserError(f"--include {path}: no such file or folder")
        models = model_configs.include(path) if path.is_dir() or path.suffix in model_configs.SUFFIXES else []
        new_tasks = tasks.include(path) if path.is_dir() or path.suffix == ".py" else []
        new_methods = methods.include(path) if path.is_dir() or path.suffix == ".py" else []
        if not (models or new_tasks or new_methods):
            raise UserError(f"--include {path}: found no method (@method), task (TASK = Task(...)) or model (.yaml) there")


def list_lines(what: str) -> Iterator[str]:
    if what == "methods":
        for name in methods.names():
            m = methods.get(name)
            options = " ".join(f"{k}={v}" for k, v in m.options.items() if len(str(v)) < 20)
            yield f"{name:18} {m.line}{f'  [{options}]' if options else ''}{'' if m.exact else '  (inexact)'}"
    elif what == "tasks":
        for name in tasks.names():
            yield f"{name:18} {tasks.get(name).line}  [sources: {', '.join(tasks.sources_of(name))}]"
    else:
        for name in model_configs.known_models():
            c = model_configs.model_config(name)
            head = "with head" if c.head_folder and (c.head_folder / "config.json").exists() else "no head here"
            yield f"{name:18} {c.title}  [{c.licence}; {head}; context {c.context_length}]"


def fetch_command(model: str, source: str, includes: tuple[Path, ...]) -> None:
    from harness.weights import weights_folder

    include_all(includes)
    sources = {"auto", *(s for name in tasks.names() for s in tasks.sources_of(name))}
    if source not in sources:
        raise unknown("source", source, sources)
    config = model_configs.model_config(model)
    folder, digest = weights_folder(config)
    click.echo(f"{config.title}: {folder} ({digest[:16]})")
    for name in tasks.names():
        got = tasks.load(name, source=source if source == "auto" or source in tasks.sources_of(name) else "auto", limit=1)
        click.echo(f"{name}: {got.source}")


def _checked(options: dict[str, Any]) -> None:
    """Every number a user can get wrong, before anything is loaded."""

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise UserError(what)

    o = options
    need(
        math.isfinite(o["temperature"]) and o["temperature"] >= 0,
        f"--temperature is {o['temperature']}; it must be 0 (greedy) or more",
    )
    need(0 < o["top_p"] <= 1, f"--top-p is {o['top_p']}; it must be over 0 and at most 1")
    need(o["limit"] is None or o["limit"] > 0, f"--limit is {o['limit']}; it must be at least 1")
    need(
        o["max_new_tokens"] is None or o["max_new_tokens"] > 0,
        f"--max-new-tokens is {o['max_new_tokens']}; it must be at least 1",
    )
    need(o["repeats"] > 0, f"--repeats is {o['repeats']}; it must be at least 1")
    need(o["threads"] is None or o["threads"] > 0, f"--threads is {o['threads']}; it must be at least 1")
    if o["dtype"] not in DTYPES:
        raise unknown("dtype", o["dtype"], DTYPES)


def parse_changes(changes: tuple[str, ...]) -> dict[str, str]:
    out = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes KEY=VALUE, not {change!r}")
        out[key.strip().replace("-", "_")] = value.strip()
    return out


def run_command(**o: Any) -> None:
    _checked(o)
    include_all(o["includes"])
    config = model_configs.model_config(o["model"])
    changes = parse_changes(o["changes"])
    from harness import runner

    has_head = o["head"] is not None or config.head is not None
    arms = runner.make_arms(o["names"], o["preset"], changes, config.presets, has_head, config.name)
    limit = o["limit"] or config.limit
    names: list[str] = []
    for name in o["task_names"]:
        names += [n for n in (tasks.names() if name == "all" else [name]) if n not in names]
    for name in names:
        tasks.get(name)
    prompt_sets = tuple(
        tasks.load(n, source=o["source"], limit=limit, prompts_dir=o["prompts_dir"], seed=o["seed"]) for n in names
    )
    max_new_tokens = o["max_new_tokens"] or config.max_new_tokens
    threads = o["threads"] or os.cpu_count() or 1
    if o["dry_run"]:
        _dry_run(config, arms, prompt_sets, max_new_tokens, o)
        return
    from harness import metrics, records, tables

    ledger = records.Ledger(o["out"])  # before anything is loaded: an unwritable folder is found out now
    with ledger:
        import torch

        torch.set_num_threads(threads)
        from harness.loading import load

        _say(f"loading {config.title} ...")
        loaded = load(config, o["dtype"], head=o["head"], with_head=any(a.method.needs_head for a in arms))
        spec = runner.RunSpec(
            arms=arms, prompt_sets=prompt_sets, temperature=o["temperature"], top_p=o["top_p"], max_new_tokens=max_new_tokens,
            seed=o["seed"], repeats=o["repeats"], threads=threads, baseline=not o["no_baseline"], on_overflow=o["on_overflow"],
        )  # fmt: skip
        run = runner.Runner(loaded, spec, ledger)
        failed = _measure(run, loaded.dtype)
        wanted = {c.key for c in run.cells()}
        asked = {c.key for c in run.cells() if any(c.arm.name == a.name for a in arms)}
        mine = [r for r in records.read(o["out"]) if r["cell"] in wanted]
    ids = {(ps.task, p.id) for ps in prompt_sets for p in ps.prompts}
    mine = [r for r in mine if (r["task"], r["sample_id"]) in ids]
    summaries = metrics.summarise(mine)
    tables.print_run_table(summaries)
    _say(f"records: {runner.results_path(o['out'])}")
    if o["as_json"]:
        path = runner.results_path(o["out"])
        shown = {r["method"] for r in mine if r["cell"] in asked}
        values = [s.to_json(path) for s in summaries if s.method in shown]
        click.echo(json.dumps(values[0] if len(values) == 1 else values))
    if failed:
        raise UserError(
            f"{failed} generations failed; they are recorded with status 'error', and the same command tries them again"
        )


def _measure(run: Any, dtype: str) -> int:
    missing = run.n_missing()
    total = sum(missing.values())
    if not total:
        _say("everything asked for is in the ledger already: nothing to measure")
        return 0
    _say(f"{total} generations to measure in {dtype}; warming up each method ...")
    with _interruptible():
        rates = run.warm_up()
        seconds = sum(n * rates[m] * run.spec.max_new_tokens for m, n in missing.items())
        _say(f"about {_duration(seconds)} if every answer uses its {run.spec.max_new_tokens} tokens")
        with _progress(total, {m: rates[m] * run.spec.max_new_tokens for m in missing}, missing) as (tick, advance):
            return run.run(tick, advance)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends like Ctrl-C: the prompt under way is dropped, what is written stays whole."""
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


Progress = tuple[Callable[[str], None], Callable[[str], None]]


@contextmanager
def _progress(total: int, estimate: dict[str, float], missing: dict[str, int]) -> Iterator[Progress]:
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

    def advance(name: str) -> None:
        nonlocal done, shown
        done += 1
        left[name] -= 1
        if done * 20 // total > shown or done == total:
            shown = done * 20 // total
            spent = time.monotonic() - started
            to_go = sum(estimate[m] * n for m, n in left.items())
            so_far = guessed_total - to_go
            _say(f"{done}/{total} generations, {_duration(spent)} spent, {_duration(spent * to_go / max(so_far, 1e-9))} left")

    yield lambda _: None, advance


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _dry_run(config: Any, arms: Any, prompt_sets: Any, max_new_tokens: int, o: dict[str, Any]) -> None:
    """Cells, a rough time, memory, and what is missing; loads no model."""
    from harness import records
    from harness.runner import BASELINE
    from harness.weights import prepared_folder

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
    generations = turns * len(arm_names) * o["repeats"]
    folder = prepared_folder(config)
    rate = _known_rate(o["out"], config.name, records)
    click.echo(f"generations: {generations} of at most {max_new_tokens} tokens")
    if rate is None:
        click.echo("time: unknown until the warm-up has run (no record of this model in --out to go by)")
    else:
        click.echo(f"time: at most {_duration(generations * max_new_tokens * rate)}, by the records in {o['out']}")
    if folder is not None and (folder / "model.safetensors").exists():
        size = (folder / "model.safetensors").stat().st_size
        click.echo(f"memory: about {size * 1.3 / 1e9:.1f} GB for weights stored in {size / 1e9:.2f} GB, plus the KV cache")
        click.echo("missing: nothing")
    elif isinstance(config.weights, model_configs.LocalFolder):
        click.echo(f"missing: {folder}/model.safetensors")
    else:
        click.echo(
            f"missing: weights of {config.name} are not in the cache yet; `harness fetch --model {config.name}` obtains them"
        )
    head = o["head"] or config.head_folder
    if any(a.method.needs_head for a in arms) and not (head and (head / "config.json").exists()):
        click.echo(f"missing: draft head in {head}")


def _known_rate(folder: Path, model: str, records: Any) -> float | None:
    try:
        known = [r for r in records.read(folder) if r["model"] == model and r["status"] == "ok" and r["token_ids"]]
    except UserError:
        return None
    if not known:
        return None
    return float(sum(r["wall_s"] for r in known) / sum(len(r["token_ids"]) for r in known))
