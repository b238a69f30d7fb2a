"""What the commands do: check the input, load, run, print. No arithmetic on results here."""

from __future__ import annotations

import json
import math
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
from harness.errors import UserError, duration, say, unknown
from tasks.sources import SOURCES

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
            here = c.head_folder is not None and (c.head_folder / "config.json").exists()
            head = "with head" if here else "head on the hub" if isinstance(c.head, model_configs.HubRepo) else "no head here"
            repos = [r for r in (c.weights, c.head) if isinstance(r, model_configs.HubRepo)]
            marks = ["gated"] * any(r.gated for r in repos) + ["unofficial"] * any(not r.official for r in repos)
            yield f"{name:20} {c.title}  [{'; '.join((c.licence, *marks, head))}; context {c.context_length}]"


def fetch_command(model: str, source: str, includes: tuple[Path, ...]) -> None:
    from harness.weights import drafter_folder, weights_folder

    include_all(includes)
    sources = {"auto", *(s for name in tasks.names() for s in tasks.sources_of(name))}
    if source not in sources:
        raise unknown("source", source, sources)
    config = model_configs.model_config(model)
    folder, digest = weights_folder(config)
    click.echo(f"{config.title}: {folder} ({digest if '@' in digest else digest[:16]})")
    for kind, what in methods.DRAFTERS.items():
        if isinstance(config.drafter_source(kind), model_configs.HubRepo):
            click.echo(f"{what}: {drafter_folder(config, kind)}")
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
    part = _part(config, o)
    if o["dry_run"]:
        _dry_run(config, part, o)
        return
    from harness import metrics, records, tables

    with _session(config, o, [part]) as (run,):
        failed = _measure([run])
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
    _tell_failures(failed)


def _compare_with_prediction(config: Any, summaries: Sequence[Any], o: dict[str, Any]) -> None:
    """One line a tuned method: what `harness tune` expected on held-out training prompts, and what was measured now."""
    from harness.runner import TUNED

    measured = [s for s in summaries if s.preset == TUNED and s.temperature == o["temperature"] and s.tau is not None]
    for method in dict.fromkeys(s.method for s in measured):
        predicted = _tuned(config, method, o["head"] or config.head_folder, o).predicted
        cells = [s for s in measured if s.method == method]
        tau = sum(s.tau for s in cells) / len(cells)
        ratios = [s.decode_speedup for s in cells if s.decode_speedup is not None]
        speed = f", decode speedup {sum(ratios) / len(ratios):.2f}x" if ratios else ""
        say(
            f"{method}, T = {o['temperature']:g}: predicted on training prompts: tau {predicted['tau']:.2f}, "
            f"decode speedup {predicted['speedup']:.2f}x; "
            f"measured here (mean over {len(cells)} tasks): tau {tau:.2f}{speed}"
        )


def matrix_command(tier: str, **o: Any) -> None:
    """All runs of a tier in one process: the model is loaded once, and one estimate covers them all."""
    include_all(o["includes"])
    config = model_configs.model_config(o["model"])
    given = {k: v for k, v in o.items() if v is not None}
    asked = [{**MATRIX_DEFAULTS, **row, **given} for row in tier_rows(tier)]
    for options in asked:
        _checked(options)
    parts = [_part(config, options) for options in asked]
    from harness import metrics, records

    with _session(config, asked[0], parts) as runners:
        failed = _measure(runners)
        wanted = {c.key for run in runners for c in run.cells()}
        summaries = metrics.summarise([r for r in records.read(o["out"]) if r["cell"] in wanted])
    for options in asked:
        _compare_with_prediction(config, summaries, options)
    _tell_failures(failed)


