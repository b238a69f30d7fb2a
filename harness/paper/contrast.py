"""Two arms on the same prompts: effect, interval and verdict of one claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.common.names import SIX_TASKS
from harness.metrics.clocks import was_shared
from harness.metrics.definitions import Estimate, Totals, estimate, speed_ratio, tau_ratio
from harness.metrics.intervals import Spread, holm
from harness.metrics.marks import UNLIKE, drafted_unlike, signs_of_records
from harness.metrics.pairing import Side, without_loops

Array = NDArray[np.float64]
SHOWN, OPPOSITE, NOT_SHOWN, NOT_JUDGED = "shown", "the opposite is shown", "not shown", "not judged"
NOT_MEASURED, NOT_SO = "not measured", "not so"
TOO_FEW = f"{NOT_JUDGED}: no interval under 5 prompts a task"

LEVEL = 0.025  # of a test of one side: what lies beyond one end of a 95 % interval

NOTHING_THERE = Estimate(None, None, 0)


class Tested(NamedTuple):
    """A verdict and its two one-sided p-values: of what is claimed, and of its opposite. None where nothing was tested."""

    verdict: str
    p_for: float | None = None
    p_against: float | None = None


Judge = Callable[[Spread | None], Tested]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a test found over one set of outputs. `comparisons`: how many it is made of, as tasks or pairs of methods."""

    effect: Estimate
    verdict: str
    p_for: float | None = None
    p_against: float | None = None
    comparisons: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One claim, tested over all outputs and without loops. `form` is how the effect is written."""

    claim: str
    test: str
    temperature: float | None
    on: str
    all: Outcome
    no_loops: Outcome
    form: str = "{:+.2f}"


def faster(a: Totals, b: Totals) -> Array:
    """How much faster a is than b: 0.2 is 20 %."""
    return speed_ratio(a, b) - 1


def longer(a: Totals, b: Totals) -> Array:
    """By how much a's tau exceeds b's, as a share of b's: 0.2 is 20 %."""
    return tau_ratio(a, b) - 1


def above_zero(spread: Spread | None) -> Tested:
    """The verdict on an effect that is claimed to be above 0."""
    if spread is None:
        return Tested(TOO_FEW)
    p_for, p_against = spread.p_above(0), spread.p_below(0)
    return Tested(SHOWN if p_for < LEVEL else OPPOSITE if p_against < LEVEL else NOT_SHOWN, p_for, p_against)


def positive(spread: Spread | None) -> Tested:
    """The verdict on a variance. It is never negative, so an estimate below 0 shows nothing."""
    found = above_zero(spread)
    return found if spread is None else Tested(NOT_SHOWN if found.verdict == OPPOSITE else found.verdict, found.p_for)


def within(low: float, high: float, spread: Spread | None) -> Tested:
    """The verdict on a claimed range."""
    return between(low, high, spread, spread)


def between(low: float, high: float, least: Spread | None, most: Spread | None) -> Tested:
    """Shown where the interval lies within [low, high], not so where it lies outside, not shown where it only overlaps.

    least, most: what the interval's lower and its upper end are made of.
    """
    if least is None or most is None:
        return Tested(TOO_FEW)
    p_for = max(least.p_above(low), most.p_below(high))
    below, above = most.p_below(low), least.p_above(high)
    if min(below, above) < LEVEL:
        word = f"{NOT_SO}: {'below' if below < above else 'above'} the range"
    else:
        word = SHOWN if p_for < LEVEL else "not shown: overlaps the range"
    return Tested(word, p_for, min(below, above))


