"""`harness reproduce`: the paper's tables and figures, measured or listed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import methods
import tasks
from harness import config as model_configs
from harness.commands.options import MATRIX_DEFAULTS, checked, include_all
from harness.commands.run import known_rates, measure, preflight_lines, run_spec, session, tell_failures
from harness.errors import UserError, duration, say, unknown
from tasks.sources import SOURCES


def reproduce_command(**o: Any) -> None:
    """Items of the paper, all of them unless some are named: list their cells, or measure what is missing of them and print our
    numbers beside the paper's."""
    from harness import published, tables
    from harness import reproduce as r

    if o["source"] not in (*SOURCES, "auto"):
        raise unknown("source", o["source"], (*SOURCES, "auto"))
    named = [published.item("table", n) for n in o["tables"]] + [published.item("figure", n) for n in o["figures"]]
    checked({**MATRIX_DEFAULTS, **{k: v for k, v in o.items() if v is not None}, "temperature": 0.0})
    include_all(o["includes"])
    wanted = {item: _paper_cells(item, o["models"], is_named=bool(named)) for item in named or published.ITEMS}
    wanted = {item: found for item, found in wanted.items() if found}
    configs = {c.name: c for found in wanted.values() for c, _ in found}
    if o["dry_run"]:
        _dry_run(wanted, o)
        return
    failed = 0
    left_out: list[str] = []
    for config in configs.values() if not o["no_run"] else ():
        own = [(item, cell) for item, found in wanted.items() for c, cells in found if c.name == config.name for cell in cells]
        drawn = {(cell.temperature, cell.task_here) for item, cell in own if item.needs_trees}
        try:
            failed += _run_rows(config, _cell_options(config, [cell for _, cell in own], o, drawn), o)
        except UserError as e:  # the others are measured all the same, and this one when it is there
            left_out.append(config.name)
            say(f"{config.name} is left out: {e}")
    written, mixed = _reproduced(wanted, o)
    folder = o["out"] or o["results"] / "tables"
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
    tell_failures(failed)
    if left_out:
        raise UserError(f"not measured: {', '.join(left_out)} (why stands above); the same command goes on from here")
    if mixed:
        raise UserError(f"not judged: {', '.join(mixed)} (why stands above)")


def _reproduced(wanted: Any, o: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """A table an item, from what the folder holds now; and the models whose records cannot be judged together.

    Raises:
        UserError: that is so of all models.
    """
    from harness import acceptance
    from harness import reproduce as r
    from harness.trees import has_trees, read_drafts

    recorded = _recorded(o["results"])
    configs = {c.name: c for found in wanted.values() for c, _ in found}
    measurements, mixed = {}, []
    for name in configs:
        try:
            measurements[name] = r.Measurements(recorded, name, o["results"])
        except UserError as e:
            if len(configs) == 1:
                raise
            mixed.append(name)
            say(f"{name} is left out: {e}")
    if not measurements:
        raise UserError(f"not judged: {', '.join(mixed)} (why stands above)")
    wanted = {item: own for item, found in wanted.items() if (own := [x for x in found if x[0].name in measurements])}
    targets = {
        name: r.target_of(name, configs[name].paper, configs[name].max_new_tokens, m.records, m.facts())
        for name, m in measurements.items()
    }
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
    return made, mixed


def _recorded(folder: Path) -> list[Any]:
    """What a folder holds, if anything."""
    from harness import records

    return list(records.read(folder)) if records.has_records(folder) else []


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
        "system": config.system,
    }
    _same_environment(config, there, asked, o["results"])


def _check_loaded(config: Any, run: Any, o: dict[str, Any]) -> None:
    """The same of what shows on loading only: machine and weights, seed and top-p. Said before the first prompt."""
    from harness.records import machine_label
    from harness.reproduce import of_the_paper

    there: list[Any] = list(of_the_paper(_recorded(o["results"]), config.name, o["results"]))
    loaded, spec = run.loaded, run.spec
    here = {"machine": machine_label(run.env), "target_sha": loaded.target_sha, "dtype": loaded.dtype, "seed": spec.seed,
            "top_p": spec.top_p}  # fmt: skip
    _same_environment(config, there, here, o["results"])
    for kind in methods.DRAFTERS:
        drafted = [r for r in there if methods.get(r["method"]).drafter == kind]
        if loaded.sha_of(kind) is not None:
            _same_environment(config, drafted, {"head_sha": loaded.sha_of(kind)}, o["results"])


