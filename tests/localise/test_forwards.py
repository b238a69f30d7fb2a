"""The forwards whose rows are compared: trees and their parts, and each node's plain step."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_model import TinyModel

from harness.localise.engines import WatchedModule
from harness.localise.findings import Findings
from harness.localise.forwards import CONTEXT, DEEPEST, MOST_TREES, _unseen, _walked, part_of, parts, random_parents
from methods.engine.target import HFTarget
from methods.engine.tree import Tree


@pytest.mark.parametrize("n", [1, 2, 60])
def test_trees_are_trees_of_the_size_and_parts_of_them_too(n: int) -> None:
    chance = random.Random(0)
    parents = random_parents(60, chance)
    assert parents[0] == -1 and all(0 <= p < i for i, p in enumerate(parents[1:], start=1))
    tree = Tree(list(range(60)), parents)
    assert max(tree.depths()) <= DEEPEST
    found = parts(parents, n, chance)
    assert 1 <= len(found) <= MOST_TREES and (len(found) > 1) is (n == 2)
    for nodes in found:
        part = part_of(tree, nodes)
        assert len(part) == n and part.tokens == nodes and part.parents[0] == -1
        assert [part.tokens[p] for p in part.parents[1:]] == [parents[i] for i in nodes[1:]]


def test_a_nodes_plain_step_is_the_last_of_plain_steps_along_its_path(tiny: TinyModel) -> None:
    text = tiny.prompts[-1] * 9
    engine = WatchedModule(HFTarget(tiny.loaded.target.model), "module")
    engine.prefill(text[:CONTEXT], 20, _unseen)
    tree, plain = _walked(engine, text[CONTEXT], random_parents(20, random.Random(1)), Findings())
    assert len({one.logits.argmax().item() for one in plain}) > 1
    for node in range(20):
        path, at = [], node
        while at >= 0:
            path, at = [at, *path], tree.parents[at]
        engine.prefill(text[:CONTEXT], 20, _unseen)
        steps = [engine.target.step(tree.tokens[i]) for i in path]
        assert torch.equal(steps[-1], plain[node].logits)
        siblings = [i for i in range(20) if tree.parents[i] == node]
        likeliest = plain[node].logits.topk(max(len(siblings), 1)).indices.tolist()
        assert [tree.tokens[i] for i in siblings] == likeliest[: len(siblings)]