# More trees of a method, timed along with the others: (method, preset, changes). EAGLE-2 with the 25 draft nodes and 5 levels of
# EAGLE-1's tree is the claim at equal budget; the tuned trees are left out where `harness tune` was not run.
EQUAL_BUDGET = (("eagle2", "paper", ("total=25", "depth=5")),)
TUNED_TREES = (("eagle2", "tuned", ()), ("eagle2-fr", "tuned", ()))
# What a tier runs; a row's keys are options of `harness run`, and `beside`. The length budget of `full` is the model's own.
TIERS: dict[str, tuple[dict[str, Any], ...]] = {
    "quick": ({"names": ("all",), "temperature": 0.0, "limit": 1, "max_new_tokens": 32},),
    "default": (
        {"names": ("all",), "temperature": 0.0, "limit": 10, "max_new_tokens": 128, "beside": EQUAL_BUDGET + TUNED_TREES},
        {"names": ("vanilla", "eagle1", "eagle2"), "temperature": 1.0, "limit": 10, "max_new_tokens": 128, "beside": TUNED_TREES},
    ),
    "full": (
        {"names": ("all", "hf-generate"), "temperature": 0.0, "limit": 40, "beside": EQUAL_BUDGET + TUNED_TREES},
        {"names": ("all", "hf-generate"), "temperature": 1.0, "limit": 20, "beside": TUNED_TREES},
    ),
}
MATRIX_DEFAULTS: dict[str, Any] = {
    "task_names": ("all",), "preset": "paper", "changes": (), "top_p": 1.0, "source": "auto", "prompts_dir": None, "limit": None,
    "max_new_tokens": None, "dtype": "auto", "threads": None, "seed": 0, "repeats": 1, "no_baseline": False,
    "on_overflow": "skip", "head": None, "trees": False, "beside": (),
}  # fmt: skip


def reproduce_command(**o: Any) -> None:
    """Items of the paper, all of them unless some are named: list their cells, or measure what is missing of them and print our
    numbers beside the paper's."""
    from harness import published, tables
    from harness import reproduce as r

    if o["source"] not in (*SOURCES, "auto"):
        raise unknown("source", o["source"], (*SOURCES, "auto"))
    named = [published.item("table", n) for n in o["tables"]] + [published.item("figure", n) for n in o["figures"]]
    _checked({**MATRIX_DEFAULTS, **{k: v for k, v in o.items() if v is not None}, "temperature": 0.0})
    include_all(o["includes"])
    wanted = {item: _paper_cells(item, o["models"], is_named=bool(named)) for item in named or published.ITEMS}
    wanted = {item: found for item, found in wanted.items() if found}
    configs = {c.name: c for found in wanted.values() for c, _ in found}
    if o["dry_run"]:
        for item, found in wanted.items():
            click.echo(f"{item.name}: {item.title}")
            for config, cells in found:
                _dry_reproduce(config, cells, o)
        return
    failed = 0
    left_out: list[str] = []
    for config in configs.values() if not o["no_run"] else ():
        rows: list[dict[str, Any]] = []
        for trees in (False, True):
            cells = [cell for item, found in wanted.items() if item.needs_trees is trees for c, own in found
                     if c.name == config.name for cell in own]  # fmt: skip
            rows += _cell_options(config, cells, {**o, "trees": trees})
        try:
            failed += _run_rows(config, rows, o)
        except UserError as e:  # the others are measured all the same, and this one when it is there
            left_out.append(config.name)
            say(f"{config.name} is left out: {e}")
    written, folder = _reproduced(wanted, o), o["out"] or o["results"] / "tables"
    for table in written:
        click.echo(tables.plain(table))
        for file in tables.write_forms(table, folder):
            say(f"written: {file}")
        if table.name in ("figure1", "figure2"):
            from harness import bars

            for file in bars.draw(table.numbers, folder / table.name):
                say(f"written: {file}")
    if o["as_json"]:
        click.echo(r.to_json(written))
    _tell_failures(failed)
    if left_out:
        raise UserError(f"not measured: {', '.join(left_out)} (why stands above); the same command goes on from here")


