"""The same rows by plain steps and by forwards over many rows: a prefill, a chain after a context, trees after it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from harness.localise.engines import LM_HEAD, See, Watched
from harness.localise.findings import AGAIN, CHAIN, PREFILL, TREE, Findings, Setting
from harness.localise.tape import Comparer, Operator, Recorder, Shapes, not_by_row
from methods.engine.tree import Tree, chain

CONTEXT = 128  # tokens before a chain or a tree
DEEPEST = 8  # level of a tree
MOST_TREES = 4  # of one size, and one text
_SEED = 21


class Plain(NamedTuple):
    """One plain step: what its operators made, and its logits [vocab]."""

    values: dict[Operator, Tensor]
    logits: Tensor


def find(engine: Watched, texts: Sequence[Sequence[int]], rows: Sequence[int], done: Callable[[], None]) -> Findings:
    """Compare every row of forwards over these numbers of rows with its plain step.

    texts: token ids, `CONTEXT` and as many more as the most rows. done: called three times a text.
    """
    findings = Findings(left_out=_left_out(engine, list(texts[0])))
    for text in texts:
        for compare in (_prefills, _chains, _trees):
            compare(engine, list(text), sorted(set(rows)), findings)
            done()
    return findings


def _left_out(engine: Watched, text: list[int]) -> set[Operator]:
    """The operators that cannot be compared row by row."""
    one, many = Shapes(), Shapes()
    engine.prefill(text[:CONTEXT], 1, many)
    engine.step(text[CONTEXT], one)
    return not_by_row({o: shape for o, shape in one.shapes.items() if o != LM_HEAD}, many.shapes, CONTEXT)


def _step(engine: Watched, token: int, findings: Findings) -> Plain:
    recorder = Recorder(findings.left_out)
    logits = engine.step(token, recorder)
    return Plain(recorder.values, logits[0].clone())


def _prefills(engine: Watched, text: list[int], rows: Sequence[int], findings: Findings) -> None:
    """The first rows of a text, into an empty cache."""
    engine.empty(max(rows))
    plain = [_step(engine, token, findings) for token in text[: max(rows)]]
    for n in rows:
        _compare(engine, partial(engine.prefill, text[:n], max(rows)), plain[:n], Setting(PREFILL, n), findings)


def _chains(engine: Watched, text: list[int], rows: Sequence[int], findings: Findings) -> None:
    """The rows behind the context, and first one plain step twice: what differs there is not due to the number of rows."""
    tokens = text[CONTEXT : CONTEXT + max(rows)]
    engine.prefill(text[:CONTEXT], max(rows), _unseen)
    plain = [_step(engine, token, findings) for token in tokens]

    def again(see: See) -> Tensor:
        engine.rewind(CONTEXT)
        return engine.step(tokens[0], see)

    _compare(engine, again, plain[:1], Setting(AGAIN, 1), findings)
    engine.rewind(CONTEXT)
    for n in rows:
        tree = chain(tokens[0], tokens[1:n])
        _compare(engine, partial(engine.verify, tree), plain[:n], Setting(CHAIN, n), findings)


def _trees(engine: Watched, text: list[int], rows: Sequence[int], findings: Findings) -> None:
    """Trees behind the context: a random one of the most rows, and parts of it. A node's children are its likeliest tokens."""
    chance = random.Random(_SEED)
    engine.prefill(text[:CONTEXT], max(rows), _unseen)
    parents = random_parents(max(rows), chance)
    tree, plain = _walked(engine, text[CONTEXT], parents, findings)
    engine.rewind(CONTEXT)
    for n in rows:
        for nodes in parts(parents, n, chance):
            forward = partial(engine.verify, part_of(tree, nodes))
            _compare(engine, forward, [plain[i] for i in nodes], Setting(TREE, n), findings)


def _unseen(operator: Operator, made: Tensor) -> None:
    """Of forwards that are only done for their keys and values."""


def _compare(
    engine: Watched, forward: Callable[[See], Tensor], plain: Sequence[Plain], setting: Setting, findings: Findings
) -> None:  # fmt: skip
    values = [one.values for one in plain]
    findings.operators.update(dict.fromkeys(values[0]))
    if engine.is_whole:
        corrected = Comparer(values, correct=True)
        forward(corrected)
        for operator, found in corrected.found.items():
            findings.own[setting][operator].add(found)
    free = Comparer(values, correct=False)
    logits = forward(free)
    findings.left_out |= {operator._replace(call=1) for operator in free.not_compared}
    for operator, found in free.found.items():
        findings.carried[setting][operator].add(found)
    findings.end[setting].add(logits, torch.stack([one.logits for one in plain[-len(logits) :]]))


def _walked(engine: Watched, root: int, parents: Sequence[int], findings: Findings) -> tuple[Tree, list[Plain]]:
    """The tree of these parents, and each node's plain step. It is walked depth first, so that the cache holds the path."""
    tree = Tree([root] * len(parents), list(parents))
    depths, children = tree.depths(), tree.children()
    plain: dict[int, Plain] = {}
    waiting = [0]
    while waiting:
        node = waiting.pop()
        engine.rewind(CONTEXT + depths[node])
        plain[node] = _step(engine, tree.tokens[node], findings)
        likeliest = plain[node].logits.topk(min(len(children[node]), len(plain[node].logits))).indices.tolist()
        for child, token in zip(children[node], likeliest, strict=False):
            tree.tokens[child] = token
        waiting += reversed(children[node])
    return tree, [plain[i] for i in range(len(parents))]


def random_parents(n: int, chance: random.Random) -> list[int]:
    """The parents of a random tree of n nodes, none deeper than `DEEPEST`; siblings need not stand side by side."""
    parents, depths = [-1], [0]
    for _ in range(1, n):
        parent = chance.choice([i for i, depth in enumerate(depths) if depth < DEEPEST])
        parents.append(parent)
        depths.append(depths[parent] + 1)
    return parents


def parts(parents: Sequence[int], n: int, chance: random.Random) -> list[list[int]]:
    """Different sets of n nodes that are trees themselves: the first n nodes, then random ones, about as many nodes in all."""
    found = [list(range(n))]
    for _ in range(min(MOST_TREES, -(-len(parents) // n)) - 1):
        nodes = {0}
        while len(nodes) < n:
            nodes.add(chance.choice([i for i in range(1, len(parents)) if i not in nodes and parents[i] in nodes]))
        if (part := sorted(nodes)) not in found:
            found.append(part)
    return found


def part_of(tree: Tree, nodes: Sequence[int]) -> Tree:
    """The tree of these nodes, which hold the parents of all but the root."""
    place = {node: i for i, node in enumerate(nodes)}
    return Tree([tree.tokens[i] for i in nodes], [place.get(tree.parents[i], -1) for i in nodes])
