"""Drafters in the layouts of other projects, given as they are: each drafts what the same weights draft in our own layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drafter_folders import CONFIG, hub_lm, published
from places import TINY
from published_heads import folder_of
from safetensors.torch import load_file
from tiny_model import STOP_IDS, TinyModel
from torch import Tensor

from harness.common.errors import UserError
from harness.load.kinds import drafter_kind
from harness.load.model import load
from methods.base import Generation, SamplerParams

GREEDY = SamplerParams(24, STOP_IDS)
Tensors = dict[str, Tensor]
VOCAB, HIDDEN = 384, 64


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def drafted(folder: Path, kind: str, method: str, **options: Any) -> Generation:
    """What a drafter's folder drafts on one prompt."""
    tiny = TinyModel(load(CONFIG, "float64", head=folder, drafters=[kind]))
    assert drafter_kind(folder) == kind
    return tiny.decode(method, tiny.prompts[0], GREEDY, **options)


def same(a: Generation, b: Generation) -> bool:
    assert a.trace is not None and b.trace is not None
    return a.token_ids == b.token_ids and a.trace.accepted == b.trace.accepted


def test_a_head_of_speculators_drafts_what_it_drafts_in_our_layout(tmp_path: Path) -> None:
    own = TINY.parent / "head"
    config, tensors = json.loads((own / "config.json").read_text()), load_file(own / "model.safetensors")
    layer = {k: v for k, v in config.items() if not k.endswith("sha256") and k not in ("architectures", "bias")}
    theirs = {
        "speculators_model_type": "eagle", "fusion_bias": config["bias"], "layernorms": False,
        "transformer_layer_config": layer | {"model_type": "llama"}, "transformer_layer_architecture": "LlamaDecoderLayer",
    }  # fmt: skip
    named = {name.replace("fc.", "fusion_fc.").replace("layers.0.", "transformer."): x for name, x in tensors.items()}
    tree = {"top_k": 3, "depth": 3, "total": 8}
    made = drafted(folder_of(tmp_path / "theirs", theirs, named), "eagle", "eagle2", **tree)
    assert same(made, drafted(own, "eagle", "eagle2", **tree)) and made.trace is not None and any(made.trace.accepted)


def test_an_eagle3_head_of_speculators_drafts_what_it_drafts_in_our_layout(tmp_path: Path) -> None:
    own = TINY.parent / "eagle3"
    config, tensors = json.loads((own / "config.json").read_text()), load_file(own / "model.safetensors")
    theirs = {
        "speculators_model_type": "eagle3", "architectures": ["Eagle3Speculator"], "draft_vocab_size": config["draft_vocab_size"],
        "norm_before_residual": False, "aux_hidden_states": config["aux_hidden_states"],  # all three that the tiny target has
        "transformer_layer_config": {
            key: config[key] for key in (
                "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "vocab_size",
            )
        },
    }  # fmt: skip
    named = {name.replace("midlayer.", "layers.0."): x for name, x in tensors.items()}
    tree = {"top_k": 3, "depth": 3, "total": 8}
    made = drafted(folder_of(tmp_path / "theirs", theirs, named), "eagle3", "eagle3", **tree)
    assert same(made, drafted(own, "eagle3", "eagle3", **tree)) and made.trace is not None and any(made.trace.accepted)
    del theirs["norm_before_residual"]
    with pytest.raises(UserError, match="lacks 'norm_before_residual', which is false to speculators and true to vLLM"):
        drafted(folder_of(tmp_path / "lacking", theirs, named), "eagle3", "eagle3")


# ---- Medusa ----

VLLM = {"architectures": ["MedusaModel"], "model_type": "medusa", "num_heads": 2, "num_hidden_layers": 1, "hidden_size": HIDDEN,
        "vocab_size": VOCAB, "medusa_fc_bias": True, "truncated_vocab_size": None}  # fmt: skip
AUTHORS = {"medusa_num_heads": 5, "medusa_num_layers": 1}


def as_vllm(state: Tensors) -> Tensors:
    out = {}
    for name, value in state.items():
        i, layer, *rest = name.split(".")
        out[f"lm_heads.{i}.weight" if layer == "1" else f"blocks.{i}.layers.{layer}.{rest[-1]}"] = value
    return out


