"""Heads of other projects: every published layout is read to the same tensors, every format gives them back bit by bit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from command_line import harness, isolate, refused
from drafting import close
from eagle3_formula import eagle3_logits, eagle3_states, eagle_logits
from places import TINY
from published_heads import (
    DRAFTED,
    EAGLE3_HEADS,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYER_IDS,
    LAYERS,
    SIZES,
    STRETCH,
    VOCAB,
    Tensors,
    draft_vocabulary,
    eagle3_config,
    eagle3_tensors,
    eagle_tensors,
    folder_of,
    sharded,
    speculators_config,
)
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

from harness.common.errors import UserError
from harness.common.files import sha256_file
from harness.exchange.heads.export_head import export_head
from harness.exchange.heads.formats import FORMATS, format_of
from harness.exchange.heads.head import Head, read_head
from harness.exchange.heads.target import Target
from methods.engine.draft_head import EagleDrafter, EagleHead
from methods.engine.eagle3 import Eagle3Drafter, Eagle3Head
from methods.engine.layer import Linear

TARGET = Target("m", HIDDEN, VOCAB, LAYERS, 64, "org/m")
USUAL = (2, LAYERS // 2, LAYERS - 3)
EAGLE_CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def renamed(tensors: Tensors, *rules: tuple[str, str]) -> Tensors:
    """Names that begin with the first of a rule begin with its second."""
    out = {}
    for name, value in tensors.items():
        old, new = next(((old, new) for old, new in rules if name.startswith(old)), ("", ""))
        out[new + name.removeprefix(old)] = value
    return out


# ---- reading ----------------------------------------------------------------------------------------------------------

BIN = "pytorch_model.bin"
BESIDE = {"embed_tokens.weight": torch.zeros(VOCAB, HIDDEN), "layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
OLD_SPECULATORS = (("fc.", "fusion_fc."), ("layers.0.", "transformer."))

EAGLES: dict[str, Callable[[Path, Tensors], Path]] = {
    "safetensors": lambda folder, t: folder_of(folder, EAGLE_CONFIG, t),
    "bin, with an embedding and a rotary table": lambda folder, t: folder_of(folder, EAGLE_CONFIG, t | BESIDE, BIN),
    "safetensors in shards": lambda folder, t: sharded(folder, EAGLE_CONFIG, t | BESIDE),
    "bin in shards": lambda folder, t: sharded(folder, EAGLE_CONFIG, t, ".bin"),
    "of a trainer": lambda folder, t: folder_of(folder, EAGLE_CONFIG, {"state_dict": t, "epoch": 3}, BIN),
    "of DeepSpeed": lambda folder, t: folder_of(
        folder, EAGLE_CONFIG, {"module": renamed(t | BESIDE, ("", "module.")), "lr_scheduler": {"a": 1}}, BIN
    ),
    "with two prefixes": lambda folder, t: sharded(folder, EAGLE_CONFIG, renamed(t, ("", "module._orig_mod."))),
    "of SGLang": lambda folder, t: folder_of(
        folder, EAGLE_CONFIG | {"architectures": ["LlamaForCausalLMEagle"]}, renamed(t, ("", "model."))
    ),
    "of speculators 0.3": lambda folder, t: folder_of(
        folder, speculators_config("eagle", fusion_bias=True, layernorms=False, architectures=["EagleSpeculator"]),
        renamed(t, *OLD_SPECULATORS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", EAGLES)
def test_an_eagle_head_of_any_layout_is_read_to_the_same_tensors(layout: str, tmp_path: Path) -> None:
    tensors = eagle_tensors()
    head = read_head(EAGLES[layout](tmp_path / "head", tensors), TARGET)
    assert head.kind == "eagle" and same(head.tensors, tensors)
    assert (head.config.hidden_size, head.config.rope_theta, head.config.bias) == (HIDDEN, 500.0, True)


MAPS = ("d2t", "t2d")
EAGLE3S: dict[str, Callable[[Path, Tensors], Path]] = {
    "of SafeAILab": lambda folder, t: folder_of(folder, eagle3_config(fc_norm=True), t, BIN),
    "of SpecForge": lambda folder, t: folder_of(
        folder, eagle3_config(fc_norm=True), t | {"embed_tokens.weight": BESIDE["embed_tokens.weight"]}
    ),
    "of SpecForge's trainer": lambda folder, t: folder_of(
        folder, eagle3_config(fc_norm=True), {"draft_state_dict": renamed(t, ("", "draft_model.")), "step": 3}, BIN
    ),
    "of speculators": lambda folder, t: folder_of(
        folder, speculators_config("eagle3", draft_vocab_size=DRAFTED, fc_norm=True, norm_before_residual=False),
        renamed(t, ("midlayer.", "layers.0.")),
    ),
    "of old SGLang": lambda folder, t: folder_of(
        folder, eagle3_config(use_aux_norm=True),
        {k if k in (*MAPS, "lm_head.weight") else f"model.{k}": v for k, v in renamed(
            t, *((f"fc_norm.{i}", f"aux_norm_{x}") for i, x in enumerate(("low", "mid", "high")))
        ).items()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", EAGLE3S)
def test_an_eagle3_head_of_any_layout_is_read_to_the_same_tensors(layout: str, tmp_path: Path) -> None:
    tensors = eagle3_tensors(fc_norm=True)
    head = read_head(EAGLE3S[layout](tmp_path / "head", tensors), TARGET)
    assert head.eagle3 is not None and same(head.tensors, tensors)
    assert head.eagle3.aux_layers == USUAL and head.eagle3.fc_norm and not head.eagle3.norm_output


def test_a_head_over_the_whole_vocabulary_needs_no_maps(tmp_path: Path) -> None:
    tensors = eagle3_tensors(whole_vocabulary=True)
    config = eagle3_config(draft_vocab_size=VOCAB)
    head = read_head(folder_of(tmp_path / "h", config, {k: v for k, v in tensors.items() if k not in MAPS}), TARGET)
    assert same(head.tensors, tensors)
    bare = {k: v for k, v in eagle3_tensors().items() if k not in MAPS}
    with pytest.raises(UserError, match="missing key 'd2t'"):
        read_head(folder_of(tmp_path / "i", eagle3_config(), bare), TARGET)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_each_key_that_is_missing_or_unknown_is_named(kind: str, tmp_path: Path) -> None:
    config, tensors = (EAGLE_CONFIG, eagle_tensors()) if kind == "eagle" else (eagle3_config(), eagle3_tensors())
    for i, name in enumerate(sorted(tensors)):
        less = {k: v for k, v in tensors.items() if k != name}
        with pytest.raises(UserError, match=f"missing key '{name}'"):
            read_head(folder_of(tmp_path / f"{i}", config, less), TARGET)
    for odd in ("layers.1.mlp.up_proj.weight", "embed_layernorm.weight", "lm_head.bias"):
        with pytest.raises(UserError, match=f"unexpected key '{odd}'"):
            read_head(folder_of(tmp_path / odd, config, tensors | {odd: torch.zeros(2)}), TARGET)
    if kind == "eagle3":
        both = tensors | {"layers.0.mlp.up_proj.weight": torch.zeros(2)}
        with pytest.raises(UserError, match="are both 'midlayer.mlp.up_proj.weight'"):
            read_head(folder_of(tmp_path / "both", config, both), TARGET)


def test_another_shape_or_a_number_that_is_none_is_named(tmp_path: Path) -> None:
    tensors = eagle3_tensors()
    for i, (name, value, why) in enumerate((
        ("fc.weight", torch.zeros(HIDDEN, 2 * HIDDEN), r"fc.weight has shape \[16, 32\], expected \[16, 48\]"),
        ("norm.weight", torch.full((HIDDEN,), torch.nan), "norm.weight holds NaN"),
    )):  # fmt: skip
        with pytest.raises(UserError, match=why):
            read_head(folder_of(tmp_path / f"{i}", eagle3_config(), tensors | {name: value}), TARGET)


def moved(name: str, at: int, by: int) -> Tensors:
    maps = draft_vocabulary()
    maps[name][at] = maps[name][at] + by if name == "d2t" else ~maps[name][at]
    return maps


NO_IDS = "d2t gives no ascending token ids under 40"
IDS = (draft_vocabulary()["d2t"] + torch.arange(DRAFTED)).tolist()


@pytest.mark.parametrize(
    ("maps", "why"),
    [
        (moved("d2t", 5, -IDS[5] - 1), NO_IDS),
        (moved("d2t", 11, VOCAB - IDS[11]), NO_IDS),
        (moved("d2t", 3, IDS[4] - IDS[3]), NO_IDS),
        (moved("t2d", IDS[0], 0), "t2d marks other tokens than d2t gives"),
        (draft_vocabulary() | {"t2d": draft_vocabulary(1)["t2d"]}, "t2d marks other tokens than d2t gives"),
        (draft_vocabulary() | {"d2t": torch.zeros(DRAFTED + 1, dtype=torch.long)}, r"d2t has shape \[13\], expected \[12\]"),
        (draft_vocabulary() | {"d2t": torch.zeros(DRAFTED)}, "d2t holds whole numbers and t2d truth values, not torch.float32"),
    ],
)  # fmt: skip
def test_maps_of_the_vocabulary_that_disagree_are_refused(maps: Tensors, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        read_head(folder_of(tmp_path / "h", eagle3_config(), eagle3_tensors() | maps), TARGET)


def test_a_head_for_another_target_is_refused_with_both_sizes(tmp_path: Path) -> None:
    for name, config, tensors in (("a", EAGLE_CONFIG, eagle_tensors()), ("b", eagle3_config(), eagle3_tensors())):
        folder = folder_of(tmp_path / name, config, tensors)
        for target in (Target("m", 32, VOCAB, LAYERS, 64, "x"), Target("m", HIDDEN, 41, LAYERS, 64, "x")):
            why = f"hidden size 16 and 40 tokens; m has {target.hidden_size} and {target.vocab_size}"
            with pytest.raises(UserError, match=why):
                read_head(folder, target)
    wide = folder_of(tmp_path / "c", eagle3_config(target_hidden_size=32), eagle3_tensors())
    with pytest.raises(UserError, match="target_hidden_size is 32 and hidden_size 16"):
        read_head(wide, TARGET)
    with pytest.raises(UserError, match=r"a target of 6 layers has no usual three \(2, 3, 3\)"):
        read_head(folder_of(tmp_path / "d", eagle3_config(), eagle3_tensors()), Target("m", HIDDEN, VOCAB, 6, 64, "x"))


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (eagle3_config(eagle_config={LAYER_IDS: [1, 5, 8]}), USUAL),  # SpecForge's own default, and SGLang's: layers' outputs
        (eagle3_config(eagle_config={LAYER_IDS: [0, 5, 10]}), (1, 6, 11)),
        (eagle3_config(aux_hidden_states=[1, 6, 12]), (1, 6, 12)),  # ours: transformers' numbers
        (eagle3_config(**{LAYER_IDS: [1, 5, 8]}), (1, 5, 8)),  # vLLM: transformers' numbers
        (eagle3_config(**{LAYER_IDS: [2, 6, 9]}, eagle_config={LAYER_IDS: [1, 5, 8]}), USUAL),
        (eagle3_config(**{LAYER_IDS: [2, 6, 9]}, eagle_config={LAYER_IDS: [2, 6, 9]}), USUAL),
        (eagle3_config(eagle_config={LAYER_IDS: []}), USUAL),
        (speculators_config("eagle3", draft_vocab_size=DRAFTED, norm_before_residual=False, **{LAYER_IDS: [1, 5, 8]}), (1, 5, 8)),
    ],
)  # fmt: skip
def test_hidden_states_are_counted_as_whoever_wrote_the_file_does(config: dict, layers: tuple[int, ...], tmp_path: Path) -> None:
    tensors = eagle3_tensors()
    if "speculators_model_type" in config:
        tensors = renamed(tensors, ("midlayer.", "layers.0."))
    head = read_head(folder_of(tmp_path / "h", config, tensors), TARGET)
    assert head.eagle3 is not None and head.eagle3.aux_layers == layers


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (eagle3_config(**{LAYER_IDS: [2, 6, 9]}, eagle_config={LAYER_IDS: [0, 5, 8]}), r"\[2, 6, 9\], and .* is \[0, 5, 8\]"),
        (eagle3_config(**{LAYER_IDS: [2, 6, 12]}), "names what comes after the last of 12 layers, which others take before"),
        (eagle3_config(eagle_config={LAYER_IDS: [0, 5, 11]}), "names what comes after the last of 12 layers"),
        (eagle3_config(**{LAYER_IDS: [2, 6, 13]}), r"\[2, 6, 13\]; it must be hidden states of the target, ascending, from 0 to"),
        (eagle3_config(**{LAYER_IDS: [2, "6", 9]}), "must be a list of layers"),
        (eagle3_config(eagle_config={"use_aux_hidden_state": False}), "use_aux_hidden_state is False"),
        (eagle3_config(eagle_config={"layer_ids": [1]}), r"does not honour layer_ids = \[1\]"),
        (eagle3_config(num_aux_hidden_states=4), "num_aux_hidden_states is 4, and .* names 3"),
        (eagle3_config(norm_output="yes"), "norm_output is 'yes'; it must be true or false"),
        (eagle3_config(attention_bias=True), "does not honour attention_bias = True"),
        (eagle3_config(architectures=["Eagle3Qwen3ForCausalLM"]), "has the layer of a LLaMA"),
        (speculators_config("mtp"), "speculators_model_type is 'mtp'; those read here are eagle and eagle3"),
        (speculators_config("eagle3", draft_vocab_size=DRAFTED), "lacks 'norm_before_residual', which is false to speculators"),
        (speculators_config("eagle3", {"model_type": "qwen3"}), "model_type of its layer is 'qwen3'"),
        (speculators_config("eagle3", norm_before_residual=False, embed_requires_grad=True), "has an embedding of its own"),
        (speculators_config("eagle", layernorms=True), "layernorms is true"),
        (speculators_config("eagle", transformer_layer_architecture="MixtralDecoderLayer"), "has the layer of a LLaMA"),
        ({"architectures": ["MedusaHeads"], "medusa_num_heads": 2}, "holds a set of Medusa heads"),
    ],
)  # fmt: skip
def test_what_a_config_says_that_is_not_computed_here_is_refused(config: dict, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        read_head(folder_of(tmp_path / "h", config, eagle3_tensors()), TARGET)


class Bomb:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_no_code_in_a_pickle_is_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for i, held in enumerate((eagle_tensors() | {"x": Bomb(made)}, {"state_dict": eagle_tensors(), "args": Bomb(made)})):
        with pytest.raises(UserError, match="truncated or altered"):
            read_head(folder_of(tmp_path / f"{i}", EAGLE_CONFIG, held, BIN), TARGET)
    assert not made.exists()
    with pytest.raises(UserError, match="something else than tensors by name"):
        read_head(folder_of(tmp_path / "two", EAGLE_CONFIG, {"model": eagle_tensors(), "module": {}}, BIN), TARGET)


# ---- writing ----------------------------------------------------------------------------------------------------------

BF16 = torch.bfloat16
HEADS_OF: dict[str, tuple[dict[str, Any], Tensors]] = {
    "eagle": (EAGLE_CONFIG, eagle_tensors(dtype=BF16)),
    "eagle, no bias": (EAGLE_CONFIG | {"bias": False}, eagle_tensors(bias=False)),
    "eagle, wide heads": (EAGLE_CONFIG | {"bias": False, "head_dim": 8, "rope_scaling": STRETCH}, eagle_tensors(False, 8)),
    **EAGLE3_HEADS,
    "eagle3, the embedding": (eagle3_config(**{LAYER_IDS: [0, 6, 11]}), eagle3_tensors()),
    "eagle3, the last state": (eagle3_config(aux_hidden_states=[2, 6, 12]), eagle3_tensors()),
}  # fmt: skip

# of each head the formats that hold it, in order of `FORMATS`, and why another does not
FITS: dict[str, tuple[str, dict[str, str]]] = {
    "eagle": ("eagle sglang", {"vllm": "its fc has a bias, which vLLM does not compute", "eagle3": "reads three hidden states",
                               "specforge": "SpecForge trains none", "speculators": "0.2 to 0.6"}),
    "eagle, no bias": ("eagle vllm sglang", {}),
    "eagle, wide heads": ("vllm sglang", {"eagle": "4 attention heads have head_dim 8, with hidden_size 16"}),
    "eagle3": ("eagle3 specforge speculators vllm sglang", {"eagle": "its fc reads one feature"}),
    "eagle3, fc_norm": ("specforge speculators vllm sglang", {"eagle3": "head_dim 8"}),
    "eagle3, other layers": ("specforge speculators vllm sglang", {"eagle3": "hidden states 1, 6, 11, not the usual 2, 6, 9"}),
    "eagle3, of the vocabulary": ("eagle3 specforge speculators vllm sglang", {}),
    "eagle3, fed back normed": ("speculators vllm sglang", {"specforge": "norm_output is true", "eagle3": "fc_norm is true"}),
    "eagle3, normed residual": ("speculators vllm", {"sglang": "norm_before_residual is true", "specforge": "before_residual"}),
    "eagle3, normed before fc": ("speculators vllm sglang", {"specforge": "norm_before_fc is true"}),
    "eagle3, the embedding": ("speculators vllm", {"sglang": "of 12 layers it can be told 1 to 11"}),
    "eagle3, the last state": ("", {"sglang": "of 12 layers it can be told 1 to 11", **dict.fromkeys(
        ("vllm", "speculators"), "hidden states 2, 6, 12, the last of them after the target's final norm, which")}),
}  # fmt: skip


def head_of(name: str, folder: Path) -> Head:
    return read_head(folder_of(folder, *HEADS_OF[name]), TARGET)


def written(name: str, folder: Path, head: Head, levels: int = 6) -> Path:
    return folder_of(folder, *format_of(name).written(head, TARGET, levels))


@pytest.mark.parametrize("name", HEADS_OF)
def test_every_format_that_holds_a_head_gives_it_back_bit_by_bit_and_others_say_why_not(name: str, tmp_path: Path) -> None:
    head = head_of(name, tmp_path / "own")
    assert same(head.tensors, HEADS_OF[name][1])
    fits, others = FITS[name]
    for format_ in FORMATS:
        if format_ not in fits.split():
            with pytest.raises(UserError, match=others.get(format_, "does not fit")):
                written(format_, tmp_path / format_, head)
            continue
        again = read_head(written(format_, tmp_path / format_, head), TARGET)
        added = {"fc.bias"} if format_ == "sglang" and head.eagle3 is None else set()
        assert same({k: v for k, v in again.tensors.items() if k in head.tensors or k not in added}, head.tensors), format_
        assert not again.tensors.get("fc.bias", torch.zeros(1)).any() or "fc.bias" in head.tensors
        assert again.eagle3 == head.eagle3, format_
        sizes = [(h.config.head_dim, h.config.rope_theta, h.config.rope_scaling, h.config.rms_norm_eps) for h in (head, again)]
        assert sizes[0] == sizes[1]


def test_a_bias_of_zeros_is_none_and_sglang_gets_one(tmp_path: Path) -> None:
    head = head_of("eagle, no bias", tmp_path / "own")
    folder = written("sglang", tmp_path / "s", head)
    bias = load_file(folder / "model.safetensors")["fc.bias"]
    assert bias.shape == (HIDDEN,) and not bias.any() and json.loads((folder / "config.json").read_text())["bias"] is True
    back = read_head(written("vllm", tmp_path / "v", read_head(folder, TARGET)), TARGET)
    assert same(back.tensors, head.tensors) and not back.config.bias


def test_norm_output_is_written_where_it_has_one_meaning_and_left_out_where_it_has_two(tmp_path: Path) -> None:
    head = head_of("eagle3", tmp_path / "own")
    for format_ in ("eagle3", "speculators", "vllm", "sglang"):
        assert format_of(format_).written(head, TARGET, 6)[0]["norm_output"] is False
    assert "norm_output" not in format_of("specforge").written(head, TARGET, 6)[0]


def test_hidden_states_are_written_as_their_reader_counts_them(tmp_path: Path) -> None:
    usual, other = head_of("eagle3", tmp_path / "a"), head_of("eagle3, other layers", tmp_path / "b")
    for format_ in ("vllm", "speculators"):
        assert format_of(format_).written(usual, TARGET, 6)[0][LAYER_IDS] == list(USUAL)
        assert format_of(format_).written(other, TARGET, 6)[0][LAYER_IDS] == [1, 6, 11]
    for format_ in ("specforge", "sglang"):
        assert LAYER_IDS not in format_of(format_).written(usual, TARGET, 6)[0]["eagle_config"]
        assert format_of(format_).written(other, TARGET, 6)[0]["eagle_config"][LAYER_IDS] == [0, 5, 10]


@pytest.mark.parametrize("name", ["eagle, wide heads", "eagle3, fc_norm", "eagle3"])
def test_transformers_reads_what_is_written(name: str, tmp_path: Path) -> None:
    head = head_of(name, tmp_path / "own")
    for format_ in FITS[name][0].split():
        values = format_of(format_).written(head, TARGET, 6)[0]
        config = LlamaConfig(**values.get("transformer_layer_config", values))
        rope = config.rope_parameters
        stretch = head.config.rope_scaling or {"rope_type": "default", "rope_theta": 500.0}
        assert rope == rope | stretch, format_
        assert (config.hidden_size, config.head_dim, config.num_key_value_heads) == (HIDDEN, head.config.head_dim, KV_HEADS)
        assert (config.vocab_size, config.num_hidden_layers, config.rms_norm_eps) == (VOCAB, 1, 1e-5)
        if format_ != "speculators":
            assert config.architectures == values["architectures"]


# ---- the formulas -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("name", ["eagle, no bias", "eagle"])
def test_a_drafter_of_what_is_read_back_computes_the_formula(name: str, tmp_path: Path) -> None:
    config, tensors = HEADS_OF[name]
    rng = torch.Generator().manual_seed(5)
    embedding, lm_head = (torch.randn(VOCAB, HIDDEN, generator=rng, dtype=torch.float64) for _ in range(2))
    features = torch.randn(9, HIDDEN, generator=rng, dtype=torch.float64)
    tokens = torch.randint(VOCAB, (9,), generator=rng).tolist()
    for format_ in FITS[name][0].split():
        again = read_head(written(format_, tmp_path / format_, head_of(name, tmp_path / "own")), TARGET)
        module = EagleHead(again.config).double()
        module.load_state_dict({k: v.double() for k, v in again.tensors.items()})
        drafter = EagleDrafter(module, embedding, Linear(lm_head))
        drafter.start(40)
        drafter.observe(tokens, features)
        assert close(drafter.root_logits()[0], eagle_logits(tensors, config, embedding, lm_head, tokens, features, []))
        drafter.expand(torch.tensor([3]), torch.tensor([-1]), torch.ones(1, 1, dtype=torch.bool))
        logits = drafter.expand(torch.tensor([7]), torch.tensor([0]), torch.ones(1, 2, dtype=torch.bool))
        assert close(logits[0], eagle_logits(tensors, config, embedding, lm_head, tokens, features, [3, 7]))


@torch.inference_mode()
@pytest.mark.parametrize("name", [name for name in HEADS_OF if name.startswith("eagle3,") and FITS[name][0]])
def test_an_eagle3_drafter_of_what_is_read_back_computes_the_formula(name: str, tmp_path: Path) -> None:
    config, tensors = HEADS_OF[name]
    rng = torch.Generator().manual_seed(5)
    embedding, states = (torch.randn(*size, generator=rng).double() for size in ((VOCAB, HIDDEN), (9, 3 * HIDDEN)))
    tokens = torch.randint(VOCAB, (9,), generator=rng).tolist()
    for format_ in FITS[name][0].split():
        again = read_head(written(format_, tmp_path / format_, head_of(name, tmp_path / "own")), TARGET)
        assert again.eagle3 is not None
        near = close if again.config.rope_scaling is None else nearly  # transformers stretches in float32
        module = Eagle3Head(again.eagle3).double()
        module.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in again.tensors.items()})
        drafter = Eagle3Drafter(module, embedding, Linear(embedding))
        drafter.start(40)
        drafter.observe(tokens, states)
        assert near(drafter.root_logits()[0], eagle3_logits(tensors, config, embedding, tokens, states, []))
        drafter.expand(torch.tensor([3]), torch.tensor([-1]), torch.ones(1, 1, dtype=torch.bool))
        logits = drafter.expand(torch.tensor([7]), torch.tensor([0]), torch.ones(1, 2, dtype=torch.bool))
        assert near(logits[0], eagle3_logits(tensors, config, embedding, tokens, states, [3, 7]))


def nearly(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-5)


class MidLayer(nn.Module):
    """The layer of EAGLE-3 out of transformers' modules."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.self_attn = LlamaAttention(config, 0)
        for name, size in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            setattr(self.self_attn, f"{name}_proj", nn.Linear(2 * HIDDEN, size * config.head_dim, bias=False))
        self.mlp = LlamaMLP(config)
        for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm"):
            setattr(self, name, LlamaRMSNorm(HIDDEN, config.rms_norm_eps))
        self.rotary = LlamaRotaryEmbedding(config)

    def forward(self, embedded: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        n = len(h)
        mask = torch.full((n, n), torch.finfo(h.dtype).min, dtype=h.dtype).triu(1)[None, None]
        read = torch.cat([self.input_layernorm(embedded), self.hidden_norm(h)], dim=-1)[None]
        x = h + self.self_attn(read, self.rotary(read, torch.arange(n)[None]), mask)[0][0]
        return x + self.mlp(self.post_attention_layernorm(x))


@torch.inference_mode()
@pytest.mark.parametrize("stretch", [None, STRETCH, {"rope_type": "linear", "factor": 4.0}], ids=["plain", "llama3", "linear"])
def test_the_formula_of_eagle3_is_transformers_layer_with_a_wide_attention(stretch: dict | None) -> None:
    config, tensors = eagle3_config(rope_scaling=stretch), eagle3_tensors(dtype=torch.float64)
    layer = MidLayer(LlamaConfig(**config, attn_implementation="eager")).double()
    own = {k.removeprefix("midlayer."): v for k, v in tensors.items() if k.startswith("midlayer.")}
    layer.load_state_dict(own, strict=True)
    rng = torch.Generator().manual_seed(3)
    embedded, h = (torch.randn(8, HIDDEN, generator=rng, dtype=torch.float64) for _ in range(2))
    assert float((layer(embedded, h) - eagle3_states(tensors, config, embedded, h)).abs().max()) < 1e-5  # norms round to float32


@torch.inference_mode()
def test_what_is_fed_back_is_the_layers_output_and_a_column_is_a_token_of_the_map() -> None:
    tensors, rng = eagle3_tensors(dtype=torch.float64), torch.Generator().manual_seed(3)
    embedding, states = torch.randn(VOCAB, HIDDEN, generator=rng).double(), torch.randn(5, 3 * HIDDEN, generator=rng).double()
    tokens, config = [4, 9, 1, 30, 7], eagle3_config()
    logits = eagle3_logits(tensors, config, embedding, tokens, states, [3])
    h = states @ tensors["fc.weight"].T
    out = eagle3_states(tensors, config, embedding[tokens], h)
    fed = torch.cat([h, out[-1:]])
    last = eagle3_states(tensors, config, embedding[[*tokens, 3]], fed)[-1]
    normed = F.rms_norm(last, (HIDDEN,), tensors["norm.weight"], 1e-5)
    assert logits.shape == (DRAFTED,) and close(logits, normed @ tensors["lm_head.weight"].T)
    normed_back = eagle3_logits(tensors, config | {"norm_output": True}, embedding, tokens, states, [3])
    assert not close(normed_back, logits)


# ---- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_how_to_serve_what_it_wrote(tmp_path: Path) -> None:
    own = TINY.parent / "head"
    done = harness("export-head", own, "--model", TINY, "--format sglang --out", tmp_path / "s", "--target org/tiny")
    assert done.code == 0, done.err
    assert (
        "python -m sglang.launch_server --model-path org/tiny --speculative-algorithm EAGLE --speculative-draft-model-path "
        f"{tmp_path / 's'} --speculative-num-steps 6 --speculative-eagle-topk 10 --speculative-num-draft-tokens 60"
    ) in done.out
    done = harness("export-head", own, "--model", TINY, "--format eagle --out", tmp_path / "e")
    assert "use_eagle3=False, total_token=60, depth=5, top_k=10" in done.out
    assert same(load_file(tmp_path / "e" / "model.safetensors"), load_file(own / "model.safetensors"))
    tiny, at = ("--model", TINY), ("--out", tmp_path / "v")
    refused(harness("export-head", own, *tiny, "--format vllm", *at), "its fc has a bias")
    refused(harness("export-head", own, *tiny, "--format gguf", *at), "format of heads 'gguf'", "sglang")
    both = "hidden size 64 and 384 tokens; vicuna-7b has 4096 and 32000"
    refused(harness("export-head", own, "--model vicuna-7b --format sglang", *at), both)
    written = tmp_path / "e"
    refused(harness("export-head", written, *tiny, "--format eagle --out", written), "the head's own folder")
    refused(harness("export-head", tmp_path, *tiny, "--format eagle", *at), "no draft head for tiny")
    shallow = TINY.parent / "eagle3"  # of two layers, all of whose hidden states it reads
    refused(harness("export-head", shallow, *tiny, "--format sglang", *at), "of 2 layers it can be told 1 to 1")
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("kind", ["head", "eagle3"])
def test_a_head_that_names_another_target_is_not_exported(kind: str, tmp_path: Path) -> None:
    own = TINY.parent / kind
    values = json.loads((own / "config.json").read_text()) | {"target_sha256": "0" * 64}
    folder = folder_of(tmp_path / "other", values, load_file(own / "model.safetensors"))
    values["weights_sha256"] = sha256_file(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values))
    refused(harness("export-head", folder, "--model", TINY, "--format sglang --out", tmp_path / "s"),
            "was trained for a target with sha256 0000000000000000..; tiny has")  # fmt: skip
    assert read_head(folder, Target("m", 64, 384, 2, 64, "x")).target_sha == "0" * 64  # the target's weights are not here


