"""Layer 5: faults planted on purpose, and which layers must notice each. Nothing here is registered as a method.

The numbers are those of the protocol's table. A mutant is a faulty method, or a healthy one on a spoilt target, drafter or
metric. It runs through the same checks as a real method. Three equivalent mutants cost speed and change no law. If a layer
flags one of them, the checks are too strict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.audit.faults.rules import (
    greedy_bonus,
    hotter,
    parents_row,
    replaced,
    resampling,
    sampled,
    sequential,
    shared_uniform,
    small_or,
    with_softmax,
)
from harness.audit.faults.wrappers import Spoilt, StaleDrafter, WrongHead, greedy_first, ignores_stop, overshoots
from harness.audit.probe.subject import Subject
from methods.base import Decode
from methods.engine.loop import Grow, speculative
from methods.engine.verify import Verify, rejection


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault, planted. `build(small)` makes the faulty decode; `small` asks for a tree whose every branch can be walked.

    `killers`: the layers that must notice; none for an equivalent mutant. `spoilt`, `misled`: the fault is in the target or in
    the drafter, under a healthy method. `temperature`: that at which layer 4 looks.
    """

    number: str
    what: str
    killers: tuple[str, ...]
    build: Callable[[bool], Decode]
    samples_drafts: bool = False
    spoilt: Callable[[Any], Any] | None = None
    misled: Callable[[Any], Any] | None = None
    temperature: float = 1.0

    def subject(self) -> Subject:
        return Subject(
            self.number, lambda: self.build(False), {"": lambda: self.build(True)}, samples_drafts=self.samples_drafts,
            spoilt=self.spoilt, misled=self.misled,
        )  # fmt: skip


def of(grow: Callable[[bool], Grow], verify: Verify) -> Callable[[bool], Decode]:
    return lambda small: speculative(grow(small), verify)


def healthy(small: bool) -> Decode:
    return speculative(small_or(small))


def drawn(number: str, what: str, killers: tuple[str, ...], verify: Verify, chain: bool = False) -> Mutant:
    """A fault in the verification of sampled drafts."""
    return Mutant(number, what, killers, of(lambda small: sampled(small, chain), verify), samples_drafts=True)


def spoilt(number: str, what: str, fault: str) -> Mutant:
    return Mutant(number, what, ("L2", "L3"), healthy, spoilt=lambda target: Spoilt(target, fault))


MUTANTS: Sequence[Mutant] = (
    drawn("1", "after a rejection drawn from p, not from the residual", ("L1", "L4"), resampling(residual="none")),
    drawn("2", "only the rejected token struck from p (sampled drafts)", ("L1", "L4"), resampling(residual="zero")),
    drawn("3", "no renormalising between siblings", ("L1",), resampling(renormalise=False)),
    drawn("4", "the second child judged by the unconditioned q", ("L1",), resampling(strike=False)),
    drawn("5", "q at another temperature than the drafts'", ("L1", "L4"), resampling(q_power=0.6)),
    Mutant(
        "6", "deterministic drafts judged by the softmax", ("L1", "L4"), of(lambda s: with_softmax(2 if s else 10), rejection)
    ),
    drawn("7", "accepted exactly where p >= q", ("L1", "L4"), resampling(accept="p >= q")),
    Mutant("8", "a rejected token not struck (deterministic drafts)", ("L1", "L4"), of(small_or, sequential(zero=False))),
    Mutant("9", "draft and acceptance share a random number", ("L4",), of(lambda s: shared_uniform(), rejection), True),
    Mutant(
        "10", "duplicate candidates tried twice, struck once", ("L1",), of(lambda s: replaced(2 if s else 4), resampling()), True
    ),
    Mutant("11", "bonus token by argmax at T > 0", ("L1", "L4"), of(small_or, greedy_bonus)),
    Mutant("12", "first token by argmax at T > 0", ("L1",), greedy_first),
    Mutant("13", "temperature applied twice", ("L1", "L4"), of(small_or, hotter), temperature=0.7),
    Mutant("14", "each node read by its parent's row", ("L1", "L3"), of(small_or, parents_row)),
    spoilt("15", "tree positions one too large", "position"),
    spoilt("16", "positions counted through the tree", "flat"),
    spoilt("17", "a node sees its neighbour", "sibling"),
    spoilt("18", "the cache keeps the first rows, not the path's", "first rows"),
    spoilt("19", "the cache is one row short", "one short"),
    spoilt("20", "a rejected row stays in the cache", "not cropped"),
    Mutant("21", "a stop id inside an accepted block ignored", ("stop",), ignores_stop),
    Mutant("22", "the budget overshot", ("stop", "L3"), overshoots),
    Mutant("23", "stale features into the head", ("L5",), healthy, misled=StaleDrafter),
    Mutant("24", "the head's logits of another vocabulary", ("L5",), healthy, misled=WrongHead),
    Mutant("25", "typical acceptance: likely tokens always taken", ("L1", "L4"), of(small_or, sequential(threshold=0.3))),
    # 26, the baseline's tokens counted differently, is a fault of a metric: see `bench.counts_differently`
)
EQUIVALENT: Sequence[Mutant] = (
    drawn("E1", "the rule for deterministic drafts on sampled ones", (), sequential()),
    Mutant("E2", "children drawn with replacement, q accordingly", (), of(lambda s: replaced(2), resampling(strike=False)), True),
    drawn("E3", "no renormalising with one child", (), resampling(renormalise=False), chain=True),
)