def _reproduced(wanted: Any, o: dict[str, Any]) -> list[Any]:
    """A table an item, from what the folder holds now."""
    from harness import acceptance
    from harness import reproduce as r
    from harness.trees import has_trees, read_drafts

    recorded = _recorded(o["results"])
    configs = {c.name: c for found in wanted.values() for c, _ in found}
    measurements = {name: r.Measurements(recorded, name, o["results"]) for name in configs}
    targets = {name: r.Target(name, c.paper, c.max_new_tokens, measurements[name].facts()) for name, c in configs.items()}
    drafts = read_drafts(o["results"]) if any(item.needs_trees for item in wanted) and has_trees(o["results"]) else {}
    made = []
    for item, found in wanted.items():
        if item.needs_trees:
            rows = [(targets[c.name], acceptance.acceptance_table(measurements[c.name].of(own), drafts)) for c, own in found]
            made.append(r.draft_report(item, rows))
            continue
        judged = []
        for c, cells in found:
            ours = measurements[c.name]
            judged += [r.judge(x, targets[c.name], ours(x.method_here or x.method, x.task_here, x.temperature)) for x in cells]
        made.append(r.report(item, judged))
    return made


def _recorded(folder: Path) -> list[Any]:
    """What a folder holds, if anything."""
    from harness import records

    path = folder / records.RECORDS
    return list(records.read(folder)) if path.exists() and path.stat().st_size else []


def _check_environment(config: Any, o: dict[str, Any]) -> None:
    """
    Raises:
        UserError: what is asked for could not be judged together with what the folder holds; said before hours are spent.
    """
    from harness.reproduce import of_the_paper

    there: list[Any] = list(of_the_paper(_recorded(o["results"]), config.name, o["results"]))
    dtype = config.dtype if o["dtype"] in (None, "auto") else o["dtype"]
    asked = {
        "dtype": there[0]["dtype"] if there and dtype == "auto" else dtype,  # what auto is shows on loading
        "threads": o["threads"] or os.cpu_count() or 1,
        "max_new_tokens": o["max_new_tokens"] or config.max_new_tokens,
    }
    for key, value in asked.items():
        if there and there[0][key] != value:
            raise UserError(f"{o['results']} holds records of {config.name} with {key} {there[0][key]}, and {value} is asked "
                            "for: they cannot be judged together; ask for the same, or choose another --results")  # fmt: skip


def _paper_cells(item: Any, models: Sequence[str], is_named: bool) -> list[tuple[Any, list[Any]]]:
    """The item's models, or those asked for, each with its cells of the item; is_named: the item was asked for.

    Raises:
        UserError: a model of the paper that is not in this item, or one that is nowhere.
    """
    from harness import published

    cells = published.cells(item)
    ours = model_configs.paper_models()
    there = list(dict.fromkeys(c.model for c in cells))
    found = []
    for name in models or [ours[model] for model in there]:
        name = ours.get(name, name)
        known = name in model_configs.known_models() or name.endswith(model_configs.SUFFIXES)
        if not known:
            raise UserError(f"{model_configs.not_in_paper(name)}; any model of `harness list models` can stand in")
        config = model_configs.model_config(name)
        if config.paper is None:
            own = published.stand_in(cells, config.name)
        elif config.paper in there:
            own = [c for c in cells if c.model == config.paper]
        elif not is_named:
            continue
        else:
            choices = ", ".join(f"{ours[model]} ({model})" for model in there)
            raise UserError(f"model {config.name} is not in {item.name} of the paper; in it are: {choices}")
        found.append((config, own))
    return found


def _no_drafter(config: Any, method: str, head: Path | None) -> str | None:
    """What a method drafts with and the model has none of. Without an EAGLE head nothing of the paper can be measured: that is
    missing, not left out."""
    from harness.weights import drafter_folders

    kind = methods.get(method).drafter
    if kind is None or kind == methods.EAGLE or kind in drafter_folders(config, head or config.head_folder):
        return None
    return methods.DRAFTERS[kind]


def _cell_options(config: Any, cells: Sequence[Any], o: dict[str, Any]) -> list[dict[str, Any]]:
    """Options of `harness run` that measure these cells and no others; methods without a drafter are left out.

    At one temperature a task stands in one set of them only: all its methods are timed with the same baseline.
    """
    from harness.published import MEAN
    from harness.style import SIX_TASKS

    given = {k: v for k, v in o.items() if v is not None and k in MATRIX_DEFAULTS}
    rows = []
    for temperature in dict.fromkeys(c.temperature for c in cells):
        here = [c for c in cells if c.temperature == temperature and c.method_here]
        by_task: dict[str, set[str]] = {}
        for c in here:
            if _no_drafter(config, c.method_here, o["head"]) is None:
                for task in SIX_TASKS if c.task == MEAN else (c.task_here,):
                    by_task.setdefault(task, set()).add(c.method_here)
        by_methods: dict[tuple[str, ...], list[str]] = {}
        for task, names in by_task.items():
            by_methods.setdefault(("vanilla", *sorted(names)), []).append(task)
        rows += [{**MATRIX_DEFAULTS, **given, "names": names, "task_names": tuple(tasks_here), "temperature": temperature,
                  "out": o["results"]} for names, tasks_here in by_methods.items()]  # fmt: skip
    return rows


