"""The target's hidden states by their numbers, as EAGLE-3 heads observe them: on a target that marks them, on every engine."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from pretended_graphs import pretend
from random_llamas import SHAPES, module_of, same_bits
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from methods.engine.llama import LlamaTarget
from methods.engine.native import build
from methods.engine.native.target import NativeTarget
from methods.engine.row_invariant.target import RowInvariantTarget
from methods.engine.static.target import StaticTarget
from methods.engine.target import HFTarget
from methods.engine.tree import Tree

LAYERS = 7
HIDDEN, VOCAB = 64, 40
TEXT = [(7 * i) % VOCAB for i in range(150)]  # more than the native engine runs at once
TREE, PATH = Tree([5, 6, 7, 8, 9], [-1, 0, 0, 2, 3]), [0, 2, 3]

ENGINES: dict[str, Any] = {
    "module": HFTarget, "lean": LlamaTarget, "row-invariant": RowInvariantTarget, "static": StaticTarget,
    **{f"native {path}": lambda model, path=path: NativeTarget(model, path) for path in build.paths_here()},
}  # fmt: skip
each_engine = pytest.mark.parametrize("engine", ENGINES)


@cache
def marked() -> LlamaForCausalLM:
    """A target whose layer i adds to coordinate i + 1 alone: a state's number is how many coordinates from 1 on are not 0."""
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=8, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=False,
    ))  # fmt: skip
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.fill_(1.0) if parameter.dim() == 1 else parameter.zero_()
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.model.embed_tokens.weight[torch.arange(VOCAB), 20 + torch.arange(VOCAB)] = 2.0  # which token a row is of
        for i, layer in enumerate(model.model.layers):
            layer.mlp.gate_proj.weight[0, 0] = layer.mlp.up_proj.weight[0, 0] = 1.0
            layer.mlp.down_proj.weight[1 + i, 0] = 5.0
    return model.eval()


def fresh(engine: str, model: Any) -> Any:
    return ENGINES[engine](copy.deepcopy(model))


def numbers_of(states: Tensor) -> list[int]:
    """states [n, hidden] -> the number of each, by its marks; the state after the final norm is `LAYERS`."""
    marks = states[:, 1 : 1 + LAYERS] != 0
    found = marks.sum(-1)
    assert all(row[:n].all() for row, n in zip(marks, found.tolist(), strict=True)), "no layer is left out"
    is_normed = (states.pow(2).mean(-1) - 1).abs() < 1e-3
    assert torch.equal(is_normed, found == LAYERS), "the last state is the normed one, and no other is"
    return found.tolist()


def tokens_of(states: Tensor) -> list[int]:
    return states[:, 20 : 20 + VOCAB].argmax(-1).tolist()


def check(features: Tensor, aux_layers: tuple[int, ...], tokens: list[int]) -> None:
    assert features.shape == (len(tokens), len(aux_layers) * HIDDEN)
    for number, states in zip(aux_layers, features.split(HIDDEN, dim=-1), strict=True):
        assert numbers_of(states) == [number] * len(tokens)
        assert tokens_of(states) == tokens


@pytest.mark.parametrize("aux_layers", [(2, 3, 4), (0, 1, 6), (5, 6, 7), (3,)])
@each_engine
def test_features_are_the_hidden_states_of_those_numbers(engine: str, aux_layers: tuple[int, ...]) -> None:
    target = fresh(engine, marked())
    check(target.prefill(TEXT, 40, aux_layers)[0], aux_layers, TEXT)
    for _ in range(2):  # the second time behind a path that was kept, and a step
        features, _ = target.verify(TREE)
        check(features, aux_layers, TREE.tokens)
        target.commit(PATH)
        target.step(11)


@each_engine
def test_they_hold_until_the_next_prefill_and_change_no_logits(engine: str) -> None:
    """Real numbers: each state is transformers', and the logits are those of a target that was asked for the last state."""
    model = module_of("72, three heads a group", torch.float32)
    target, plain = fresh(engine, model), fresh(engine, model)
    text = [token % model.config.vocab_size for token in TEXT]
    wanted = model(torch.tensor([text]), output_hidden_states=True, use_cache=False).hidden_states
    features, logits = target.prefill(text, 40, (0, 1, 2))
    plain_features, plain_logits = plain.prefill(text, 40)
    assert (features - torch.cat([state[0] for state in wanted], dim=-1)).abs().max() < 1e-4
    assert torch.equal(features[:, -72:], plain_features) and torch.equal(logits, plain_logits)
    rows = [t.verify(TREE) for t in (target, plain)]
    assert torch.equal(rows[0][0][:, -72:], rows[1][0]) and torch.equal(rows[0][1], rows[1][1])
    for t in (target, plain):
        t.commit(PATH)
    assert torch.equal(target.step(3), plain.step(3))
    assert torch.equal(target.prefill(text, 40)[0], plain_features) and target.verify(TREE)[0].shape == (5, 72)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name.startswith(("native", "row"))])
@pytest.mark.parametrize("shape", ["72, three heads a group", "264, for threads"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_where_rows_do_not_depend_on_each_other_neither_do_their_states(engine: str, shape: str, dtype: torch.dtype) -> None:
    assert shape in SHAPES
    target = fresh(engine, module_of(shape, dtype))
    target.prefill(TEXT, 40, (0, 1, 2))
    in_tree = target.verify(TREE)[0][PATH]
    in_text = target.prefill([*TEXT, *(TREE.tokens[i] for i in PATH)], 40, (0, 1, 2))[0][-len(PATH) :]
    assert same_bits(in_tree.float(), in_text.float())


@each_engine
def test_a_state_that_is_not_there_is_refused(engine: str) -> None:
    target = fresh(engine, marked())
    for wrong in (-1, LAYERS + 1):
        with pytest.raises(ValueError, match=f"^hidden state {wrong} was asked for; a target of 7 layers has those from 0 to 7$"):
            target.prefill(TEXT, 40, (2, wrong))


@torch.inference_mode()
def test_recorded_steps_give_the_states_that_they_were_recorded_for(monkeypatch: pytest.MonkeyPatch) -> None:
    target = fresh("static", marked())
    target.prefill(TEXT, 300)
    target.begin()
    pretend(monkeypatch, target)
    asked = [(2, 3, 4), (0, 1, 6), ()]
    for aux_layers in asked:
        target.prefill(TEXT, 40, aux_layers)
        target.verify(TREE)
    target.prepare(200)
    n = target.replayer.recording.n_tried
    for aux_layers in (*asked, *asked):
        target.prefill(TEXT, 40, aux_layers)
        features, _ = target.verify(TREE)
        check(features, aux_layers or (LAYERS,), TREE.tokens)
    assert target.replayer.recording.n_tried == n
