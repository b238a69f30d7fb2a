"""The native forward: each row has the bits of plain decoding of its path, whatever is run beside it, by however many threads."""

from __future__ import annotations

import copy
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drafting import expand_in_levels
from hypothesis import example, given, settings
from random_llamas import SHAPES, VOCAB, eagle3_head_of, fresh_target, head_of, module_of, same_bits, target_of
from torch import Tensor

from harness.load import self_check
from methods.engine.draft_head import EagleDrafter
from methods.engine.draft_lm import LMDrafter
from methods.engine.llama import LlamaTarget
from methods.engine.native import build, library
from methods.engine.native.drafters import NativeEagle3Drafter, NativeEagleDrafter, NativeLMDrafter
from methods.engine.native.library import NativeLinear, best_children
from methods.engine.native.target import NativeTarget
from methods.engine.tree import Tree, chain

MODELS = ["tiny", *SHAPES]
LARGEST = "264, for threads"  # fewer weights are one thread's
PATHS = build.paths_here()  # where one of them does not compile, its tests fail
DTYPES = [torch.float32, torch.bfloat16]
KINDS = ("any", "deep", "chain", "star")
EDGES = [0, 1, 2, 3, 62, 63, 64, 65, 66, 126, 127, 128, 129, 130, 191, 192, 193, 255, 256, 257]  # of panels, and of pairs
CHAINED = [path for path in PATHS if path != "amx"]  # whose products in bfloat16 are one chain of additions
MOST_NODES = 72