def _run_rows(config: Any, rows: Sequence[dict[str, Any]], o: dict[str, Any]) -> int:
    """Measure what is missing of one model; -> number of generations that failed.

    Raises:
        UserError: something it needs is missing, for nothing is fetched here that takes hours; or the folder holds records of
            another environment.
    """
    import gc

    import torch

    _check_environment(config, o)
    gc.collect()
    torch.cuda.empty_cache()  # what an earlier model held is free, and is to be seen as such; does nothing without a GPU
    lines = _preflight(config, (name for row in rows for name in row["names"]), o)
    missing = [line.removeprefix("missing: ") for line in lines if line.startswith("missing: ")]
    if missing != ["nothing"]:
        raise UserError("missing: " + "; ".join(missing))
    with _session(config, rows[0], [_part(config, row) for row in rows]) as runners:
        return _measure(runners)


def _preflight(config: Any, names: Iterable[str], o: dict[str, Any]) -> Iterator[str]:
    """What a run of these methods takes and what of it is missing."""
    from harness import preflight

    needed = {kind for name in names if (kind := methods.get(name).drafter)}
    return preflight.report(config, head=o["head"], needs_head=methods.EAGLE in needed, dtype=o["dtype"] or "auto",
                            others=needed - {methods.EAGLE})  # fmt: skip


def _dry_reproduce(config: Any, cells: Sequence[Any], o: dict[str, Any]) -> None:
    """Each cell with what the paper printed, what is there and how long the rest takes; then memory and what is missing."""
    from harness import records
    from harness.published import MEAN, TASKS

    n_prompts, budget = o["limit"] or config.limit, o["max_new_tokens"] or config.max_new_tokens
    rates, by = _known_rates(o["results"], config.name, records), f"the records in {o['results']}"
    if not rates and config.paper and config.architecture:
        rates, by = _published_rates(config, cells)
    done = _n_recorded(o["results"], config.name, o["source"], budget)
    without = {name: what for c in cells if (name := c.method_here) and (what := _no_drafter(config, name, o["head"]))}
    click.echo(f"{config.name} ({config.paper or 'a stand-in: its cells are not comparable with the paper'}):")
    total, seconds, unknown = 0, 0.0, False

    def listed(method: str | None, task: str, temperature: float, said: str) -> None:
        nonlocal total, seconds, unknown
        line = f"cell: {config.name} x {TASKS.get(task, task)} x {said} at T = {temperature:g}"
        if method is None or method in without or task == MEAN:
            why = "no such method here" if method is None else f"the model has no {without[method]}" if method in without else ""
            click.echo(f"{line}: {why or 'the mean of the six'}")
            return
        n = n_prompts * tasks.get(TASKS[task]).n_turns
        left = max(n - done.get((method, TASKS[task], temperature), 0), 0)
        cost = left * budget * rates[method] if method in rates else None
        total, seconds, unknown = total + left, seconds + (cost or 0.0), unknown or (cost is None and left > 0)
        time_ = "time unknown until the warm-up has run" if cost is None else f"about {duration(cost)}"
        click.echo(f"{line}: {left} of {n} generations to make, {time_}")

    for temperature, task in dict.fromkeys((c.temperature, c.task) for c in cells if c.method_here and c.task != MEAN):
        listed("vanilla", task, temperature, "vanilla (the baseline)")
    for c in cells:
        named = f"{c.method_here} ({c.method})" if c.method_here else c.method
        listed(c.method_here, c.task, c.temperature, f"{named}{'' if len(c.speedup) > 1 else _paper_says(c)}")
    about = f"about {duration(seconds)} if every answer uses its tokens, by {by}" if rates else "time unknown"
    about += ", cells of unknown time left out" if rates and unknown else ""
    click.echo(f"generations: {total} of at most {budget} tokens; {about}")
    no_prompts = _missing_prompts(dict.fromkeys(TASKS[c.task] for c in cells if c.task != MEAN), o)
    for line in _preflight(config, {c.method_here for c in cells if c.method_here} - without.keys(), o):
        if not (no_prompts and line == "missing: nothing"):
            click.echo(line)
    if no_prompts:
        click.echo(f"missing: {no_prompts}")


