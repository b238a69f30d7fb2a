"""Every registered method has the target's law, exactly: layer 1 of the losslessness audit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from policies import POLICIES

import methods
from harness.audit.probe import law
from methods.base import Decode, Generation, SamplerParams
from methods.engine.grow import dynamic_tree, static_tree
from methods.engine.loop import speculative
from methods.engine.sampling import Chooser
from methods.engine.tree import Tree
from methods.engine.verify import Accepted, rejection, walk

OWN = [name for name in methods.names(exact=True)]


@pytest.mark.parametrize("name", [*OWN, *POLICIES])
def test_the_joint_law_of_three_tokens_is_plain_decodings(name: str) -> None:
    m = methods.get(name)
    for small, case in law.walks(law.small_options(m), law.cases(3, "quick", m.samples_drafts), "quick"):
        for found in law.laws_of(name, m.build(**small), case, m.samples_drafts):
            assert found.deviation <= law.TOLERANCE, (small, case.name)


def forgets(tree: Tree, logits: Any, chooser: Chooser, position: int) -> Accepted:
    """A rejected token keeps its mass."""
    if chooser.greedy:
        return walk(tree, logits, chooser, position)
    children, path = tree.children(), [0]
    while True:
        at = position + len(path) - 1
        p = chooser.law(logits[path[-1]])
        for attempt, child in enumerate(children[path[-1]]):
            if chooser.accept(min(1.0, float(p[tree.tokens[child]])), at, attempt):
                path.append(child)
                break
        else:
            return Accepted(path, chooser.draw(p, at))


def bonus_from_the_parent(tree: Tree, logits: Any, chooser: Chooser, position: int) -> Accepted:
    """Right for the first token of a step, wrong for the next: only a joint law shows it."""
    found = walk(tree, logits, chooser, position)
    if len(found.path) == 1:
        return found
    row = logits[found.path[-2]]
    return Accepted(found.path, chooser.token(row, position + len(found.path) + 100))


@pytest.mark.parametrize("verify", [forgets, bonus_from_the_parent])
def test_a_verification_that_changes_the_law_is_seen(verify: Any) -> None:
    decode = speculative(dynamic_tree(2, 2, 4), verify)
    assert max(law.decode_law("broken", decode, case).deviation for case in law.cases(3, "quick")) > 1e-3


CHAIN = static_tree([(0,), (0, 0), (0, 0, 0)])


def wrong_after_three(tree: Tree, logits: Any, chooser: Chooser, position: int) -> Accepted:
    """Right for the path, wrong for the token after three accepted drafts."""
    found = rejection(tree, logits, chooser, position)
    if chooser.greedy or len(found.path) < 4:
        return found
    return Accepted(found.path, int(logits[found.path[-1]].argmax()))


def test_a_single_step_is_walked_to_the_end_of_a_deep_tree_of_sampled_drafts() -> None:
    (case,) = (c for c in law.cases(3, "full", samples_drafts=True) if c.name == "unrelated, T=1")
    for verify, is_wrong in ((rejection, False), (wrong_after_three, True)):
        (found,) = law.laws_of("chain", speculative(CHAIN, verify), case, samples_drafts=True)
        assert (found.deviation > 1e-3) is is_wrong and found.n_tokens == 5  # the prefill's, three drafts, the bonus


def test_at_level_full_every_small_tree_meets_every_case_and_at_quick_each_case_has_one() -> None:
    m = methods.get("eagle1")
    trees, cases = law.small_options(m), law.cases(3, "quick", True)
    assert len(trees) > 3 and any("000" in t["shape"] for t in trees) and any(t["shape"] == "0 1 00" for t in trees)
    assert len(list(law.walks(trees, cases, "full"))) == len(trees) * len(cases)
    quick = list(law.walks(trees, cases, "quick"))
    assert len(quick) == len(cases) and {str(t) for t, _ in quick} == {str(t) for t in trees}
    assert {c.params.temperature for c in cases} == {0.0, 0.5, 1.0, 1.4}


def nan_odds(tree: Tree, logits: Any, chooser: Chooser, position: int) -> Accepted:
    chooser.accept(float("nan"), position, 0)
    return walk(tree, logits, chooser, position)


def nan_mass(tree: Tree, logits: Any, chooser: Chooser, position: int) -> Accepted:
    p = torch.tensor([0.5, math.nan, 0.5, 0.0], dtype=torch.float64)
    return Accepted([0], chooser.draw(p, position))


@pytest.mark.parametrize(("verify", "part"), [(nan_odds, "accepted with a probability of nan"), (nan_mass, "not finite")])
def test_a_probability_that_is_no_number_is_named(verify: Any, part: str) -> None:
    (case,) = (c for c in law.cases(3, "full") if c.name == "unrelated, T=1")
    with pytest.raises(AssertionError, match=part):
        law.decode_law("nan", speculative(dynamic_tree(2, 2, 4), verify), case)


def test_a_method_with_randomness_of_its_own_is_refused() -> None:
    def decode(ids: list[int], target: Any, drafter: Any, params: SamplerParams) -> Generation:
        return Generation([0] * params.max_new_tokens, "length", 0, 0.0, None)

    own: Decode = decode
    (case,) = (c for c in law.cases(2, "full") if c.name == "unrelated, T=1")
    with pytest.raises(law.NotEnumerable, match="without the chooser"):
        law.decode_law("own", own, case)
