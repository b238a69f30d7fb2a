"""Every family of causal LMs in transformers is right as a target, or is refused when it is loaded."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from command_line import isolate, tiny_copy
from places import TINY
from safetensors.torch import load_file, save_file
from small_families import FAMILIES, deviation, is_bound, small_config, small_model
from transformers import LlamaForCausalLM

from harness.common.errors import UserError
from harness.load import self_check
from harness.load.config import model_config
from harness.load.model import load
from harness.load.self_check import layers_of_each_kind, make_target
from methods.engine import target as targets
from methods.engine.llama import LlamaTarget
from methods.engine.target import HFTarget

RIGHT = 1e-4

# Families of each kind for the check of every commit; the slow test runs all.
QUICK_RIGHT = (
    "llama", "qwen2", "qwen3", "mixtral", "olmo2", "phi3", "gemma", "granite", "smollm3", "starcoder2", "glm4", "persimmon",
)  # fmt: skip
QUICK_REFUSED = {
    "mistral": "sliding window", "llama4_text": "attends in chunks", "gpt_oss": "sliding window", "deepseek_v3": "kv_lora_rank",
    "qwen3_next": "linear_attention", "mamba": "linear_attention", "rwkv": "recurrent state", "zamba2": "linear_attention",
    "bloom": "other names", "gpt2": "other names", "bart": "other names", "cohere": "after the LM head",
}  # fmt: skip


def outcome(family: str, **how: Any) -> str:
    """`right`, `refused: why`, or how it is wrong."""
    config = small_config(family, **how)
    model = small_model(config, family)
    try:
        target = make_target(model)
    except ValueError as e:
        assert "\n" not in str(e)
        return f"refused: {e}"
    off = deviation(target, small_model(small_config(family, **how), family))
    return "right" if off < RIGHT else f"wrong by {off:.2g}"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)


@pytest.mark.parametrize("family", QUICK_RIGHT)
def test_families_like_llamas_are_right(family: str) -> None:
    assert outcome(family) == "right"


@pytest.mark.parametrize(("family", "why"), QUICK_REFUSED.items())
def test_families_that_cannot_verify_trees_are_refused_with_the_reason(family: str, why: str) -> None:
    found = outcome(family)
    assert found.startswith("refused: ") and why in found


def rope(name: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": name, "rope_theta": 10000.0, "factor": 4.0, **more}}


LONG = rope("longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_max_position_embeddings=16)
LLAMA3 = rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_rotary_tables_that_depend_on_the_length_are_refused_and_others_right(family: str) -> None:
    for how in (rope("linear"), LLAMA3, rope("yarn", original_max_position_embeddings=16)):
        assert outcome(family, **how) == "right"
    for how, name in ((rope("dynamic", original_max_position_embeddings=16), "dynamic"), (LONG, "longrope")):
        found = outcome(family, **how)
        assert found.startswith("refused: its rotary table depends on the length") and name in found


@pytest.mark.parametrize("family", ["mistral", "llama4_text", "gpt_oss", "gemma2", "cohere", "nanochat"])
def test_what_is_refused_would_be_wrong(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep can fail: with every check away these families run, and what they compute is not what their module does."""
    monkeypatch.setattr(targets, "cannot_verify", lambda *_: None)
    monkeypatch.setattr(self_check, "check", lambda _: None)
    assert outcome(family).startswith("wrong by ")


@pytest.mark.parametrize(
    ("family", "why"),
    [("mistral", "a window of 8"), ("llama4_text", "a window of 8"), ("gpt_oss", "s_aux"), ("gemma2", "softcap"),
     ("nanochat", "after the LM head"), ("lfm2", "")],
)  # fmt: skip
def test_a_run_of_a_few_tokens_finds_what_a_config_does_not_tell(family: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "cannot_verify", lambda *_: None)
    how = {"layer_types": ["conv", "full_attention"]} if family == "lfm2" else {}
    found = outcome(family, **how)
    assert found.startswith("refused: ") and why in found


