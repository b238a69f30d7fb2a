"""The preset `tuned`: options that `harness tune` found for one model, method, temperature, machine and engine.

Entries lie in the cache folder (found here) and in `models/<name>.tuned.json` (shipped, for the machines named in it). Those
that a ledger was measured with are kept beside its records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import methods
from harness.common.cores import usable_cores
from harness.common.errors import UserError, say
from harness.common.files import cache_dir, sha256_file
from harness.common.hints import hinted
from harness.common.machine import cpu_name
from harness.common.plain_names import place
from harness.ledger import tuned_presets
from harness.ledger.tuned_presets import Entry, Key, stored
from harness.load.config import ModelConfig
from harness.metrics.cells import CellSummary
from harness.run.request import RunRequest


def found_here() -> Path:
    return cache_dir() / tuned_presets.FILE


def entries(shipped: Path) -> list[Entry]:
    """Those found on this machine first."""
    return [*stored(found_here()), *stored(shipped)]


def lookup(key: Key, shipped: Path, model: str | None = None) -> Entry:
    """model: as `--model` takes it, where that is not the key's.

    Raises:
        UserError: nothing was tuned for this key; says what to run.
    """
    known = entries(shipped)
    for entry in known:
        if entry.key == key:
            return entry
    same = [e.key for e in known if (e.key.model, e.key.method) == (key.model, key.method)]
    near = ", ".join(
        sorted({f"T = {k.temperature:g} in {k.dtype}, {k.threads} threads, engine {k.engine}, {k.machine}" for k in same})
    )
    others = f" (there is one for {near})" if near else ""
    raise UserError(
        f"no tuned preset of {key.method} for {key.model} at T = {key.temperature:g} in {key.dtype} with {key.threads} threads "
        f"on this machine and with this head{others}: {command('tune', key, model)} makes one"
    )


def command(name: str, key: Key, model: str | None, *more: str) -> str:
    """`harness NAME` with the options that an entry's key asks for. model: as `--model` takes it."""
    return hinted(
        name, "--model", model or key.model, "--method", key.method, *more, "--temperature", f"{key.temperature:g}",
        "--dtype", key.dtype, "--threads", key.threads,
    )  # fmt: skip


def find_tuned(
    config: ModelConfig, method: str, head: Path | None, *, temperature: float, dtype: str, threads: int | None
) -> Entry:  # fmt: skip
    """What was tuned for a method on this machine. head: the drafter's folder, if not the model's own of that kind.

    Raises:
        UserError: nothing was tuned for it, or when it had other options than today; says what to run.
    """
    from harness.load.engine import expected_engine

    key = tuned_key(config, method, head, temperature=temperature, dtype=dtype, threads=threads)
    if any(
        replace(e.key, engine="") == key for e in entries(shipped_with(config))
    ):  # else no engine has it: why look at the model
        key = replace(key, engine=expected_engine(config, key.dtype))
    entry = lookup(key, shipped_with(config), config.given)
    if not is_current(entry):
        differ = ", ".join(sorted(entry.options.keys() ^ methods.get(method).options.keys()))
        raise UserError(f"the tuned preset of {method} for {config.name} is from when its options were others ({differ}): "
                        f"{command('tune', key, config.given)} makes a new one")  # fmt: skip
    return entry


def is_current(entry: Entry) -> bool:
    """Whether an entry names the options that its method has: what it leaves out would take a value it was not tuned with."""
    return entry.options.keys() == methods.get(entry.key.method).options.keys()


def tuned_key(
    config: ModelConfig, method: str, head: Path | None, *, temperature: float, dtype: str, threads: int | None
) -> Key:  # fmt: skip
    """What an entry must hold for to serve this run, but for the engine, which is left empty.

    Sets the number of threads that torch uses, to find the dtype `auto`.
    """
    import torch

    from harness.load.dtype import resolve_dtype
    from harness.load.weights import drafter_folders, weights_pin

    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    folder = drafter_folders(config, head).get(methods.get(method).drafter or "")
    if folder and not folder.is_dir():  # before they are fetched: a key without weights would fit none later
        fetch = hinted("fetch", "--model", config.given)
        raise UserError(f"there is no {folder}, which method {method} drafts with: {fetch}")
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".pt")) if folder else []
    if folder:
        files.append(folder / "config.json")
    return Key(
        model=config.name,
        target=weights_pin(config),
        head=" ".join(sha256_file(file)[:16] for file in files),
        method=method,
        temperature=temperature,
        dtype=resolve_dtype(config.dtype if dtype == "auto" else dtype),
        threads=threads,
        machine=torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        engine="",
    )


def shipped_with(config: ModelConfig) -> Path:
    """The file of entries that comes with a model."""
    return place(config.folder, "model", config.name, suffix=".tuned.json")


def keep_beside(config: ModelConfig, request: RunRequest, arms: Iterable[methods.Arm]) -> None:
    """Put the entries of those arms that run at the preset `tuned` beside the records: what was expected of them stays known."""
    from harness.run.arms import TUNED

    for arm in arms:
        if arm.preset.startswith(TUNED) and arm.method.tunable and TUNED not in arm.method.presets:
            tuned_presets.save(_entry(config, request, arm.name), request.out / tuned_presets.FILE)


def _entry(config: ModelConfig, request: RunRequest, method: str) -> Entry:
    return find_tuned(
        config, method, request.head or config.head_folder, temperature=request.temperature, dtype=request.dtype,
        threads=request.threads,
    )  # fmt: skip


def tell_predictions(config: ModelConfig, request: RunRequest, summaries: Sequence[CellSummary]) -> None:
    """One line a tuned method: what `harness tune` measured on held-out training prompts, and what was measured now."""
    mine = [s for s in summaries if s.preset == "tuned" and s.temperature == request.temperature and s.tau is not None]
    for method in dict.fromkeys(s.method for s in mine):
        raced = _entry(config, request, method).raced
        cells = [s for s in mine if s.method == method]
        tau = sum(s.tau for s in cells if s.tau is not None) / len(cells)
        ratios = [s.decode_speedup for s in cells if s.decode_speedup is not None]
        speed = f", decode speedup {sum(ratios) / len(ratios):.2f}x" if ratios else ""
        say(
            f"{method}, T = {request.temperature:g}: raced on held-out training prompts: tau {raced['tau']:.2f}, "
            f"decode speedup {raced['speedup']:.2f}x; "
            f"measured here (mean over {len(cells)} tasks): tau {tau:.2f}{speed}"
        )