def _missing_prompts(names: Iterable[str], o: dict[str, Any]) -> str:
    """Which tasks' prompts are not there and why the first of them is not; nothing where all are."""
    why: dict[str, str] = {}
    for name in names:
        try:
            tasks.resolve(name, o["source"], o["prompts_dir"])
        except UserError as e:
            why[name] = str(e)
    return f"prompts of {', '.join(why)}: {next(iter(why.values()))}" if why else ""


def _paper_says(cell: Any) -> str:
    """` [paper: 3.62x, tau 4.98]`, marked where it is not confirmed."""
    said = [
        form.format(n.text) + ("" if n.confirmed else " (unconfirmed)")
        for form, found in (("{}x", cell.speedup), ("tau {}", cell.tau))
        for n in found
    ]
    return f" [paper: {', '.join(said)}]" if said else ""


def _published_rates(config: Any, cells: Sequence[Any]) -> tuple[dict[str, float], str]:
    """Seconds a token by method, and what they are from: the authors' own rate for one target, scaled by parameters (plain
    decoding reads every weight once a token), and the paper's speedups."""
    from harness.published import plain_rate

    rate = plain_rate()
    known = model_configs.paper_model(rate.model).architecture
    assert known is not None
    plain = config.architecture.n_parameters / (known.n_parameters * rate.value)
    rates = {"vanilla": plain}
    for c in cells:  # the slowest of a method's tasks: an estimate errs on the long side
        if c.method_here and c.speedup:
            rates[c.method_here] = max(rates.get(c.method_here, 0.0), plain / c.speedup[0].value)
    return rates, (f"the paper's speedups and the {rate.text} tokens/s that its authors state for plain {rate.model} "
                   f"({rate.by}, {rate.table}), scaled by parameters")  # fmt: skip


def _n_recorded(folder: Path, model: str, source: str, max_new_tokens: int) -> dict[tuple[str, str, float], int]:
    """Generations that a ledger holds of a model, prompt source (`auto`: any) and budget, by method, task and temperature."""
    from harness import records

    counts: dict[tuple[str, str, float], set[tuple[Any, ...]]] = {}
    try:
        known = records.read(folder)
    except UserError:
        return {}
    for r in known:
        is_same = (r["model"], r["preset"], r["max_new_tokens"]) == (model, "paper", max_new_tokens)
        if is_same and source in ("auto", r["source"]) and r["status"] == "ok" and not r["is_warmup"]:
            counts.setdefault((r["method"], r["task"], r["temperature"]), set()).add((r["sample_id"], r["turn"], r["source"]))
    return {key: len(ids) for key, ids in counts.items()}


def tier_rows(tier: str) -> tuple[dict[str, Any], ...]:
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    return TIERS[tier]


def _tuned(config: Any, method: str, head: Path | None, o: dict[str, Any]) -> Any:
    from harness import tuned

    return tuned.lookup(_tuned_key(config, method, head, o), config.folder / f"{config.name}.tuned.json")


def _tuned_key(config: Any, method: str, head: Path | None, o: dict[str, Any]) -> Any:
    import torch

    from harness.environment import cpu_name
    from harness.fetch import sha256_file
    from harness.loading import FREQUENT, resolve_dtype
    from harness.tuned import Key

    threads = o["threads"] or os.cpu_count() or 1
    torch.set_num_threads(threads)
    files = [head / name for name in ("model.safetensors", "pytorch_model.bin", FREQUENT)] if head else []
    return Key(
        model=config.name,
        head=" ".join(sha256_file(file)[:16] for file in files if file.exists()),
        method=method,
        temperature=o["temperature"],
        dtype=resolve_dtype(config.dtype if o["dtype"] == "auto" else o["dtype"]),
        threads=threads,
        machine=torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
    )


