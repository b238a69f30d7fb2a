"""The lean forward and its packed layers: the same numbers as transformers' module, by every route."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from places import TINY
from tiny_model import shared_tiny_model
from torch import Tensor
from transformers import LlamaForCausalLM

from methods.engine import layer
from methods.engine.layer import DecoderLayer, Linear, Norm, rotary_rows
from methods.engine.llama import LlamaTarget, is_lean
from methods.engine.target import HFTarget
from methods.engine.tree import Tree

DTYPES = [torch.float32, torch.bfloat16]
TREE = Tree([7, 8, 9, 10, 11, 12], [-1, 0, 0, 1, 1, 3])


def tiny(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(TINY.parent / "target", dtype=dtype).eval()


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return shared_tiny_model("float64").prompts[0][:90]


def everything(target: HFTarget, prompt: list[int]) -> list[Tensor]:
    """Features and logits of a prefill, a step, a tree, and of what follows when a path of it is kept."""
    found = [*target.prefill(prompt, 40), target.step(5), *target.verify(TREE)]
    target.commit([0, 1, 3])
    found += target.verify(Tree([3, 4], [-1, 0]))
    target.commit([0])
    return [*found, target.step(6)]


@pytest.mark.parametrize("packed", [True, False])
def test_the_lean_forward_is_transformers_forward(packed: bool, prompt: list[int]) -> None:
    torch.set_num_threads(1)
    lean = everything(LlamaTarget(tiny(), packed), prompt)
    for ours, theirs in zip(lean, everything(HFTarget(tiny()), prompt), strict=True):
        assert ours.shape == theirs.shape and close(ours, theirs)


def test_in_bfloat16_the_lean_forward_is_as_near_to_the_truth_as_transformers(prompt: list[int]) -> None:
    """What is measured in bfloat16 rounds elsewhere than transformers' module does, and by no more."""
    truth = everything(HFTarget(tiny()), prompt)

    def error(target: HFTarget) -> float:
        found = everything(target, prompt)
        return sum(
            float((ours.float() - exact).abs().mean() / exact.abs().mean()) for ours, exact in zip(found, truth, strict=True)
        )

    theirs = error(HFTarget(tiny(torch.bfloat16)))
    assert 0 < error(LlamaTarget(tiny(torch.bfloat16))) < 1.2 * theirs


def test_a_second_longer_prompt_gets_longer_rotary_tables(prompt: list[int]) -> None:
    lean, stock = LlamaTarget(tiny()), HFTarget(tiny())
    for n in (20, 700, 90):
        ids = (prompt * 8)[:n]
        assert close(lean.prefill(ids, 4)[1], stock.prefill(ids, 4)[1])


@pytest.mark.parametrize(
    "change",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        {"quantization_config": {"quant_method": "gptq"}},
    ],
)
def test_what_the_lean_forward_does_not_know_it_does_not_take(change: dict) -> None:
    model = tiny()
    model.config = copy.deepcopy(model.config)
    for name, value in change.items():
        setattr(model.config, name, value)
    assert not is_lean(model)
    with pytest.raises(ValueError, match="no lean forward"):
        LlamaTarget(model)


def spoil(model: LlamaForCausalLM, what: str) -> None:
    layer = model.model.layers[1]
    if what == "bias":
        layer.self_attn.o_proj.bias = torch.nn.Parameter(torch.ones(64))
    elif what == "activation":
        layer.mlp.act_fn = torch.nn.GELU()
    elif what == "eps":
        layer.post_attention_layernorm.variance_epsilon = 1e-3
    elif what == "another class of layer":
        layer.mlp.up_proj = torch.nn.Sequential(layer.mlp.up_proj)
    else:
        model.lm_head.double()


@pytest.mark.parametrize("what", ["bias", "activation", "eps", "another class of layer", "another dtype"])
def test_a_model_whose_modules_are_not_what_its_config_says_is_not_lean(what: str) -> None:
    model = tiny()
    assert is_lean(model)
    spoil(model, what)
    assert not is_lean(model)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 60])
def test_a_packed_matmul_is_the_plain_one(dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    w, b, x, other = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((96, 64), (96,), (rows, 64), (rows, 96)))
    packed, plain = Linear(w, b), Linear(w, b, packed=False)
    exact = F.linear(x.double(), w.double(), b.double())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for options, wanted in (
        ({}, exact), ({"silu": True}, F.silu(exact)), ({"plus": other}, exact + other), ({"times": other}, exact * other),
    ):  # fmt: skip
        for linear in (packed, plain):
            assert close(linear(x, **options).double(), wanted, tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_a_fused_norm_is_the_plain_one(dtype: torch.dtype, size: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x, w = (size * torch.randn(60, 96, generator=generator)).to(dtype), torch.randn(96, generator=generator).to(dtype)
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w.double()
    for norm in (Norm(w, 1e-5), Norm(w, 1e-5, packed=False)):
        assert norm(x).dtype == dtype and close(norm(x).double(), exact, 1e-6 if dtype == torch.float32 else 8e-3)
        assert close(norm(x[0]).double(), exact[0], 1e-6 if dtype == torch.float32 else 8e-3)


def test_weights_are_packed_where_torch_can_and_plain_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.randn(8, 8)
    assert Linear(w.double()).packed is None and Linear(w.half()).packed is None
    monkeypatch.setattr(layer, "_can_pack", lambda dtype: False)
    assert Linear(w).packed is None
    x = torch.randn(2, 8)
    assert close(Linear(w)(x, silu=True), F.silu(x @ w.T))


def test_a_torch_without_the_packed_operator_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: object) -> Tensor:
        raise RuntimeError("no such operator")

    layer._can_pack.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", gone)
    assert not layer._can_pack(torch.float32)
    layer._can_pack.cache_clear()


@torch.inference_mode()
def test_a_rotation_is_the_usual_one() -> None:
    generator = torch.Generator().manual_seed(1)
    x, cos, sin = (torch.randn(5, n, 8, generator=generator) for n in (3, 1, 1))
    turned = torch.cat([-x[..., 4:], x[..., :4]], dim=-1)
    c, s = rotary_rows(cos[:, 0], sin[:, 0])
    assert close(torch.addcmul(x * c, x.roll(4, -1), s), x * cos + turned * sin)


@torch.inference_mode()
def test_a_layer_hands_queries_keys_and_values_to_attention() -> None:
    """With values as the attention's result a layer is its projections alone."""
    module = tiny().model.layers[0]
    ours = DecoderLayer(module, 4, 2, 1e-5)
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    ones, zeros = rotary_rows(torch.ones(6, 16), torch.zeros(6, 16))
    seen: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.extend([q, k, v])
        return v.repeat_interleave(2, dim=0).transpose(0, 1).reshape(6, -1)

    out = ours(x, (ones, zeros), attend)
    h = module.input_layernorm(x)
    q, k, v = (
        p(h).view(6, -1, 16).transpose(0, 1) for p in (module.self_attn.q_proj, module.self_attn.k_proj, module.self_attn.v_proj)
    )
    assert all(close(a, b) for a, b in zip(seen, (q, k, v), strict=True))
    y = x + module.self_attn.o_proj(v.repeat_interleave(2, dim=0).transpose(0, 1).reshape(6, -1))
    assert close(out, y + module.mlp(module.post_attention_layernorm(y)))
