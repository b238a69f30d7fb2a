"""Layer 5: faults planted on purpose, and which layers must notice each. Nothing here is registered as a method.

The numbers are those of the protocol's table. A mutant is a faulty method, or a healthy one on a spoilt target, drafter or
metric. It runs through the same checks as a real method. Three equivalent mutants cost speed and change no law. If a layer
flags one of them, the checks are too strict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from harness.audit.faults import forwards, late
from harness.audit.faults.forwards import Misgiven
from harness.audit.faults.rules import (
    SMALL,
    WHOLE,
    Options,
    dynamic,
    greedy_bonus,
    hotter,
    parents_row,
    replaced,
    resampling,
    sampled,
    sequential,
    shared_uniform,
    with_softmax,
)
from harness.audit.faults.wrappers import (
    LastBit,
    RejectedBits,
    StaleDrafter,
    WrongHead,
    WrongRows,
    greedy_first,
    ignores_stop,
    overshoots,
)
from harness.audit.probe.subject import Subject
from methods.base import Decode
from methods.engine.loop import Grow, speculative
from methods.engine.verify import Verify, rejection


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault, planted. `build(tree)` makes the faulty decode on a tree with such options.

    `killers`: the layers that must notice it in the cases of level quick; none for an equivalent mutant. `given_tokens`: the
    layers that must, too, where the score test has some thousand tokens. `options`: of its tree, if it has any. `deep`: whether
    it is walked on a deep tree besides the small one. `spoilt`, `misled`: the fault is in the target or in the drafter, under a
    healthy method. `temperature`: that at which layer 4 looks.
    """

    number: str
    what: str
    killers: tuple[str, ...]
    build: Callable[[Options], Decode]
    given_tokens: tuple[str, ...] = ()
    samples_drafts: bool = False
    spoilt: Callable[[Any], Any] | None = None
    misled: Callable[[Any], Any] | None = None
    temperature: float = 1.0
    options: Options = field(default_factory=lambda: WHOLE)
    deep: Options | None = None

    def subject(self) -> Subject:
        deep = {"deep": partial(self.build, self.deep)} if self.deep else {}
        return Subject(
            self.number, lambda **changes: self.build({**self.options, **changes}), {"": partial(self.build, SMALL)},
            self.options, samples_drafts=self.samples_drafts, spoilt=self.spoilt, misled=self.misled, deep=deep,
        )  # fmt: skip


def of(grow: Callable[[Options], Grow], verify: Verify) -> Callable[[Options], Decode]:
    return lambda tree: speculative(grow(tree), verify)


def at_times(rule: Callable[[], Verify]) -> Callable[[Options], Decode]:
    """A rule that keeps count, anew in each generation."""
    return lambda tree: speculative(dynamic(tree), rule())


def healthy(tree: Options) -> Decode:
    return speculative(dynamic(tree))


def drawn(
    number: str, what: str, killers: tuple[str, ...], verify: Verify, given_tokens: tuple[str, ...] = (), chain: bool = False
) -> Mutant:  # fmt: skip
    """A fault in the verification of sampled drafts."""
    build = of(lambda tree: sampled(tree, chain), verify)
    return Mutant(number, what, killers, build, given_tokens, samples_drafts=True, options={})


def spoilt(number: str, what: str, fault: Callable[[Any], Any], killers: tuple[str, ...] = ("L2", "L3")) -> Mutant:
    return Mutant(number, what, killers, healthy, spoilt=fault)


