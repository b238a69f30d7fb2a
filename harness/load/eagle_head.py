"""Reading an EAGLE head, and the list of frequent tokens beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import methods
from harness.common.errors import UserError
from harness.common.files import sha256_file
from harness.load.drafters import check_target, fill, read_config, read_state
from harness.load.kinds import ReadDrafter, TargetFacts
from methods.engine.draft_head import EagleDrafter, EagleHead, HeadConfig
from methods.engine.target import HFTarget

FREQUENT = "frequent.safetensors"


def read_eagle(folder: Path, target: TargetFacts) -> ReadDrafter:
    """A head in the official layout: `model.safetensors` (or `pytorch_model.bin`) and `config.json`. `read` of `DrafterKind`.

    A copy of the embedding in the file is ignored: the target's is used. `"bias"` absent from config.json means true.
    """
    config, values = head_config(folder, target.model)
    check_fit(config, folder, target.model, (target.vocab_size, target.hidden_size))
    check_target(folder, values, methods.EAGLE, target)
    state, digest = read_state(folder, values)
    head = EagleHead(config)
    fill(head, state, folder)
    frequent, frequent_sha = load_frequent(folder, target.vocab_size)
    return ReadDrafter(lambda t: beside_last_layer(t, head, frequent), digest, frequent_sha)


def beside_last_layer(target: HFTarget, head: EagleHead, frequent: torch.Tensor | None) -> EagleDrafter:
    """A drafter on the device of the last layer, whose output it reads, with a copy of the embedding there."""
    where = target.lm_head.weight.device
    return EagleDrafter(head.to(where, target.dtype), target.embedding.to(where), target.lm_head, frequent)


def load_frequent(folder: Path, vocab: int) -> tuple[torch.Tensor | None, str | None]:
    """(the token ids [n] beside a head, those most frequent in its training data first; their file's sha256), or two None.

    Raises:
        UserError: the file cannot be read, or does not hold distinct token ids.
    """
    file = folder / FREQUENT
    if not file.exists():
        return None, None
    try:
        tokens = load_file(file)["tokens"].long()
    except (SafetensorError, OSError, KeyError) as e:
        raise UserError(f"{file} is truncated or altered: {(str(e).splitlines() or ['?'])[0]}") from None
    if (
        tokens.dim() != 1
        or len(tokens) < 1
        or len(tokens.unique()) < len(tokens)
        or not 0 <= tokens.min() <= tokens.max() < vocab
    ):
        raise UserError(f"{file}: expected distinct token ids under {vocab}")
    return tokens, sha256_file(file)


def head_config(folder: Path, model: str) -> tuple[HeadConfig, dict[str, Any]]:
    """The sizes in the config.json of a head for `model`, and all that it says.

    Raises:
        UserError: not there, not JSON, or sizes missing or impossible.
    """
    config_file, values = folder / "config.json", read_config(folder, methods.EAGLE, model)
    try:
        heads = int(values["num_attention_heads"])
        config = HeadConfig(
            hidden_size=int(values["hidden_size"]),
            intermediate_size=int(values["intermediate_size"]),
            num_attention_heads=heads,
            num_key_value_heads=int(values.get("num_key_value_heads", heads)),
            rms_norm_eps=float(values.get("rms_norm_eps", 1e-6)),
            rope_theta=float(values.get("rope_theta", 10000.0)),
            vocab_size=int(values["vocab_size"]),
            bias=values.get("bias", True),
        )
    except KeyError as e:
        raise UserError(f"{config_file} lacks {e.args[0]!r}") from None
    except (TypeError, ValueError) as e:
        raise UserError(f"{config_file}: {e}") from None
    if min(config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) < 1:
        raise UserError(f"{config_file}: sizes and numbers of heads must be at least 1")
    return config, values


def check_fit(config: HeadConfig, folder: Path, model: str, embedding_shape: tuple[int, int]) -> None:
    """
    Raises:
        UserError: the head is for a target of another size. embedding_shape: (vocabulary, hidden size) of `model`.
    """
    vocab, hidden = embedding_shape
    if config.hidden_size != hidden or config.vocab_size != vocab:
        raise UserError(
            f"the head in {folder} is for a target with hidden size {config.hidden_size} and {config.vocab_size} tokens; "
            f"{model} has {hidden} and {vocab}"
        )
