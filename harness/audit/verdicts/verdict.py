"""Findings -> verdicts, layer by layer. Pure functions of what the audit wrote down; nothing is run here.

A verdict is never a bare boolean. Beside it stand the worst value seen, the threshold and where that comes from, and the
smallest fault that would have been noticed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.audit.probe.scores import ALPHA

EXACT_DTYPES = ("float64", "float32")  # layer 2 judges these by the largest difference

Finding = Mapping[str, Any]
Cells = dict[tuple[str, str], list[Finding]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the audit's table.

    `passed`: None if the layer was not judged; `why` says why. Then `blocks` tells whether something is missing, so that the
    audit does not hold, or whether the layer does not apply to the method. `raised`: the method's code raised an error.
    `untrue`: what the method said of itself is not so, or it remembers; whether it is exact has nothing to do with that.
    `cells`: cases walked, or outputs looked at; of a ledger, its cells. `ratio`: the worst value over the threshold, beyond 1 if
    the layer fails. If nothing may differ, it is 0, or 1 plus the number of those that do. `on`: where not the whole target was
    run, on what.
    """

    layer: str
    method: str
    checked: str
    worst: str
    threshold: str
    detectable: str
    passed: bool | None
    why: str = ""
    blocks: bool = False
    raised: bool = False
    cells: int = 0
    ratio: float = 0.0
    untrue: bool = False
    on: str = ""

    @classmethod
    def not_applicable(cls, layer: str, method: str, why: str) -> Verdict:
        return cls(layer, method, "—", "—", "—", "—", None, why)

    @classmethod
    def missing(cls, layer: str, method: str, why: str) -> Verdict:
        return cls(layer, method, "—", "—", "—", "—", None, why, blocks=True)


def said_on(rows: Iterable[Verdict], cuts: Mapping[str, str]) -> list[Verdict]:
    """The rows; those of a dtype in which only a part of the target is run say so. cuts: dtype -> on what it is run."""
    found = []
    for v in rows:
        on = next((words for dtype, words in cuts.items() if v.passed is not None and dtype in v.layer.split(", ")), "")
        found.append(replace(v, on=on) if on else v)
    return found


def broken(layer: str, method: str, mine: Sequence[Finding]) -> Verdict | None:
    """The verdict if a run of the method raised an error, or cannot be recorded; None if all is well."""
    errors = [f["error"] for f in mine if "error" in f]
    if not errors:
        return None
    if untrue := [f["error"] for f in mine if f.get("untrue")]:
        return Verdict(layer, method, f"{len(mine)} runs", f"{counted(len(untrue), 'run')} that cannot be recorded: {untrue[0]}",
                       "none", "—", False, cells=len(mine), ratio=beyond(len(untrue)), untrue=True)  # fmt: skip
    return Verdict(layer, method, f"{len(mine)} runs", f"{len(errors)} raised {errors[0]}", "no errors", "—", False,
                   "the next run tries again", raised=True, cells=len(mine), ratio=beyond(len(errors)))  # fmt: skip


def beyond(n_wrong: int) -> float:
    """The ratio if nothing may be wrong."""
    return 1.0 + n_wrong if n_wrong else 0.0


def unlikely(p_value: float) -> float:
    """The ratio of a test: 1 at p = ALPHA, 2 at its square."""
    return abs(math.log(max(p_value, 1e-300)) / math.log(ALPHA))


def share(worst: float, limit: float) -> float:
    """The ratio of a worst value to its limit. A control without any noise sets the limit to 0."""
    return worst / limit if limit else beyond(int(worst > 0))


def counted(n: int, what: str) -> str:
    """`1 output`, `20 outputs`."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def by_cell(findings: Iterable[Finding], *kinds: str) -> Cells:
    """(dtype, method) -> its findings of these kinds."""
    cells: Cells = defaultdict(list)
    for f in findings:
        if f["kind"] in kinds:
            cells[f.get("dtype", ""), f["method"]].append(f)
    return cells


def failure(v: Verdict) -> str:
    """`eagle2 fails L3 ...: 1 FAULT, allowed ...`."""
    who = f"{v.method} fails" if v.method != "all" else "what every method is judged by fails:"
    return f"{who} {v.layer}: {v.worst}, allowed {v.threshold}" + (f" ({v.why})" if v.why else "")


def overall(verdicts: Sequence[Verdict], exact: Mapping[str, bool]) -> list[str]:
    """What is wrong, a line each; empty if all holds.

    An exact method fails if any layer fails. An inexact one fails if no layer catches it. An unjudged layer never counts as a
    pass: it is a problem for either kind of method, unless it does not apply. A method without any row was not audited.
    """
    problems = []
    for v in verdicts:
        is_exact = exact.get(v.method.split(" (")[0], True)
        if v.passed is False and (is_exact or v.raised or v.untrue):
            problems.append(failure(v))
        elif v.passed is None and v.blocks:
            who = f"{v.method} is not judged by" if v.method != "all" else "not judged:"
            problems.append(f"{who} {v.layer}: {v.why}")
    for method, is_exact in exact.items():
        if not is_exact and not any(caught(v) for v in verdicts if v.method == method):
            problems.append(f"{method} declares itself inexact and no layer caught it")
    seen = {v.method.split(" (")[0] for v in verdicts}
    problems += [f"{method} was looked at by no layer" for method in exact if method not in seen | {"all"}]
    if all(v.passed is None for v in verdicts):
        problems.append("nothing was judged at all")
    return problems


def caught(v: Verdict) -> bool:
    """Whether a layer found that the method's law or ids deviate. An error, an untruth or a low tau is no such finding."""
    return v.passed is False and not (v.raised or v.untrue) and v.layer[:2] in ("L1", "L2", "L3", "L4")
