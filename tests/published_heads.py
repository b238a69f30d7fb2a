"""Folders of small random heads in the layouts that others publish, and what they hold by our names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, WIDE, HEADS, KV_HEADS, VOCAB, DRAFTED, LAYERS = 16, 24, 4, 2, 40, 12, 12
SIZES = {
    "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": 1, "rms_norm_eps": 1e-5, "rope_theta": 500.0, "vocab_size": VOCAB,
}  # fmt: skip
Tensors = dict[str, Tensor]


def draft_vocabulary(seed: int = 0) -> Tensors:
    ids = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(seed))[:DRAFTED].sort().values
    t2d = torch.zeros(VOCAB, dtype=torch.bool)
    t2d[ids] = True
    return {"d2t": ids - torch.arange(DRAFTED), "t2d": t2d}


def _random(shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        x = torch.rand(shape, generator=generator) + 0.5 if "norm" in name else torch.randn(shape, generator=generator) * 0.3
        found[name] = x.to(dtype)
    return found


def _layer(name: str, reads: int, head_dim: int) -> dict[str, tuple[int, ...]]:
    q, kv = HEADS * head_dim, KV_HEADS * head_dim
    return {
        f"{name}.self_attn.q_proj.weight": (q, reads), f"{name}.self_attn.k_proj.weight": (kv, reads),
        f"{name}.self_attn.v_proj.weight": (kv, reads), f"{name}.self_attn.o_proj.weight": (HIDDEN, q),
        f"{name}.mlp.gate_proj.weight": (WIDE, HIDDEN), f"{name}.mlp.up_proj.weight": (WIDE, HIDDEN),
        f"{name}.mlp.down_proj.weight": (HIDDEN, WIDE), f"{name}.post_attention_layernorm.weight": (HIDDEN,),
    }  # fmt: skip


def eagle_tensors(bias: bool = True, head_dim: int = HIDDEN // HEADS, dtype: torch.dtype = torch.float32) -> Tensors:
    """A head of EAGLE or EAGLE-2, as its authors name its tensors."""
    fc = {"fc.weight": (HIDDEN, 2 * HIDDEN)} | ({"fc.bias": (HIDDEN,)} if bias else {})
    return _random(fc | _layer("layers.0", HIDDEN, head_dim), 1, dtype)


def eagle3_tensors(
    *, fc_norm: bool = False, norm_before_fc: bool = False, whole_vocabulary: bool = False, head_dim: int = HIDDEN // HEADS,
    dtype: torch.dtype = torch.float32,
) -> Tensors:  # fmt: skip
    """A head of EAGLE-3, as SafeAILab and SpecForge name its tensors."""
    drafted = VOCAB if whole_vocabulary else DRAFTED
    shapes = {
        "fc.weight": (HIDDEN, 3 * HIDDEN), **({f"fc_norm.{i}.weight": (HIDDEN,) for i in range(3)} if fc_norm else {}),
        **({"input_norm.weight": (3 * HIDDEN,)} if norm_before_fc else {}), **_layer("midlayer", 2 * HIDDEN, head_dim),
        "midlayer.hidden_norm.weight": (HIDDEN,), "midlayer.input_layernorm.weight": (HIDDEN,), "norm.weight": (HIDDEN,),
        "lm_head.weight": (drafted, HIDDEN),
    }  # fmt: skip
    whole = {"d2t": torch.zeros(VOCAB, dtype=torch.long), "t2d": torch.ones(VOCAB, dtype=torch.bool)}
    return _random(shapes, 2, dtype) | (whole if whole_vocabulary else draft_vocabulary())


def eagle3_config(**changes: Any) -> dict[str, Any]:
    """Its config.json in the same layout; a change to None leaves a key out."""
    values = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", **SIZES, "draft_vocab_size": DRAFTED} | changes
    return {key: value for key, value in values.items() if value is not None}


def speculators_config(kind: str, layer: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    values = {
        "speculators_model_type": kind, "speculators_version": "0.3.0", "architectures": ["Eagle3Speculator"],
        "transformer_layer_config": {"model_type": "llama", **SIZES, "attention_bias": False, **(layer or {})},
        "speculators_config": {"algorithm": kind, "proposal_methods": [], "verifier": {"name_or_path": "x"}},
        "transformers_version": "4.57.1", "torch_dtype": "bfloat16",
    } | changes  # fmt: skip
    return {key: value for key, value in values.items() if value is not None}


def folder_of(folder: Path, config: dict[str, Any], tensors: Any, file: str = "model.safetensors") -> Path:
    """A folder with a config.json and one file of weights; a pickle's may hold anything."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / file)
    else:
        torch.save(tensors, folder / file)
    return folder


def sharded(folder: Path, config: dict[str, Any], tensors: Tensors, suffix: str = ".safetensors") -> Path:
    """The same in two shards with an index."""
    names, stem = sorted(tensors), "model" if suffix == ".safetensors" else "pytorch_model"
    shards = [f"{stem}-0000{i}-of-00002{suffix}" for i in (1, 2)]
    for shard, some in zip(shards, (names[::2], names[1::2]), strict=True):
        folder_of(folder, config, {name: tensors[name] for name in some}, shard)
    index = {"weight_map": {name: shards[i % 2] for i, name in enumerate(names)}}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
    return folder


LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
STRETCH = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
EAGLE3_HEADS: dict[str, tuple[dict[str, Any], Tensors]] = {
    "eagle3": (eagle3_config(), eagle3_tensors(dtype=torch.bfloat16)),
    "eagle3, fc_norm": (eagle3_config(fc_norm=True, rope_scaling=STRETCH, head_dim=8), eagle3_tensors(fc_norm=True, head_dim=8)),
    "eagle3, other layers": (eagle3_config(**{LAYER_IDS: [1, 6, 11]}), eagle3_tensors()),
    "eagle3, of the vocabulary": (eagle3_config(draft_vocab_size=VOCAB), eagle3_tensors(whole_vocabulary=True)),
    "eagle3, fed back normed": (eagle3_config(norm_output=True, fc_norm=True), eagle3_tensors(fc_norm=True)),
    "eagle3, normed residual": (eagle3_config(norm_before_residual=True), eagle3_tensors()),
    "eagle3, normed before fc": (eagle3_config(eagle_config={"norm_before_fc": True}), eagle3_tensors(norm_before_fc=True)),
}  # fmt: skip
"""Heads of EAGLE-3 with every choice that there is: (config.json, tensors)."""


def speculators_samples(folder: Path) -> dict[str, tuple[dict[str, Any], Tensors]]:
    """What `--format speculators` makes of those that it holds. folder: for the heads."""
    from harness.exchange.heads.formats import format_of
    from harness.exchange.heads.head import read_head
    from harness.exchange.heads.target import Target

    target = Target("m", HIDDEN, VOCAB, LAYERS, 64, "org/m")
    made = {}
    for name, (config, tensors) in EAGLE3_HEADS.items():
        place = name.replace(", ", "-").replace(" ", "-")
        made[place] = format_of("speculators").written(read_head(folder_of(folder / place, config, tensors), target), target, 6)
    return made
