"""What growers are given in tests, and their trees by hand."""

from __future__ import annotations

import math
import random

from harness.audit.probe.stand_ins import Rows, random_rows, texts_of
from harness.audit.probe.stand_ins import Text as Path
from methods.base import SamplerParams
from methods.engine.loop import Context
from methods.engine.sampling import Chooser
from methods.engine.tree import Tree

ROOT = 77  # any token: the fake drafter looks at paths alone, it has observed nothing


GREEDY = SamplerParams(1)


def rows_of(kind: str, vocab: int, seed: int) -> Rows:
    """`distinct`: no two values tie. `tied`: the same logits in another order at every node, so that values tie across
    the tree but not among siblings. `saturated`: as tied, with a first child whose log-probability rounds to 0."""

    if kind == "distinct":
        return random_rows(vocab, seed)

    def rows(path: Path) -> list[float]:
        rng = random.Random(f"{seed} {path}")
        logits = [math.log(i) for i in range(2, vocab + 2)]
        if kind == "saturated":
            logits[0] = 60.0
        rng.shuffle(logits)
        return logits

    return rows


def context(params: SamplerParams = GREEDY) -> Context:
    return Context([5, ROOT], 1, Chooser(params))


def paths_of(tree: Tree) -> list[Path]:
    """The path of every draft node; fails where a parent does not come before its child."""
    assert tree.tokens[0] == ROOT and tree.parents[0] == -1
    assert all(0 <= parent < i for i, parent in enumerate(tree.parents[1:], start=1))
    paths = [text[1:] for text in texts_of(tree)[1:]]
    assert len(set(paths)) == len(paths), "a path is drafted once"
    return paths
