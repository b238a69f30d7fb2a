"""Measures the costs of a model: with its weights, or with random ones of its sizes."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import methods
from harness.common.cores import usable_cores
from harness.common.errors import UserError, say
from harness.common.machine import commit_here, cpu_name, keep_freed_memory
from harness.common.plain_names import place
from harness.costs.measure import OTHERS, ROWS, Plan, inside, n_levels, outside
from harness.costs.random_weights import LEAST_LAYERS, Stand, free_bytes, layers_that_fit, published, random_target
from harness.costs.table import CostTable, Machine, as_json, read_all
from harness.load.architecture import Architecture
from harness.load.config import ModelConfig
from harness.load.dtype import device, resolve_dtype
from harness.load.model import Loaded, load
from harness.load.preflight import architecture
from harness.load.weights import drafter_folders
from methods.engine.engines import begin

CONTEXTS = (128, 512, 1024)
ROOM = 512  # tokens that a context leaves for trees
OUTSIDE_AT = 128  # the context at which whole decodes are made


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured. `layers`: of random weights; None: as many as fit. `contexts`: none for the usual ones.
    `temperature`: of whole decodes. `rows`: of the target, besides the usual ones. `drafters`: kinds of those measured beside the
    EAGLE head; None: all that are there."""

    random_weights: bool = False
    layers: int | None = None
    contexts: tuple[int, ...] = ()
    dtype: str = "auto"
    threads: int | None = None
    frequent: int | None = None
    rounds: int = 9
    command: str = "harness costs"
    temperature: float = 0.0
    rows: tuple[int, ...] = ()
    drafters: tuple[str, ...] | None = None

    def asks_for(self, kind: str) -> bool:
        """Whether a kind of drafter beside the EAGLE head is to be measured."""
        return self.drafters is None or kind in self.drafters

    def fitting(self, config: ModelConfig) -> list[int]:
        """The contexts that leave room for trees.

        Raises:
            UserError: none does.
        """
        room = max(ROOM, max(self.rows, default=0) + ROOM // 2)
        contexts = sorted({c for c in self.contexts or CONTEXTS if c + room <= config.context_length})
        if not contexts:
            asked = ", ".join(map(str, self.contexts or CONTEXTS))
            raise UserError(f"--context {asked}: none leaves {room} of the model's {config.context_length} tokens for trees")
        return contexts


def measured(config: ModelConfig, wanted: Wanted, tell: Callable[[str], None] = say) -> CostTable:
    """The costs of a model on this machine.

    Raises:
        UserError: its sizes or weights cannot be had, too little memory, or no context fits.
    """
    keep_freed_memory()
    threads = wanted.threads or usable_cores()
    torch.set_num_threads(threads)
    wanted.fitting(config)
    dtype = resolve_dtype(wanted.dtype)
    sizes = architecture(config)
    if sizes is None:
        raise UserError(f"{config.name}: its sizes are not known; give its YAML an `architecture:` block, or fetch its weights")
    stand = _random(config, sizes, dtype, wanted, tell) if wanted.random_weights else _loaded(config, dtype, wanted, tell)
    return table_of(config, stand, sizes, dtype, threads, wanted, tell)


def measured_of(
    loaded: Loaded, threads: int, wanted: Wanted, kinds: Collection[str], tell: Callable[[str], None] = say
) -> CostTable:
    """The costs of a model that is loaded, and of its drafters of those kinds.

    Raises:
        UserError: no context fits.
    """
    stand = stand_of(loaded)
    stand = replace(stand, drafters={kind: d for kind, d in stand.drafters.items() if kind in kinds})
    sizes = Architecture.of_config(loaded.target.model.config)
    return table_of(loaded.config, stand, sizes, loaded.dtype, threads, wanted, tell)


def table_of(
    config: ModelConfig, stand: Stand, sizes: Architecture | None, dtype: str, threads: int, wanted: Wanted,
    tell: Callable[[str], None],
) -> CostTable:  # fmt: skip
    """The one measurement: what is inside the target and its drafters at each context, and what is outside both.

    Raises:
        UserError: no context fits, or the frequent tokens are more than there are.
    """
    contexts = wanted.fitting(config)
    head = stand.drafters.get(methods.EAGLE)
    vocab = stand.target.vocab_size
    if wanted.frequent is not None and (head is None or wanted.frequent > vocab):
        raise UserError(f"--frequent is {wanted.frequent}; {config.name} has "
                        f"{'no draft head' if head is None else f'{vocab} tokens'}")  # fmt: skip
    plan = Plan(contexts, stand.layers, stand.of, wanted.frequent, wanted.rounds, sorted({*ROWS, *wanted.rows}))
    mode = stand.target.mode
    if stand.layers < stand.of:
        tell(f"{stand.layers} of {stand.of} layers are measured, whole and half of them: the others' cost follows from that")
    found = []
    with stand.target.decoding():
        for context in contexts:
            tell(f"measuring {config.name} at a context of {context} tokens ...")
            found.append(inside(stand.target, stand.drafters, context, plan))
    tell("measuring what is outside both models ...")
    head = next((stand.drafters[kind] for kind in methods.HEADS if kind in stand.drafters), None)  # a tree of either costs alike
    m = methods.get("eagle2" if wanted.frequent is None else "eagle2-fr")
    options = m.resolve("paper", {} if wanted.frequent is None else {"frequent": str(wanted.frequent)}, config.presets)
    whole = outside(stand.target, head, config.name, min(contexts[0], OUTSIDE_AT), m, options, wanted.temperature,
                    wanted.rounds)  # fmt: skip
    begin(stand.target, stand.drafters.values())  # a race that comes next need not record what was measured here
    if stand.target.mode != mode:  # graphs were refused on the way: from now on all is eager
        tell("measuring again: some of it was replayed as graphs, and some launched call by call")
        return table_of(config, stand, sizes, dtype, threads, wanted, tell)
    return CostTable(
        model=config.name, architecture=sizes, random_weights=wanted.random_weights, layers_measured=stand.layers,
        frequent=wanted.frequent, temperature=wanted.temperature, machine=machine_of(stand.target, dtype, threads),
        contexts=found, outside=whole, rounds=wanted.rounds, command=wanted.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"), commit=commit_here(),
    )  # fmt: skip


def _random(config: ModelConfig, sizes: Architecture, dtype: str, wanted: Wanted, tell: Callable[[str], None]) -> Stand:
    where, n = device(), sizes.num_hidden_layers
    longest = wanted.fitting(config)[-1] + ROOM
    kinds = tuple(filter(wanted.asks_for, published(sorted(config.drafters), sizes)))
    fit = layers_that_fit(sizes, dtype, longest, free_bytes(where), on_cpu=where.type == "cpu", kinds=kinds)
    layers = min(wanted.layers or n, fit)
    if wanted.layers is not None and wanted.layers > n:
        raise UserError(f"--layers is {wanted.layers}; {config.name} has {n}")
    if layers < min(LEAST_LAYERS, n):
        raise UserError(
            f"--layers is {wanted.layers}; it takes at least {LEAST_LAYERS}, whose difference tells what the others cost"
        )
    if layers < (wanted.layers or n):
        tell(f"{layers} layers fit into the memory that is free")
    tell(f"making random weights for {layers} of {n} layers of {config.name} in {dtype} ...")
    try:
        return random_target(sizes, dtype, config.context_length, where, layers, kinds)
    except torch.OutOfMemoryError:
        raise UserError(f"{layers} layers of {config.name} do not fit into the memory that is free; try fewer --layers") from None


def _loaded(config: ModelConfig, dtype: str, wanted: Wanted, tell: Callable[[str], None]) -> Stand:
    tell(f"loading {config.title} ...")
    kinds = {methods.EAGLE} if config.head_folder is not None else set()
    there = {kind for kind, folder in drafter_folders(config).items() if kind in OTHERS and folder.is_dir()}
    kinds |= set(filter(wanted.asks_for, there))
    return stand_of(load(config, dtype, drafters=kinds))


def stand_of(loaded: Loaded) -> Stand:
    """A loaded model, all of its layers and those of its drafters whose costs can be measured."""
    kinds = [kind for kind in (methods.EAGLE, *OTHERS) if kind in loaded.drafters and n_levels(loaded.drafter_of(kind))]
    n = len(loaded.target.body.layers)
    return Stand(loaded.target, {kind: loaded.drafter_of(kind) for kind in kinds}, n, n)


def machine_of(target: Any, dtype: str, threads: int) -> Machine:
    """What a loaded target runs on."""
    import transformers

    on_gpu = target.device.type == "cuda"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
                "cuda": torch.version.cuda}  # fmt: skip
    gpu = torch.cuda.get_device_name(target.device) if on_gpu else None
    return Machine(
        cpu=cpu_name(), gpu=gpu, threads=threads, dtype=dtype, engine=target.engine, mode=target.mode, versions=versions
    )  # fmt: skip