def edited(folder: Path, **changes: Any) -> Path:
    """A copy of the tiny model with another config.json -> its YAML."""
    yaml = tiny_copy(folder)
    file = yaml.parent / "target" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return yaml


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "LlamaForCausalLM cannot be a target here: its rotary table"),
        (rope("longrope", short_factor=[1.0] * 8, long_factor=[2.0] * 8, original_max_position_embeddings=16), "'longrope'"),
        ({"sliding_window": 64}, "LlamaForCausalLM cannot be a target here: models with a sliding window"),
        ({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, "MambaForCausalLM cannot be a target here: "),
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, "T5Config cannot be a target here: it is no"),
        ({"model_type": "clip"}, "CLIPConfig cannot be a target here: it is no plain causal language model"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_honoured_is_refused_before_the_weights_are_read(
    changes: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any, **__: Any) -> Any:
        raise AssertionError("the weights were read first")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", read)
    with pytest.raises(UserError) as error:
        load(model_config(str(edited(tmp_path / "copy", **changes))), "float32")
    assert why in str(error.value) and "\n" not in str(error.value) and str(error.value).startswith("model tiny: ")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_activations_and_biases_of_a_llama_are_honoured_by_its_module(dtype: str, tmp_path: Path) -> None:
    target = load(model_config(str(edited(tmp_path / "copy", hidden_act="gelu"))), dtype, drafters=()).target
    assert type(target) is HFTarget


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mixtral", "qwen3_moe"])
def test_rounding_is_no_fault(family: str, dtype: torch.dtype) -> None:
    make_target(small_model(small_config(family), family).to(dtype))


def test_each_kind_of_layer_is_run_by_itself() -> None:
    model = small_model(small_config("llama", num_hidden_layers=5), "llama")
    assert layers_of_each_kind(list(model.model.layers)) == [0, 1]
    model = small_model(
        small_config("smollm3", num_hidden_layers=6, layer_types=None, no_rope_layers=[1, 1, 1, 0, 1, 0]), "smollm3"
    )
    assert layers_of_each_kind(list(model.model.layers)) == [0, 1, 3, 5]


@pytest.mark.parametrize("kind", [LlamaTarget, HFTarget])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fault_in_a_targets_own_forward_is_found(kind: type[HFTarget], dtype: torch.dtype) -> None:
    def tiny() -> Any:
        return LlamaForCausalLM.from_pretrained(TINY.parent / "target", dtype=dtype)

    class Faulty(kind):  # type: ignore[misc, valid-type]
        def _forward(self, ids: list[int], positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            forward = super()._forward(ids, self.shift(positions), mask)
            return forward

        def shift(self, positions: torch.Tensor) -> torch.Tensor:
            return torch.arange(len(positions)) + positions[0]  # as if a tree were a chain

    self_check.check(kind(tiny()))
    with pytest.raises(ValueError, match="off its own forward by"):
        self_check.check(Faulty(tiny()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float, tmp_path: Path) -> None:
    yaml = tiny_copy(tmp_path / "copy")
    file = yaml.parent / "target" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = bad
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weights hold NaN or infinity \(model.layers.1.mlp.up_proj.weight\)"):
        load(model_config(str(yaml)), "float32", drafters=())


@pytest.mark.slow
def test_every_family_is_right_or_refused() -> None:
    """As its defaults are, and without windows where it has any; those that the generic names do not make small are left out."""
    seen: dict[str, str] = {}
    for family in FAMILIES:
        for unbound in (False, True):
            try:
                if unbound and not is_bound(family):
                    continue
                small_model(small_config(family, unbound=unbound), family)
            except Exception:  # not every family can be made tiny by generic names, and each says so in its own way
                continue
            seen[family + " without windows" * unbound] = outcome(family, unbound=unbound)
    for name, found in seen.items():
        print(f"{name:40} {found}")
    counts = Counter(found.split(":")[0] for found in seen.values())
    print(counts)
    assert not [f"{name}: {found}" for name, found in seen.items() if found != "right" and not found.startswith("refused: ")]
    assert counts["right"] >= 40 and counts["refused"] >= 60