MEDUSAS: dict[str, Callable[[Path, Tensors], Path]] = {
    "safetensors": lambda folder, t: folder_of(folder, AUTHORS, t, "medusa_lm_head.safetensors"),
    "with a prefix": lambda folder, t: folder_of(folder, AUTHORS, {f"medusa_head.{k}": v for k, v in t.items()}),
    "of a trainer": lambda folder, t: folder_of(folder, AUTHORS, {"state_dict": {f"module.{k}": v for k, v in t.items()}},
                                                "medusa_lm_head.pt"),
    "of vLLM": lambda folder, t: folder_of(folder, VLLM, as_vllm(t)),
    "of vLLM, with a prefix": lambda folder, t: folder_of(
        folder, VLLM, {f"medusa_heads.{k}": v for k, v in as_vllm(t).items()}, "pytorch_model.bin"
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", MEDUSAS)
def test_medusa_heads_of_any_layout_draft_the_same(layout: str, tmp_path: Path) -> None:
    state = published(tmp_path / "authors")
    tree = "0 1 2 00 10 01"
    wanted = drafted(tmp_path / "authors", "medusa", "medusa", tree=tree)
    assert same(drafted(MEDUSAS[layout](tmp_path / "theirs", state), "medusa", "medusa", tree=tree), wanted)


def test_vllms_medusa_without_biases_and_with_one_lm_head_is_read_as_what_it_computes(tmp_path: Path) -> None:
    state = published(tmp_path / "authors")
    state |= {name: torch.zeros_like(value) for name, value in state.items() if name.endswith("bias")}
    state["1.1.weight"] = state["0.1.weight"]
    plain = folder_of(tmp_path / "plain", AUTHORS, {k: v.clone() for k, v in state.items()})
    bare = {k: v for k, v in as_vllm(state).items() if not k.endswith("bias")}
    for i, (gone, name) in enumerate(((("lm_heads.1.weight",), "lm_heads.0.weight"),
                                      (("lm_heads.0.weight", "lm_heads.1.weight"), "lm_head.weight"))):  # fmt: skip
        shared = {k: v for k, v in bare.items() if k not in gone} | {name: state["0.1.weight"]}
        theirs = folder_of(tmp_path / f"{i}", VLLM | {"medusa_fc_bias": False, "original_lm_head": True}, shared)
        assert same(drafted(theirs, "medusa", "medusa", tree="0 1 00"), drafted(plain, "medusa", "medusa", tree="0 1 00"))


@pytest.mark.parametrize(
    ("config", "odd", "why"),
    [
        (VLLM | {"truncated_vocab_size": 100}, {}, "truncated_vocab_size is 100: heads over a part of the 384 tokens"),
        (VLLM | {"logit_scale": 2.0}, {}, "logit_scale is 2.0"),
        (AUTHORS, {"model.norm.weight": torch.ones(2)}, "'model.norm.weight' is no HEAD.LAYER.*Medusa-2"),
        (VLLM | {"num_hidden_layers": 2}, {}, "medusa_num_layers is 2, and the weights have 1 a head"),
    ],
)  # fmt: skip
def test_medusa_heads_that_are_not_read_say_why(config: dict, odd: Tensors, why: str, tmp_path: Path) -> None:
    state = published(tmp_path / "authors")
    state = (as_vllm(state) if "num_heads" in config else state) | odd
    with pytest.raises(UserError, match=why):
        load(CONFIG, "float32", head=folder_of(tmp_path / "theirs", config, state), drafters=["medusa"])


# ---- draft LMs ----


def test_a_draft_lm_in_a_pickle_is_the_one_in_safetensors(tmp_path: Path) -> None:
    """vicuna-68m's layout: a LLaMA's config.json, tokenizer and pytorch_model.bin."""
    lm = hub_lm(tmp_path / "lm")
    wanted = drafted(lm, "lm", "sps", gamma=3)
    torch.save(load_file(lm / "model.safetensors"), lm / "pytorch_model.bin")
    (lm / "model.safetensors").unlink()
    assert same(drafted(lm, "lm", "sps", gamma=3), wanted)
