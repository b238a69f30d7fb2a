"""`harness reproduce --dry-run`: every cell with the time it takes, memory, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tasks
from harness.common.errors import UserError, duration
from harness.ledger.ledger import read
from harness.load import config as model_configs
from harness.load.config import ModelConfig
from harness.paper.plan import ReproduceRequest, no_drafter
from harness.paper.published import MEAN, TASKS, Item, PaperCell, plain_rate
from harness.run.session import known_rates, preflight_lines

Wanted = Mapping[Item, Sequence[tuple[ModelConfig, Sequence[PaperCell]]]]
"""Item of the paper -> the models that stand in it, each with its cells."""

Left = dict[tuple[str, str, float], tuple[int, float | None]]
"""(method, task, temperature) -> generations to make, and seconds that takes, where known."""


def dry_run_lines(wanted: Wanted, request: ReproduceRequest, with_cells: bool) -> list[str]:
    """What all items take together, a line a model, then what each model lacks; with_cells: then every cell of every item.

    A cell that stands in several items is measured once.
    """
    together: dict[str, Left] = {}
    cell_lines: list[str] = []
    facts: dict[str, list[str]] = {}
    for item, found in wanted.items():
        cell_lines.append(f"{item.name}: {item.title}")
        for config, cells in found:
            left, said = _cells_left(config, cells, request)
            together[config.name] = together.get(config.name, {}) | left
            cell_lines += said
            facts.setdefault(config.name, []).extend(_facts(config, cells, request))
    everything = {(name, *cell): value for name, left in together.items() for cell, value in left.items()}
    lines = [f"{name}: {_amount(left)}" for name, left in together.items()]
    lines.append(f"together: {_amount(everything)}, each cell once")
    for name, said in facts.items():
        lines += [f"{name}: {line}" for line in dict.fromkeys(said)]
    return lines + (cell_lines if with_cells else ["(--cells lists every cell)"])


def _amount(left: Mapping[Any, tuple[int, float | None]]) -> str:
    """`N generations, about 3.2 h if every answer uses its tokens`."""
    known = [cost for _, cost in left.values() if cost is not None]
    said = f"{sum(n for n, _ in left.values())} generations"
    if not known:
        return f"{said}, time unknown"
    some = ", cells of unknown time left out" if any(n and cost is None for n, cost in left.values()) else ""
    return f"{said}, about {duration(sum(known))} if every answer uses its tokens{some}"


def _cells_left(config: ModelConfig, cells: Sequence[PaperCell], request: ReproduceRequest) -> tuple[Left, list[str]]:
    """What is left to make of each cell; and a line a cell, with what the paper printed and how long the rest takes."""
    n_prompts, budget = request.limit or config.limit, request.max_new_tokens or config.max_new_tokens
    rates, _ = _rates(config, cells, request)
    done = _n_recorded(request.results, config.name, request.source, budget)
    without = _without_drafter(config, cells, request)
    lines = [f"{config.name} ({config.paper or 'a stand-in: its cells are not comparable with the paper'}):"]
    all_left: Left = {}

    def listed(method: str | None, task: str, temperature: float, said: str) -> None:
        line = f"cell: {config.name} x {TASKS.get(task, task)} x {said} at T = {temperature:g}"
        if method is None or method in without or task == MEAN:
            why = "no such method here" if method is None else f"the model has no {without[method]}" if method in without else ""
            lines.append(f"{line}: {why or 'the mean of the six'}")
            return
        n = n_prompts * tasks.get(TASKS[task]).n_turns
        left = max(n - done.get((method, TASKS[task], temperature), 0), 0)
        cost = left * budget * rates[method] if method in rates else None
        all_left[method, TASKS[task], temperature] = left, cost
        time_ = "time unknown until the warm-up has run" if cost is None else f"about {duration(cost)}"
        lines.append(f"{line}: {left} of {n} generations to make, {time_}")

    for temperature, task in dict.fromkeys((c.temperature, c.task) for c in cells if c.method_here and c.task != MEAN):
        listed("vanilla", task, temperature, "vanilla (the baseline)")
    for c in cells:
        named = f"{c.method_here} ({c.method})" if c.method_here else c.method
        listed(c.method_here, c.task, c.temperature, f"{named}{'' if len(c.speedup) > 1 else _paper_says(c)}")
    return all_left, lines


def _facts(config: ModelConfig, cells: Sequence[PaperCell], request: ReproduceRequest) -> list[str]:
    """Budget, where the times come from, memory, and what is missing."""
    rates, by = _rates(config, cells, request)
    budget = request.max_new_tokens or config.max_new_tokens
    lines = [f"at most {budget} tokens a generation{f', rates by {by}' if rates else ''}"]
    no_prompts = _missing_prompts(dict.fromkeys(TASKS[c.task] for c in cells if c.task != MEAN), request)
    names = {c.method_here for c in cells if c.method_here} - _without_drafter(config, cells, request).keys()
    for line in preflight_lines(config, names, head=request.head, dtype=request.dtype):
        if not (no_prompts and line == "missing: nothing"):
            lines.append(line)
    return lines + ([f"missing: {no_prompts}"] if no_prompts else [])


def _without_drafter(config: ModelConfig, cells: Sequence[PaperCell], request: ReproduceRequest) -> dict[str, str]:
    return {name: what for c in cells if (name := c.method_here) and (what := no_drafter(config, name, request.head))}


def _rates(config: ModelConfig, cells: Sequence[PaperCell], request: ReproduceRequest) -> tuple[dict[str, float], str]:
    """Seconds a token by method, and what says so."""
    rates = known_rates(request.results, config.name, "paper")
    if not rates and config.paper and config.architecture:
        return _published_rates(config, cells)
    return rates, f"the records in {request.results}"


def _missing_prompts(names: Iterable[str], request: ReproduceRequest) -> str:
    """Which tasks' prompts are not there and why the first of them is not; nothing where all are."""
    why: dict[str, str] = {}
    for name in names:
        try:
            tasks.resolve(name, request.source, request.prompts_dir)
        except UserError as e:
            why[name] = str(e)
    return f"prompts of {', '.join(why)}: {next(iter(why.values()))}" if why else ""


