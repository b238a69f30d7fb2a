"""Tree growth against slow versions that keep every node by its path, with a drafter whose logits depend on the path only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from growing import GREEDY, ROOT, context, paths_of, rows_of
from hypothesis import example, given, settings
from torch import Tensor

from harness.audit.probe.stand_ins import FakeDrafter, Rows
from harness.audit.probe.stand_ins import Text as Path
from methods.base import SamplerParams
from methods.eagle1 import SHAPE
from methods.engine.grow import best_tokens, dynamic_tree, prompt_lookup, static_tree
from methods.engine.loop import Context
from methods.engine.sampling import Chooser

# ---- the dynamic tree ----


@dataclass
class Node:
    order: tuple[int, int, int]  # level, rank of the expanded parent, rank among its children
    own: np.float32
    value: np.float32


def slow_dynamic_tree(rows: Rows, top_k: int, depth: int, total: int, score: str, rerank: bool) -> list[Path]:
    """EAGLE-2 section 4 by the letter: the paths of the draft nodes in the order they are verified in."""
    pool: dict[Path, Node] = {}
    levels: list[list[Path]] = []

    def rank(path: Path) -> np.float32:
        return pool[path].value if score == "value" else pool[path].own

    expanded: list[Path] = [()]
    for level in range(1, depth + 1):
        new: list[Path] = []
        for place, parent in enumerate(expanded):
            logits = rows(parent)
            normaliser = math.log(sum(math.exp(x - max(logits)) for x in logits)) + max(logits)
            best = sorted(range(len(logits)), key=lambda t: (-logits[t], t))[:top_k]
            for nth, token in enumerate(best):
                own = np.float32(min(logits[token] - normaliser, 0.0))
                value = own + (pool[parent].value if parent else np.float32(0))
                pool[*parent, token] = Node((level, place, nth), own, value)
                new.append((*parent, token))
        expanded = sorted(new, key=lambda p: (-rank(p), pool[p].order))[:top_k]
        levels.append(expanded)
    if not rerank:
        return [path for level in levels for path in level][:total]
    kept: list[Path] = []
    if score == "value":
        kept = sorted(pool, key=lambda p: (-pool[p].value, pool[p].order))[:total]
    else:  # best first among the nodes whose parent is in
        while len(kept) < min(total, len(pool)):
            open_nodes = [p for p in pool if p not in kept and (len(p) == 1 or p[:-1] in kept)]
            kept.append(min(open_nodes, key=lambda p: (-pool[p].own, pool[p].order)))
    return sorted(kept, key=lambda p: pool[p].order)


variants = pytest.mark.parametrize(
    ("score", "rerank"), [("value", True), ("confidence", True), ("value", False), ("confidence", False)]
)


@variants
@given(
    kind=st.sampled_from(["distinct", "tied", "saturated"]),
    vocab=st.integers(2, 6),
    top_k=st.integers(1, 7),
    depth=st.integers(1, 4),
    total=st.integers(1, 40),
    seed=st.integers(0, 10**6),
)
@example(kind="tied", vocab=6, top_k=9, depth=1, total=3, seed=1)
@example(kind="saturated", vocab=6, top_k=4, depth=4, total=7, seed=2)
@example(kind="distinct", vocab=12, top_k=10, depth=3, total=59, seed=3)
@settings(max_examples=120)
def test_the_dynamic_tree_is_that_of_the_paper(
    score: str, rerank: bool, kind: str, vocab: int, top_k: int, depth: int, total: int, seed: int
) -> None:
    rows = rows_of(kind, vocab, seed)
    tree = dynamic_tree(top_k, depth, total, score, rerank).tree(FakeDrafter(rows), context())
    assert paths_of(tree) == slow_dynamic_tree(rows, top_k, depth, total, score, rerank)
    assert tree.q is None


@variants
@pytest.mark.parametrize("kind", ["distinct", "saturated"])
def test_the_paper_setting_drafts_59_nodes_with_5_forwards_over_10_nodes_in_every_ablation(
    score: str, rerank: bool, kind: str
) -> None:
    drafter = FakeDrafter(rows_of(kind, 40, 0))
    tree = dynamic_tree(score=score, rerank=rerank).tree(drafter, context())
    assert tree.n_draft == 59 and len(drafter.paths) == 5 * 10  # level 1 comes from the root's forward
    assert kind != "saturated" or max(tree.depths()) == 6


@variants
@given(
    kind=st.sampled_from(["distinct", "tied", "saturated"]),
    vocab=st.integers(2, 6),
    top_k=st.integers(1, 6),
    depth=st.integers(1, 6),
    total=st.integers(1, 40),
    seed=st.integers(0, 10**6),
)
@example(kind="tied", vocab=6, top_k=9, depth=1, total=3, seed=1)
@example(kind="saturated", vocab=6, top_k=4, depth=4, total=7, seed=2)
@example(kind="distinct", vocab=12, top_k=10, depth=6, total=59, seed=3)
@settings(max_examples=60)
def test_stopping_early_leaves_the_tree_as_it_is_and_drafts_no_more(
    score: str, rerank: bool, kind: str, vocab: int, top_k: int, depth: int, total: int, seed: int
) -> None:
    whole, stopped = (FakeDrafter(rows_of(kind, vocab, seed)) for _ in range(2))
    trees = [
        dynamic_tree(top_k, depth, total, score, rerank, stop_early=stops).tree(drafter, context())
        for drafter, stops in ((whole, False), (stopped, True))
    ]
    assert paths_of(trees[0]) == paths_of(trees[1])
    assert trees[0].confidence is not None and trees[1].confidence is not None
    assert trees[0].confidence() == trees[1].confidence()
    assert set(stopped.paths) <= set(whole.paths)
    if not rerank or score == "confidence":  # whole levels go, the last ones
        assert stopped.paths == whole.paths[: len(stopped.paths)]


@variants
def test_stopping_early_saves_forwards_where_a_small_tree_is_kept_of_a_deep_draft(score: str, rerank: bool) -> None:
    """Confidence falls with every level: four nodes of the first and two of the second are kept, none below."""
    forwards = []
    for stops in (False, True):
        drafter = FakeDrafter(lambda path: [0.0 if t < 4 * 2 ** len(path) else -math.inf for t in range(128)])
        expand, calls = drafter.expand, list[int]()
        drafter.expand = lambda *a, expand=expand, calls=calls: (calls.append(len(a[0])), expand(*a))[1]  # type: ignore[method-assign]
        dynamic_tree(4, 6, 6, score, rerank, stop_early=stops).tree(drafter, context())
        forwards.append(len(calls))
    assert forwards[0] == 5 and forwards[1] < 5


@variants
@pytest.mark.parametrize("total", [1, 9, 10, 11, 59, 10**4])
def test_siblings_that_all_tie_keep_a_closed_tree(score: str, rerank: bool, total: int) -> None:
    drafter = FakeDrafter(lambda path: [0.0] * 12)
    tree = dynamic_tree(10, 4, total, score, rerank).tree(drafter, context())
    pool = 10 * 4 if not rerank else 10 + 3 * 10 * 10
    assert len(paths_of(tree)) == min(total, pool)


@variants
def test_a_certain_chain_is_kept_whole_before_any_of_its_siblings(score: str, rerank: bool) -> None:
    # log-probabilities of exactly 0 down the chain: each node ties with its parent
    drafter = FakeDrafter(lambda path: [200.0 if t == len(path) else 0.0 for t in range(8)])
    tree = dynamic_tree(3, 5, 5, score, rerank).tree(drafter, context())
    if rerank:
        assert paths_of(tree) == [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4)]
    else:
        assert paths_of(tree)[0] == (0,)


@variants
def test_impossible_tokens_do_not_spoil_the_tree(score: str, rerank: bool) -> None:
    drafter = FakeDrafter(lambda path: [0.0, -math.inf, -math.inf, 1.0])
    tree = dynamic_tree(4, 3, 20, score, rerank).tree(drafter, context())
    paths_of(tree)


# ---- the static tree ----


@st.composite
def shapes(draw: st.DrawFn) -> list[Path]:
    """Ranks in paths: every node's parent and its better siblings are in, as in the published shape."""
    shape: list[Path] = []
    for _ in range(draw(st.integers(1, 9))):
        parent = draw(st.sampled_from([(), *shape]))
        shape.append((*parent, sum(p[:-1] == parent for p in shape)))
    return draw(st.permutations(shape))