each_path = pytest.mark.parametrize("path", PATHS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
each_model = pytest.mark.parametrize("model", MODELS)


def test_there_are_paths_and_the_portable_one_is_among_them() -> None:
    assert "portable" in PATHS
    assert all(library.functions(path) for path in PATHS)


# ---- cases ----


@dataclass(frozen=True)
class Case:
    """A tree of `n` nodes of a kind after `context` tokens, run by so many threads."""

    model: str
    dtype: torch.dtype
    context: int
    n: int
    kind: str = "any"
    threads: int = 1
    seed: int = 0

    @property
    def rng(self) -> random.Random:
        return random.Random(self.seed)

    @property
    def vocab(self) -> int:
        return int(module_of(self.model, self.dtype).config.vocab_size)

    def text(self, n: int, rng: random.Random) -> list[int]:
        return [rng.randrange(self.vocab) for _ in range(n)]

    def tree(self, rng: random.Random) -> Tree:
        least = {"any": lambda i: 0, "deep": lambda i: max(0, i - 3), "chain": lambda i: i - 1, "star": lambda i: 0}[self.kind]
        most = 0 if self.kind == "star" else self.n
        parents = [-1, *(rng.randint(least(i), min(i - 1, most)) for i in range(1, self.n))]
        return Tree(self.text(self.n, rng), parents)


contexts = st.one_of(st.sampled_from(EDGES), st.integers(0, 300))
cases = st.builds(
    Case, st.sampled_from(MODELS), st.sampled_from(DTYPES), contexts, st.integers(1, MOST_NODES), st.sampled_from(KINDS),
    st.sampled_from([1, 2, 3]), st.integers(0, 2**32),
)  # fmt: skip

SLOW = settings(max_examples=150)


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


# ---- plain decoding ----


def begin(target: NativeTarget, text: list[int], room: int = 400) -> None:
    """A text that may be empty."""
    if text:
        target.prefill(text, room)
    else:
        target.reserve(room)


def step(target: NativeTarget, token: int) -> tuple[Tensor, Tensor]:
    """`NativeTarget.step`, which gives no feature -> the feature [hidden], the logits [vocab]."""
    features, logits = target.native.run(target.cache, torch.tensor([token]), None, target.lm_head)
    return features[0], logits[0]


def decoded(target: NativeTarget, tree: Tree) -> list[tuple[Tensor, Tensor]]:
    """Of each node the feature and logits by plain steps of its path, after what the cache holds."""
    length, depths, children = target.length, tree.depths(), tree.children()
    found: dict[int, tuple[Tensor, Tensor]] = {}
    todo = [0]
    while todo:  # depth first: the cache holds the node's path when it is run, and rests of others behind it
        node = todo.pop()
        target.cache.length = length + depths[node]
        found[node] = step(target, tree.tokens[node])
        todo += children[node]
    target.cache.length = length
    return [found[node] for node in range(len(tree))]


def path_to(tree: Tree, node: int) -> list[int]:
    path = [node]
    while tree.parents[path[-1]] >= 0:
        path.append(tree.parents[path[-1]])
    return path[::-1]


def tokens_to(tree: Tree, node: int) -> list[int]:
    return [tree.tokens[i] for i in path_to(tree, node)]


# ---- trees ----


def check_tree(case: Case, path: str) -> None:
    target, plain = (target_of(case.model, case.dtype, path, which) for which in range(2))
    rng = case.rng
    text, tree = case.text(case.context, rng), case.tree(rng)
    with threads(case.threads):
        begin(target, text)
        features, logits = target.verify(tree)
    begin(plain, text)
    for node, (feature, row) in enumerate(decoded(plain, tree)):
        assert same_bits(features[node], feature), f"the feature of node {node}"
        assert same_bits(logits[node], row), f"the logits of node {node}"
    for node in rng.sample(range(len(tree)), min(3, len(tree))):  # as the end of a text
        rows, last = plain.prefill(text + tokens_to(tree, node), 1)
        assert same_bits(last, logits[node])
        assert same_bits(rows[len(text) :], features[path_to(tree, node)])

    # a kept path, and what comes after it
    kept = path_to(tree, rng.randrange(len(tree)))
    said, then = case.text(2, rng), case.tree(rng)
    with threads(case.threads):
        target.commit(kept)
        after = [target.step(token) for token in said]
        rows = target.verify(then)[1]
    begin(plain, text)
    for i in kept:
        step(plain, tree.tokens[i])
    assert all(same_bits(a, step(plain, token)[1]) for a, token in zip(after, said, strict=True))
    assert all(same_bits(a, b) for a, (_, b) in zip(rows, decoded(plain, then), strict=True))


@each_path
@given(case=cases)
@settings(max_examples=5)
@example(case=Case(LARGEST, torch.bfloat16, 64, 70, "chain", 2))
@example(case=Case(LARGEST, torch.float32, 65, 26, "any", 3))
@example(case=Case("72, three heads a group", torch.bfloat16, 127, 70, "star"))
@example(case=Case("192, four heads a group", torch.bfloat16, 65, 70, "any"))
@example(case=Case("48, one head a group", torch.bfloat16, 0, 26, "deep"))
@example(case=Case("72, wide heads", torch.bfloat16, 300, 61, "any"))
@example(case=Case("72, wide heads", torch.float32, 129, 5, "deep"))
def test_every_node_of_a_tree_is_plain_decoding_of_its_path(case: Case, path: str) -> None:
    check_tree(case, path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@each_path
@given(case=cases)
@SLOW
def test_every_node_of_many_trees_is_plain_decoding_of_its_path(case: Case, path: str) -> None:
    check_tree(case, path)


@each_dtype
@each_path
def test_a_node_is_the_same_in_trees_of_any_size(path: str, dtype: torch.dtype) -> None:
    """The rows that `check_tree` compares differ in number by chance; here they grow one by one."""
    target, rng = target_of("tiny", dtype, path), random.Random(3)
    begin(target, [rng.randrange(3, 383) for _ in range(77)])
    tokens = [rng.randrange(3, 383) for _ in range(MOST_NODES)]
    whole = target.verify(Tree(tokens, [-1] + [0] * (MOST_NODES - 1)))
    for n in range(1, MOST_NODES):
        part = target.verify(Tree(tokens[:n], [-1] + [0] * (n - 1)))
        assert all(same_bits(a, b[:n]) for a, b in zip(part, whole, strict=True)), f"{n} nodes"


@each_dtype
@each_path
def test_the_number_of_threads_changes_no_bit(path: str, dtype: torch.dtype) -> None:
    rng = random.Random(5)
    text, tree = [rng.randrange(VOCAB) for _ in range(131)], Tree([5, 6, 7, 8, 9], [-1, 0, 0, 1, 3])
    found = []
    for n in (1, 2, 3, 2):
        target = fresh_target(LARGEST, dtype, path)
        with threads(n):
            out = [*target.prefill(text, 40), *target.verify(tree)]
            target.commit([0, 1, 3])
            found.append([*out, target.step(11)])
    for other in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(other, found[0], strict=True))


@each_path
def test_two_models_run_at_once_do_not_mix(path: str) -> None:
    texts = [[(i * k) % VOCAB for i in range(1, 200)] for k in (7, 11)]
    targets = [target_of(LARGEST, torch.bfloat16, path, which) for which in range(2)]

    def decode(which: int) -> list[Tensor]:
        return [targets[which].prefill(texts[which], 4)[1] for _ in range(5)]

    with threads(2):
        alone = [decode(which) for which in range(2)]
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(decode, range(2)))
    for a, b in zip(alone, both, strict=True):
        assert all(same_bits(x, y) for x, y in zip(a, b, strict=True))