def tune_command(**o: Any) -> None:
    """Find the best tree for each temperature, print what was found, and save it as the preset `tuned`."""
    temperatures = o["temperatures"] or (0.0,)
    for temperature in temperatures:
        _checked({**MATRIX_DEFAULTS, **o, "temperature": temperature})
    if o["conversations"] < 1:
        raise UserError(f"--conversations is {o['conversations']}; it must be at least 1")
    include_all(o["includes"])
    config = model_configs.model_config(o["model"])
    m = methods.get(o["method"])
    from harness import runner, tuned
    from harness.environment import keep_freed_memory

    if not m.tunable:
        has = ", ".join(name for name in methods.names() if methods.get(name).tunable)
        raise UserError(f"method {m.name} has no dynamic tree that can be tuned; these have: {has}")
    head = o["head"] or config.head_folder
    (arm,) = runner.make_arms((m.name,), "paper", {}, config, head)
    tuned.rows(o["save"] or tuned.found_here())  # a spoilt file is found out before hours are spent
    keep_freed_memory()
    from harness.loading import load
    from harness.train.command import evaluation_prompts
    from harness.tune import tune

    evaluation = [text for texts in evaluation_prompts().values() for text in texts]
    keys = [_tuned_key(config, m.name, head, o | {"temperature": temperature}) for temperature in temperatures]
    loaded = load(config, keys[0].dtype, head=o["head"])
    for key in keys:
        ranked, costs = tune(
            loaded, temperature=key.temperature, frequent=arm.options.get("frequent"), n_prompts=o["conversations"],
            max_new_tokens=o["max_new_tokens"] or config.max_new_tokens, evaluation=evaluation,
        )  # fmt: skip
        click.echo(f"{m.name} on {config.name}, T = {key.temperature:g}, {key.dtype}, {key.threads} threads, {key.machine}:")
        click.echo(f"one vanilla step takes {costs.step * 1e3:.1f} ms at a context of {costs.context} tokens")
        given = tuple(arm.options[k] for k in ("top_k", "depth", "total"))
        paper = [("paper", c) for c in ranked if (c.top_k, c.depth, c.total) == given]
        for what, c in [*((f"{i}.", c) for i, c in enumerate(ranked[:5], start=1)), *paper]:
            click.echo(
                f"{what:6} top_k={c.top_k} depth={c.depth} total={c.total}: tau {c.tau:.2f}, c_verify {c.c_verify:.2f}, "
                f"c_draft {c.c_draft:.2f}, decode speedup {c.speedup:.2f}x"
            )
        best = ranked[0]
        if best.speedup <= 1:
            click.echo(f"speculation does not pay on this machine: the best tree is predicted at {best.speedup:.2f}x of vanilla")
        options = {**arm.options, "top_k": best.top_k, "depth": best.depth, "total": best.total}
        predicted = {
            "tau": round(best.tau, 3), "speedup": round(best.speedup, 3), "c_verify": round(best.c_verify, 3),
            "c_draft": round(best.c_draft, 3), "step_ms": round(costs.step * 1e3, 2), "context": costs.context,
            "conversations": o["conversations"],
        }  # fmt: skip
        path = tuned.save(tuned.Entry(key, options, predicted), o["save"])
        say(f"saved in {path}; `harness run --method {m.name} --preset tuned --temperature {key.temperature:g} ...` uses it")


