"""How weights lie in a folder: file names, shards, digests, and what kind of drafter a folder holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import methods
from harness.common.errors import UserError
from harness.common.files import sha256_file

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


def weights_digest(files: list[Path]) -> str:
    """sha256 of the one file; of shards, that of their names and sha256."""
    if len(files) == 1:
        return sha256_file(files[0])
    return hashlib.sha256("".join(f"{file.name} {sha256_file(file)}\n" for file in files).encode()).hexdigest()


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
