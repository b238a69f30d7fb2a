"""The KV cache against plain concatenation, and the target built on it against forwards without any cache."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from places import TINY
from tiny_model import TinyModel
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from harness.audit.probe.stand_ins import texts_of
from methods.base import SamplerParams
from methods.engine.cache import TreeCache
from methods.engine.target import HFTarget
from methods.engine.tree import Tree, chain

CPU = torch.device("cpu")
N_LAYERS, KV_HEADS, HEAD_DIM = 3, 2, 4

# ---- the cache alone ----


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, list[int] | int]]:
    """Forwards over n tokens, each followed by what is committed: a path of offsets, or the first so many."""
    history: list[tuple[int, list[int] | int]] = []
    for _ in range(draw(st.integers(1, 6))):
        n = draw(st.integers(1, 7))
        path = sorted(draw(st.sets(st.integers(0, n - 1))))
        history.append((n, draw(st.sampled_from([path, draw(st.integers(0, n))]))))
    return history


def noise(n: int, seed: int) -> Tensor:
    return torch.randn(1, KV_HEADS, n, HEAD_DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def replay(cache: TreeCache, history: list[tuple[int, list[int] | int]], capacity: int) -> None:
    cache.reserve(capacity)
    kept = {(layer, kind): noise(0, 0) for layer in range(N_LAYERS) for kind in "kv"}
    for step, (n, committed) in enumerate(history):
        for layer in range(N_LAYERS):
            new = {kind: noise(n, seed=100 * step + 10 * layer + i) for i, kind in enumerate("kv")}
            assert cache.get_mask_sizes(n, layer) == (cache.length + n, 0)
            keys, values = cache.update(new["k"], new["v"], layer)
            for kind, seen in (("k", keys), ("v", values)):
                assert torch.equal(seen, torch.cat([kept[layer, kind], new[kind]], dim=2))
            rows = list(range(committed)) if isinstance(committed, int) else committed
            for kind in "kv":
                kept[layer, kind] = torch.cat([kept[layer, kind], new[kind][:, :, rows]], dim=2)
        if isinstance(committed, int):
            cache.append(committed)
        else:
            cache.keep(committed)
        assert cache.length == cache.get_seq_length() == kept[0, "k"].shape[2]


@given(histories(), histories())
def test_what_is_kept_is_what_concatenation_would_hold(first: list, second: list) -> None:
    cache = TreeCache([CPU] * N_LAYERS, KV_HEADS, HEAD_DIM, torch.float64)
    replay(cache, first, 45)
    replay(cache, second, 45)  # a second prompt in the same buffers


def test_a_longer_prompt_gets_larger_buffers() -> None:
    cache = TreeCache([CPU] * N_LAYERS, KV_HEADS, HEAD_DIM, torch.float64)
    replay(cache, [(3, 3), (2, [1])], 10)
    replay(cache, [(250, 250), (60, [0, 7, 8, 59]), (1, 1)], 400)


# ---- the target ----


@pytest.fixture(scope="module")
def stock() -> LlamaForCausalLM:
    """The same weights in transformers' own model with its own SDPA (its eager attention takes the softmax in float32)."""
    folder = TINY.parent / "target"
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()


@torch.inference_mode()
def plain(stock: LlamaForCausalLM, ids: list[int]) -> tuple[Tensor, Tensor]:
    """-> features [n, hidden], logits [n, vocab] of a causal forward over the whole text."""
    out = stock(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    return out.hidden_states[-1][0], out.logits[0]


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-9)


@pytest.mark.parametrize("n", [1, 2, 33, 300])
def test_prefill_gives_the_last_hidden_states_and_the_logits_after_the_prompt(
    n: int, tiny: TinyModel, stock: LlamaForCausalLM
) -> None:
    ids = (tiny.prompts[2] * 2)[:n]
    features, logits = tiny.loaded.target.prefill(ids, 4)
    wanted_features, wanted_logits = plain(stock, ids)
    assert features.shape == (n, 64) and logits.shape == (384,)
    assert close(features, wanted_features) and close(logits, wanted_logits[-1])
    assert tiny.loaded.target.length == n


def test_single_steps_give_the_logits_of_the_growing_text(tiny: TinyModel, stock: LlamaForCausalLM) -> None:
    ids, target = tiny.prompts[0][:40], tiny.loaded.target
    target.prefill(ids[:30], 10)
    for i in range(30, 40):
        assert close(target.step(ids[i]), plain(stock, ids[: i + 1])[1][-1])


