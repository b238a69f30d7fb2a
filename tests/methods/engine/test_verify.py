"""Acceptance against the exact law: vocabulary 4, every branch walked, the joint law of the next tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from harness.audit.probe.law import Branching, completed, distance, exact_law, plain_law
from harness.audit.probe.stand_ins import FakeDrafter, FakeTarget, Rows, Text, random_rows, texts_of
from methods.base import SamplerParams
from methods.engine.grow import Grow, dynamic_tree, prompt_lookup, static_tree
from methods.engine.loop import Context, speculative
from methods.engine.sampling import Chooser
from methods.engine.tree import Tree
from methods.engine.verify import Accepted, Verify, rejection, walk

VOCAB = 4
ROOT: Text = (9,)
LAWS = {
    "T=1": SamplerParams(3, temperature=1.0),
    "T=0.6": SamplerParams(3, temperature=0.6),
    "T=1.4 top-p 0.8": SamplerParams(3, temperature=1.4, top_p=0.8),
}
each_law = pytest.mark.parametrize("params", LAWS.values(), ids=LAWS.keys())


def only(*tokens: int) -> Rows:
    """A model that gives the same mass to some tokens and none to the others, after every text."""
    return lambda text: [0.0 if t in tokens else -math.inf for t in range(VOCAB)]


def one_step(grow: Grow, verify: Verify, target: Rows, draft: Rows) -> Callable[[Branching], Text]:
    """Draft, verify -> the tokens accepted and the bonus."""

    def run(chooser: Branching) -> Text:
        drafter = FakeDrafter(draft, observed=list(ROOT))
        tree = grow.tree(drafter, Context([5, *ROOT], 1, chooser))
        accepted = verify(tree, torch.tensor([target(text) for text in texts_of(tree)], dtype=torch.float64), chooser, 1)
        assert accepted.path[0] == 0
        assert all(tree.parents[b] == a for a, b in zip(accepted.path, accepted.path[1:], strict=False))
        return (*(tree.tokens[node] for node in accepted.path[1:]), accepted.bonus)

    return run


def error(grow: Grow, verify: Verify, target: Rows, draft: Rows, params: SamplerParams, n: int) -> float:
    """Largest error of the joint law of the next n tokens."""
    law = exact_law(one_step(grow, verify, target, draft), params)
    return distance(completed(law, target, ROOT, n, params), plain_law(target, ROOT, n, params))


# ---- sampled drafts: rejection ----

SHAPES = {
    "one": [(0,)],
    "chain": [(0,), (0, 0)],
    "siblings": [(0,), (1,), (2,), (3,)],
    "bush": [(0,), (1,), (0, 0), (0, 1), (1, 0)],
}


@each_law
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_rejection_keeps_the_joint_law_of_sampled_drafts(shape: list[Text], params: SamplerParams) -> None:
    target, draft = random_rows(VOCAB, 1), random_rows(VOCAB, 2)
    assert error(static_tree(shape), rejection, target, draft, params, 3) < 1e-12


@pytest.mark.parametrize(
    ("target", "draft"),
    [
        (random_rows(VOCAB, 3), random_rows(VOCAB, 3)),
        (only(0, 1), only(2, 3)),
        (only(0, 1), only(1, 2)),
        (only(2), random_rows(VOCAB, 4)),
        (random_rows(VOCAB, 4), only(2)),
        (random_rows(VOCAB, 5, spread=20.0), random_rows(VOCAB, 6, spread=20.0)),
    ],
    ids=["equal", "disjoint", "overlapping", "certain target", "certain draft", "sharp"],
)
@pytest.mark.parametrize("shape", ["siblings", "chain"])
def test_rejection_keeps_the_law_in_the_corners(target: Rows, draft: Rows, shape: str) -> None:
    assert error(static_tree(SHAPES[shape]), rejection, target, draft, LAWS["T=1"], 2) < 1e-12


def test_equal_laws_accept_every_first_child() -> None:
    rows = random_rows(VOCAB, 3)
    law = exact_law(one_step(static_tree(SHAPES["chain"]), rejection, rows, rows), LAWS["T=1"])
    assert {len(block) for block in law} == {3}


def test_rejection_accepts_more_of_sampled_drafts_than_the_walk() -> None:
    target, draft = random_rows(VOCAB, 1, spread=0.3), random_rows(VOCAB, 2, spread=0.3)
    mean_length = {}
    for verify in (rejection, walk):
        law = exact_law(one_step(static_tree(SHAPES["one"]), verify, target, draft), LAWS["T=1"])
        mean_length[verify] = sum(len(block) * w for block, w in law.items())
    assert mean_length[rejection] > mean_length[walk] + 0.2


def test_a_wrong_draft_law_is_seen_by_this_test() -> None:
    """The control: p/q with a q the drafts were not drawn from is not exact, and the distance says so."""

    def claims_uniform(tree: Tree, logits: torch.Tensor, chooser: Chooser, position: int) -> Accepted:
        q = {node: torch.full((VOCAB,), 1 / VOCAB, dtype=torch.float64) for node in tree.q or {}}
        return rejection(Tree(tree.tokens, tree.parents, q), logits, chooser, position)

    grow = static_tree(SHAPES["siblings"])
    assert error(grow, claims_uniform, random_rows(VOCAB, 1), random_rows(VOCAB, 2), LAWS["T=1"], 2) > 1e-3


def test_without_sampling_rejection_is_the_walk() -> None:
    tree = Tree([9, 0, 1, 2], [-1, 0, 0, 1])
    logits = torch.tensor([random_rows(VOCAB, 8)(text) for text in texts_of(tree)])
    for params in (SamplerParams(3), LAWS["T=1"]):
        assert rejection(tree, logits, Chooser(params), 1) == walk(tree, logits, Chooser(params), 1)


# ---- any drafts: the walk ----


def accept_zero_renormalise(tree: Tree, logits: torch.Tensor, chooser: Chooser, position: int) -> Accepted:
    """EAGLE-2's published rule for deterministic drafts: accept child x with p(x), else zero it and renormalise."""
    path = [0]
    while True:
        at = position + len(path) - 1
        p = chooser.law(logits[path[-1]])
        for attempt, child in enumerate(tree.children()[path[-1]]):
            token = tree.tokens[child]
            if chooser.accept(min(1.0, float(p[token])), at, attempt):
                path.append(child)
                break
            p[token] = 0.0
            p = p / p.sum()
        else:
            return Accepted(path, chooser.draw(p, at))