def slow_static_tree(shape: list[Path], ranked: Callable[[Path], list[int]]) -> list[Path]:
    """Paths of tokens for paths of ranks, level by level; `ranked`: the tokens a node offers, best first."""
    tokens: dict[Path, Path] = {(): ()}
    for path in sorted(shape, key=lambda p: (len(p), p)):
        if path[:-1] in tokens and path[-1] < len(ranked(tokens[path[:-1]])):
            tokens[path] = (*tokens[path[:-1]], ranked(tokens[path[:-1]])[path[-1]])
    return list(tokens.values())[1:]


@given(shape=shapes(), vocab=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_the_static_tree_hangs_the_best_children_on_its_shape(shape: list[Path], vocab: int, seed: int) -> None:
    rows = rows_of("tied", vocab, seed)

    def ranked(path: Path) -> list[int]:
        return sorted(range(vocab), key=lambda t: -rows(path)[t])

    tree = static_tree(shape).tree(FakeDrafter(rows), context())
    assert paths_of(tree) == slow_static_tree(shape, ranked)
    assert tree.q is None


@given(shape=shapes(), seed=st.integers(0, 10**6), temperature=st.sampled_from([0.6, 1.0]), top_p=st.sampled_from([0.7, 1.0]))
@settings(max_examples=20)
def test_sampled_children_come_in_the_order_of_draw_with_the_law_they_were_drawn_from(
    shape: list[Path], seed: int, temperature: float, top_p: float
) -> None:
    rows = rows_of("distinct", 5, seed)
    params = SamplerParams(1, temperature=temperature, top_p=top_p)

    class WorstFirst(Chooser):
        def children(self, q: Tensor, k: int, position: int, node: int) -> list[int]:
            return sorted(q.nonzero().flatten().tolist(), key=lambda t: float(q[t]))[:k]

    def law(path: Path) -> Tensor:
        return Chooser(params).law(torch.tensor(rows(path), dtype=torch.float64))

    here = Context([5, ROOT], 1, WorstFirst(params))
    tree = static_tree(shape).tree(FakeDrafter(rows), here)
    paths = [(), *paths_of(tree)]
    assert paths[1:] == slow_static_tree(shape, lambda path: here.chooser.children(law(path), 10, 0, 0))
    assert tree.q is not None
    assert set(tree.q) == {p for p in tree.parents if p >= 0}
    for node, q in tree.q.items():
        assert torch.equal(q, law(paths[node]))


def test_nodes_and_positions_draw_from_streams_of_their_own() -> None:
    seen = set()

    class Noting(Chooser):
        def children(self, q: Tensor, k: int, position: int, node: int) -> list[int]:
            assert (position, node) not in seen
            seen.add((position, node))
            return super().children(q, k, position, node)

    grow = static_tree([tuple(map(int, word)) for word in SHAPE.split()])
    for position in (1, 2, 7):
        here = Context([5, ROOT], position, Noting(SamplerParams(1, temperature=1.0)))
        grow.tree(FakeDrafter(rows_of("distinct", 20, 0)), here)
    assert len(seen) == 3 * 11  # the root and ten nodes with children


def test_the_published_static_shape_has_25_nodes_in_levels_of_4_8_8_3_2() -> None:
    drafter = FakeDrafter(rows_of("distinct", 20, 0))
    tree = static_tree([tuple(map(int, word)) for word in SHAPE.split()]).tree(drafter, context())
    assert [tree.depths().count(d) for d in range(1, 6)] == [4, 8, 8, 3, 2]
    assert len(drafter.paths) == 4 + 4 + 1 + 1


@pytest.mark.parametrize("shape", [[(0, 0)], [(0,), (1, 0)], [(10,)], [(1,)], [(0,), (0, 0), (0, 2)], []])
def test_a_shape_that_cannot_be_drafted_is_refused(shape: list[Path]) -> None:
    # without its better sibling a sampled child would be verified with a law it was not drawn from
    with pytest.raises(ValueError):
        static_tree(shape)


def test_a_node_named_twice_is_drafted_once() -> None:
    tree = static_tree([(0,), (0,), (0, 0)]).tree(FakeDrafter(rows_of("distinct", 5, 0)), context())
    assert tree.n_draft == 2


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"depth": 0}, {"total": -1}])
def test_counts_under_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        dynamic_tree(**wrong)
    with pytest.raises(ValueError, match="at least 1"):
        prompt_lookup(n_draft=0)


