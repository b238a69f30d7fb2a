"""Tiny random models of every family of causal LMs that transformers has, made by the generic names in their configs."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as FAMILIES

VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 61, 32, 2, 4, 2, 8
WINDOW = 8  # below the length of every text that is compared, so that a window that is left out shows
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim", "decoder_hidden_size", "dim"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), KV_HEADS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_ff", "dff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length"), 256),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "attention_window_size", "local_attention"), WINDOW),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "head_dim", "attention_head_dim", "d_kv"), HEAD_DIM),
    "vocab_size": VOCAB,
    "qk_head_dim": 2 * HEAD_DIM,
}  # fmt: skip
OTHER = {
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "use_cache": True, "torch_dtype": "float32",
}  # fmt: skip
LARGEST = 3_000_000  # parameters; what takes more was not made small by these names


def small_config(family: str, values: dict[str, Any] | None = None) -> Any:
    """A tiny config of a family."""
    kind = CONFIG_MAPPING[family]
    default = kind()
    changed = {
        k: v
        for k, v in SMALL.items()
        if getattr(default, k, None) is not None and k in {**default.to_dict(), **default.attribute_map}
    }
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        if isinstance(found := getattr(default, name, None), list):
            kinds = list(dict.fromkeys(found))
            changed[name] = [kinds[i % len(kinds)] for i in range(max(LAYERS, len(kinds)))]
            changed["num_hidden_layers"] = len(changed[name])
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        found = getattr(default, name, None)
        if isinstance(found, int) and found >= VOCAB:
            changed[name] = 1
    return kind(**changed | (values or {}))


def small_model(family: str, values: dict[str, Any] | None = None) -> Any:
    """A tiny model of a family with weights under which every part of it is seen in the logits."""
    import transformers

    config = small_config(family, values)
    name = FAMILIES[family]
    kind = getattr(transformers, name)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() >= 2:
                p.normal_(0, p.shape[-1] ** -0.5)
            elif p.numel():
                p.add_(0.1 * torch.randn_like(p))
    return model