@st.composite
def drafts(draw: st.DrawFn) -> Tree:
    """Trees over four tokens whose siblings differ."""
    tokens, parents = [9], [-1]
    for _ in range(draw(st.integers(0, 7))):
        parent = draw(st.integers(0, len(tokens) - 1))
        taken = {t for t, p in zip(tokens, parents, strict=True) if p == parent}
        if free := [t for t in range(VOCAB) if t not in taken]:
            tokens.append(draw(st.sampled_from(free)))
            parents.append(parent)
    return Tree(tokens, parents)


def block_law(tree: Tree, verify: Verify, target: Rows, params: SamplerParams) -> dict[Text, float]:
    return exact_law(one_step(Grow(lambda drafter, context: tree, 9), verify, target, only(0)), params)


@given(tree=drafts(), seed=st.integers(0, 10**6), params=st.sampled_from(list(LAWS.values())))
@settings(max_examples=40)
def test_the_walk_has_the_joint_law_and_that_of_accept_zero_renormalise(tree: Tree, seed: int, params: SamplerParams) -> None:
    target = random_rows(VOCAB, seed)
    walked = block_law(tree, walk, target, params)
    assert distance(completed(walked, target, ROOT, 2, params), plain_law(target, ROOT, 2, params)) < 1e-12
    assert distance(walked, block_law(tree, accept_zero_renormalise, target, params)) < 1e-12


@given(tree=drafts(), seed=st.integers(0, 10**6))
def test_the_greedy_walk_takes_the_longest_path_of_argmaxes(tree: Tree, seed: int) -> None:
    target = random_rows(VOCAB, seed)
    texts = texts_of(tree)
    logits = torch.tensor([target(text) for text in texts], dtype=torch.float64)
    text = ROOT
    while text in texts:
        row = target(text)
        text = (*text, row.index(max(row)))
    accepted = walk(tree, logits, Chooser(SamplerParams(3)), 1)
    assert texts[accepted.path[-1]] == text[:-1] and accepted.bonus == text[-1]


def test_of_equal_siblings_the_first_is_taken() -> None:
    tree = Tree([9, 2, 2, 1, 0], [-1, 0, 0, 1, 2])
    logits = torch.zeros(5, VOCAB)
    logits[0, 2] = logits[1, 1] = logits[3, 3] = 1.0
    assert walk(tree, logits, Chooser(SamplerParams(3)), 1) == Accepted([0, 1, 3], 3)


# ---- the whole loop ----

GROWERS = {
    "dynamic": (dynamic_tree(2, 3, 4), walk),
    "no rerank": (dynamic_tree(3, 2, 5, "confidence", rerank=False), walk),
    "lookup": (prompt_lookup(2, 3), walk),
    "sampled child": (static_tree(SHAPES["one"]), rejection),
}


@each_law
@pytest.mark.parametrize(("grow", "verify"), GROWERS.values(), ids=GROWERS.keys())
def test_the_loop_emits_three_tokens_with_the_exact_joint_law(grow: Grow, verify: Verify, params: SamplerParams) -> None:
    # the target's text starts with the prompt, so that a stale cache or a wrong root shows in the law
    target, draft = random_rows(VOCAB, 11), random_rows(VOCAB, 12)
    prompt = [3, 1, 2, 3, 1]
    decode = speculative(grow, verify)

    def run(chooser: Branching) -> Text:
        own = replace(params, chooser=lambda _: chooser)
        return tuple(decode(prompt, FakeTarget(target), FakeDrafter(draft), own).token_ids)

    assert distance(exact_law(run, params), plain_law(target, tuple(prompt), 3, params)) < 1e-12


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("grow", "verify"), GROWERS.values(), ids=GROWERS.keys())
def test_the_drafter_is_told_each_token_with_the_feature_before_it(grow: Grow, verify: Verify, temperature: float) -> None:
    """FakeDrafter.observe checks the pairs; here they come from paths off the first rows as well."""
    target = random_rows(VOCAB, 21)
    noise = random_rows(VOCAB, 22, spread=0.8)
    paths: list[list[int]] = []

    class Noting(FakeTarget):
        def commit(self, path: list[int]) -> None:
            paths.append(path)
            super().commit(path)

    drafter = FakeDrafter(lambda text: [a + b for a, b in zip(target(text), noise(text), strict=True)])
    params = SamplerParams(60, temperature=temperature, key=8)
    generation = speculative(grow, verify)([3, 1, 2, 3, 1], Noting(target), drafter, params)
    assert len(generation.token_ids) == 60
    assert drafter.observed == [1, 2, 3, 1, *generation.token_ids][: len(drafter.observed)]
    if "dynamic" in grow.tree.__qualname__:
        assert sum(path != list(range(len(path))) for path in paths) >= 3