def _same_environment(config: Any, there: Sequence[Any], asked: dict[str, Any], results: Path) -> None:
    for key, value in asked.items():
        if there and there[0].get(key, value) != value:
            raise UserError(f"{results} holds records of {config.name} with {key} {there[0][key]}, and {value} is asked "
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


def _cell_options(
    config: Any, cells: Sequence[Any], o: dict[str, Any], drawn: Collection[tuple[float, str]] = ()
) -> list[dict[str, Any]]:
    """Options of `harness run` that measure these cells and no others; methods without a drafter are left out.

    At one temperature a task stands in one set of them only: all its methods are timed with the same baseline. drawn:
    (temperature, task) whose trees are kept, for the figures that are drawn from them.
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
        sets: dict[tuple[tuple[str, ...], bool], list[str]] = {}
        for task, names in by_task.items():
            sets.setdefault((("vanilla", *sorted(names)), (temperature, task) in drawn), []).append(task)
        rows += [{**MATRIX_DEFAULTS, **given, "names": names, "task_names": tuple(tasks_here), "temperature": temperature,
                  "out": o["results"], "trees": trees} for (names, trees), tasks_here in sets.items()]  # fmt: skip
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
    lines = preflight_lines(config, (name for row in rows for name in row["names"]), o)
    missing = [line.removeprefix("missing: ") for line in lines if line.startswith("missing: ")]
    if missing != ["nothing"]:
        raise UserError("missing: " + "; ".join(missing))
    with session(config, rows[0], [run_spec(config, row) for row in rows]) as runners:
        _check_loaded(config, runners[0], o)
        return measure(runners)


Left = dict[tuple[str, str, float], tuple[int, float | None]]
"""(method, task, temperature) -> generations to make, and seconds that takes, where known."""


def _dry_run(wanted: Any, o: dict[str, Any]) -> None:
    """Item by item, then what all of them take together: cells that are in several are measured once."""
    together: dict[str, Left] = {}
    for item, found in wanted.items():
        click.echo(f"{item.name}: {item.title}")
        for config, cells in found:
            together[config.name] = together.get(config.name, {}) | _dry_reproduce(config, cells, o)
    if len(wanted) == 1 and len(together) == 1:
        return
    click.echo("all of it, each cell once:")
    for name, left in together.items():
        click.echo(f"{name}: {_amount(left)}")
    click.echo(f"together: {_amount({(name, *cell): value for name, left in together.items() for cell, value in left.items()})}")


def _amount(left: Mapping[Any, tuple[int, float | None]]) -> str:
    """`N generations, about 3.2 h if every answer uses its tokens`."""
    known = [cost for _, cost in left.values() if cost is not None]
    said = f"{sum(n for n, _ in left.values())} generations"
    if not known:
        return f"{said}, time unknown"
    some = ", cells of unknown time left out" if any(n and cost is None for n, cost in left.values()) else ""
    return f"{said}, about {duration(sum(known))} if every answer uses its tokens{some}"


def _dry_reproduce(config: Any, cells: Sequence[Any], o: dict[str, Any]) -> Left:
    """Each cell with what the paper printed, what is there and how long the rest takes; then memory and what is missing."""
    from harness import records
    from harness.published import MEAN, TASKS

    n_prompts, budget = o["limit"] or config.limit, o["max_new_tokens"] or config.max_new_tokens
    rates, by = known_rates(o["results"], config.name, records, "paper"), f"the records in {o['results']}"
    if not rates and config.paper and config.architecture:
        rates, by = _published_rates(config, cells)
    done = _n_recorded(o["results"], config.name, o["source"], budget)
    without = {name: what for c in cells if (name := c.method_here) and (what := _no_drafter(config, name, o["head"]))}
    click.echo(f"{config.name} ({config.paper or 'a stand-in: its cells are not comparable with the paper'}):")
    all_left: Left = {}

    def listed(method: str | None, task: str, temperature: float, said: str) -> None:
        line = f"cell: {config.name} x {TASKS.get(task, task)} x {said} at T = {temperature:g}"
        if method is None or method in without or task == MEAN:
            why = "no such method here" if method is None else f"the model has no {without[method]}" if method in without else ""
            click.echo(f"{line}: {why or 'the mean of the six'}")
            return
        n = n_prompts * tasks.get(TASKS[task]).n_turns
        left = max(n - done.get((method, TASKS[task], temperature), 0), 0)
        cost = left * budget * rates[method] if method in rates else None
        all_left[method, TASKS[task], temperature] = left, cost
        time_ = "time unknown until the warm-up has run" if cost is None else f"about {duration(cost)}"
        click.echo(f"{line}: {left} of {n} generations to make, {time_}")

    for temperature, task in dict.fromkeys((c.temperature, c.task) for c in cells if c.method_here and c.task != MEAN):
        listed("vanilla", task, temperature, "vanilla (the baseline)")
    for c in cells:
        named = f"{c.method_here} ({c.method})" if c.method_here else c.method
        listed(c.method_here, c.task, c.temperature, f"{named}{'' if len(c.speedup) > 1 else _paper_says(c)}")
    click.echo(f"to make: {_amount(all_left)}; at most {budget} tokens each{f', rates by {by}' if rates else ''}")
    no_prompts = _missing_prompts(dict.fromkeys(TASKS[c.task] for c in cells if c.task != MEAN), o)
    for line in preflight_lines(config, {c.method_here for c in cells if c.method_here} - without.keys(), o):
        if not (no_prompts and line == "missing: nothing"):
            click.echo(line)
    if no_prompts:
        click.echo(f"missing: {no_prompts}")
    return all_left


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