def test_a_long_text_after_a_short_one_and_back() -> None:
    target = fresh_target("72, three heads a group", torch.bfloat16)
    for n in (3, 700, 1, 90, 700):
        text = [(7 * i + n) % VOCAB for i in range(n)]
        fresh = fresh_target("72, three heads a group", torch.bfloat16)
        assert all(same_bits(a, b) for a, b in zip(target.prefill(text, 110), fresh.prefill(text, 110), strict=True))
        assert same_bits(target.verify(chain(5, [6] * 100))[1], fresh.verify(chain(5, [6] * 100))[1])


def test_a_model_makes_rotary_tables_for_a_cache_that_another_made_room_in() -> None:
    first, text = fresh_target("tiny", torch.float32), list(range(3, 73))
    before = first.prefill(text, 300)[1]
    second = copy.copy(first)
    second.native = copy.copy(first.native)
    second.native.n_positions = 0  # with tables of its own to make
    with pytest.raises(RuntimeError, match="a cache of 512 tokens; the rotary tables end at 0"):
        second.native.run(first.cache, torch.tensor([1]), None, None)
    assert same_bits(second.prefill(text, 300)[1], before)
    assert second.native.n_positions == first.cache.capacity


@each_dtype
def test_some_of_its_layers_are_a_model_of_those_layers(dtype: torch.dtype) -> None:
    target, text = fresh_target("tiny", dtype), list(range(3, 73))
    whole = target.prefill(text, 4)[1]
    for layers in ([1], [0], [1, 0]):
        module = copy.deepcopy(module_of("tiny", dtype))
        module.model.layers = torch.nn.ModuleList([module.model.layers[i] for i in layers])
        with target.shallow(layers):
            assert same_bits(target.prefill(text, 4)[1], NativeTarget(module).prefill(text, 4)[1])
    assert same_bits(target.prefill(text, 4)[1], whole)


# ---- drafters ----


EAGLE3: dict[str, dict[str, bool]] = {
    "eagle3": {"norm_before_fc": True},
    "eagle3.1": {"fc_norm": True, "norm_output": True, "norm_before_residual": True},
}
KINDS_OF_DRAFTERS = ["eagle", "lm", *EAGLE3]


def drafter_of(kind: str, case: Case, path: str) -> NativeEagleDrafter | NativeEagle3Drafter | NativeLMDrafter:
    target = target_of(case.model, case.dtype, path)
    if kind == "lm":
        return NativeLMDrafter(module_of(case.model, case.dtype), target.library)
    if kind in EAGLE3:
        return NativeEagle3Drafter(eagle3_head_of(case.model, case.dtype, **EAGLE3[kind]), target.embedding, target.lm_head)
    return NativeEagleDrafter(head_of(case.model, case.dtype), target.embedding, target.lm_head)


