"""The cost model held against splits that others published: each point predicted from the others, or from the parts they give.

The model: a step is a forward of the target over all rows, and a call of the drafter for each level, each at its price.
`published_splits.csv` has the numbers with their sources.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np


@dataclass(frozen=True, slots=True)
class Point:
    """One published number. `at`: of what: levels drafted, rows verified."""

    of: str
    model: str
    machine: str
    method: str
    metric: str
    at: float
    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A published time beside the model's, in milliseconds. `how`: what the model was given. `expected`: it should hold."""

    what: str
    published: float
    predicted: float
    how: str
    source: str
    expected: bool = True

    @property
    def error(self) -> float:
        """Of what was published; + where the model says more."""
        return self.predicted / self.published - 1


@cache
def points() -> tuple[Point, ...]:
    """All published numbers of costs."""
    text = resources.files("harness.costs").joinpath("published_splits.csv").read_text(encoding="utf-8")
    return tuple(
        Point(r["of"], r["model"], r["machine"], r["method"], r["metric"], float(r["at"]), float(r["value"]), r["source"])
        for r in csv.DictReader(text.splitlines())
    )


def checked() -> list[Checked]:
    """vLLM's and LTD's points each from the others; RADAR's saved time from the calls saved and the price of one."""
    return [*_steps_of_vllm(), *_drafts_of_ltd(), *_verifications_of_ltd(), *_saved_by_radar()]


def _found(of: str, metric: str, method: str | None = None) -> list[Point]:
    return [p for p in points() if p.of == of and p.metric == metric and (method is None or p.method == method)]


def _from_the_others(found: Sequence[Point], what: str, how: str) -> list[Checked]:
    """A line through the others: one price for what is always there, one for each unit."""
    made = []
    for p in found:
        others = [o for o in found if o is not p]
        slope, fixed = np.polyfit([o.at for o in others], [o.value for o in others], 1)
        made.append(Checked(f"{p.of}, {p.model}: {what.format(p.at)}", p.value, float(fixed + slope * p.at), how, p.source))
    return made


def _steps_of_vllm() -> list[Checked]:
    return _from_the_others(
        _found("vLLM", "step_ms", "EAGLE chain"), "a step with {:g} drafts", "a line through the other points"
    )


def _drafts_of_ltd() -> list[Checked]:
    return _from_the_others(_found("LTD", "draft_ms"), "drafting {:g} levels", "a line through the other points")


def _verifications_of_ltd() -> list[Checked]:
    """Between the two neighbours, as our tables are read. Costs go in steps, so it is off beside one."""
    found = sorted(_found("LTD", "verify_ms"), key=lambda p: p.at)
    return [
        Checked(f"{p.of}, {p.model}: verifying {p.at:g} rows", p.value,
                float(np.interp(p.at, [before.at, after.at], [before.value, after.value])), "between its neighbours", p.source)
        for before, p, after in zip(found, found[1:], found[2:], strict=False)
    ]  # fmt: skip


def _saved_by_radar() -> list[Checked]:
    """RADAR stops drafting early. What its outputs show to be saved is 0.6 to 1.3 of the price of the calls, by task."""
    (call,) = _found("RADAR", "call_ms")
    made = []
    for calls in _found("RADAR", "calls"):
        steps = {p.at: p.value for p in _found("RADAR", "step_ms", calls.method)}
        saved = steps[calls.at] - steps[calls.value]
        made.append(
            Checked(f"RADAR, {calls.model}, {calls.method}: saved by {calls.at - calls.value:.2f} calls less", saved,
                    (calls.at - calls.value) * call.value, f"{call.value} ms a call", calls.source, expected=False)
        )  # fmt: skip
    return made
