"""Targets of the paper's sizes over 1, 2 and 4 devices that are not there: shapes, dtypes, places, bytes and copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_devices import Copies, bytes_of, chip, fake, llama_of, put, spread

from harness.load.architecture import Architecture
from harness.load.config import model_config
from harness.load.placement import BYTES, TREE_TOKENS, Need, need, split
from methods.engine.draft_head import EagleHead, HeadConfig
from methods.engine.layer import Linear
from methods.engine.llama import LlamaTarget
from methods.engine.static.drafter import StaticEagleDrafter
from methods.engine.static.target import StaticTarget
from methods.engine.tree import Tree

MODELS = ("vicuna-7b", "vicuna-13b", "llama2-chat-70b", "llama3-instruct-8b", "llama3-instruct-70b")
FAST = (("llama3-instruct-8b", 1), ("llama3-instruct-8b", 4))
ROWS, TOP = 60, 10  # of a tree, its root among them, and of its first level
TREE = Tree(list(range(ROWS)), [-1, *([0] * TOP), *(1 + i % TOP for i in range(ROWS - 1 - TOP))])
PATH = [0, 3, 13]  # off the first rows, so that keys must be moved


def sizes_of(name: str) -> tuple[Architecture, str, int]:
    config = model_config(name)
    assert config.architecture is not None
    return config.architecture, config.dtype if config.dtype in BYTES else "float16", config.context_length


def layers_over(what: Need, n: int, n_layers: int) -> list[int]:
    """Over n devices that are just large enough together."""
    room = int(1.02 * (what.total + what.embedding) / n) + 2 * what.layer
    layers = split(what, [room] * n)
    assert layers is not None and len(layers) == n_layers and sorted(set(layers)) == list(range(n))
    return layers


@pytest.fixture(autouse=True)
def without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree's ancestors and what a model computes are found by numbers, of which there are none."""
    monkeypatch.setattr("methods.engine.llama.is_lean", lambda model, dtype=None: True)
    monkeypatch.setattr("methods.engine.tree.ancestors", lambda parents: torch.ones(len(parents), len(parents), dtype=torch.bool))


@pytest.mark.parametrize("kind", [LlamaTarget, StaticTarget])
@pytest.mark.parametrize(
    ("name", "n"),
    [pytest.param(name, n, marks=() if (name, n) in FAST else pytest.mark.slow) for name in MODELS for n in (1, 2, 4)],
)
def test_a_prefill_a_tree_a_kept_path_and_a_step(name: str, n: int, kind: type[LlamaTarget]) -> None:
    sizes, dtype, context = sizes_of(name)
    what, of = need(sizes, dtype, context), getattr(torch, dtype)
    layers = layers_over(what, n, sizes.num_hidden_layers)
    model = llama_of(sizes, of, context)
    with fake():
        target: Any = kind(spread(model, layers))
        prompt, last = list(range(9)), chip(n - 1)
        features, logits = target.prefill(prompt, context - len(prompt) + ROWS + 1)
        assert features.shape == (9, sizes.hidden_size) and logits.shape == (sizes.vocab_size,)
        with Copies() as of_verify:
            features, logits = target.verify(TREE)
        assert features.shape == (ROWS, sizes.hidden_size) and logits.shape == (ROWS, sizes.vocab_size)
        assert {t.dtype for t in (features, logits)} == {of} and {t.device for t in (features, logits)} == {last}
        with Copies() as of_commit:
            target.commit(PATH)
        with Copies() as of_step:
            step = target.step(5)
        assert step.shape == (sizes.vocab_size,) and step.dtype == of and step.device == last
        assert target.length == len(prompt) + len(PATH) + 1

        # what lies where, and of how many bytes
        assert [target.cache.of_layer(i)[0].device.index for i in range(len(layers))] == layers
        assert [layer.qkv.weight.device.index for layer in target._layers] == layers
        for i in range(n):
            kv = bytes_of(target.cache.on(chip(i)))
            assert kv == layers.count(i) * BYTES[dtype] * sizes.n_kv(context + TREE_TOKENS)
            weights = bytes_of(p for p in target.model.parameters() if p.device == chip(i))
            ends = (what.first if i == 0 else 0) + (what.last if i == n - 1 else 0)
            assert weights + kv == layers.count(i) * what.layer + ends

        # what goes over: once a device, whatever the number of its layers
        most = {"verify": 5, "commit": 1, "step": 3}
        for made, part in ((of_verify, "verify"), (of_commit, "commit"), (of_step, "step")):
            assert made.to[-1] == 0 and max(made.to.values(), default=0) <= most[part], (part, made.to)
        assert n == 1 or of_verify.to[n - 1] >= 1


@pytest.mark.parametrize("name", MODELS)
def test_the_head_beside_it_drafts_in_fixed_shapes(name: str) -> None:
    sizes, dtype, _ = sizes_of(name)
    of = getattr(torch, dtype)
    with torch.device("meta"):
        head = EagleHead(
            HeadConfig(
                sizes.hidden_size, sizes.intermediate_size, sizes.num_attention_heads, sizes.num_key_value_heads, 1e-5, 1e4,
                sizes.vocab_size,
            )
        ).to(of)  # fmt: skip
    with fake():
        put(head, chip(0))
        head._inverse_frequencies = torch.empty(head.config.head_dim // 2, dtype=torch.float64)
        embedding = torch.empty(sizes.vocab_size, sizes.hidden_size, dtype=of, device=chip(0))
        lm_head = Linear(embedding)
        drafter = StaticEagleDrafter(head, embedding, lm_head)
        drafter.start(700)
        drafter.observe([1, 2, 3], torch.empty(3, sizes.hidden_size, dtype=of, device=chip(0)))
        with Copies() as moved:
            logits = drafter.root_logits()
            tokens = torch.zeros(TOP, dtype=torch.long, device=chip(0))
            below = drafter.expand(tokens, tokens - 1, torch.eye(TOP, dtype=torch.bool, device=chip(0)))
        assert logits.shape == (1, sizes.vocab_size) and below.shape == (TOP, sizes.vocab_size)
        assert below.dtype == of and below.device == chip(0) and not moved.to