def observed(drafter: Any, text: list[int], features: Tensor, *, at_once: int) -> None:
    """Start, and observe the pairs of a text (its tokens from the second on), so many at once."""
    drafter.start(len(text) + 2 * MOST_NODES, None, text[0])
    for i in range(1, len(text), at_once):
        part = text[i : i + at_once]
        drafter.observe(part, features[i - 1 : i - 1 + len(part)])


def check_drafter(kind: str, case: Case, path: str) -> None:
    """A level at once, each node in a call of its own, and all nodes in one call give the same bits."""
    rng = case.rng
    text, tree = case.text(case.context + 2, rng), case.tree(rng)
    wide = case_width(case) * (3 if kind in EAGLE3 else 1)  # of what is observed
    hidden = torch.randn(len(text) + 8, wide, generator=torch.Generator().manual_seed(case.seed % 2**31))
    drafter = drafter_of(kind, case, path)
    with threads(case.threads):
        observed(drafter, text, hidden, at_once=len(text))
        root = drafter.root_logits()[0].clone()
        levels = expand_in_levels(drafter, tree)
        assert same_bits(drafter.root_logits()[0], root)  # still the root's

    alone = drafter_of(kind, case, path)
    observed(alone, text, hidden, at_once=rng.choice([1, 2, len(text)]))
    assert same_bits(alone.root_logits()[0], root)
    nothing = torch.empty(0)
    rows = {}
    for node in range(1, len(tree)):  # nodes of any depths follow each other: entry `node - 1`
        [rows[node]] = alone.expand(torch.tensor([tree.tokens[node]]), torch.tensor([tree.parents[node] - 1]), nothing)
    assert rows.keys() == levels.keys()
    assert all(same_bits(rows[node], levels[node]) for node in rows)
    if rows:
        features = None if kind == "lm" else alone._hidden[torch.tensor(tree.parents[1:])]
        alone._cache.n_waiting = 0
        once = alone._native.run(
            alone._cache, torch.tensor(tree.tokens[1:]), torch.tensor(tree.parents[1:]) - 1, alone._head, features=features
        )[1]
        assert all(same_bits(once[node - 1], rows[node]) for node in rows)

    # what comes after a step is what a drafter has that never drafted
    new = [*tokens_to(tree, rng.randrange(len(tree)))[1:], rng.randrange(case.vocab)]
    more = torch.randn(len(new), hidden.shape[1], generator=torch.Generator().manual_seed(1))
    drafter.observe(new, more)
    observed(alone, text + new, torch.cat([hidden[: len(text) - 1], more]), at_once=len(text) + len(new))
    assert same_bits(drafter.root_logits(), alone.root_logits())


def case_width(case: Case) -> int:
    return int(module_of(case.model, case.dtype).config.hidden_size)


@pytest.mark.parametrize("kind", KINDS_OF_DRAFTERS)
@each_path
@given(case=cases)
@settings(max_examples=2)
@example(case=Case("72, three heads a group", torch.bfloat16, 126, 71, "star"))
@example(case=Case(LARGEST, torch.bfloat16, 20, 71, "any", 3))
def test_a_draft_does_not_depend_on_what_is_drafted_beside_it(case: Case, path: str, kind: str) -> None:
    check_drafter(kind, case, path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS_OF_DRAFTERS)
@each_path
@given(case=cases)
@SLOW
def test_many_drafts_do_not_depend_on_what_is_drafted_beside_them(case: Case, path: str, kind: str) -> None:
    check_drafter(kind, case, path)