def file_of(table: CostTable, folder: Path) -> Path:
    """Where a table of costs is kept: a folder a machine, a file a model."""
    cut = (
        (f".frequent-{table.frequent}" if table.frequent else "")
        + (f".layers-{table.layers_measured}" if table.is_scaled else "")
        + (f".temperature-{table.temperature:g}" if table.temperature else "")
    )
    return place(place(folder, "machine", slug(table.machine.label)), "model", table.model, suffix=f"{cut}.json")


def chosen(
    tables: Iterable[CostTable], model: str, machine: Machine, frequent: int | None, temperature: float
) -> list[CostTable]:  # fmt: skip
    """Those of this model on this machine, engine and dtype, with as many threads."""

    def whose(m: Machine) -> tuple[object, ...]:
        return m.gpu or m.cpu, m.threads, m.dtype, m.engine, m.mode

    return [t for t in tables if (t.model, t.frequent, t.temperature) == (model, frequent, temperature)
            and whose(t.machine) == whose(machine)]  # fmt: skip


def given_table(where: Path, model: str, machine: Machine, frequent: int | None, temperature: float) -> CostTable:
    """The one table in a file or folder that `--costs` names which is of this model and machine.

    Raises:
        UserError: there is none, or several.
    """
    found = chosen(read_all(where), model, machine, frequent, temperature)
    if len(found) == 1:
        return found[0]
    over = f", drafts over {frequent:,} frequent tokens" if frequent else ""
    what = f"costs of {model} on {machine.label}{over}, T = {temperature:g}"
    if found:
        raise UserError(f"--costs {where} has {len(found)} tables of {what}: name one file")
    raise UserError(f"--costs {where}: no {what} there; `harness costs` with its --model, --dtype, --threads, --temperature and "
                    "--frequent measures them")  # fmt: skip


def slug(words: str) -> str:
    """A name of a folder: `amd-epyc-2-threads-bfloat16-native-avx512_bf16`."""
    kept = "".join(c if c.isalnum() or c == "_" else " " for c in words.lower())
    return "-".join(kept.split())


def text_of(table: CostTable) -> str:
    """What the file holds."""
    return as_json(table)
