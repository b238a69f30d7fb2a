"""Keys of a drafter's config.json that change what it computes: honoured, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import isolate, refused, run
from drafter_folders import CONFIG, edited, hub_lm, published, with_drafter
from places import TINY
from safetensors.torch import load_file, save_file
from tiny_model import STOP_IDS, TinyModel
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from harness.common.errors import UserError
from harness.load.config_keys import rope_of
from harness.load.eagle_head import head_config
from harness.load.kinds import drafter_kind
from harness.load.layout import weights_digest
from harness.load.model import load
from methods.base import SamplerParams
from methods.engine.draft_head import EagleHead, HeadConfig
from methods.engine.heads import PublishedHeadsDrafter

FILE = Path("config.json")
GREEDY = SamplerParams(32, STOP_IDS)
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


# ---- rope -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},  # transformers 5
        {"rope_parameters": {"rope_theta": 500.0}},
        {"rope_theta": 500.0, "rope_scaling": None},
        {"rope_theta": 500.0, "rope_parameters": {"rope_theta": 500.0, "type": "default"}},
        {"rope_parameters": {"rope_theta": 500.0}, "rope_scaling": {"type": "default", "factor": 1.0}},
    ],
)
def test_rope_theta_is_read_wherever_it_stands(said: dict[str, Any], tmp_path: Path) -> None:
    assert rope_of(FILE, said) == (500.0, None)
    folder = edited(tmp_path, "head", **{"rope_theta": None, **said})
    config, _ = head_config(folder, "tiny")
    assert config.rope_theta == 500.0 and config.rope_scaling is None


@pytest.mark.parametrize(
    "said",
    [
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
        {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}},
    ],
)
def test_a_stretched_rotary_table_is_transformers_own(said: dict[str, Any]) -> None:
    theta, stretch = rope_of(FILE, said)
    head = EagleHead(HeadConfig(64, 160, 4, 2, 1e-5, theta, 384, rope_scaling=stretch))
    like: Any = LlamaRotaryEmbedding(LlamaConfig(hidden_size=64, num_attention_heads=4, **said))
    positions = torch.tensor([0, 1, 31, 63, 64, 900])
    for ours, theirs in zip(head.rotary(positions, torch.float32), like(torch.zeros(1), positions[None]), strict=True):
        assert torch.allclose(ours, theirs[0], atol=1e-4)
    plain = EagleHead(HeadConfig(64, 160, 4, 2, 1e-5, theta, 384)).rotary(positions, torch.float32)[0]
    assert not torch.allclose(head.rotary(positions, torch.float32)[0], plain, atol=1e-2)


ROPES_REFUSED = [
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'; a drafter here may have default, linear,"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
    ({"rope_parameters": {"rope_type": 3}}, "rope_type is 3"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; it must be an object"),
    ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "two values of rope_theta (10000 and 500000)"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"type": "default"}}, "contradict each other"),
    ({"rope_scaling": {"type": "linear"}}, "factor of its linear rope is None; it must be a finite number over 0"),
    ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "factor of its linear rope is nan"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor of its llama3 rope is None"),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "default rope does not use partial_rotary"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "default rope does not use full_attention"),
]  # fmt: skip
VALUES_REFUSED = [
    *((({key: bad}), f"{key} is {bad!r}; it must be a finite number over 0")
      for key in ("rms_norm_eps", "rope_theta") for bad in (float("nan"), float("inf"), -1e-5, 0, "1e-5", True, [1])),
    ({"num_attention_heads": 4.5}, "num_attention_heads is 4.5; it must be a whole number of at least 1"),
    ({"num_attention_heads": True}, "num_attention_heads is True"),
    ({"intermediate_size": 10**400}, "intermediate_size is over 16,777,216"),
    ({"num_attention_heads": 5}, "hidden_size 64 is not a multiple of 5 heads, and there is no head_dim"),
    ({"num_key_value_heads": 3}, "the heads a multiple of the key-value heads"),
    ({"head_dim": 7}, "head_dim must be even"),
    ({"num_hidden_layers": 2}, "num_hidden_layers is 2; a draft head has 1"),
    ({"bias": "no"}, "bias is 'no'; it must be true or false"),
    ({"architectures": ["Eagle3Qwen3ForCausalLM"]}, "one of EAGLE-3"),
    ({"architectures": ["GemmaForCausalLM"]}, "architectures = GemmaForCausalLM: a draft head here has the layer of a LLaMA"),
    ({"architectures": ["LlamaForCausalLM", 3]}, "architectures = 3: a draft head"),
    ({"architectures": "LlamaForCausalLM"}, "it must be a list of names"),
    *(({"model_type": name}, f"model_type = {name}: a draft head here has the layer of a LLaMA")
      for name in ("gemma", "qwen2", "qwen3", "mixtral", ["llama"], True)),
]  # fmt: skip
COMPUTING = [
    ({"hidden_act": "gelu"}, "hidden_act = gelu"),
    ({"attention_bias": True}, "attention_bias = True"),
    ({"mlp_bias": True}, "mlp_bias = True"),
    ({"qkv_bias": True}, "qkv_bias = True"),
    ({"sliding_window": 64}, "sliding_window = 64"),
    ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping = 30.0"),
    ({"residual_multiplier": 0.5, "attention_multiplier": 0.1}, "attention_multiplier = 0.1, residual_multiplier = 0.5"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ({"num_experts": 4}, "num_experts = 4"),
    ({"norm_before_residual": True}, "norm_before_residual = True"),
    ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}"),
    ({"eagle_config": {"use_aux_hidden_state": True}}, "eagle_config = "),
    *(
        ({key: value}, f"{key} = {value}")
        for key, value in {
            "position_embedding_type": "alibi",
            "alibi": True,
            "ALiBi": True,
            "clip_qkv": 8,
            "causal": False,
            "is_causal": 0,
            "parallel_block": True,
            "gated_mlp": False,
            "mlp_type": "relu2",
            "eagle_aux_hidden_state_layer_ids": [1, 2],
            "temperature": 2,
            "pos_emb": "learned",
            "interleaved": True,
            "post_ln": True,
            "d2t": "d2t.pt",
            "dtype": "int8",
            "torch_dtype": "uint8",
            "bits": 4,
            "load_in_4bit": True,
        }.items()
    ),
]


@pytest.mark.parametrize(
    ("said", "why"), [*ROPES_REFUSED, *VALUES_REFUSED, *COMPUTING], ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_draft_head_whose_config_is_not_honoured_is_refused_by_name(said: dict[str, Any], why: str, tmp_path: Path) -> None:
    folder = edited(tmp_path, "head", **({"rope_theta": None} if "rope" in str(said) else {}) | said)
    with pytest.raises(UserError) as error:
        head_config(folder, "tiny")
    assert why in str(error.value) and str(folder / "config.json") in str(error.value) and "\n" not in str(error.value)


def test_keys_that_leave_the_computation_as_it_is_are_fine_and_so_are_notes(tmp_path: Path) -> None:
    """What the config.json of a published head holds, and what anyone may add."""
    of_llama = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_theta=1e4).to_dict()
    notes = {
        "made_on": "Monday",
        "my_batch_size": 7,
        "hidden_act": "swish",
        "qkv_bias": False,
        "sliding_window": None,
        "bias": True,
        "causal": True,
        "gated_mlp": True,
        "temperature": 1.0,
        "torch_dtype": "torch.float16",
        "tie_word_embeddings": False,
        "pretraining_tp": 1,
        "my_habits": 3,
    }
    known = json.loads((TINY.parent / "head" / "config.json").read_text())
    folder = edited(tmp_path, "head", **of_llama | notes | known | {"num_hidden_layers": 1})
    config, _ = head_config(folder, "tiny")
    assert config == head_config(TINY.parent / "head", "tiny")[0]


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    folder = edited(tmp_path, "head", hidden_act="gelu", mlp_bias=True)
    words = f"--method eagle2 --task gsm8k --no-baseline --model {TINY} --head {folder}"
    refused(run(tmp_path / "out", words), "a draft head here does not honour hidden_act = gelu, mlp_bias = True")


def test_a_head_with_rope_theta_where_transformers_5_puts_it_drafts_as_before(tmp_path: Path) -> None:
    said = {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    ours = TinyModel(load(CONFIG, "float64", head=edited(tmp_path / "a", "head", **said)))
    before = TinyModel(load(CONFIG, "float64"))
    said["rope_parameters"] = {"rope_type": "default", "rope_theta": 100.0}
    other = TinyModel(load(CONFIG, "float64", head=edited(tmp_path / "b", "head", **said)))
    traces = [m.decode("eagle2", m.prompts[0], GREEDY).trace for m in (ours, before, other)]
    accepted = [trace.accepted for trace in traces if trace is not None]
    assert accepted[0] == accepted[1] != accepted[2]


def test_a_head_dim_unlike_hidden_over_heads_is_honoured(tmp_path: Path) -> None:
    folder = edited(tmp_path, "head", head_dim=8, weights_sha256=None)
    state = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    for name, rows in (("q", 32), ("k", 16), ("v", 16)):
        state[f"layers.0.self_attn.{name}_proj.weight"] = 0.1 * torch.randn(rows, 64)
    state["layers.0.self_attn.o_proj.weight"] = 0.1 * torch.randn(64, 32)
    save_file(state, folder / "model.safetensors")
    tiny = TinyModel(load(CONFIG, "float64", head=folder))
    assert tiny.loaded.drafter is not None and tiny.loaded.drafter.head.config.head_dim == 8
    generation = tiny.decode("eagle2", tiny.prompts[0], GREEDY)
    assert generation.token_ids == tiny.vanilla(tiny.prompts[0], GREEDY).token_ids


# ---- other drafters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"hidden_act": "gelu"}, "does not honour hidden_act = gelu"),
        ({"mlp_bias": True}, "does not honour mlp_bias = True"),
        ({"num_heads": 4.0}, "num_heads is 4.0; it must be a whole number"),
    ],
)
def test_heads_whose_config_is_not_honoured_are_refused_by_name(
    kind: str, said: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        load(CONFIG, "float32", head=edited(tmp_path, kind, **said), drafters=[kind])
    assert why in str(error.value)


def test_heads_that_see_tokens_are_hydras(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sees_tokens is True; a set of Medusa heads has false"):
        load(CONFIG, "float32", head=edited(tmp_path, "medusa", sees_tokens=True), drafters=["medusa"])


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"hidden_act": "gelu"}, "a narrow draft LM here does not honour hidden_act = gelu"),
        ({"attention_bias": True}, "does not honour attention_bias = True"),
        ({"head_dim": 16}, "does not honour head_dim = 16"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf; it must be a finite number over 0"),
        ({"rope_parameters": {"rope_theta": 7.0}}, "two values of rope_theta (7 and 10000)"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_type is 'linear'; a narrow draft LM here has the",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"width": 33}, "width 33 is no even multiple"),
    ],
)
def test_a_narrow_lm_whose_config_is_not_honoured_is_refused_by_name(said: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(CONFIG, "float32", head=edited(tmp_path, "sps", **said), drafters=["lm"])
    assert why in str(error.value)


def test_a_narrow_lms_theta_may_stand_where_transformers_5_puts_it(tmp_path: Path) -> None:
    folder = edited(tmp_path, "sps", rope_theta=None, rope_parameters={"rope_theta": 10000.0})
    assert load(CONFIG, "float32", head=folder, drafters=["lm"]).sha_of("lm") is not None


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"hidden_act": "gelu"}, "must be a plain LLaMA"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "its rotary table depends on the length (rope_type 'dynamic'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "must be a plain LLaMA"),
        ({"sliding_window": 64}, "sliding window"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05; it must be a finite number over 0"),
    ],
)
def test_a_whole_draft_lm_that_is_no_plain_llama_is_refused(said: dict[str, Any], why: str, tmp_path: Path) -> None:
    folder = hub_lm(tmp_path / "lm")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | said))
    with pytest.raises(UserError) as error:
        load(with_drafter("lm", folder), "float32", drafters=["lm"])
    assert why in str(error.value)


# ---- weights that are not finite, shards, and Medusa's own files -----------------------------------------------------


@pytest.mark.parametrize("kind", ["head", "medusa", "hydra", "sps"])
def test_a_drafter_with_a_weight_that_is_not_finite_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    folder = edited(tmp_path, kind, weights_sha256=None)
    state = load_file(folder / "model.safetensors")
    name = sorted(state)[1]
    state[name].view(-1)[3] = float("nan")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} holds NaN or infinity"):
        load(CONFIG, "float32", head=folder, drafters=[{"head": "eagle", "sps": "lm"}.get(kind, kind)])


def test_a_whole_draft_lm_with_a_weight_that_is_not_finite_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = hub_lm(tmp_path / "lm")
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][2] = float("inf")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.norm\.weight holds NaN or infinity"):
        load(with_drafter("lm", folder), "float32", drafters=["lm"])


def in_shards(folder: Path, suffix: str) -> dict[str, torch.Tensor]:
    """A drafter's one file as two shards with an index; its sha256 is taken from config.json."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names, where = sorted(state), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"{stem}-0000{i}-of-00002.{suffix}"
        tensors = {name: state[name] for name in part}
        save_file(tensors, folder / shard) if suffix == "safetensors" else torch.save(tensors, folder / shard)
        where |= dict.fromkeys(part, shard)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": where}))
    return state


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("kind", ["head", "medusa", "hydra", "sps"])
def test_a_drafter_in_shards_is_the_same_drafter(kind: str, suffix: str, tmp_path: Path) -> None:
    name = {"head": "eagle", "sps": "lm"}.get(kind, kind)
    folder = edited(tmp_path, kind, weights_sha256=None)
    in_shards(folder, suffix)
    ours = TinyModel(load(CONFIG, "float64", head=folder, drafters=[name]))
    whole = TinyModel(load(CONFIG, "float64", drafters=[name]))
    assert drafter_kind(folder) == name
    method = {"eagle": "eagle2", "lm": "sps"}.get(name, name)
    traces = [m.decode(method, m.prompts[0], GREEDY).trace for m in (ours, whole)]
    assert traces[0] is not None and traces[1] is not None and traces[0].accepted == traces[1].accepted


