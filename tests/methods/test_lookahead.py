"""The Jacobi window against one written out position by position, the pool, and what is said of an empty window."""

from __future__ import annotations

import pytest
import torch
from places import TINY
from tiny_model import TinyModel
from torch import Tensor

from harness.common.errors import UserError
from harness.load.config import model_config
from harness.run.arms import make_arms
from methods.base import SamplerParams
from methods.engine.jacobi import NgramPool, jacobi_window
from methods.engine.loop import Context
from methods.engine.sampling import Chooser
from methods.engine.tree import Trie

VOCAB = 50


def successor(path: tuple[int, ...]) -> int:
    """What a made-up target says after the tokens of a path from the root on."""
    return (sum((i + 2) * t for i, t in enumerate(path)) + 7) % VOCAB


def logits_of(paths: list[tuple[int, ...]]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor([successor(p) for p in paths]), VOCAB).float()


@pytest.mark.parametrize(("window", "ngram", "guesses"), [(3, 4, 2), (1, 2, 1), (4, 2, 3), (2, 5, 7)])
def test_every_step_verifies_the_window_of_the_definition_and_the_pools_grams(window: int, ngram: int, guesses: int) -> None:
    grow = jacobi_window(window, ngram, guesses)
    context = Context([5, 6, 7, 8, 9], 1, Chooser(SamplerParams(1)))
    levels: list[dict[int, int]] = []  # level k: position after the root -> token guessed for it
    grams: dict[int, list[tuple[int, ...]]] = {}
    for step in range(3 * ngram):
        root = context.root
        tree = grow.tree(None, context)
        assert tree.n_draft <= grow.most
        paths: list[tuple[int, ...]] = [(root,)]
        for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
            paths.append((*paths[parent], token))
        assert len(set(paths)) == len(paths)
        if step == 0:
            first = [paths[node][-1] for node in range(1, len(tree))]
            assert len(first) == window + ngram - 3 and set(first) <= {5, 6, 7, 8, 9}
            levels = [dict(enumerate([root, *first]))]
        levels[0][0] = root  # the first column is the one that begins with what is known
        wanted = {(root, *(levels[0][p] for p in range(1, q + 1))) for q in levels[0] if q}
        columns = []  # the path of each cell of the newest level
        for i in range(len(levels[-1])):
            column = tuple(level[i + k] for k, level in enumerate(levels) if k)
            column_path = (root, *(levels[0][p] for p in range(1, i + 1)), *column)
            wanted |= {column_path[:n] for n in range(2, len(column_path) + 1)}
            columns.append((column_path, (levels[0][i], *column)))
        wanted |= {(root, *gram[:n]) for gram in grams.get(root, []) for n in range(1, ngram)}
        assert {p for p in paths if len(p) > 1} == wanted
        fresh = [successor(path) for path, _ in columns]
        newest = {i + len(levels): token for i, token in enumerate(fresh)}
        if len(levels) == ngram - 1:
            for token, (_, cells) in zip(fresh, columns, strict=True):
                known = grams.setdefault(cells[0], [])
                gram = (*cells[1:], token)
                grams[cells[0]] = [*(g for g in known if g != gram), gram][-guesses:]
            levels = levels[1:]
        # the root is one further on: position p is now p - 1; what a level guessed for the new root's place is of no more use
        levels = [{p - 1: t for p, t in level.items() if p > k} for k, level in enumerate([*levels, newest])]
        context.logits = logits_of(paths)
        context.tokens.append(successor((root,)))
    assert len(levels) == ngram - 1 and all(len(level) == window for level in levels) and grams


def test_the_pool_keeps_the_latest_distinct_grams_of_each_token() -> None:
    pool = NgramPool(2)
    for gram in ((1, 2, 3), (1, 4, 5), (1, 2, 3), (1, 6, 7), (2, 2, 3)):
        pool.add(gram)
    assert (pool.after(1), pool.after(2), pool.after(9)) == ([(2, 3), (6, 7)], [(2, 3)], [])


def test_a_growing_text_is_read_into_the_pool_once() -> None:
    pool = NgramPool(3)
    for length, read in ((2, 0), (5, 3), (5, 3), (7, 5)):
        pool.read([1, 2, 3, 1, 2, 4, 1][:length], 3)
        assert pool.n_read == read
    assert pool.followers == {1: [(2, 3), (2, 4)], 2: [(3, 1), (4, 1)], 3: [(1, 2)]}


@pytest.mark.parametrize("text_pool", [False, True])
def test_the_text_is_a_source_of_candidates_where_that_is_asked_for(text_pool: bool) -> None:
    context = Context([7, 1, 2, 7], 1, Chooser(SamplerParams(1)))
    tree = jacobi_window(1, 3, 2, text_pool).tree(None, context)
    assert (tree.tokens[-2:] == [1, 2] and tree.parents[-1] == len(tree) - 2) == text_pool


def test_candidates_of_several_sources_share_the_nodes_they_have_in_common() -> None:
    trie = Trie(0)
    assert trie.add_path([1, 2, 3]) == [1, 2, 3]
    assert trie.add_path([1, 2, 4]) == [1, 2, 4]
    assert trie.add_path([2], parent=1) == [2] and trie.add_path([1], parent=4) == [5]
    tree = trie.tree()
    assert (tree.tokens, tree.parents) == ([0, 1, 2, 3, 4, 1], [-1, 0, 1, 2, 2, 4])


def test_a_text_that_repeats_itself_is_drafted_from_the_pool(tiny: TinyModel) -> None:
    params = SamplerParams(64)
    for text_pool in (True, False):
        generations = [tiny.decode("lookahead", prompt, params, text_pool=text_pool) for prompt in tiny.prompts[:4]]
        forwards = sum(len(g.trace.accepted) for g in generations if g.trace)
        assert sum(len(g.token_ids) - 1 for g in generations) / forwards > 1.15
    again = tiny.decode("lookahead", tiny.prompts[0], params)
    assert again.trace is not None and generations[0].trace is not None
    assert again.trace.tree_size == generations[0].trace.tree_size  # nothing is kept from one generation to the next


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window": "0"}, "window=0: the window would be empty"),
        ({"ngram": "1"}, "ngram=1: the window would be empty"),
        ({"guesses": "0"}, "guesses=0: no n-gram would be verified"),
    ],
)
def test_an_empty_window_is_refused_before_anything_is_loaded(change: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_arms(("lookahead",), "paper", change, model_config(str(TINY)), None)