@each_dtype
@each_path
def test_a_drafted_token_that_is_observed_is_the_root_it_was_drafted_as(path: str, dtype: torch.dtype) -> None:
    """A draft LM reads real texts: a node's logits are those of the text with its path."""
    case = Case("72, three heads a group", dtype, 40, 12, "deep")
    tree = case.tree(case.rng)
    drafter, text = drafter_of("lm", case, path), list(range(3, 45))
    observed(drafter, text, torch.empty(0), at_once=len(text))
    for node, logits in expand_in_levels(drafter, tree).items():  # type: ignore[arg-type]
        other = drafter_of("lm", case, path)
        observed(other, text + tokens_to(tree, node)[1:], torch.empty(0), at_once=len(text))
        assert same_bits(other.root_logits()[0], logits)


@each_path
@each_model
def test_native_drafters_draft_what_torchs_do(model: str, path: str) -> None:
    case = Case(model, torch.float32, 70, 20, "deep")
    text, tree = case.text(case.context, case.rng), case.tree(case.rng)
    hidden = torch.randn(len(text), case_width(case), generator=torch.Generator().manual_seed(0))
    target, module = target_of(model, torch.float32, path), module_of(model, torch.float32)
    frequent = torch.tensor(random.Random(1).sample(range(case.vocab), 100))
    for bias in (True, False):
        head = head_of(model, torch.float32, bias)
        for cut in (None, 100, 33):
            native = NativeEagleDrafter(head, target.embedding, target.lm_head, frequent)
            torchs = EagleDrafter(head, target.embedding, module.lm_head, frequent)
            found = []
            for drafter in (native, torchs):
                drafter.start(200, cut, text[0])
                drafter.observe(text[1:], hidden[:-1])
                rows = expand_in_levels(drafter, tree)
                found.append(torch.stack([drafter.root_logits()[0], *(rows[i] for i in sorted(rows))]))
            assert found[0].shape == found[1].shape == (len(tree), cut or case.vocab)
            assert (found[0] - found[1]).abs().max() < 1e-3
            names = torch.arange(found[0].shape[1])
            assert torch.equal(native.named(names), frequent[:cut] if cut else names)
    found = []
    for lm in (NativeLMDrafter(module, target.library), LMDrafter(module)):
        observed(lm, text, hidden, at_once=30)
        rows = expand_in_levels(lm, tree)  # type: ignore[arg-type]
        found.append(torch.stack([lm.root_logits()[0], *(rows[i] for i in sorted(rows))]))
    assert (found[0] - found[1]).abs().max() < 1e-3


# ---- transformers ----


@torch.inference_mode()
def rows_of(target: NativeTarget, text: list[int], n: int) -> Tensor:
    """The logits of the last n tokens of a text, as a chain."""
    begin(target, text[:-n])
    return target.verify(chain(text[-n], text[1 - n :]))[1]


@each_model
@each_path
@torch.inference_mode()
def test_in_float32_logits_are_transformers_and_so_is_the_argmax(path: str, model: str) -> None:
    case, module = Case(model, torch.float32, 0, 1), module_of(model, torch.float32)
    for n, last in ((60, 60), (200, 66), (301, 40)):
        text = case.text(n, random.Random(n))
        wanted = module(torch.tensor([text]), use_cache=False).logits[0, -last:]
        found = rows_of(target_of(model, torch.float32, path), text, last)
        assert (found - wanted).abs().max() < 1e-3
        best = wanted.topk(2).values
        sure = best[:, 0] - best[:, 1] > 2e-3
        assert sure.float().mean() > 0.9
        assert torch.equal(found.argmax(-1)[sure], wanted.argmax(-1)[sure])


