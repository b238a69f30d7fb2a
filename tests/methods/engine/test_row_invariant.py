"""The row-invariant engine of torch: each row has the bits of plain decoding of its path, whatever is run beside it."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import harness, isolate, refused, run
from drafting import expand_in_levels
from places import TINY
from policies import POLICIES
from random_llamas import SHAPES, head_of, module_of
from tiny_model import TinyModel, fresh_tiny_model
from torch import Tensor

import methods
from harness.ledger.ledger import read
from harness.localise.bits import same_bits
from methods.base import SamplerParams
from methods.engine.attention import grouped_attention
from methods.engine.layer import Linear
from methods.engine.llama import LlamaTarget
from methods.engine.row_invariant import target as engine
from methods.engine.row_invariant.drafters import RowInvariantEagle3Drafter, RowInvariantEagleDrafter, RowInvariantLMDrafter
from methods.engine.row_invariant.target import BESIDE, ROWS, SPAN, InBlocks, RowInvariantTarget
from methods.engine.tree import Tree, chain

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MODELS = ["tiny", *SHAPES]
EXACT = [name for name in methods.names(exact=True) if name != "vanilla" and not methods.is_external(name)]
CONTEXTS = [1, 5, ROWS - 1, SPAN - 9, SPAN, 2 * SPAN - 3]  # trees behind them cross spans

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
each_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fresh_target(model: str, dtype: torch.dtype) -> RowInvariantTarget:
    return RowInvariantTarget(copy.deepcopy(module_of(model, dtype)))


target_of = cache(fresh_target)


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(same_bits(a.contiguous(), b.contiguous()).all())


def text_of(model: str, n: int, chance: random.Random) -> list[int]:
    vocab = module_of(model, torch.float32).config.vocab_size
    return [chance.randrange(vocab) for _ in range(n)]


def random_tree(model: str, n: int, chance: random.Random) -> Tree:
    shallow = chance.random() < 0.5
    return Tree(text_of(model, n, chance), [-1, *(chance.randrange(0 if shallow else max(0, i - 3), i) for i in range(1, n))])


def path_to(tree: Tree, node: int) -> list[int]:
    path = [node]
    while tree.parents[path[0]] >= 0:
        path.insert(0, tree.parents[path[0]])
    return path


def stepped(target: RowInvariantTarget, token: int) -> tuple[Tensor, Tensor]:
    """One token alone, which is kept -> its feature [hidden], its logits [vocab]."""
    before = target.length
    features, logits = target.verify(Tree([token], [-1]))
    assert same(logits[0], target.step(token))
    target.cache.length = before + 1
    return features[0], logits[0]


def decoded(target: RowInvariantTarget, tree: Tree) -> list[tuple[Tensor, Tensor]]:
    """Of each node the feature and the logits by plain steps of its path, after what the cache holds."""
    length, depths, children = target.length, tree.depths(), tree.children()
    found: dict[int, tuple[Tensor, Tensor]] = {}
    todo = [0]
    while todo:  # depth first, so that the cache holds the node's path
        node = todo.pop()
        target.cache.length = length + depths[node]
        found[node] = stepped(target, tree.tokens[node])
        todo += children[node]
    target.cache.length = length
    return [found[node] for node in range(len(tree))]


def check_tree(model: str, dtype: torch.dtype, context: int, n: int, seed: int) -> None:
    target, chance = target_of(model, dtype), random.Random(seed)
    text, tree = text_of(model, context, chance), random_tree(model, n, chance)
    target.prefill(text, 400)
    features, logits = target.verify(tree)
    for node, (feature, row) in enumerate(decoded(target, tree)):
        assert same(features[node], feature), f"the feature of node {node}"
        assert same(logits[node], row), f"the logits of node {node}"
    kept = path_to(tree, chance.randrange(n))
    target.verify(tree)
    target.commit(kept)
    then = random_tree(model, 5, chance)
    after = target.verify(then)
    rows, last = target.prefill([*text, *(tree.tokens[i] for i in kept)], 40)  # in one text
    assert same(last, logits[kept[-1]]) and same(rows[context:], features[kept])
    assert all(same(a, b) for a, b in zip(after, target.verify(then), strict=True))


@each_dtype
@each_model
def test_every_node_of_a_tree_is_plain_decoding_of_its_path(model: str, dtype: torch.dtype) -> None:
    seed = MODELS.index(model) + 10 * DTYPES.index(dtype)
    check_tree(model, dtype, CONTEXTS[seed % len(CONTEXTS)], 20 if model == "tiny" else 9, seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@each_dtype
@each_model
def test_every_node_of_many_trees_is_plain_decoding_of_its_path(model: str, dtype: torch.dtype) -> None:
    chance = random.Random(1)
    for seed in range(12):
        check_tree(model, dtype, chance.choice([*CONTEXTS, chance.randrange(1, 300)]), chance.randrange(1, 90), seed)


@each_dtype
def test_a_text_is_the_same_in_any_steps(dtype: torch.dtype) -> None:
    target, chance = target_of("tiny", dtype), random.Random(5)
    text = text_of("tiny", 2 * SPAN + 11, chance)
    whole, last = target.prefill(text, 1)
    for most in (3 * ROWS, 30):
        at = chance.randrange(1, most)
        found = [target.prefill(text[:at], len(text))[0]]
        while at < len(text):
            part = text[at : at + chance.randrange(1, most)]
            features, logits = target.verify(chain(part[0], part[1:]))
            target.commit(list(range(len(part))))
            found.append(features)
            at += len(part)
        assert same(torch.cat(found), whole) and same(logits[-1], last)


@each_dtype
def test_a_node_is_the_same_in_trees_of_any_size_and_at_any_place(dtype: torch.dtype) -> None:
    target, chance = target_of("tiny", dtype), random.Random(3)
    target.prefill(text_of("tiny", 77, chance), 100)
    tokens = text_of("tiny", ROWS + BESIDE, chance)
    whole = target.verify(Tree(tokens, [-1] + [0] * (len(tokens) - 1)))
    for n in (2, 3, BESIDE, BESIDE + 1, 33, ROWS - 1, ROWS, ROWS + 1):
        part = target.verify(Tree(tokens[:n], [-1] + [0] * (n - 1)))
        assert all(same(a, b[:n]) for a, b in zip(part, whole, strict=True)), f"{n} nodes"
    turned = target.verify(Tree([tokens[0], *tokens[:0:-1]], [-1] + [0] * (len(tokens) - 1)))
    assert all(same(a[1:].flip(0), b[1:]) for a, b in zip(turned, whole, strict=True))


def test_the_number_of_threads_changes_no_bit() -> None:
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        target = fresh_target("264, for threads", torch.float32)
        found.append([*target.prefill(list(range(3, 143)), 40), *target.verify(Tree([5, 6, 7, 8, 9], [-1, 0, 0, 1, 3]))])
        assert torch.get_num_threads() == n
    for other in found[1:]:
        assert all(same(a, b) for a, b in zip(other, found[0], strict=True))


def test_it_is_the_lean_forward_but_for_rounding() -> None:
    lean, target = LlamaTarget(copy.deepcopy(module_of("tiny", torch.float32))), target_of("tiny", torch.float32)
    chance = random.Random(2)
    text, tree = text_of("tiny", 2 * SPAN - 2, chance), random_tree("tiny", 30, chance)
    for a, b in zip(lean.prefill(text, 40), target.prefill(text, 40), strict=True):
        assert torch.allclose(a, b, atol=1e-3)
    for a, b in zip(lean.verify(tree), target.verify(tree), strict=True):
        assert torch.allclose(a, b, atol=1e-3)


# ---- each part is needed ----


def in_a_tree_and_alone() -> bool:
    """Whether logits in a tree have the bits of plain steps, on an engine made now, in float32."""
    target, chance = fresh_target("tiny", torch.float32), random.Random(4)
    target.prefill(text_of("tiny", SPAN - 4, chance), 60)
    tree = random_tree("tiny", 24, chance)
    return all(same(a, b) for a, (_, b) in zip(target.verify(tree)[1], decoded(target, tree), strict=True))


def test_without_filling_up_rows_depend_on_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_a_tree_and_alone()
    monkeypatch.setattr(InBlocks, "__call__", lambda self, x, **others: self.compute(x, **others))
    assert not in_a_tree_and_alone()


def test_without_gathering_rows_depend_on_what_lies_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def masked(self: RowInvariantTarget, query: Tensor, keys: Tensor, values: Tensor, seen: Any) -> Tensor:
        return grouped_attention(None, query, keys, values, seen, self._scale)[0]

    monkeypatch.setattr(RowInvariantTarget, "_seen", LlamaTarget._seen)
    monkeypatch.setattr(RowInvariantTarget, "_attended", masked)
    assert not in_a_tree_and_alone()


def test_spans_of_the_whole_length_would_change_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    target, text = target_of("tiny", torch.float32), text_of("tiny", SPAN + 40, random.Random(1))
    right = target.prefill(text, 1)[0]
    monkeypatch.setattr(engine, "SPAN", SPAN + 40)
    assert not same(target.prefill(text, 1)[0], right)


@torch.inference_mode()
def test_a_row_does_not_read_what_lies_beyond_it() -> None:
    """Not even to weigh it with zero: what is infinite there would spoil it."""
    target, text = fresh_target("tiny", torch.float32), text_of("tiny", 9, random.Random(1))
    target.prefill(text, 60)
    tree = Tree([5, 6, 7], [-1, 0, 0])
    right = target.verify(tree)[1]
    spoilt = text_of("tiny", 30, random.Random(2))
    keys, values = target.cache.of_layer(0)
    keys[:, len(text) + 3 :], values[:, len(text) + 3 :] = torch.nan, torch.inf
    assert same(target.verify(tree)[1], right)
    assert target.verify(chain(spoilt[0], spoilt[1:]))[1].isfinite().all()


def test_a_kernel_that_goes_by_places_is_refused() -> None:
    class ByPlace(Linear):
        def __call__(self, x: Tensor, **others: Any) -> Tensor:
            made = super().__call__(x, **others)
            made[ROWS // 2 :] *= 1 + 2**-20
            return made

    weight = torch.randn(8, 8)
    assert len(InBlocks(Linear(weight, packed=False))(torch.randn(3, 8))) == 3
    with pytest.raises(ValueError, match=f"^on cpu a product of {ROWS} rows in torch.float32 depends on a row's place: .* here$"):
        InBlocks(ByPlace(weight, packed=False))


# ---- drafters ----


@each_dtype
@pytest.mark.parametrize("kind", ["eagle", "lm"])
def test_a_drafted_node_does_not_depend_on_its_level(kind: str, dtype: torch.dtype) -> None:
    """A level at once and each node in a call of its own; pairs observed at once and in parts."""
    chance = random.Random(8)
    text, tree = text_of("tiny", SPAN - 3, chance), random_tree("tiny", 25, chance)
    hidden = torch.randn(len(text), 64, generator=torch.Generator().manual_seed(3)).to(dtype)

    def observed(at_once: int) -> Any:
        target = target_of("tiny", dtype)
        drafter: Any = RowInvariantLMDrafter(module_of("tiny", dtype)) if kind == "lm" else RowInvariantEagleDrafter(
            head_of("tiny", dtype), target.embedding, target.lm_head
        )  # fmt: skip
        drafter.start(300, None, text[0])
        for i in range(1, len(text), at_once):
            drafter.observe(text[i : i + at_once], hidden[i - 1 : i - 1 + len(text[i : i + at_once])])
        return drafter

    whole, parts = observed(len(text)), observed(7)
    assert same(whole.root_logits(), parts.root_logits())
    levels = expand_in_levels(whole, tree)
    for node in chance.sample(range(1, len(tree)), 6):
        path = path_to(tree, node)[1:]
        line = expand_in_levels(observed(40), chain(tree.tokens[0], [tree.tokens[i] for i in path]))
        assert same(levels[node], line[len(path)])


# ---- methods ----


@cache
def tiny_in(dtype: str) -> TinyModel:
    with pytest.MonkeyPatch.context() as m:
        m.setenv("HARNESS_ENGINE", "row-invariant")
        return fresh_tiny_model(dtype)


def check_method(name: str, dtype: str, temperature: float, prompts: range, n: int) -> None:
    model, n_accepted = tiny_in(dtype), 0
    assert type(model.loaded.target) is RowInvariantTarget
    assert type(model.loaded.drafter_of("eagle")) is RowInvariantEagleDrafter
    assert type(model.loaded.drafter_of("lm")) is RowInvariantLMDrafter
    assert type(model.loaded.drafter_of("eagle3")) is RowInvariantEagle3Drafter
    for i in prompts:
        params = SamplerParams(n, temperature=temperature, key=i)
        made = model.decode(name, model.prompts[i], params)
        assert made.token_ids == model.vanilla(model.prompts[i], params).token_ids
        assert made.trace is not None
        n_accepted += sum(made.trace.accepted)
    assert n_accepted or (temperature and name in ("pld", "lookahead")), "nothing that was drafted was kept, so nothing is shown"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [*EXACT, *POLICIES])
def test_a_methods_greedy_ids_are_vanillas_in_16_bits(name: str, dtype: str) -> None:
    check_method(name, dtype, 0.0, range(7, 8), 16)


@pytest.mark.parametrize("name", [name for name in EXACT if not methods.get(name).samples_drafts])
def test_a_methods_sampled_ids_are_vanillas(name: str) -> None:
    check_method(name, "float16", 1.0, range(11, 12), 16)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", [*EXACT, *POLICIES])
def test_a_methods_ids_are_vanillas_on_all_prompts(name: str, temperature: float, dtype: str) -> None:
    if not (temperature and methods.get(name).samples_drafts):
        check_method(name, dtype, temperature, range(12), 64)


# ---- the command line ----


def test_a_run_is_recorded_as_of_this_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch, tmp_path / "home")
    monkeypatch.delenv("HARNESS_ENGINE", raising=False)
    done = run(tmp_path, "--method pld --task gsm8k --row-invariant --dtype float16")
    assert done.code == 0, done.err
    assert "Engine of our loops: lean row-invariant (float16, row-invariant)." in done.out
    assert "HARNESS_ENGINE" not in os.environ
    for record in read(tmp_path):
        assert record["row_invariant"] and record["target_parts"]["engine"] == "lean row-invariant"


def test_one_engine_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_ENGINE", "torch")
    for command in ("verify", "run --method pld --task gsm8k", "matrix"):
        refused(
            harness(f"{command} --model {TINY} --row-invariant"),
            "--row-invariant asks for one engine, and HARNESS_ENGINE=torch for another: leave one of them out",
        )
