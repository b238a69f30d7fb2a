"""Faults in what forwards are given are the same faults on every engine, and the native one is given them exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from places import TINY
from tiny_model import fresh_tiny_model

from harness.audit.faults import forwards
from harness.audit.faults.forwards import Given, Misgiven
from harness.audit.probe.replay import same_bits
from methods.engine.llama import LlamaTarget
from methods.engine.native.target import NativeTarget
from methods.engine.target import HFTarget
from methods.engine.tree import Tree

# Two branches; below the first a chain of six levels, of which the fifth has two nodes.
TREE = Tree([7, 8, 9, 10, 11, 12, 13, 14, 15], [-1, 0, 0, 1, 3, 4, 5, 5, 6])
PATH = [0, 1, 3, 4, 5, 7]
CHANGES = [
    forwards.one_further,
    forwards.through_the_tree,
    forwards.neighbour,
    forwards.blind_beyond,
    forwards.deep_see_each_other,
]


def target_on(engine: type[HFTarget], n_text: int) -> HFTarget:
    """The tiny model after a text of so many tokens."""
    target = engine(fresh_tiny_model("float32").loaded.target.model)
    target.prefill([5 + i * 7 % 90 for i in range(n_text)], len(TREE) + 2)
    return target


def test_on_the_native_engine_rows_given_what_is_right_have_the_bits_of_one_forward() -> None:
    whole, apart = target_on(NativeTarget, 30), target_on(NativeTarget, 30)
    both = [whole.verify(TREE), Misgiven(apart, lambda given: given).verify(TREE)]
    for rows, others in zip(*both, strict=True):
        assert all(same_bits(rows, others))
    for target in (whole, apart):
        target.commit(PATH)
    assert same_bits(whole.step(20)[None], apart.step(20)[None]) == [True]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_a_fault_is_one_fault_on_every_engine(change: Callable[[Given], Given]) -> None:
    n_text = 270
    right = target_on(NativeTarget, n_text).verify(TREE)[1]
    found, after = [], []
    for engine in (NativeTarget, LlamaTarget):
        target = target_on(engine, n_text)
        faulty = Misgiven(target, change)
        found.append(faulty.verify(TREE)[1])
        faulty.commit(PATH)
        after.append(target.step(20))
    off = (found[0] - right).abs().amax(-1)
    assert off.max() > 20 * (found[0] - found[1]).abs().max()
    if change is forwards.deep_see_each_other:
        assert (off > 0).nonzero().flatten().tolist() == [6, 7]
        # keys of neighbours are those of their first run, which one wide forward cannot have
        torch.testing.assert_close(found[0], found[1], atol=0.02, rtol=0)
    else:
        torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(after[0], after[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("engine", [NativeTarget, LlamaTarget])
def test_positions_are_others_in_prefills_steps_and_trees(engine: type[HFTarget]) -> None:
    healthy = target_on(engine, 250)
    faulty = forwards.one_further_beyond(healthy)
    rows = []
    for target in (faulty, healthy):  # they have one cache
        target.prefill(list(range(5, 258)), 20)
        rows.append([target.step(9 + i) for i in range(4)])
    differ = [bool((a - b).abs().max() > 1e-5) for a, b in zip(*rows, strict=True)]
    assert differ == [False, False, False, True]  # positions 253, 254, 255 and 256


def test_the_tiny_model_has_the_native_engine() -> None:
    assert TINY.exists() and isinstance(fresh_tiny_model("float32").loaded.target, NativeTarget)