def _paper_says(cell: PaperCell) -> str:
    """` [paper: 3.62x, tau 4.98]`, marked where it is not confirmed."""
    said = [
        form.format(n.text) + ("" if n.confirmed else " (unconfirmed)")
        for form, found in (("{}x", cell.speedup), ("tau {}", cell.tau))
        for n in found
    ]
    return f" [paper: {', '.join(said)}]" if said else ""


def _published_rates(config: ModelConfig, cells: Sequence[PaperCell]) -> tuple[dict[str, float], str]:
    """Seconds a token by method, and what they are from: the authors' own rate for one target, scaled by parameters (plain
    decoding reads every weight once a token), and the paper's speedups."""
    rate = plain_rate()
    known = model_configs.paper_model(rate.model).architecture
    assert known is not None and config.architecture is not None
    plain = config.architecture.n_parameters / (known.n_parameters * rate.value)
    rates = {"vanilla": plain}
    for c in cells:  # the slowest of a method's tasks: an estimate errs on the long side
        if c.method_here and c.speedup:
            rates[c.method_here] = max(rates.get(c.method_here, 0.0), plain / c.speedup[0].value)
    return rates, (f"the paper's speedups and the {rate.text} tokens/s that its authors state for plain {rate.model} "
                   f"({rate.by}, {rate.table}), scaled by parameters")  # fmt: skip


def _n_recorded(folder: Path, model: str, source: str, max_new_tokens: int) -> dict[tuple[str, str, float], int]:
    """Generations that a ledger holds of a model, prompt source (`auto`: any) and budget, by method, task and temperature."""
    counts: dict[tuple[str, str, float], set[tuple[Any, ...]]] = {}
    try:
        known = read(folder, quiet=True, reduced=True)
    except UserError:
        return {}
    for r in known:
        is_same = (r["model"], r["preset"], r["max_new_tokens"]) == (model, "paper", max_new_tokens)
        if is_same and source in ("auto", r["source"]) and r["status"] == "ok" and not r["is_warmup"]:
            counts.setdefault((r["method"], r["task"], r["temperature"]), set()).add((r["sample_id"], r["turn"], r["source"]))
    return {key: len(ids) for key, ids in counts.items()}