@each_model
@each_path
@torch.inference_mode()
def test_in_bfloat16_logits_are_as_near_to_the_truth_as_transformers(path: str, model: str) -> None:
    case, module = Case(model, torch.bfloat16, 0, 1), module_of(model, torch.bfloat16)
    text = case.text(150, case.rng)
    exact = copy.deepcopy(module).double()(torch.tensor([text]), use_cache=False).logits[0, -60:]
    theirs = module(torch.tensor([text]), use_cache=False).logits[0, -60:].double()
    target = fresh_target(model, torch.bfloat16, path)
    ours = rows_of(target, text, 60).double()
    assert (ours - exact).pow(2).mean() < (theirs - exact).pow(2).mean()  # features are not rounded here
    assert self_check.deviation(target, text[:12]) < self_check.TOLERANCE["bfloat16"]


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "default", "rope_theta": 500.0}])
@torch.inference_mode()
def test_the_rotary_table_is_the_models(rope: dict[str, Any]) -> None:
    config = copy.deepcopy(module_of("tiny", torch.float32).config)
    config.rope_parameters = {"rope_theta": 10000.0, **rope}
    module: Any = type(module_of("tiny", torch.float32))(config).eval()
    module.load_state_dict(module_of("tiny", torch.float32).state_dict())
    text = [(7 * i) % 383 for i in range(200)]
    wanted = module(torch.tensor([text]), use_cache=False).logits[0, -1]
    assert (wanted - module_of("tiny", torch.float32)(torch.tensor([text])).logits[0, -1]).abs().max() > 0.1
    assert (NativeTarget(module).prefill(text, 1)[1] - wanted).abs().max() < 1e-3


# ---- products ----

SIZES = [(64, 64), (100, 48), (517, 72), (192, 576), (13, 1000), (1, 2)]