@st.composite
def token_trees(draw: st.DrawFn) -> Tree:
    n = draw(st.integers(1, 9))
    parents = [-1, *(draw(st.integers(0, i - 1)) for i in range(1, n))]
    return Tree([draw(st.integers(3, 383)) for _ in range(n)], parents)


@given(trees=st.lists(token_trees(), min_size=2, max_size=3), data=st.data())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_node_of_a_tree_sees_its_own_path_and_no_other(
    trees: list[Tree], data: st.DataObject, tiny: TinyModel, stock: LlamaForCausalLM
) -> None:
    """Logits and features of each node are those of its path alone; then a path is kept, and the next tree hangs on it."""
    target, text = tiny.loaded.target, tiny.prompts[3][:60]
    target.prefill(text, 40)
    for tree in trees:
        features, logits = target.verify(tree)
        for node, path in enumerate(texts_of(tree)):
            wanted_features, wanted_logits = plain(stock, [*text, *path])
            assert close(features[node], wanted_features[-1]) and close(logits[node], wanted_logits[-1])
        node = data.draw(st.integers(0, len(tree) - 1))
        target.commit([i for i in range(len(tree)) if tree.ancestors()[node, i]])
        text = [*text, *texts_of(tree)[node]]
        assert target.length == len(text)
    assert close(target.step(5), plain(stock, [*text, 5])[1][-1])


def test_a_path_off_the_first_rows_is_moved_into_place(tiny: TinyModel, stock: LlamaForCausalLM) -> None:
    target, text = tiny.loaded.target, tiny.prompts[0][:50]
    target.prefill(text, 20)
    target.verify(Tree([10, 11, 12, 13, 14, 15], [-1, 0, 0, 2, 2, 4]))
    target.commit([0, 2, 4, 5])
    text = [*text, 10, 12, 14, 15]
    assert close(target.verify(chain(16, [17]))[1], plain(stock, [*text, 16, 17])[1][-2:])


@pytest.mark.parametrize("path", [[], [1], [0, 6]])
def test_a_path_that_was_not_verified_is_refused(path: list[int], tiny: TinyModel) -> None:
    tiny.loaded.target.prefill([5, 6, 7], 20)
    tiny.loaded.target.verify(chain(10, [11, 12]))
    with pytest.raises(ValueError, match="last verified"):
        tiny.loaded.target.commit(path)


def test_a_path_is_committed_once(tiny: TinyModel) -> None:
    tiny.loaded.target.prefill([5, 6, 7], 20)
    tiny.loaded.target.verify(chain(10, [11, 12]))
    tiny.loaded.target.commit([0, 1])
    with pytest.raises(ValueError, match="last verified"):
        tiny.loaded.target.commit([0, 1])


def test_models_with_a_sliding_window_are_refused(stock: LlamaForCausalLM) -> None:
    class Windowed:
        config = type("Config", (), {"sliding_window": 128})()

    with pytest.raises(ValueError, match="sliding window"):
        HFTarget(Windowed())


def test_the_stock_model_has_its_own_attention_and_the_targets_weights(tiny: TinyModel, stock: LlamaForCausalLM) -> None:
    target, ids = tiny.loaded.target, tiny.prompts[1][:20]
    tensors = [[*model.parameters(), *model.buffers()] for model in (target.model, target.stock_model)]
    assert len(tensors[0]) == len(tensors[1]) and all(a is b for a, b in zip(*tensors, strict=True))
    with torch.inference_mode():
        assert close(target.stock_model(torch.tensor([ids])).logits[0], plain(stock, ids)[1])
    assert [m.config._attn_implementation for m in (target.stock_model, target.model)] == ["sdpa", "grouped"]
    assert close(target.prefill(ids, 1)[1], plain(stock, ids)[1][-1])


def test_no_generation_of_transformers_loop_switches_attention(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.decode("hf-generate", tiny.prompts[1], SamplerParams(2))  # the first one, a run's warm-up, may make ready
    monkeypatch.setattr(PreTrainedModel, "set_attn_implementation", lambda *_: pytest.fail("switched inside a generation"))
    for method in ("hf-generate", "hf-prompt-lookup", "hf-assisted"):
        tiny.decode(method, tiny.prompts[1], SamplerParams(4))
