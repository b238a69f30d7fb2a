"""The EAGLE head drafting with its cache, against the head written out slowly and run over every path from the start."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from drafting import close, expand_in_levels
from hypothesis import HealthCheck, given, settings
from random_llamas import tiny_llama
from tiny_model import TinyModel, shared_tiny_model
from torch import Tensor

from harness.audit.probe.stand_ins import texts_of
from methods.engine.draft_head import EagleDrafter, EagleHead, HeadConfig
from methods.engine.layer import Linear
from methods.engine.llama import LlamaTarget
from methods.engine.tree import Tree

PROMPT = 20


def rotated(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x [heads, n, d]: component j and j + d/2 as a complex number, turned by position * theta^(-2j/d)."""
    half = x.shape[-1] // 2
    angle = positions[:, None].double() * theta ** (-2.0 * torch.arange(half, dtype=torch.float64) / x.shape[-1])
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def slow_forward(head: EagleHead, embedding: Tensor, tokens: list[int], features: Tensor) -> Tensor:
    """Pairs (f_i, t_{i+1}) for i = 0 .. n-1 -> predicted features [n, hidden]; positions are i, attention is causal."""
    c, w = head.config, head.state_dict()
    x = torch.cat([embedding[tokens], features], dim=-1) @ w["fc.weight"].T
    if c.bias:
        x = x + w["fc.bias"]
    n, d = len(tokens), c.head_dim

    def projected(name: str) -> Tensor:
        return (x @ w[f"layers.0.self_attn.{name}_proj.weight"].T).view(n, -1, d).transpose(0, 1)

    q, k = (rotated(projected(name), torch.arange(n), c.rope_theta) for name in "qk")
    v = projected("v")
    heads = []
    for h in range(c.num_attention_heads):
        kv = h * c.num_key_value_heads // c.num_attention_heads
        scores = (q[h] @ k[kv].T / d**0.5).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v[kv])
    x = x + torch.cat(heads, dim=-1) @ w["layers.0.self_attn.o_proj.weight"].T  # no norm before the attention
    normed = x / (x.pow(2).mean(-1, keepdim=True) + c.rms_norm_eps).sqrt() * w["layers.0.post_attention_layernorm.weight"]
    gate, up = (normed @ w[f"layers.0.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
    return x + (F.silu(gate) * up) @ w["layers.0.mlp.down_proj.weight"].T  # and none after it


def slow_logits(head: EagleHead, target: object, tokens: list[int], features: Tensor, drafted: list[int]) -> Tensor:
    """Logits after `drafted`, its features being the head's own predictions; one whole forward a token."""
    for token in drafted:
        predicted = slow_forward(head, target.embedding, tokens, features)[-1:]  # type: ignore[attr-defined]
        tokens, features = [*tokens, token], torch.cat([features, predicted])
    logits: Tensor = target.lm_head(slow_forward(head, target.embedding, tokens, features)[-1:])[0]  # type: ignore[attr-defined]
    return logits


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[int, Tree]]:
    """For each step how many pairs are observed, and what is drafted from there."""
    out = []
    for _ in range(draw(st.integers(1, 3))):
        n = draw(st.integers(2, 8))
        parents = [-1, *(draw(st.integers(0, i - 1)) for i in range(1, n))]
        out.append((draw(st.integers(1, 4)), Tree([draw(st.integers(3, 383)) for _ in range(n)], parents)))
    return out


@given(steps=steps())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@torch.inference_mode()
def test_drafting_in_steps_and_levels_is_the_head_over_every_whole_path(steps: list[tuple[int, Tree]], tiny: TinyModel) -> None:
    drafter, target = tiny.loaded.drafter, tiny.loaded.target
    assert drafter is not None
    text = tiny.prompts[1][: PROMPT + 13]
    features, _ = target.prefill(text, 1)
    seen = PROMPT
    drafter.start(80)
    drafter.observe(text[1 : seen + 1], features[:seen])
    for n_new, tree in steps:
        drafter.observe(text[seen + 1 : seen + n_new + 1], features[seen : seen + n_new])
        seen += n_new
        pairs = text[1 : seen + 1], features[:seen]
        assert close(drafter.root_logits()[0], slow_logits(drafter.head, target, *pairs, []))
        for node, logits in expand_in_levels(drafter, tree).items():
            assert close(logits, slow_logits(drafter.head, target, *pairs, list(texts_of(tree)[node][1:])))
        assert close(drafter.root_logits()[0], slow_logits(drafter.head, target, *pairs, []))  # still the root's


@torch.inference_mode()
def test_a_long_prompt_after_a_short_one_and_back(tiny: TinyModel) -> None:
    drafter, target = tiny.loaded.drafter, tiny.loaded.target
    assert drafter is not None
    for n in (5, 400, 1, 30):
        text = tiny.prompts[8][: n + 1]
        features, _ = target.prefill(text, 1)
        drafter.start(n + 40)
        drafter.observe(text[1:], features[:n])
        assert close(drafter.root_logits()[0], slow_logits(drafter.head, target, text[1:], features[:n], []))


@pytest.mark.parametrize(
    "changes", [{"bias": False}, {"num_key_value_heads": 4}, {"rope_theta": 500.0}, {"rms_norm_eps": 0.5}, {"head_dim": 32}]
)
@torch.inference_mode()
def test_the_head_is_what_its_config_says(changes: dict[str, float], tiny: TinyModel) -> None:
    assert tiny.loaded.drafter is not None
    config: HeadConfig = replace(tiny.loaded.drafter.head.config, **changes)
    torch.manual_seed(0)
    head, target = EagleHead(config).double(), tiny.loaded.target
    assert ("fc.bias" in head.state_dict()) == config.bias
    drafter = EagleDrafter(head, target.embedding, target.lm_head)
    text = tiny.prompts[1][:12]
    features, _ = target.prefill(text, 1)
    drafter.start(40)
    drafter.observe(text[1:], features[:-1])
    logits = expand_in_levels(drafter, Tree([text[-1], 7, 8, 9], [-1, 0, 0, 2]))
    assert close(logits[3], slow_logits(head, target, text[1:], features[:-1], [8, 9]))


def test_the_head_has_the_parameters_of_the_published_checkpoints(tiny: TinyModel) -> None:
    assert tiny.loaded.drafter is not None
    projections = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    layer = [f"layers.0.{name}.weight" for name in [*projections, "post_attention_layernorm"]]
    assert set(tiny.loaded.drafter.head.state_dict()) == {"fc.weight", "fc.bias", *layer}


def test_rotary_angles_are_position_times_frequency_in_double_precision(tiny: TinyModel) -> None:
    assert tiny.loaded.drafter is not None
    head = tiny.loaded.drafter.head
    d, theta = head.config.head_dim, head.config.rope_theta
    positions = torch.tensor([0, 1, 31, 100_000])
    cos, sin = head.rotary(positions, torch.float64)
    assert cos.shape == (4, d)
    for i, position in enumerate(positions.tolist()):
        for j in range(d):
            angle = torch.tensor(position * theta ** (-2.0 * (j % (d // 2)) / d), dtype=torch.float64)
            assert close(cos[i, j], angle.cos()) and close(sin[i, j], angle.sin())
    # float32 positions times float32 frequencies would be off by 1e-3 here
    assert (head.rotary(positions, torch.float32)[0].double() - cos).abs().max() < 1e-7


def test_position_zero_is_not_rotated(tiny: TinyModel) -> None:
    assert tiny.loaded.drafter is not None
    head = tiny.loaded.drafter.head
    x = torch.randn(3, head.config.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, _, _ = head.qkv(x, head.rotary(torch.zeros(3, dtype=torch.long), torch.float64))
    assert close(q, head.layers[0].self_attn.q_proj(x).view(3, -1, head.config.head_dim).transpose(0, 1))


# ---- the vocabulary cut to frequent tokens ----


@torch.inference_mode()
def test_a_cut_vocabulary_has_the_columns_of_the_listed_tokens(tiny: TinyModel) -> None:
    drafter, target = tiny.loaded.drafter, tiny.loaded.target
    assert drafter is not None and drafter._frequent is not None
    text = tiny.prompts[1][:12]
    features, _ = target.prefill(text, 1)
    tree = Tree([text[-1], 7, 8, 9], [-1, 0, 0, 2])

    def logits(frequent: int | None) -> tuple[Tensor, Tensor]:
        drafter.start(80, frequent)
        drafter.observe(text[1:], features[:-1])
        by_node = expand_in_levels(drafter, tree)
        return drafter.root_logits().clone(), torch.stack([by_node[node] for node in sorted(by_node)])

    whole = logits(None)
    assert torch.equal(drafter.named(torch.tensor([5, 300])), torch.tensor([5, 300]))
    for n in (3, 100, 10_000):
        listed = drafter._frequent[:n]
        cut = logits(n)
        assert all(close(a, b[..., listed]) for a, b in zip(cut, whole, strict=True))
        assert torch.equal(drafter.named(torch.arange(len(listed))), listed)
    assert all(close(a, b) for a, b in zip(logits(None), whole, strict=True))  # the next generation has the whole again


@pytest.mark.parametrize("frequent", [None, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
@torch.inference_mode()
def test_a_packed_head_drafts_as_the_plain_one(dtype: str, tolerance: float, frequent: int | None) -> None:
    """In float64, where the tests above are, nothing is packed; this is torch's drafter, whichever engine runs the tiny model."""
    drafter, target = shared_tiny_model(dtype).loaded.drafter, LlamaTarget(tiny_llama(getattr(torch, dtype)))
    assert drafter is not None
    text = shared_tiny_model(dtype).prompts[1][:12]
    features, _ = target.prefill(text, 1)
    if Linear(target.lm_head.weight).packed is None:
        pytest.skip("torch packs no weights of this dtype here")
    plain_rows = Linear(target.lm_head.weight, packed=False)
    found = []
    for packed, rows in ((True, target.lm_head), (False, plain_rows)):
        one = EagleDrafter(drafter.head, target.embedding, rows, drafter._frequent, packed=packed)
        one.start(80, frequent)
        assert (one._logits.packed is not None) is packed is (one._fc.packed is not None)
        one.observe(text[1:], features[:-1])
        by_node = expand_in_levels(one, Tree([text[-1], 7, 8, 9], [-1, 0, 0, 2]))
        found.append(torch.stack([one.root_logits()[0], *(by_node[node] for node in sorted(by_node))]))
    assert (found[0] - found[1]).abs().max() <= tolerance * found[1].abs().max()


def test_a_head_without_a_list_says_so(tiny: TinyModel) -> None:
    assert tiny.loaded.drafter is not None
    bare = EagleDrafter(tiny.loaded.drafter.head, tiny.loaded.target.embedding, tiny.loaded.target.lm_head)
    with pytest.raises(ValueError, match="needs a list of frequent tokens"):
        bare.start(40, 100)