def product_of(n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight [n, k] and rows [70, k]; no number so small that a product of two is denormal."""
    generator = torch.Generator().manual_seed(n * k)
    return torch.randn(n, k, generator=generator).to(dtype), torch.randn(70, k, generator=generator)


@pytest.mark.parametrize("size", SIZES)
def test_in_bfloat16_products_have_the_same_bits_on_every_path_but_amx(size: tuple[int, int]) -> None:
    weight, x = product_of(*size, torch.bfloat16)
    found = [NativeLinear(weight, None, library.functions(path))(x) for path in CHAINED]
    assert all(same_bits(y, found[0]) for y in found)


@pytest.mark.parametrize("size", SIZES)
def test_in_float32_products_have_the_same_bits_on_every_path_with_fused_multiply_adds(size: tuple[int, int]) -> None:
    weight, x = product_of(*size, torch.float32)
    found = [NativeLinear(weight, None, library.functions(path))(x) for path in PATHS if path != "portable"]
    assert all(same_bits(y, found[0]) for y in found)


@pytest.mark.parametrize("path", CHAINED)
@pytest.mark.parametrize("size", SIZES)
def test_a_product_in_bfloat16_is_one_chain_of_additions(size: tuple[int, int], path: str) -> None:
    """In pairs: first the odd place's, then the even one's. Products of bfloat16 are exact in float32."""
    weight, x = product_of(*size, torch.bfloat16)
    w, a = weight.float().numpy(), x.bfloat16().float().numpy()
    sums = np.zeros((70, size[0]), dtype=np.float32)
    for pair in range(0, size[1], 2):
        for place in (pair + 1, pair):
            sums = sums + a[:, place, None] * w[None, :, place]
    assert sums.dtype == np.float32
    assert same_bits(NativeLinear(weight, None, library.functions(path))(x), torch.from_numpy(sums))


@each_dtype
@each_path
def test_a_linear_map_and_what_follows_it(path: str, dtype: torch.dtype) -> None:
    weight, x = product_of(100, 48, dtype)
    bias, other = torch.linspace(-1, 1, 100), torch.randn(7, 10, 100, generator=torch.Generator().manual_seed(1))
    linear = NativeLinear(weight, bias, library.functions(path))
    x = x.view(7, 10, 48)
    wanted = x.to(dtype).double() @ weight.double().T + bias
    cases = [
        (linear(x), wanted), (linear(x, silu=True), F.silu(wanted)), (linear(x, plus=other), wanted + other),
        (linear(x, times=other), wanted * other), (linear.like(weight[:7])(x), wanted[..., :7] - bias[:7]),
    ]  # fmt: skip
    for found, exact in cases:
        assert found.shape == exact.shape and (found - exact).abs().max() < 1e-4


# ---- the best entries of a row ----


@st.composite
def rows_of_logits(draw: st.DrawFn) -> tuple[Tensor, int]:
    vocab = draw(st.one_of(st.integers(1, 80), st.sampled_from([383, 1023, 1024, 1025, 2049, 4100])))
    k = draw(st.one_of(st.integers(1, min(vocab, 20)), st.just(vocab if vocab < 1200 else 20)))
    kind = draw(st.sampled_from(["any", "ties", "all equal", "far apart", "in order", "some impossible"]))
    x = torch.randn(draw(st.integers(1, 5)), vocab, generator=torch.Generator().manual_seed(draw(st.integers(0, 1000))))
    if kind == "ties":
        x = (2 * x).round()
    elif kind == "all equal":
        x = torch.full_like(x, -3.25)
    elif kind == "far apart":
        x = 100 * x
    elif kind == "in order":
        x = x.sort(-1, descending=draw(st.booleans())).values
    elif kind == "some impossible":
        x[:, draw(st.integers(0, vocab - 1)) :] = -torch.inf
        x[:, 0] = 1.5
    return x, k


@each_path
@given(case=rows_of_logits())
@settings(max_examples=40)
def test_the_best_children_are_those_of_a_stable_sort(case: tuple[Tensor, int], path: str) -> None:
    logits, k = case
    wide = F.pad(logits, (0, 13), value=1e9)[:, : logits.shape[1]]  # rows as those of a padded LM head lie
    for x in (logits, wide):
        tokens, logp = best_children(library.functions(path), x, k)
        values, wanted = logits.sort(dim=-1, descending=True, stable=True)
        assert torch.equal(tokens, wanted[:, :k])
        exact = logits.double().log_softmax(-1).gather(-1, tokens)
        possible = values[:, :k] > -torch.inf
        # float32 cannot hold them nearer than a few of its own steps
        assert ((logp - exact).abs()[possible] <= 1e-6 + 3e-7 * exact.abs()[possible]).all()
        assert (logp <= 0).all() and (logp[~possible] == -torch.inf).all()


@each_path
def test_the_best_children_do_not_depend_on_the_rows_beside_them_nor_on_threads(path: str) -> None:
    logits = torch.randn(9, 50_000, generator=torch.Generator().manual_seed(0))
    functions = library.functions(path)
    with threads(3):
        tokens, logp = best_children(functions, logits, 10)
    for i in range(9):
        one = best_children(functions, logits[i : i + 1], 10)
        assert torch.equal(one[0][0], tokens[i]) and same_bits(one[1][0], logp[i])


# ---- what it refuses ----


@pytest.mark.parametrize("parents", [[-1, 1], [-2, 0], [5, 0], [-1, 2]])
def test_a_row_that_hangs_on_none_before_it_is_refused(parents: list[int]) -> None:
    target = target_of("tiny", torch.float32, "portable")
    target.prefill([5, 6], 40)
    with pytest.raises(RuntimeError, match="^the native engine refuses: a row hangs on one that is not there$"):
        target.verify(Tree([7, 8], parents))
    assert target.length == 2
    target.verify(Tree([7, 8], [-1, 0]))  # and it still runs


def test_more_tokens_than_there_is_room_for_are_refused() -> None:
    target = fresh_target("tiny", torch.float32)
    text = list(range(3, 253))
    target.prefill(text, 6)
    assert target.cache.capacity == 256
    for refused in (lambda: target.verify(chain(5, [6] * 6)), lambda: [target.step(5) for _ in range(7)]):
        with pytest.raises(RuntimeError, match="^the native engine refuses: no memory or no room for so many tokens$"):
            refused()
    assert target.length == 256
    drafter = NativeEagleDrafter(head_of("tiny", torch.float32), target.embedding, target.lm_head)
    drafter.start(10)
    drafter.observe(text, torch.zeros(250, 64))
    drafter.observe([5] * 6, torch.zeros(6, 64))
    with pytest.raises(RuntimeError, match="no room"):
        drafter.observe([5], torch.zeros(1, 64))


@pytest.mark.parametrize("path", [[], [1], [0, 2], [0, 1, 2]])
def test_what_is_no_path_of_the_tree_is_not_committed(path: list[int]) -> None:
    target = target_of("tiny", torch.float32, "portable")
    target.prefill([5, 6], 40)
    target.verify(Tree([7, 8], [-1, 0]))
    with pytest.raises(ValueError, match="not one of the 2 nodes last verified"):
        target.commit(path)


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    target = fresh_target("64, whole panels", torch.float32)
    calls = (
        lambda: target.prefill([5, token], 4),
        lambda: target.prefill([5], 40) and target.step(token),
        lambda: target.prefill([5], 40) and target.verify(chain(5, [token])),
    )
    for call in calls:
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            call()


@pytest.mark.parametrize("what", ["an empty text", "logits of a long text", "more than all"])
def test_what_would_give_numbers_that_were_never_written_is_refused(what: str) -> None:
    target = fresh_target("64, whole panels", torch.float32)
    target.prefill([5], 300)
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        if what == "an empty text":
            target.prefill([], 4)
        elif what == "logits of a long text":  # only those of the last chunk are computed
            target.native.run(target.cache, torch.arange(100), None, target.lm_head)
        else:
            best_children(target.library, torch.zeros(1, 5), 6)


@each_dtype
@each_path
def test_scores_that_overflow_make_logits_that_are_not_finite(path: str, dtype: torch.dtype) -> None:
    """A wrong number must not look like a right one: what is not finite is found by `harness.watch` and by the self-check."""
    module = copy.deepcopy(module_of("72, wide heads", dtype))
    with torch.no_grad():
        for layer in module.model.layers:
            layer.self_attn.q_proj.weight *= 1e25
            layer.self_attn.k_proj.weight *= 1e25
    text = list(range(20))
    assert not LlamaTarget(copy.deepcopy(module)).prefill(text, 1)[1].isfinite().any()
    assert not NativeTarget(module, path).prefill(text, 1)[1].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM with these settings has no native forward"):
        NativeTarget(copy.deepcopy(module_of("tiny", torch.float32)).to(dtype))


def test_a_path_that_is_none_is_refused() -> None:
    with pytest.raises(build.NoNativeEngine, match="has no path 'sse9'; it has: amx, "):
        fresh_target("tiny", torch.float32, "sse9")


# ---- processes ----


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    target = fresh_target(LARGEST, torch.bfloat16)
    text = list(range(3, 83))
    with threads(2):
        wanted = target.prefill(text, 8)[1]  # the workers exist now, and do not in a child
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)  # a child that waits for workers who are gone is ended, and has no status 0
            status = 1
            try:
                status = 0 if all(same_bits(target.prefill(text, 8)[1], wanted) for _ in range(3)) else 3
                if Path("/proc/self/task").is_dir() and len(list(Path("/proc/self/task").iterdir())) < 2:
                    status = 4  # nothing was shared, so nothing is shown
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert same_bits(target.prefill(text, 8)[1], wanted)  # nor does it harm the parent


# ---- facts ----


def test_a_target_says_what_it_is() -> None:
    target = fresh_target("tiny", torch.bfloat16, "portable")
    assert target.is_row_invariant and not LlamaTarget.is_row_invariant
    assert target.engine == "native portable"
    assert target.engine_facts["native"]["path"] == "portable"
    weights = sum(p.numel() for name, p in target.model.named_parameters() if "proj" in name or "lm_head" in name)
    if target.model.config.tie_word_embeddings:
        weights += target.embedding.numel()
    assert weights * 2 <= target.weight_bytes < 1.5 * weights * 2  # the panels, with what they are padded by