def profile_command(**o: Any) -> None:
    """Profile vanilla and the methods asked for, print and write tables and plots; with `sweep`, speed against context."""
    if o["limit"] < 1:
        raise UserError(f"--limit is {o['limit']}; it must be at least 1")
    _checked({"repeats": 1, "top_p": 1.0, **o})
    include_all(o["includes"])
    config = model_configs.model_config(o["model"])
    for name in ("contexts", "trees"):
        if o["sweep"] and min(o[name]) < 1:
            raise UserError(f"--{name[:-1]} is {min(o[name])}; it must be at least 1")
    names = ("vanilla", *(n for n in o["names"] if n != "vanilla"))
    part = _part(config, {**MATRIX_DEFAULTS, **{k: v for k, v in o.items() if v is not None}, "names": names,
                          "task_names": ("all",), "source": "bundled"})  # fmt: skip
    untraced = [a.name for a in part.arms if a.method.external]
    if untraced:
        raise UserError(f"method {untraced[0]} is another loop: it has no steps to profile")
    import torch

    from harness import profiling, runner
    from harness.environment import keep_freed_memory
    from harness.loading import load
    from methods.base import SamplerParams

    keep_freed_memory()
    torch.set_num_threads(o["threads"] or os.cpu_count() or 1)
    say(f"loading {config.title} ...")
    loaded = load(config, o["dtype"], head=o["head"], drafters=_drafters([part]))
    runner.check_heads(part.arms, loaded)
    stop = frozenset(config.stop_ids)
    params = SamplerParams(part.max_new_tokens, stop, temperature=o["temperature"], key=1)
    where = f"{config.name}, T = {o['temperature']:g}, {loaded.dtype}, {torch.get_num_threads()} threads"
    if o["sweep"]:
        contexts, trees = sorted(set(o["contexts"])), sorted(set(o["trees"]))
        tree_arms = [(f"{n} nodes", arm) for n in trees for arm in make_trees(config, o, n)]
        text = loaded.encode_text("\n\n".join(t for ps in part.prompt_sets for p in ps.prompts for t in p.turns))
        while len(text) < max(contexts):
            text = text + text
        vanilla = next(a for a in part.arms if a.name == "vanilla")
        say(f"contexts {', '.join(map(str, contexts))} x trees {', '.join(map(str, trees))} ...")
        short = SamplerParams(32, temperature=o["temperature"], key=1)
        rows = profiling.sweep(loaded, [("vanilla", vanilla), *tree_arms], contexts, text, short)
        if rows.empty:
            raise UserError(f"no context of {', '.join(map(str, contexts))} fits into the model's {config.context_length} tokens")
        shown = rows.pivot(index="arm", columns="context", values="tokens_per_s").reindex(rows["arm"].unique())
        click.echo(shown.round(1).to_string())
        written = profiling.write_sweep(rows, where, o["out"])
    else:
        prompts = [loaded.encode(loaded.render([("user", ps.prompts[i].turns[0])])) for i in range(o["limit"])
                   for ps in part.prompt_sets if i < len(ps.prompts)]  # fmt: skip
        profiles = []
        for arm in part.arms:
            say(f"profiling {arm.name} on {len(prompts)} bundled prompts ...")
            profiles.append(profiling.profile(loaded, arm, prompts, params))
        rows = profiling.profile_rows(profiles, profiles[0])
        report = profiling.report(profiles, profiling.ceiling(loaded), where, _known_best(config, part, o))
        click.echo(report)
        written = profiling.write_profile(rows, report, where, o["out"])
    for path in written:
        click.echo(path)


def make_trees(config: Any, o: dict[str, Any], total: int) -> tuple[Any, ...]:
    from harness import runner

    return runner.make_arms(("eagle2",), "paper", {"total": str(total)}, config, o["head"] or config.head_folder)


def _known_best(config: Any, part: Any, o: dict[str, Any]) -> dict[str, float]:
    """The best decode speedup that `harness tune` predicted over all trees, by method, where it was run here."""
    best = {}
    for arm in part.arms:
        if arm.method.tunable:
            try:
                best[arm.name] = float(_tuned(config, arm.name, o["head"] or config.head_folder, o).predicted["speedup"])
            except UserError:
                continue
    return best