def is_apart(a: Side, b: Side) -> bool:
    """Whether most pairs were measured in two processes: the machine may have been slower or faster in one of them."""
    pairs = [a[key]["run"] != b[key]["run"] for key in a.keys() & b.keys()]
    return 2 * sum(pairs) > len(pairs)


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two arms on the same prompts and a statistic of both. is_speed: it cannot be judged across two processes."""

    a: Side
    b: Side
    statistic: Callable[[Totals, Totals], Array]
    is_speed: bool

    @property
    def signs(self) -> str:
        """Of a speed: what tables write before it, after a blank; see `harness.metrics.marks`."""
        signs = signs_of_records([*self.a.values(), *self.b.values()]) if self.is_speed else ""
        return f" {signs}" if signs else ""

    def tasks(self) -> list[str]:
        there = {self.a[key]["task"] for key in self.a.keys() & self.b.keys()}
        return [t for t in SIX_TASKS if t in there]

    def on(self, tasks: Sequence[str], judged: Judge = above_zero) -> tuple[Outcome, Outcome]:
        """The unweighted mean over these tasks, over all outputs and without loops."""
        own = {key: r for key, r in self.a.items() if key in self.b and r["task"] in tasks}
        if {r["task"] for r in own.values()} != set(tasks) or not tasks:
            return Outcome(NOTHING_THERE, NOT_MEASURED), Outcome(NOTHING_THERE, NOT_MEASURED)
        clean = without_loops(own, self.b)
        if gone := [t for t in tasks if t not in {r["task"] for r in clean.values()}]:
            return self._found(own, judged), Outcome(NOTHING_THERE, f"{NOT_JUDGED}: every output looped in {', '.join(gone)}")
        return self._found(own, judged), self._found(clean, judged)

    def _found(self, own: Side, judged: Judge) -> Outcome:
        e = estimate([own, self.b], self.statistic, by_task=True)
        if self.is_speed and is_apart(own, self.b):
            return Outcome(e, f"{NOT_JUDGED}: the two sides were measured in different processes")
        if self.is_speed and drafted_unlike(own.values(), (self.b[key] for key in own)):
            return Outcome(e, f"{NOT_JUDGED}: {UNLIKE}")
        if self.is_speed and (was_shared(own.values()) or was_shared(self.b[key] for key in own)):
            return Outcome(e, f"{NOT_JUDGED}: other work shared the machine")
        return Outcome(e, *judged(e.spread))

    def on_each(self, tasks: Sequence[str]) -> tuple[Outcome, Outcome]:
        """Shown only where it is shown in every one of the tasks. The effect is the weakest task's."""
        by_task = {task: self.on((task,)) for task in tasks}
        return _weakest({t: f[0] for t, f in by_task.items()}), _weakest({t: f[1] for t, f in by_task.items()})


@dataclass(frozen=True, slots=True)
class Parts:
    """What is found of a claim that all of several parts hold. `where`: the parts that `word` is said of, none where it is shown.

    n_shown: how many hold of themselves. p_for, p_against: of all of them, and of the opposite in any.
    """

    word: str
    where: list[str]
    n_shown: int
    p_for: float
    p_against: float


def of_parts(parts: Mapping[str, Outcome]) -> Parts:
    """Shown where each part is, at the level of a single test: a claim on all of them errs only where each test errs.

    Where it is not, single parts are named, and any of many may err. So these are held to Holm's procedure over the parts, each
    side by itself. parts: all of them have p-values.
    """
    p_for, p_against = [f.p_for or 0.0 for f in parts.values()], [f.p_against or 0.0 for f in parts.values()]
    unproven = [name for name, p in zip(parts, holm(p_for), strict=True) if p >= LEVEL]
    opposite = [name for name, p in zip(parts, holm(p_against), strict=True) if p < LEVEL]
    is_shown = max(p_for) < LEVEL
    word = SHOWN if is_shown else OPPOSITE if opposite else NOT_SHOWN
    return Parts(word, [] if is_shown else opposite or unproven, len(parts) - len(unproven), max(p_for), min(holm(p_against)))


def _weakest(by_task: Mapping[str, Outcome]) -> Outcome:
    lacking = [t for t, f in by_task.items() if f.p_for is None]
    if lacking:
        why = next((f.verdict for f in by_task.values() if f.verdict.startswith(NOT_JUDGED)), "")
        return Outcome(NOTHING_THERE, why or f"{NOT_MEASURED}: {', '.join(lacking)}")
    weakest = min(by_task.values(), key=lambda f: f.effect.ci95[0] if f.effect.ci95 else 0.0)
    found, n = of_parts(by_task), len(by_task)
    if found.word == SHOWN:
        where = ""
    elif len(found.where) == n:
        where = f" in {'every' if found.word == OPPOSITE else 'any'} task"
    else:
        where = f" in {', '.join(found.where)} ({SHOWN} in {found.n_shown} of {n})"
    return Outcome(weakest.effect, found.word + where, found.p_for, found.p_against, n)