def test_what_serves_an_eagle3_head(tmp_path: Path) -> None:
    from harness.exchange.heads.export_head import how_to_serve

    head = head_of("eagle3", tmp_path / "own")
    tree = {"top_k": 10, "depth": 6, "total": 59}
    fits = FITS["eagle3"][0].split()
    said = {name: "\n".join(how_to_serve(format_of(name), head, TARGET, tmp_path / name, **tree)) for name in fits}
    spec = json.loads(said["vllm"].split("--speculative-config '")[1].split("'")[0])
    assert spec == {"method": "eagle3", "model": str(tmp_path / "vllm"), "num_speculative_tokens": 6}
    assert "--speculative-algorithm EAGLE3" in said["sglang"] and "--speculative-num-draft-tokens 60" in said["sglang"]
    assert "use_eagle3=True" in said["eagle3"]
    values = format_of("speculators").written(head, TARGET, 6)[0]
    (method,) = values["speculators_config"]["proposal_methods"]
    assert method["speculative_tokens"] == 6 and values["speculators_config"]["verifier"] == {
        "name_or_path": "org/m", "architectures": ["LlamaForCausalLM"],
    }  # fmt: skip


def test_an_embedding_in_the_file_is_left_out_and_told_and_one_of_another_shape_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "own", eagle3_config(), eagle3_tensors() | {"embed_tokens.weight": torch.zeros(VOCAB, HIDDEN)})
    head = read_head(folder, TARGET)
    assert head.has_embedding and "embed_tokens.weight" not in format_of("sglang").written(head, TARGET, 6)[1]
    odd = folder_of(tmp_path / "odd", eagle3_config(), eagle3_tensors() | {"embed_tokens.weight": torch.zeros(7, 5)})
    with pytest.raises(UserError, match=r"embed_tokens.weight has shape \[7, 5\]"):
        read_head(odd, TARGET)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="holds pytorch_model.bin, which may be loaded"):
        export_head(TINY.parent / "head", "eagle", out, str(TINY))
    assert [path.name for path in out.iterdir()] == ["pytorch_model.bin"]
