"""The tree against walking its paths."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given

from methods.engine.tree import Tree, chain


@st.composite
def trees(draw: st.DrawFn, most: int = 24, vocab: int = 50) -> Tree:
    """Any tree: each node's parent is any node before it."""
    n = draw(st.integers(1, most))
    parents = [-1, *(draw(st.integers(0, i - 1)) for i in range(1, n))]
    return Tree(draw(st.lists(st.integers(0, vocab - 1), min_size=n, max_size=n)), parents)


def path_to(tree: Tree, node: int) -> list[int]:
    """Root first."""
    path = [node]
    while tree.parents[path[0]] >= 0:
        path.insert(0, tree.parents[path[0]])
    return path


@given(trees())
def test_a_row_of_the_mask_marks_the_path_from_the_root(tree: Tree) -> None:
    mask = tree.ancestors()
    assert mask.dtype == torch.bool and mask.shape == (len(tree), len(tree))
    for node in range(len(tree)):
        assert mask[node].nonzero().flatten().tolist() == sorted(path_to(tree, node))


@given(trees())
def test_depth_is_the_number_of_steps_from_the_root(tree: Tree) -> None:
    assert tree.depths() == [len(path_to(tree, node)) - 1 for node in range(len(tree))]


@given(trees())
def test_children_are_the_nodes_that_name_a_node_their_parent(tree: Tree) -> None:
    assert tree.children() == [[c for c, p in enumerate(tree.parents) if p == node] for node in range(len(tree))]


@given(trees())
def test_the_root_is_not_a_draft_node(tree: Tree) -> None:
    assert tree.n_draft == len(tree) - 1 == len(tree.tokens) - 1


@given(st.lists(st.integers(0, 9), max_size=8))
def test_a_chain_has_one_path(tokens: list[int]) -> None:
    tree = chain(99, tokens)
    assert tree.tokens == [99, *tokens]
    assert path_to(tree, len(tokens)) == list(range(len(tokens) + 1))
    assert bool((tree.ancestors() == torch.ones(len(tree), len(tree), dtype=torch.bool).tril()).all())