# ---- prompt lookup ----


@given(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=25), max_ngram=st.integers(1, 4), n_draft=st.integers(1, 5))
def test_prompt_lookup_copies_what_followed_the_last_earlier_match_of_the_longest_ngram(
    tokens: list[int], max_ngram: int, n_draft: int
) -> None:
    wanted: list[int] = []
    for n in range(max_ngram, 0, -1):
        ends = [e for e in range(n, len(tokens)) if tokens[e - n : e] == tokens[len(tokens) - n :]]
        if ends and len(tokens) > n:
            wanted = tokens[ends[-1] :][:n_draft]
            break
    tree = prompt_lookup(max_ngram, n_draft).tree(None, Context(tokens, 1, Chooser(GREEDY)))
    assert tree.tokens == [tokens[-1], *wanted]
    assert tree.parents == list(range(-1, len(wanted)))


@pytest.mark.parametrize(("rows", "vocab", "k"), [(10, 49_152, 10), (1, 640, 10), (3, 64, 1), (2, 100, 7), (4, 128, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_best_tokens_are_those_of_a_plain_topk(rows: int, vocab: int, k: int, dtype: torch.dtype) -> None:
    """vocab 100 and 128 take the plain path; in bf16 equal logits abound, so values are compared, and tokens distinct."""
    logits = (torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab)) * 3).to(dtype)
    tokens = best_tokens(logits, k)
    assert torch.equal(logits.gather(1, tokens), logits.topk(k, dim=-1).values)
    assert all(len(set(row)) == k for row in tokens.tolist())
    if dtype == torch.float32:
        assert torch.equal(tokens, logits.topk(k, dim=-1).indices)
