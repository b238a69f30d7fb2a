"""How weights lie in a folder: file names, shards, digests."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.common.errors import UserError
from harness.common.files import sha256_file
from harness.common.plain_names import place

OTHER_FILES = "transformers_weights"  # a key by which transformers loads other files than its usual ones
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
MOST_HEADER = 10**8  # bytes; safetensors itself reads no longer one
MEDUSA_KEY = re.compile(r"(?:medusa_head\.)?\d+\.\d+(?:\.linear)?\.(?:weight|bias)")
MEDUSA_SAFE, MEDUSA_PICKLED = "medusa_lm_head.safetensors", "medusa_lm_head.pt"  # what the authors' heads are called


def weight_files(folder: Path) -> list[Path]:
    """Where a folder's weights are, or should be: one file, or the shards that an index lists; safetensors before pickles.

    Raises:
        UserError: an index that cannot be read, or a config.json that names other files (`transformers_weights`).
    """
    try:
        other = json.loads((folder / "config.json").read_text(encoding="utf-8-sig")).get(OTHER_FILES)
    except (OSError, ValueError, AttributeError, RecursionError):
        other = None  # whoever reads the config says what is wrong with it
    if other is not None:
        raise UserError(f"{folder / 'config.json'}: {OTHER_FILES} is {str(other)[:80]!r}, which is not read here; name the "
                        "weights' file model.safetensors and leave the key out")  # fmt: skip
    for name in (SAFE, PICKLED):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return [folder / name]
        if index.exists():
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values()))
                return [place(folder, "shard", shard) for shard in shards]
            except UserError as e:
                raise UserError(f"{index}: {e}") from None
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise UserError(f"{index} is truncated or altered") from None
    for name in (MEDUSA_SAFE, MEDUSA_PICKLED):
        if (folder / name).exists():
            return [folder / name]
    return [folder / SAFE]


def _header(file: Path) -> tuple[int, Any]:
    """A safetensors file's header: its length in bytes, and what it says. Of another file, as a pickle, nothing more is read.

    Raises:
        ValueError: it has none of the length that it gives, or one longer than `MOST_HEADER`.
    """
    with file.open("rb") as f:
        n = int.from_bytes(f.read(8), "little")
        if n > min(file.stat().st_size - 8, MOST_HEADER):
            raise ValueError(f"{file} has no header of {n} bytes")
        return n, json.loads(f.read(n))


def tensor_names(folder: Path) -> set[str]:
    """What the tensors in a folder are called, by the index or the header of its safetensors; empty where neither can be read."""
    for index in (folder / f"{SAFE}.index.json", folder / f"{PICKLED}.index.json"):
        if index.is_file() and not (folder / SAFE).exists():
            try:
                return set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"])
            except (OSError, ValueError, KeyError, TypeError):
                return set()
    try:
        return set(_header(folder / SAFE)[1]) - {"__metadata__"}
    except (OSError, ValueError, TypeError, RecursionError):
        return set()


def has_medusas_layout(folder: Path) -> bool:
    """Whether a folder holds heads as Medusa's authors lay them out: by the file's name, or by keys HEAD.LAYER.linear.weight."""
    return any((folder / name).is_file() for name in (MEDUSA_SAFE, MEDUSA_PICKLED)) or any(
        MEDUSA_KEY.fullmatch(name) for name in tensor_names(folder)
    )


def why_not_whole(file: Path) -> str | None:
    """What shows that a weights' file is truncated: its header says where a safetensors file ends. None where nothing does."""
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        return None if size else "is empty"
    try:
        header, tensors = _header(file)
        end = 8 + header + max((t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"), default=0)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"has {size} bytes and no whole header"
    return None if size == end else f"has {size} bytes, by its header {end}"


def first_cut_short(files: list[Path]) -> str | None:
    """`FILE has 8 bytes, by its header 99: truncated or altered` of the first file of which that shows; None where of none."""
    return next((f"{file} {why}: truncated or altered" for file in files if (why := why_not_whole(file))), None)


def lacking(folder: Path) -> Path | None:
    """The first file that a model's folder lacks; None where it is whole."""
    return next((file for file in (folder / "config.json", *weight_files(folder)) if not file.is_file()), None)


def stored_numbers(folder: Path) -> int:
    """How many numbers the weights in a folder are: by a safetensors file's header; of a pickle, as many as in 16 bits."""
    return sum(_numbers(file) for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".pt"))


def _numbers(file: Path) -> int:
    try:
        _, tensors = _header(file)
        return sum(math.prod(t["shape"]) for name, t in tensors.items() if name != "__metadata__")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return file.stat().st_size // 2


def weights_digest(files: list[Path], sha256: Callable[[Path], str] = sha256_file) -> str:
    """The sha256 of the one file; of several shards, the sha256 over their names and sha256."""
    if len(files) == 1:
        return sha256(files[0])
    return hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()
