"""Which cells of the paper's tables and figures a model has, and the runs that measure them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import methods
from harness.common.errors import UserError
from harness.common.machine import usable_cores
from harness.load import config as model_configs
from harness.run.session import MATRIX_DEFAULTS, measure, preflight_lines, run_spec, session


def records_of(folder: Path) -> list[Any]:
    """What a folder holds, if anything."""
    from harness.ledger import ledger as records

    return list(records.read(folder)) if records.has_records(folder) else []


def _check_environment(config: Any, o: dict[str, Any]) -> None:
    """
    Raises:
        UserError: what is asked for could not be judged together with what the folder holds; said before hours are spent.
    """
    from harness.paper.verdict import of_the_paper

    there: list[Any] = list(of_the_paper(records_of(o["results"]), config.name, o["results"]))
    dtype = config.dtype if o["dtype"] in (None, "auto") else o["dtype"]
    asked = {
        "dtype": there[0]["dtype"] if there and dtype == "auto" else dtype,  # what auto is shows on loading
        "threads": o["threads"] or usable_cores(),
        "max_new_tokens": o["max_new_tokens"] or config.max_new_tokens,
        "system": config.system,
    }
    _same_environment(config, there, asked, o["results"])


def _check_loaded(config: Any, run: Any, o: dict[str, Any]) -> None:
    """The same of what shows on loading only: machine and weights, seed and top-p. Said before the first prompt."""
    from harness.ledger.ledger import machine_label
    from harness.paper.verdict import of_the_paper

    there: list[Any] = list(of_the_paper(records_of(o["results"]), config.name, o["results"]))
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


def paper_cells(item: Any, models: Sequence[str], is_named: bool) -> list[tuple[Any, list[Any]]]:
    """The item's models, or those asked for, each with its cells of the item; is_named: the item was asked for.

    Raises:
        UserError: a model of the paper that is not in this item, or one that is nowhere.
    """
    from harness.paper import published

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


def no_drafter(config: Any, method: str, head: Path | None) -> str | None:
    """What a method drafts with and the model has none of. Without an EAGLE head nothing of the paper can be measured: that is
    missing, not left out."""
    from harness.load.weights import drafter_folders

    kind = methods.get(method).drafter
    if kind is None or kind == methods.EAGLE or kind in drafter_folders(config, head or config.head_folder):
        return None
    return methods.DRAFTERS[kind]


def cell_options(
    config: Any, cells: Sequence[Any], o: dict[str, Any], drawn: Collection[tuple[float, str]] = ()
) -> list[dict[str, Any]]:
    """Options of `harness run` that measure these cells and no others; methods without a drafter are left out.

    At one temperature a task stands in one set of them only: all its methods are timed with the same baseline. drawn:
    (temperature, task) whose trees are kept, for the figures that are drawn from them.
    """
    from harness.common.names import SIX_TASKS
    from harness.paper.published import MEAN

    given = {k: v for k, v in o.items() if v is not None and k in MATRIX_DEFAULTS}
    rows = []
    for temperature in dict.fromkeys(c.temperature for c in cells):
        here = [c for c in cells if c.temperature == temperature and c.method_here]
        by_task: dict[str, set[str]] = {}
        for c in here:
            if no_drafter(config, c.method_here, o["head"]) is None:
                for task in SIX_TASKS if c.task == MEAN else (c.task_here,):
                    by_task.setdefault(task, set()).add(c.method_here)
        sets: dict[tuple[tuple[str, ...], bool], list[str]] = {}
        for task, names in by_task.items():
            sets.setdefault((("vanilla", *sorted(names)), (temperature, task) in drawn), []).append(task)
        rows += [{**MATRIX_DEFAULTS, **given, "names": names, "task_names": tuple(tasks_here), "temperature": temperature,
                  "out": o["results"], "trees": trees} for (names, trees), tasks_here in sets.items()]  # fmt: skip
    return rows


def run_rows(config: Any, rows: Sequence[dict[str, Any]], o: dict[str, Any]) -> int:
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