def test_shards_of_a_head_that_are_not_whole_or_overlap_are_refused(tmp_path: Path) -> None:
    folder = edited(tmp_path, "head", weights_sha256=None)
    state = in_shards(folder, "safetensors")
    first, second = sorted(folder.glob("model-*.safetensors"))
    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"weights_sha256": weights_digest([first, second])})
    )
    load(CONFIG, "float32", head=folder)
    (folder / "config.json").write_text((TINY.parent / "head" / "config.json").read_text())
    with pytest.raises(UserError, match="truncated or altered"):
        load(CONFIG, "float32", head=folder)
    edited(tmp_path / "again", "head", weights_sha256=None)
    shutil.copy(tmp_path / "again" / "head" / "config.json", folder)
    both = load_file(second) | {sorted(state)[0]: state[sorted(state)[0]]}
    save_file(both, second)
    with pytest.raises(UserError, match="is in another shard, too"):
        load(CONFIG, "float32", head=folder)
    second.unlink()
    with pytest.raises(UserError, match=f"no {second.name} in "):
        load(CONFIG, "float32", head=folder)


@pytest.mark.parametrize("prefix", ["", "medusa_head."])
@pytest.mark.parametrize("file", ["medusa_lm_head.pt", "medusa_lm_head.safetensors", "model.safetensors"])
def test_medusas_own_heads_are_known_by_their_files_where_the_config_does_not_say(file: str, prefix: str, tmp_path: Path) -> None:
    folder = tmp_path / "heads"
    state = {prefix + name: tensor for name, tensor in published(folder).items()}
    (folder / "medusa_lm_head.pt").unlink()
    torch.save(state, folder / file) if file.endswith(".pt") else save_file(state, folder / file)
    (folder / "config.json").write_text(json.dumps({"base_model_name_or_path": "x/y", "rms_norm_eps": 1e-5, "rope_theta": 1e4}))
    assert drafter_kind(folder) == "medusa"
    loaded = load(CONFIG, "float32", head=folder, drafters=["medusa"])
    assert isinstance(loaded.drafter_of("medusa"), PublishedHeadsDrafter)
    with pytest.raises(UserError, match="holds a set of Medusa heads, where tiny should have a draft head"):
        load(CONFIG.model_copy(update={"head": str(folder)}), "float32")
    for said, why in (({"medusa_num_layers": 2}, "medusa_num_layers is 2, and the weights have 1 a head"),
                      ({"medusa_fc_bias": True}, "does not honour medusa_fc_bias = True")):  # fmt: skip
        (folder / "config.json").write_text(json.dumps({"medusa_num_heads": 2} | said))
        with pytest.raises(UserError, match=why):
            load(CONFIG, "float32", head=folder, drafters=["medusa"])