def _part(config: Any, o: dict[str, Any]) -> Any:
    """The run that these options ask for, a `runner.RunSpec`; loads no model."""
    from harness import runner

    head = o["head"] or config.head_folder

    def arms_of(names: Sequence[str], preset: str, changes: Sequence[str]) -> tuple[Any, ...]:
        tuned = lambda method: _tuned(config, method, head, o).options  # noqa: E731
        return runner.make_arms(names, preset, parse_changes(changes), config, head, tuned)

    arms = arms_of(o["names"], o["preset"], o["changes"])
    for name, preset, changes in o.get("beside", ()):
        try:
            more = arms_of((name,), preset, (*o["changes"], *changes))
        except UserError as e:  # no head for it, or nothing tuned here
            say(f"left out: {name} ({preset}{''.join('+' + c for c in changes)}): {e}")
            continue
        arms += tuple(a for a in more if all(a.options != other.options for other in arms if other.name == name))
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


def _drafters(parts: Sequence[Any]) -> set[str]:
    """The kinds of drafters that runs need."""
    return {a.method.drafter for part in parts for a in part.arms if a.method.drafter is not None}


@contextmanager
def _session(config: Any, o: dict[str, Any], parts: Sequence[Any]) -> Iterator[list[Any]]:
    """The ledger locked, the model loaded: a runner for each part."""
    from harness import records, runner
    from harness.environment import keep_freed_memory

    keep_freed_memory()
    with records.Ledger(o["out"]) as ledger:  # before anything is loaded: an unwritable folder is found out now
        import torch

        torch.set_num_threads(parts[0].threads)
        from harness.loading import load

        say(f"loading {config.title} ...")
        loaded = load(config, o["dtype"], head=o["head"], drafters=_drafters(parts))
        yield [runner.Runner(loaded, part, ledger) for part in parts]


def _measure(runners: Sequence[Any]) -> int:
    """Everything missing, after one estimate for all of it; -> number of generations that failed."""
    missing = [run.n_missing() for run in runners]
    total = sum(sum(m.values()) for m in missing)
    if not total:
        say("everything asked for is in the ledger already: nothing to measure")
        return 0
    say(f"{total} generations to measure in {runners[0].loaded.dtype}; warming up each method ...")
    failed = 0
    with _interruptible():
        costs: list[dict[str, float]] = []  # seconds a generation, by method
        for run, m in zip(runners, missing, strict=True):
            run.check_lengths()
            rates = run.warm_up() if any(m.values()) else {}
            costs.append({name: rates.get(name, 0.0) * run.spec.max_new_tokens for name in m})
        seconds = [sum(n * cost[name] for name, n in m.items()) for m, cost in zip(missing, costs, strict=True)]
        apart = ", ".join(f"{duration(s)} at T = {run.spec.temperature:g}" for s, run in zip(seconds, runners, strict=True))
        say(f"about {duration(sum(seconds))} if every answer uses its tokens" + (f" ({apart})" if len(runners) > 1 else ""))
        work = {(i, name): n for i, m in enumerate(missing) for name, n in m.items()}
        cost_of = {(i, name): cost for i, by_name in enumerate(costs) for name, cost in by_name.items()}
        with _progress(total, cost_of, work) as (tick, advance):
            for i, (run, m) in enumerate(zip(runners, missing, strict=True)):
                if any(m.values()):
                    failed += run.run(tick, lambda name, i=i: advance((i, name)))
    return failed


def _tell_failures(failed: int) -> None:
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
    rates = _known_rates(o["out"], config.name, records)
    if lacking := [name for name in names if name not in rates]:
        click.echo(f"time: unknown until the warm-up has run ({o['out']} has no record of {', '.join(lacking)} on {config.name})")
    else:
        seconds = turns * o["repeats"] * max_new_tokens * sum(rates[name] for name in names)
        click.echo(f"time: at most {duration(seconds)}, by the records in {o['out']}; what is measured already is not taken off")
    for line in _preflight(config, names, o):
        click.echo(line)


def _known_rates(folder: Path, model: str, records: Any) -> dict[str, float]:
    """Seconds per token of each method in a ledger."""
    try:
        known = [r for r in records.read(folder) if r["model"] == model and r["status"] == "ok" and r["token_ids"]]
    except UserError:
        return {}
    seconds: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for r in known:
        seconds[r["method"]] = seconds.get(r["method"], 0.0) + r["wall_s"]
        tokens[r["method"]] = tokens.get(r["method"], 0) + len(r["token_ids"])
    return {name: seconds[name] / tokens[name] for name in seconds}