L1, L4 = ("L1",), ("L4",)
DEEP = {"top_k": 2, "depth": 5, "total": 7}  # its branches can be walked on two tokens
MUTANTS: Sequence[Mutant] = (
    drawn("1", "after a rejection drawn from p, not from the residual", L1, resampling(residual="none"), L4),
    drawn("2", "only the rejected token struck from p (sampled drafts)", L1, resampling(residual="zero"), L4),
    drawn("3", "no renormalising between siblings", L1, resampling(renormalise=False)),
    drawn("4", "the second child judged by the unconditioned q", L1, resampling(strike=False)),
    drawn("5", "q at another temperature than the drafts'", L1, resampling(q_power=0.6), L4),
    Mutant(
        "6", "deterministic drafts judged by the softmax", ("L1", "L4"),
        of(lambda tree: with_softmax(2 if tree == SMALL else 10), rejection), L4, options={},
    ),
    drawn("7", "accepted exactly where p >= q", L1, resampling(accept="p >= q"), L4),
    Mutant("8", "a rejected token not struck (deterministic drafts)", ("L1", "L4"), of(dynamic, sequential(zero=False)), L4),
    Mutant(
        "9", "draft and acceptance share a random number", L1, of(lambda _: shared_uniform(), rejection), L4, True, options={}
    ),
    Mutant(
        "10", "duplicate candidates tried twice, struck once", L1,
        of(lambda tree: replaced(2 if tree == SMALL else 4), resampling()), samples_drafts=True, options={},
    ),
    Mutant("11", "bonus token by argmax at T > 0", ("L1", "L4"), of(dynamic, greedy_bonus), L4),
    Mutant("12", "first token by argmax at T > 0", L1, greedy_first),
    Mutant("13", "temperature applied twice", L1, of(dynamic, hotter), L4, temperature=0.7),
    Mutant("14", "each node read by its parent's row", ("L1", "L3"), of(dynamic, parents_row)),
    spoilt("15", "tree positions one too large", partial(Misgiven, change=forwards.one_further)),
    spoilt("16", "positions counted through the tree", partial(Misgiven, change=forwards.through_the_tree)),
    spoilt("17", "a node sees its neighbour", partial(Misgiven, change=forwards.neighbour)),
    spoilt("18", "the cache keeps the first rows, not the path's", partial(WrongRows, fault="first rows")),
    spoilt("19", "the cache is one row short", partial(WrongRows, fault="one short")),
    spoilt("20", "a rejected row stays in the cache", partial(WrongRows, fault="not cropped")),
    Mutant("21", "a stop id inside an accepted block ignored", ("stop",), ignores_stop),
    Mutant("22", "the budget overshot", ("stop", "L3"), overshoots),
    Mutant("23", "stale features into the head", ("L5",), healthy, misled=StaleDrafter),
    Mutant("24", "the head's logits of another vocabulary", ("L5",), healthy, misled=WrongHead),
    Mutant("25", "typical acceptance: likely tokens always taken", ("L1", "L4"), of(dynamic, sequential(threshold=0.3)), L4),
    # 26, the baseline's tokens counted differently, is a fault of a metric: see `bench.counts_differently`
    # From here on: faults that show only at long context, deep in a tree, late in an output, or once in many steps.
    spoilt("27", "beyond 256 cached tokens a tree does not see the later ones", partial(Misgiven, change=forwards.blind_beyond)),
    spoilt("28", "positions one too large from 256 on", forwards.one_further_beyond, ("L2",)),
    Mutant(
        "29", "a node five levels down read by its grandparent's row", ("L1", "L3"), of(dynamic, late.grandparents_row),
        deep=DEEP,
    ),
    spoilt("30", "nodes five levels down see each other", partial(Misgiven, change=forwards.deep_see_each_other), ("L2",)),
    spoilt("31", "of a path of over five nodes the last row in the cache is its parent's", late.LongPathsKeepParent),
    Mutant("32", "from output token 20 on the bonus is the second best", ("L3",), of(dynamic, late.second_best_late)),
    Mutant("33", "every 16th step takes a draft unverified", ("L3",), at_times(late.unverified_at_times)),
    Mutant("34", "every 16th step at T > 0 draws with the next position's numbers", L4, at_times(late.next_number_at_times)),
    Mutant("35", "from output token 20 on the temperature is forgotten", L4, of(dynamic, late.greedy_late)),
    Mutant("36", "every 16th step's features into the head are stale", ("L5",), healthy, misled=late.StaleAtTimes),
)  # fmt: skip
# On a row-invariant engine, where every row must have the bits that plain decoding gives it. Elsewhere they are rounding.
BITS: Sequence[Mutant] = (
    spoilt("37", "the last bit of one logit of a tree's first draft", partial(LastBit, of="logits"), ("L2",)),
    spoilt("38", "the last bit of one feature of a tree's first draft", partial(LastBit, of="features"), ("L2",)),
    spoilt("39", "the last bit of one logit of each rejected draft", RejectedBits, ("L2",)),
)
EQUIVALENT: Sequence[Mutant] = (
    drawn("E1", "the rule for deterministic drafts on sampled ones", (), sequential()),
    Mutant(
        "E2", "children drawn with replacement, q accordingly", (), of(lambda _: replaced(2), resampling(strike=False)),
        samples_drafts=True, options={},
    ),
    drawn("E3", "no renormalising with one child", (), resampling(renormalise=False), chain=True),
)  # fmt: skip
