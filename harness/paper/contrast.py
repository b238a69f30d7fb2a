"""Two arms on the same prompts: effect, interval and verdict of one claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.common.names import SIX_TASKS
from harness.metrics.clocks import was_shared
from harness.metrics.definitions import Estimate, Interval, Totals, estimate, speed_ratio, tau_ratio
from harness.metrics.marks import UNLIKE, drafted_unlike, signs_of_records
from harness.metrics.pairing import Side, without_loops

Array = NDArray[np.float64]
SHOWN, OPPOSITE, NOT_SHOWN, NOT_JUDGED = "shown", "the opposite is shown", "not shown", "not judged"
NOT_MEASURED = "not measured"
TOO_FEW = f"{NOT_JUDGED}: no interval under 5 prompts a task"

NOTHING_THERE = Estimate(None, None, 0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a test found over one set of outputs."""

    effect: Estimate
    verdict: str


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


def verdict(ci95: Interval | None) -> str:
    """The verdict on an effect that is claimed to be above 0."""
    if ci95 is None:
        return TOO_FEW
    return SHOWN if ci95[0] > 0 else OPPOSITE if ci95[1] < 0 else NOT_SHOWN


def positive(ci95: Interval | None) -> str:
    """The verdict on a variance. It is never negative, so an estimate below 0 shows nothing."""
    return NOT_SHOWN if verdict(ci95) == OPPOSITE else verdict(ci95)


def within(low: float, high: float, ci95: Interval | None) -> str:
    """The verdict on a claimed range: shown where the interval lies in it, not shown where it only overlaps."""
    if ci95 is None:
        return TOO_FEW
    if ci95[1] < low or ci95[0] > high:
        return f"not so: {'below' if ci95[1] < low else 'above'} the range"
    return SHOWN if low <= ci95[0] and ci95[1] <= high else "not shown: overlaps the range"


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

    def on(self, tasks: Sequence[str], judged: Callable[[Interval | None], str] = verdict) -> tuple[Outcome, Outcome]:
        """The unweighted mean over these tasks, over all outputs and without loops."""
        own = {key: r for key, r in self.a.items() if key in self.b and r["task"] in tasks}
        if {r["task"] for r in own.values()} != set(tasks) or not tasks:
            return Outcome(NOTHING_THERE, NOT_MEASURED), Outcome(NOTHING_THERE, NOT_MEASURED)
        clean = without_loops(own, self.b)
        if gone := [t for t in tasks if t not in {r["task"] for r in clean.values()}]:
            return self._found(own, judged), Outcome(NOTHING_THERE, f"{NOT_JUDGED}: every output looped in {', '.join(gone)}")
        return self._found(own, judged), self._found(clean, judged)

    def _found(self, own: Side, judged: Callable[[Interval | None], str]) -> Outcome:
        e = estimate([own, self.b], self.statistic, by_task=True)
        if self.is_speed and is_apart(own, self.b):
            return Outcome(e, f"{NOT_JUDGED}: the two sides were measured in different processes")
        if self.is_speed and drafted_unlike(own.values(), (self.b[key] for key in own)):
            return Outcome(e, f"{NOT_JUDGED}: {UNLIKE}")
        if self.is_speed and (was_shared(own.values()) or was_shared(self.b[key] for key in own)):
            return Outcome(e, f"{NOT_JUDGED}: other work shared the machine")
        return Outcome(e, judged(e.ci95))

    def on_each(self, tasks: Sequence[str]) -> tuple[Outcome, Outcome]:
        """Shown only where it is shown in every one of the tasks. The effect is the weakest task's."""
        by_task = {task: self.on((task,)) for task in tasks}
        return _weakest({t: f[0] for t, f in by_task.items()}), _weakest({t: f[1] for t, f in by_task.items()})


def _weakest(by_task: Mapping[str, Outcome]) -> Outcome:
    judged = {t: f for t, f in by_task.items() if f.effect.ci95}
    lacking = [t for t in by_task if t not in judged or by_task[t].verdict.startswith(NOT_JUDGED)]
    if not judged or lacking:
        why = next((f.verdict for f in by_task.values() if f.verdict.startswith(NOT_JUDGED)), "")
        return Outcome(NOTHING_THERE, why or f"{NOT_MEASURED}: {', '.join(lacking) or 'no task'}")
    weakest = min(judged.values(), key=lambda f: f.effect.ci95[0] if f.effect.ci95 else 0.0)
    for word in (OPPOSITE, NOT_SHOWN):
        if where := [t for t, f in judged.items() if f.verdict == word]:
            others = [t for t in judged if judged[t].verdict == SHOWN]
            named = (
                "every task" if len(where) == len(by_task) else f"{', '.join(where)} ({SHOWN} in {len(others)} of {len(by_task)})"
            )
            return Outcome(weakest.effect, f"{word} in {named}")
    return Outcome(weakest.effect, SHOWN)
