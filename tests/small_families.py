"""Tiny random models of every family of causal LMs that transformers has, made by the generic names in their configs."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as FAMILIES

from methods.engine.target import HFTarget
from methods.engine.tree import Tree

VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, EXPERT = 61, 32, 2, 4, 2, 8, 16
WINDOW = 8  # shorter than every text that is compared: a window that is left out shows
LARGEST = 3_000_000  # parameters; what has more was not made small by these names


def _each(names: str, value: int) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


SMALL = {
    **_each("vocab_size", VOCAB),
    **_each("hidden_size d_model n_embd embedding_size emb_dim decoder_hidden_size dim", WIDTH),
    **_each("num_hidden_layers num_layers n_layer n_layers decoder_layers encoder_layers", LAYERS),
    **_each("num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads", HEADS),
    **_each("num_key_value_heads num_kv_heads", KV_HEADS),
    **_each("intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner d_ff dff", 48),
    **_each("moe_intermediate_size shared_expert_intermediate_size ffn_hidden_size expert_ffn_hidden_size", EXPERT),
    **_each("num_experts num_local_experts n_routed_experts moe_num_experts", 4),
    **_each("num_experts_per_tok moe_k moe_topk num_experts_per_token", 2),
    **_each("n_group topk_group num_expert_group first_k_dense_replace num_dense_layers moe_layer_start_index", 1),
    **_each("max_position_embeddings n_positions max_seq_len context_length", 256),
    **_each("sliding_window attention_chunk_size window_size attention_window_size local_attention", WINDOW),
    **_each("kv_lora_rank q_lora_rank qk_head_dim", 2 * HEAD_DIM),
    **_each("qk_nope_head_dim qk_rope_head_dim v_head_dim head_dim attention_head_dim d_kv rotary_dim", HEAD_DIM),
}
ALSO = ("head_dim", "num_key_value_heads")  # given also where the default is None
UNBOUND = {"sliding_window": None, "use_sliding_window": False, "attention_chunk_size": None}


def _of(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except ValueError:  # one that layers may differ in, which some configs do not give away
        return None


def small_config(family: str, unbound: bool = False, **values: Any) -> Any:
    """A tiny config of a family. unbound: every layer sees the whole text, where the family has a setting for that."""
    kind = CONFIG_MAPPING[family]
    default = kind()
    names = {*default.to_dict(), *default.attribute_map}
    changed: dict[str, Any] = {k: v for k, v in SMALL.items() if k in names and (k in ALSO or _of(default, k) is not None)}
    if "kv_lora_rank" in changed:
        changed["num_key_value_heads"] = HEADS
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        found, stored = _of(default, name), default.attribute_map.get(name, name)
        if isinstance(found, list) and found and not isinstance(getattr(kind, stored, None), property):
            each = list(dict.fromkeys(found))  # two layers, or one of each kind
            changed[name] = [each[i % len(each)] for i in range(max(LAYERS, len(each)))]
            changed["num_hidden_layers"] = len(changed[name])
            if unbound and name == "layer_types":
                changed[name] = ["full_attention"] * len(changed[name])
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if isinstance(found := _of(default, name), int) and found >= VOCAB:
            changed[name] = 1
    if unbound:
        changed |= {k: v for k, v in UNBOUND.items() if k in names}
    return kind(**changed | values)


def is_bound(family: str) -> bool:
    """Whether layers of the family's tiny member see a window or a chunk of the text alone."""
    config = small_config(family)
    return any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))


def small_model(config: Any, family: str) -> Any:
    """A tiny model in float32 with weights under which every part of it is seen in the logits.

    Raises:
        ValueError: it is not small.
    """
    kind = getattr(transformers, FAMILIES[family])
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{family} has {size:,} parameters")
    torch.manual_seed(0)
    model = kind(config).float().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p + 0.1 * torch.randn_like(p) if p.dim() < 2 else p.shape[-1] ** -0.5 * torch.randn_like(p))
    return model


TREES = (  # parents, and the path that is kept
    ((-1, 0, 0, 0, 2, 2, 1, 5, 4), (0, 2, 5, 7)),
    ((-1, 0, 1, 0), (0, 3)),
)


@torch.inference_mode()
def deviation(target: HFTarget, plain: Any) -> float:
    """How far logits of a prefill, of trees and of steps are off full forwards of `plain`, as a share of their spread.

    plain: the target's model once more, which nothing here has touched.
    """
    plain.set_attn_implementation("eager")
    text = torch.randint(3, VOCAB, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    pairs = [(target.prefill(text, 40)[1], list(text))]
    for parents, kept in TREES:
        tokens = [(17 * i + len(text)) % VOCAB for i in range(len(parents))]
        paths: list[list[int]] = []
        for token, parent in zip(tokens, parents, strict=True):
            paths.append([*(paths[parent] if parent >= 0 else ()), token])
        rows = target.verify(Tree(tokens, list(parents)))[1]
        pairs += [(row, [*text, *path]) for row, path in zip(rows, paths, strict=True)]
        target.commit(list(kept))
        text = [*text, *(tokens[i] for i in kept), 9]
        pairs.append((target.step(9), text))
    by_length: dict[int, list[tuple[Tensor, list[int]]]] = {}
    for row, ids in pairs:
        by_length.setdefault(len(ids), []).append((row, ids))
    worst = 0.0
    for found in by_length.values():
        logits = plain(input_ids=torch.tensor([ids for _, ids in found]), use_cache=False).logits[:, -1]
        for (row, _), wanted in zip(found, logits, strict=True):
            worst = max(worst, float((row - wanted).abs().max() / wanted.std()))
    return worst
