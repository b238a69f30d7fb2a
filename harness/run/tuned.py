"""The preset `tuned`: options that `harness tune` found for one model, method, temperature and machine.

Entries lie in the cache folder (found here) and in `models/<name>.tuned.json` (shipped, for the machines named in it).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import methods
from harness.common.errors import UserError, say
from harness.common.files import cache_dir, sha256_file, whole_file
from harness.common.hints import hinted
from harness.common.machine import cpu_name, usable_cores
from harness.common.plain_names import place
from harness.ledger.checked import is_count, is_number, is_text, shown
from harness.load.config import ModelConfig
from harness.metrics.cells import CellSummary
from harness.run.request import RunRequest


@dataclass(frozen=True, slots=True)
class Key:
    """What an entry holds for; all of it must agree."""

    model: str
    target: str  # what pins its weights
    head: str  # sha256 of the drafter's weights and of its config.json
    method: str
    temperature: float
    dtype: str
    threads: int
    machine: str


@dataclass(frozen=True, slots=True)
class Entry:
    """`options`: what to run with; `predicted`: tau, step costs and decode speedup on the prompts tuned on."""

    key: Key
    options: Mapping[str, Any]
    predicted: Mapping[str, Any]


def found_here() -> Path:
    return cache_dir() / "tuned.json"


def rows(path: Path) -> list[dict[str, Any]]:
    """The stored entries of a file; none where there is no file.

    Raises:
        UserError: the file cannot be read or is something else.
    """
    try:
        stored: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        if type(stored) is not list:
            raise TypeError(f"it is {shown(stored)}")
        # earlier versions did not say of which weights they are
        stored = [row for row in stored if "target" in row["key"] or "model" not in row["key"]]
        for row in stored:
            key = Key(**row["key"])
            texts = [value for name, value in row["key"].items() if name not in ("temperature", "threads")]
            if not (all(map(is_text, texts)) and is_number(key.temperature) and is_count(key.threads)):
                raise TypeError(f"its key is {shown(row['key'])}")
            if not (type(row["options"]) is dict and all(is_number(row["predicted"][name]) for name in ("tau", "speedup"))):
                raise TypeError(f"options are {shown(row['options'])}, predicted is {shown(row['predicted'])}")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as e:
        raise UserError(f"{path} is no list of tuned presets ({e}); remove it and run `harness tune` again") from None
    return stored


def stored(path: Path) -> list[Entry]:
    return [Entry(Key(**row["key"]), row["options"], row["predicted"]) for row in rows(path)]


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
    near = ", ".join(sorted({f"T = {k.temperature:g} in {k.dtype}, {k.threads} threads, {k.machine}" for k in same}))
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


def check(path: Path | None = None) -> None:
    """Whether `save` could put an entry there.

    Raises:
        UserError: the file is something else, or its folder cannot be written to.
    """
    path = path or found_here()
    rows(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as e:
        raise UserError(f"cannot save in {path}: {e.strerror or e}") from None


def save(new: Entry, path: Path | None = None) -> Path:
    """Put an entry in the place of an older one with the same key."""
    path = path or found_here()
    kept = [row for row in rows(path) if row["key"] != asdict(new.key)]
    kept.append({"key": asdict(new.key), "options": dict(new.options), "predicted": dict(new.predicted)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as tmp:
        tmp.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return path


def find_tuned(
    config: ModelConfig, method: str, head: Path | None, *, temperature: float, dtype: str, threads: int | None
) -> Entry:  # fmt: skip
    """What was tuned for a method on this machine. head: the drafter's folder, if not the model's own of that kind.

    Raises:
        UserError: nothing was tuned for it, or when it had other options than today; says what to run.
    """
    key = tuned_key(config, method, head, temperature=temperature, dtype=dtype, threads=threads)
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
    """What an entry must hold for to serve this run. Sets the number of threads that torch uses, to find the dtype `auto`."""
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
    )


def shipped_with(config: ModelConfig) -> Path:
    """The file of entries that comes with a model."""
    return place(config.folder, "model", config.name, suffix=".tuned.json")


def tell_predictions(config: ModelConfig, request: RunRequest, summaries: Sequence[CellSummary]) -> None:
    """One line a tuned method: what `harness tune` expected on held-out training prompts, and what was measured now."""
    mine = [s for s in summaries if s.preset == "tuned" and s.temperature == request.temperature and s.tau is not None]
    for method in dict.fromkeys(s.method for s in mine):
        predicted = find_tuned(
            config, method, request.head or config.head_folder, temperature=request.temperature, dtype=request.dtype,
            threads=request.threads,
        ).predicted  # fmt: skip
        cells = [s for s in mine if s.method == method]
        tau = sum(s.tau for s in cells if s.tau is not None) / len(cells)
        ratios = [s.decode_speedup for s in cells if s.decode_speedup is not None]
        speed = f", decode speedup {sum(ratios) / len(ratios):.2f}x" if ratios else ""
        say(
            f"{method}, T = {request.temperature:g}: predicted on training prompts: tau {predicted['tau']:.2f}, "
            f"decode speedup {predicted['speedup']:.2f}x; "
            f"measured here (mean over {len(cells)} tasks): tau {tau:.2f}{speed}"
        )
