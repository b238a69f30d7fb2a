"""Which cells of the paper's tables and figures a model has, and the runs that measure them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import methods
from harness.cluster.request import ClusterRequest
from harness.common.cores import usable_cores
from harness.common.errors import UserError
from harness.common.names import SIX_TASKS
from harness.ledger.ledger import Records, has_records, machine_label, read
from harness.ledger.record import Record
from harness.load import config as model_configs
from harness.load.config import ModelConfig
from harness.metrics.pairing import by_machine
from harness.paper.published import MEAN, Item, PaperCell, cells, stand_in
from harness.paper.verdict import of_the_paper
from harness.run.request import RunRequest
from harness.run.session import carry_out, measure, preflight_lines, run_spec, session


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproduceRequest:
    """What one `harness reproduce` asks for. None stands for the model's own value; no items or models, for all of them.

    Raises:
        UserError: a value that cannot be.
    """

    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    limit: int | None = None
    max_new_tokens: int | None = None
    source: str = "paper"
    prompts_dir: Path | None = None
    dtype: str = "auto"
    threads: int | None = None
    head: Path | None = None
    results: Path = Path("results/reproduce")

    def __post_init__(self) -> None:
        self.run_request()  # which checks its values

    def run_request(self) -> RunRequest:
        """What all of its runs have in common."""
        return RunRequest(
            limit=self.limit, max_new_tokens=self.max_new_tokens, source=self.source, prompts_dir=self.prompts_dir,
            dtype=self.dtype, threads=self.threads, head=self.head, out=self.results, on_overflow="skip",
        )  # fmt: skip


def records_of(folder: Path) -> Records:
    """What a folder holds, if anything."""
    return read(folder, quiet=True, reduced=True) if has_records(folder) else Records()


def _there(config: ModelConfig, folder: Path) -> list[Record]:
    """A model's records in a folder that belong to cells of the paper.

    Raises:
        UserError: those of one machine are of several environments.
    """
    found = by_machine(r for r in records_of(folder) if r["model"] == config.name)
    return [r for own in found.values() for r in of_the_paper(own, config.name, folder)]


def _check_environment(config: ModelConfig, request: ReproduceRequest) -> None:
    """Before hours are spent.

    Raises:
        UserError: what is asked for could not be judged together with what the folder holds.
    """
    there = _there(config, request.results)
    dtype = config.dtype if request.dtype == "auto" else request.dtype
    asked = {
        "dtype": there[0]["dtype"] if there and dtype == "auto" else dtype,  # what auto is shows on loading
        "threads": request.threads or usable_cores(),
        "max_new_tokens": request.max_new_tokens or config.max_new_tokens,
        "system": config.system,
    }
    _same_environment(config, there, asked, request.results)


def _check_loaded(config: ModelConfig, results: Path, shown: Mapping[str | None, Mapping[str, Any]], **more: Any) -> None:
    """The same of what shows on loading only: weights, and `more`. Said before the first prompt. shown: as `Runner` has it."""
    there = _there(config, results)
    for kind, own in shown.items():
        drafted = there if kind is None else [r for r in there if methods.get(r["method"]).drafter == kind]
        _same_environment(config, drafted, {**({} if kind else more), **own}, results)


def _same_environment(config: ModelConfig, there: Sequence[Record], asked: Mapping[str, Any], results: Path) -> None:
    for key, value in asked.items():
        other = next((r.get(key) for r in there if r.get(key, value) != value), value)
        if other != value:
            raise UserError(f"{results} holds records of {config.name} with {key} {other}, and {value} is asked "
                            "for: they cannot be judged together; ask for the same, or choose another --results")  # fmt: skip


def paper_cells(item: Item, models: Sequence[str], is_named: bool) -> list[tuple[ModelConfig, list[PaperCell]]]:
    """The item's models, or those asked for, each with its cells of the item; is_named: the item was asked for.

    Raises:
        UserError: a model of the paper that is not in this item, or one that is nowhere.
    """
    all_cells = cells(item)
    ours = model_configs.paper_models()
    there = list(dict.fromkeys(c.model for c in all_cells))
    found = []
    for name in models or [ours[model] for model in there]:
        name = ours.get(name, name)
        known = name in model_configs.known_models() or name.endswith(model_configs.SUFFIXES)
        if not known:
            raise UserError(f"{model_configs.not_in_paper(name)}; any model of `harness list models` can stand in")
        config = model_configs.model_config(name)
        if config.paper is None:
            own = stand_in(all_cells, config.name)
        elif config.paper in there:
            own = [c for c in all_cells if c.model == config.paper]
        elif not is_named:
            continue
        else:
            choices = ", ".join(f"{ours[model]} ({model})" for model in there)
            raise UserError(f"model {config.name} is not in {item.name} of the paper; in it are: {choices}")
        found.append((config, own))
    return found


def no_drafter(config: ModelConfig, method: str, head: Path | None) -> str | None:
    """What a method drafts with and the model has none of. Without an EAGLE head nothing of the paper can be measured: that is
    missing, not left out."""
    from harness.load.weights import drafter_folders

    kind = methods.get(method).drafter
    if kind is None or kind == methods.EAGLE or kind in drafter_folders(config, head or config.head_folder):
        return None
    return methods.DRAFTERS[kind]


def run_requests(
    config: ModelConfig, wanted: Sequence[PaperCell], request: ReproduceRequest, drawn: Collection[tuple[float, str]] = ()
) -> list[RunRequest]:
    """Runs that measure these cells and no others; methods without a drafter are left out.

    At one temperature a task stands in one run only: all its methods are timed with the same baseline. drawn: (temperature, task)
    whose trees are kept, for the figures that are drawn from them.
    """
    found = []
    for temperature in dict.fromkeys(c.temperature for c in wanted):
        by_task: dict[str, set[str]] = {}
        for c in wanted:
            if c.temperature == temperature and c.method_here and no_drafter(config, c.method_here, request.head) is None:
                for task in SIX_TASKS if c.task == MEAN else (c.task_here,):
                    by_task.setdefault(task, set()).add(c.method_here)
        sets: dict[tuple[tuple[str, ...], bool], list[str]] = {}
        for task, names in by_task.items():
            sets.setdefault((("vanilla", *sorted(names)), (temperature, task) in drawn), []).append(task)
        found += [
            replace(request.run_request(), methods=names, tasks=tuple(tasks_here), temperature=temperature, trees=trees)
            for (names, trees), tasks_here in sets.items()
        ]
    return found


def run_all(
    config: ModelConfig, runs: Sequence[RunRequest], request: ReproduceRequest, over: ClusterRequest | None = None
) -> int:  # fmt: skip
    """Measure what is missing of one model; -> the number of generations that failed. over: the cluster whose workers do it.

    Raises:
        UserError: something it needs is missing, for nothing is fetched here that takes hours; or the folder holds records of
            another environment.
    """
    import gc

    import torch

    _check_environment(config, request)
    if over is not None:
        return carry_out(config, runs, over, partial(_check_loaded, config, request.results)).n_failed
    gc.collect()
    torch.cuda.empty_cache()  # what an earlier model held is free, and is to be seen as such; does nothing without a GPU
    names = (name for run in runs for name in run.methods)
    lines = preflight_lines(config, names, head=request.head, dtype=request.dtype)
    missing = [line.removeprefix("missing: ") for line in lines if line.startswith("missing: ")]
    if missing != ["nothing"]:
        raise UserError("missing: " + "; ".join(missing))
    with session(config, runs[0], [run_spec(config, run) for run in runs]) as runners:
        run = runners[0]
        more = {"machine": machine_label(run.env), "seed": run.spec.seed, "top_p": run.spec.top_p}
        _check_loaded(config, request.results, run.shown, **more)
        return measure(runners)
