"""Measures the costs of a model: with its weights, or with random ones of its sizes."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

import methods
from harness.common.errors import UserError, say
from harness.common.machine import commit_here, cpu_name, keep_freed_memory, usable_cores
from harness.common.plain_names import place
from harness.costs.measure import Plan, inside, outside
from harness.costs.random_weights import LEAST_LAYERS, Stand, free_bytes, layers_that_fit, random_target
from harness.costs.table import CostTable, Machine, as_json
from harness.load.architecture import Architecture
from harness.load.config import ModelConfig
from harness.load.dtype import device, resolve_dtype
from harness.load.model import load
from harness.load.preflight import architecture

CONTEXTS = (128, 512, 1024)
ROOM = 512  # tokens that a context leaves for trees
OUTSIDE_AT = 128  # the context at which whole decodes are made


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured. `layers`: of random weights; None: as many as fit. `contexts`: none for the usual ones."""

    random_weights: bool = False
    layers: int | None = None
    contexts: tuple[int, ...] = ()
    dtype: str = "auto"
    threads: int | None = None
    frequent: int | None = None
    rounds: int = 9
    command: str = "harness costs"


def measured(config: ModelConfig, wanted: Wanted, tell: Callable[[str], None] = say) -> CostTable:
    """The costs of a model on this machine.

    Raises:
        UserError: its sizes or weights cannot be had, too little memory, or no context fits.
    """
    keep_freed_memory()
    threads = wanted.threads or usable_cores()
    torch.set_num_threads(threads)
    contexts = sorted({c for c in wanted.contexts or CONTEXTS if c + ROOM <= config.context_length})
    if not contexts:
        asked = ", ".join(map(str, wanted.contexts or CONTEXTS))
        raise UserError(f"--context {asked}: none leaves {ROOM} of the model's {config.context_length} tokens for trees")
    dtype = resolve_dtype(wanted.dtype)
    sizes = architecture(config)
    if sizes is None:
        raise UserError(f"{config.name}: its sizes are not known; give its YAML an `architecture:` block, or fetch its weights")
    stand = _random(config, sizes, dtype, wanted, tell) if wanted.random_weights else _loaded(config, dtype, tell)
    if wanted.frequent is not None and (stand.drafter is None or wanted.frequent > sizes.vocab_size):
        raise UserError(f"--frequent is {wanted.frequent}; {config.name} has "
                        f"{'no draft head' if stand.drafter is None else f'{sizes.vocab_size} tokens'}")  # fmt: skip
    plan = Plan(contexts, stand.layers, stand.of, wanted.frequent, wanted.rounds)
    if stand.layers < stand.of:
        tell(f"{stand.layers} of {stand.of} layers are measured, whole and half of them: the others' cost follows from that")
    found = []
    with stand.target.decoding():
        for context in contexts:
            tell(f"measuring {config.name} at a context of {context} tokens ...")
            found.append(inside(stand.target, stand.drafter, context, plan))
    tell("measuring what is outside both models ...")
    m = methods.get("eagle2" if wanted.frequent is None else "eagle2-fr")
    options = m.resolve("paper", {} if wanted.frequent is None else {"frequent": str(wanted.frequent)}, config.presets)
    return CostTable(
        model=config.name, architecture=sizes, random_weights=wanted.random_weights, layers_measured=stand.layers,
        frequent=wanted.frequent, machine=_machine(stand.target, dtype, threads), contexts=found,
        outside=outside(stand.target, stand.drafter, config.name, min(contexts[0], OUTSIDE_AT), m, options),
        rounds=wanted.rounds, command=wanted.command, created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit_here(),
    )  # fmt: skip


def _random(config: ModelConfig, sizes: Architecture, dtype: str, wanted: Wanted, tell: Callable[[str], None]) -> Stand:
    where, n = device(), sizes.num_hidden_layers
    longest = max(c for c in (wanted.contexts or CONTEXTS) if c + ROOM <= config.context_length) + ROOM
    fit = layers_that_fit(sizes, dtype, longest, free_bytes(where), copies=1 if where.type == "cuda" else 2)
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
        return random_target(sizes, dtype, config.context_length, where, layers)
    except torch.OutOfMemoryError:
        raise UserError(f"{layers} layers of {config.name} do not fit into the memory that is free; try fewer --layers") from None


def _loaded(config: ModelConfig, dtype: str, tell: Callable[[str], None]) -> Stand:
    tell(f"loading {config.title} ...")
    kinds = {methods.EAGLE} if config.head_folder is not None else set()
    loaded = load(config, dtype, drafters=kinds)
    n = len(loaded.target.body.layers)
    return Stand(loaded.target, loaded.drafter, n, n)


def _machine(target: Any, dtype: str, threads: int) -> Machine:
    import transformers

    on_gpu = target.device.type == "cuda"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
                "cuda": torch.version.cuda}  # fmt: skip
    gpu = torch.cuda.get_device_name(target.device) if on_gpu else None
    replays = getattr(target, "replayer", None)
    mode: Literal["eager", "graphs"] = "graphs" if replays is not None and replays.records else "eager"
    return Machine(
        cpu=cpu_name(), gpu=gpu, threads=threads, dtype=dtype, engine=target.engine, mode=mode, versions=versions
    )  # fmt: skip


def file_of(table: CostTable, folder: Path) -> Path:
    """Where a table of costs is kept: a folder a machine, a file a model."""
    cut = (f".frequent-{table.frequent}" if table.frequent else "") + (
        f".layers-{table.layers_measured}" if table.is_scaled else ""
    )
    return place(place(folder, "machine", slug(table.machine.label)), "model", table.model, suffix=f"{cut}.json")


def slug(words: str) -> str:
    """A name of a folder: `amd-epyc-2-threads-bfloat16-native-avx512_bf16`."""
    kept = "".join(c if c.isalnum() or c == "_" else " " for c in words.lower())
    return "-".join(kept.split())


def text_of(table: CostTable) -> str:
    """What the file holds."""
    return as_json(table)
