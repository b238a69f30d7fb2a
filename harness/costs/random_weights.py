"""A target of any LLaMA's sizes without its weights: random ones cost the same to read and to multiply."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import methods
from harness.common.errors import UserError
from harness.load import placement
from harness.load.architecture import Architecture
from harness.load.kinds import PUBLISHED_HEADS, kind_of
from harness.load.placement import BYTES, PACKED, WORKSPACE, gb, need
from harness.load.preflight import free_memory
from methods.engine.draft_head import EagleHead, HeadConfig
from methods.engine.engines import eagle_drafter, lm_drafter, target_of
from methods.engine.heads import PublishedHeads, PublishedHeadsDrafter
from methods.engine.target import HFTarget

EPS, ROPE_THETA = 1e-5, 10_000.0  # which cost nothing, whatever they are
SPREAD = 0.02  # of the weights
LEAST_LAYERS = 2  # where not all are there
MEDUSAS_BLOCKS = 1  # of each of its published heads (medusa_num_layers)
# the draft LM that the paper's Vicuna targets have: config.json of double7/vicuna-68m
VICUNA_68M = Architecture(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=12, num_key_value_heads=12, vocab_size=32000
)


@dataclass(frozen=True, slots=True)
class Stand:
    """A target and its drafters, by kind. The target's first `layers` of `of` are there."""

    target: HFTarget
    drafters: Mapping[str, Any]
    layers: int
    of: int


def published(kinds: Collection[str], sizes: Architecture) -> tuple[str, ...]:
    """Those kinds of drafters of which a target of these sizes has a published one that is known here by its sizes."""
    return tuple(kind for kind in kinds if kind == "medusa" or (kind == "lm" and sizes.vocab_size == VICUNA_68M.vocab_size))


def layers_that_fit(
    sizes: Architecture, dtype: str, context: int, room: int, *, on_cpu: bool, kinds: Sequence[str] = ()
) -> int:  # fmt: skip
    """How many of a target's layers fit into `room` bytes beside its embedding, LM head, draft head and other drafters.

    on_cpu: as for `placement.need`; the drafters are packed there, too. kinds: of the other drafters.

    Raises:
        UserError: not even two, by whose difference the others' cost is known; or the only one that it has.
    """
    size = BYTES[dtype]
    others = sum(kind_of(kind).memory_bytes(None, sizes, dtype, context) for kind in kinds)
    beside = size * (sizes.n_layer + 2 * sizes.hidden_size**2 + sizes.n_kv(context)) + others
    what = need(sizes, dtype, context, beside * (2 if on_cpu and dtype in PACKED else 1), on_cpu=on_cpu)
    n, least = placement.layers_that_fit(what, [room]), min(LEAST_LAYERS, sizes.num_hidden_layers)
    if n < least:
        raise UserError(
            f"{least} of its layers with the embedding, LM head and drafters take {gb(replace(what, n_layers=least).total)} in "
            f"{dtype}; {gb(max(room, 0))} are free here"
        )
    return n


def free_bytes(device: torch.device) -> int:
    """Bytes that a target may take on a device."""
    if device.type == "cuda":
        return placement.free_on_gpu(torch.cuda.current_device() if device.index is None else device.index)
    return free_memory() - WORKSPACE


def random_target(
    sizes: Architecture, dtype: str, context: int, device: torch.device, layers: int, kinds: Sequence[str] = ()
) -> Stand:  # fmt: skip
    """A target of these sizes with `layers` layers, an EAGLE head for it, and drafters of those other kinds, of the sizes of
    published ones, with random weights.

    context: tokens that its rotary table has to reach.
    """
    named = getattr(torch, dtype)
    model = _llama(sizes, named, context, device, layers)
    with torch.device(device):
        head = EagleHead(
            HeadConfig(
                hidden_size=sizes.hidden_size, intermediate_size=sizes.intermediate_size,
                num_attention_heads=sizes.num_attention_heads, num_key_value_heads=sizes.num_key_value_heads,
                rms_norm_eps=EPS, rope_theta=ROPE_THETA, vocab_size=sizes.vocab_size,
            )
        ).to(named)  # fmt: skip
    _fill(head)
    target = target_of(model)
    frequent = torch.arange(sizes.vocab_size)  # which tokens they are costs nothing
    drafters: dict[str, Any] = {methods.EAGLE: eagle_drafter(target, head.requires_grad_(False), target.embedding, frequent)}
    if "lm" in kinds:
        drafters["lm"] = lm_drafter(target, _llama(VICUNA_68M, named, context, device, VICUNA_68M.num_hidden_layers))
    if "medusa" in kinds:
        with torch.device(device):
            heads = PublishedHeads(sizes.hidden_size, sizes.vocab_size, PUBLISHED_HEADS, MEDUSAS_BLOCKS).to(named)
        _fill(heads)
        drafters["medusa"] = PublishedHeadsDrafter(heads.requires_grad_(False), target.embedding)
    return Stand(target, drafters, layers, sizes.num_hidden_layers)


def _llama(sizes: Architecture, dtype: torch.dtype, context: int, device: torch.device, layers: int) -> Any:
    config = LlamaConfig(
        hidden_size=sizes.hidden_size, intermediate_size=sizes.intermediate_size, num_hidden_layers=layers,
        num_attention_heads=sizes.num_attention_heads, num_key_value_heads=sizes.num_key_value_heads,
        vocab_size=sizes.vocab_size, tie_word_embeddings=sizes.tie_word_embeddings, rms_norm_eps=EPS,
        max_position_embeddings=context, rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )  # fmt: skip
    with torch.device("meta"):
        empty: Any = LlamaForCausalLM(config)
    model = empty.to(dtype).to_empty(device=device)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # its table is computed, not loaded
    model.tie_weights()
    _fill(model)
    return model.requires_grad_(False)


@torch.no_grad()
def _fill(module: torch.nn.Module) -> None:
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        parameter.fill_(1.0) if "norm" in name else parameter.uniform_(-SPREAD, SPREAD)
