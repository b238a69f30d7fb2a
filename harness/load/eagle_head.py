"""Reading an EAGLE head, and the list of frequent tokens beside it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import methods
from harness.common.errors import UserError
from harness.common.files import sha256_file
from harness.load.config_keys import check_keys, positive, rope_of, whole
from harness.load.drafters import EMBEDDING, check_embedding, check_target, fill, read_config, read_state
from harness.load.kinds import ReadDrafter, TargetFacts
from methods.engine.draft_head import EagleDrafter, EagleHead, HeadConfig
from methods.engine.engines import eagle_drafter
from methods.engine.target import HFTarget

FREQUENT = "frequent.safetensors"
SIZES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "rms_norm_eps",
    "rope_theta", "rope_parameters", "rope_scaling", "vocab_size", "head_dim",
)  # fmt: skip
# The layer is LLaMA's. Published heads for Vicuna, LLaMA2 and LLaMA3 say so; other engines give them other names.
MODEL_TYPES = (None, "llama", "eagle")
ARCHITECTURES = ("EagleHead", "LlamaForCausalLM", "LlamaForCausalLMEagle", "EagleLlamaForCausalLM")


def read_eagle(folder: Path, target: TargetFacts) -> ReadDrafter:
    """A head in the official layout: `model.safetensors` (or `pytorch_model.bin`) and `config.json`. `read` of `DrafterKind`.

    An embedding in the file must be the target's, which is used. `"bias"` absent from config.json means true.
    """
    config, values = head_config(folder, target.model)
    check_fit(config, folder, target.model, (target.vocab_size, target.hidden_size))
    check_target(folder, values, methods.EAGLE, target.model, target.sha)
    state, digest = read_state(folder, values)
    embedding = state.pop(EMBEDDING, None)
    head = EagleHead(config)
    fill(head, state, folder)
    frequent, frequent_sha = load_frequent(folder, target.vocab_size)

    def attach(t: HFTarget) -> EagleDrafter:
        check_embedding(folder, embedding, t.embedding)
        return beside_last_layer(t, head, frequent)

    return ReadDrafter(attach, digest, frequent_sha)


def beside_last_layer(target: HFTarget, head: EagleHead, frequent: torch.Tensor | None) -> EagleDrafter:
    """A drafter on the device of the last layer, whose output it reads, with a copy of the embedding there."""
    where = target.lm_head.weight.device
    return eagle_drafter(target, head.to(where, target.dtype), target.embedding.to(where), frequent)


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
    file, values = folder / "config.json", read_config(folder, methods.EAGLE, model)
    check_architecture(file, values)
    check_keys(file, values, (*SIZES, "bias"), "draft head")
    if not isinstance(bias := values.get("bias", True), bool):
        raise UserError(f"{file}: bias is {bias!r}; it must be true or false")
    return HeadConfig(**sizes_of(file, values), bias=bias), values


def sizes_of(file: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What the config.json of a head says of its layer, by the fields of `HeadConfig`.

    Raises:
        UserError: sizes missing or impossible.
    """
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        if key not in values:
            raise UserError(f"{file} lacks {key!r}")
    heads = whole(file, "num_attention_heads", values["num_attention_heads"])
    hidden, kv_heads = whole(file, "hidden_size", values["hidden_size"]), values.get("num_key_value_heads")
    if type(layers := values.get("num_hidden_layers", 1)) is not int or layers != 1:
        raise UserError(f"{file}: num_hidden_layers is {layers!r}; a draft head has 1")
    theta, stretch = rope_of(file, values)
    config = HeadConfig(
        hidden_size=hidden,
        intermediate_size=whole(file, "intermediate_size", values["intermediate_size"]),
        num_attention_heads=heads,
        num_key_value_heads=heads if kv_heads is None else whole(file, "num_key_value_heads", kv_heads),
        rms_norm_eps=positive(file, "rms_norm_eps", values.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        vocab_size=whole(file, "vocab_size", values["vocab_size"]),
        head_dim=0 if values.get("head_dim") is None else whole(file, "head_dim", values["head_dim"]),
        rope_scaling=stretch,
    )
    if values.get("head_dim") is None and hidden % heads:
        raise UserError(f"{file}: hidden_size {hidden} is not a multiple of {heads} heads, and there is no head_dim")
    if config.head_dim % 2 or heads % config.num_key_value_heads:
        raise UserError(
            f"{file}: {heads} heads of {config.head_dim} with {config.num_key_value_heads} key-value heads: "
            "head_dim must be even, and the heads a multiple of the key-value heads"
        )
    return {k: v for k, v in asdict(config).items() if k != "bias"}


def check_architecture(
    file: Path, values: dict[str, Any], architectures: Collection[str] = ARCHITECTURES, eagle3: bool = False
) -> None:
    """architectures: what its layer may be called. eagle3: whether it is to be one of EAGLE-3.

    Raises:
        UserError: config.json says that the head's layer is another than LLaMA's.
    """
    named = values.get("architectures")
    if named is not None and not isinstance(named, list):
        raise UserError(f"{file}: architectures is {str(named)[:60]}; it must be a list of names")
    if not eagle3 and any("eagle3" in str(x).lower() for x in named or ()):
        raise UserError(f"{file}: the head is one of EAGLE-3, which has other layers than one of EAGLE and EAGLE-2")
    said = {f"architectures = {str(x)[:60]}": x in architectures for x in named or ()}
    said |= {f"model_type = {str(values.get('model_type'))[:60]}": values.get("model_type") in MODEL_TYPES}
    if odd := [text for text, is_llamas in said.items() if not is_llamas]:
        raise UserError(f"{file}: {', '.join(odd)}: a draft head here has the layer of a LLaMA")


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
