"""Findings -> verdicts, layer by layer. Pure functions of what the audit recorded; nothing is run here.

A verdict is never a bare boolean: beside it stand the worst value seen, the threshold and where it comes from, and the
smallest fault that would have been noticed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from harness.audit.scores import ALPHA, FUNCTIONS, holm, more_often, rate_bound, score

EXACT_DTYPES = ("float64", "float32")  # where layer 2 gives a verdict by the largest difference
REPLAY_FACTOR = 20.0  # times the control's largest difference
MEDIAN_FACTOR = 3.0  # times the control's median, in 16 bits
GAP_FACTOR = 1.5  # times the control's largest gap noise
LAW_TOLERANCE = 1e-12

Finding = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the audit's table. `passed` is None where the layer does not apply, and `why` says why."""

    layer: str
    method: str
    checked: str
    worst: str
    threshold: str
    detectable: str
    passed: bool | None
    why: str = ""


def law_verdicts(findings: Iterable[Finding]) -> list[Verdict]:
    """L1: the largest error of the probability of any output, over all cases."""
    by_method: dict[str, list[Finding]] = defaultdict(list)
    for f in findings:
        if f["kind"] == "law":
            by_method[f["method"]].append(f)
    found = []
    for method, mine in by_method.items():
        refused = [f for f in mine if f.get("refused")]
        if refused:
            found.append(Verdict("L1 exact law", method, f"{len(mine)} cases", "—", "—", "—", None, refused[0]["refused"]))
            continue
        worst = max(mine, key=lambda f: f["deviation"])
        branches = sum(f["branches"] for f in mine)
        found.append(
            Verdict(
                "L1 exact law",
                method,
                f"{len(mine)} cases, {branches:,} branches",
                f"{worst['deviation']:.1e} ({worst['case']})",
                f"{LAW_TOLERANCE:.0e}",
                f"{LAW_TOLERANCE:.0e} in any output's probability",
                worst["deviation"] <= LAW_TOLERANCE,
            )  # fmt: skip
        )
    return found


@dataclass(frozen=True, slots=True)
class Control:
    """What the target alone shows in one dtype: its largest and median difference from the plain forward, its gap noise."""

    n: int
    largest: float
    median: float
    gap: float
    flips: int

    @property
    def gap_tol(self) -> float:
        return GAP_FACTOR * self.gap


def controls(findings: Iterable[Finding]) -> dict[str, Control]:
    """By dtype, over all positions of the control's prompts: one row and many rows both count."""
    by_dtype: dict[str, list[Finding]] = defaultdict(list)
    for f in findings:
        if f["kind"] == "control":
            by_dtype[f["dtype"]].append(f)
    found = {}
    for dtype, mine in by_dtype.items():
        differences = [d for f in mine for d in (*f["one_row"], *f["many_rows"])]
        gaps = [g for f in mine for g in f["gap_noise"]]
        found[dtype] = Control(len(gaps), max(differences), median(differences), max(gaps), sum(f["flips"] for f in mine))
    return found


def replay_verdicts(findings: Iterable[Finding], known: Mapping[str, Control]) -> list[Verdict]:
    """L2: the logits used against the plain forward's, per position."""
    cells: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for f in findings:
        if f["kind"] == "replay":
            cells[f["dtype"], f["method"]].append(f)
    found = []
    for (dtype, method), mine in cells.items():
        layer = f"L2 logit replay, {dtype}"
        differences = [d for f in mine for d in f["differences"]]
        checked = f"{len(differences):,} positions, {sum(f['n_offside'] for f in mine)} paths off the first rows"
        control = known.get(dtype)
        if control is None:
            found.append(Verdict(layer, method, checked, "—", "—", "—", None, f"no control in {dtype}"))
        elif dtype in EXACT_DTYPES:
            limit = REPLAY_FACTOR * control.largest
            found.append(
                Verdict(layer, method, checked, f"{max(differences):.1e}", f"{limit:.1e} = {REPLAY_FACTOR:g} x control's largest",
                        f"{limit:.1e} in any logit", max(differences) <= limit)
            )  # fmt: skip
        else:
            middle, limit = median(differences), MEDIAN_FACTOR * control.median
            found.append(
                Verdict(layer, method, checked, f"median {middle:.2g}", f"{limit:.2g} = {MEDIAN_FACTOR:g} x control's median",
                        f"a shift of the median by {limit - middle:.2g}", middle <= limit, "16 bits: medians are compared")
            )  # fmt: skip
    return found


def classify(finding: Finding, gap_tol: float, replay_limit: float = math.inf) -> str:
    """`benign_tie`, `near_tie` or `FAULT` of a first divergence: how far below the reference's best either token lies.

    An output that ended where the other went on, or logits beyond layer 2's limit before the divergence, are faults.
    """
    gaps = finding["gap_vanilla"], finding["gap_method"]
    if finding["ended"] or finding["before"] > replay_limit:
        return "FAULT"
    if max(gaps) == 0:
        return "benign_tie"
    return "near_tie" if max(gaps) <= gap_tol else "FAULT"


def greedy_verdicts(findings: Iterable[Finding], known: Mapping[str, Control]) -> list[Verdict]:
    """L3: outputs compared with vanilla's token by token; `greedy` findings count outputs, `divergence` findings explain."""
    findings = list(findings)
    cells: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for f in findings:
        if f["kind"] in ("greedy", "divergence"):
            cells[f["dtype"], f["method"]].append(f)
    found = []
    for (dtype, method), mine in cells.items():
        outputs, positions = (
            sum(f["n_outputs"] for f in mine if f["kind"] == "greedy"),
            sum(f["n_positions"] for f in mine if f["kind"] == "greedy"),
        )
        diverged = [f for f in mine if f["kind"] == "divergence"]
        control = known.get(dtype)
        layer, checked = f"L3 greedy equality, {dtype}", f"{outputs} outputs, {positions:,} tokens"
        bound = f"fault rate under {rate_bound(0, outputs):.2%} (95 %)"
        if dtype == "float64":
            worst = f"{len(diverged)} differ" if diverged else "all identical"
            found.append(Verdict(layer, method, checked, worst, "identical", bound, not diverged))
            continue
        if control is None:
            found.append(Verdict(layer, method, checked, f"{len(diverged)} differ", "—", bound, None, f"no control in {dtype}"))
            continue
        limit = REPLAY_FACTOR * control.largest if dtype in EXACT_DTYPES else math.inf
        kinds = [classify(f, control.gap_tol, limit) for f in diverged]
        counts = "".join(f", {kinds.count(kind)} {kind}" for kind in ("benign_tie", "near_tie", "FAULT") if kind in kinds)
        worst_gap = max((max(f["gap_vanilla"], f["gap_method"]) for f in diverged), default=0.0)
        p = more_often(len(diverged), positions, control.flips, control.n)
        short = f"control has {control.n:,} positions, {positions:,} were checked" if control.n < positions else ""
        found.append(
            Verdict(
                layer,
                method,
                checked,
                f"{outputs - len(diverged)} identical{counts}; largest gap {worst_gap:.2g}",
                f"gap {control.gap_tol:.2g} = {GAP_FACTOR:g} x control's largest; more often than the control: p = {p:.2g}",
                f"fault rate under {rate_bound(kinds.count('FAULT'), outputs):.2%} (95 %)",
                "FAULT" not in kinds,
                short,
            )  # fmt: skip
        )
    return found


def coupled_verdicts(findings: Iterable[Finding]) -> list[Verdict]:
    """L4, identical ids at T > 0 in float64: for methods that draw the target's own tokens."""
    by_method: dict[str, list[Finding]] = defaultdict(list)
    for f in findings:
        if f["kind"] == "coupled":
            by_method[f["method"]].append(f)
    return [
        Verdict("L4 same ids at T = 1, float64", method, f"{len(mine)} outputs, {sum(f['n'] for f in mine):,} tokens",
                f"{sum(not f['identical'] for f in mine)} differ", "identical",
                f"fault rate under {rate_bound(0, len(mine)):.2%} (95 %)", all(f["identical"] for f in mine))
        for method, mine in by_method.items()
    ]  # fmt: skip


def score_verdicts(findings: Iterable[Finding], wanted_tokens: int = 0) -> list[Verdict]:
    """L4: the martingale score test, five functions a method, Holm over the whole family."""
    by_method: dict[str, list[Finding]] = defaultdict(list)
    for f in findings:
        if f["kind"] == "score":
            by_method[f["method"]].append(f)
    n_tests = len(by_method) * len(FUNCTIONS)
    rows = []
    for method, mine in by_method.items():
        n = sum(f["n"] for f in mine)
        for i, function in enumerate(FUNCTIONS):
            sums = (sum(f[column][i] for f in mine) for column in ("deviations", "variances"))
            rows.append((method, score(function, n, *sums, n_tests=n_tests)))
    adjusted = dict(zip(((m, s.function) for m, s in rows), holm([s.p_value for _, s in rows]), strict=True))
    found = []
    for method in by_method:
        scores = [s for m, s in rows if m == method]
        worst = min(scores, key=lambda s: adjusted[method, s.function])
        p = adjusted[method, worst.function]
        finite = [s.detectable for s in scores if math.isfinite(s.detectable)]
        n = worst.n
        short = f"{wanted_tokens - n:,} tokens missing of the {wanted_tokens:,} asked for" if n < wanted_tokens else ""
        found.append(
            Verdict(
                "L4 score test, T > 0",
                method,
                f"{n:,} tokens, {len(FUNCTIONS)} functions",
                f"p = {p:.2g} ({worst.function}: {worst.mean:+.2g} [{worst.ci95[0]:+.2g}, {worst.ci95[1]:+.2g}])",
                f"Holm-adjusted p {ALPHA:g}",
                "; ".join(f"{s.function} {s.detectable:.2g}" for s in scores if math.isfinite(s.detectable))
                if finite
                else "nothing",
                (p >= ALPHA) if not short and finite else (None if p >= ALPHA else False),
                short,
            )  # fmt: skip
        )
    return found


def overall(verdicts: Sequence[Verdict], exact: Mapping[str, bool]) -> list[str]:
    """What is wrong, a line each; empty where all holds.

    A method that declares itself exact fails by any layer; one that does not, fails where no layer caught it.
    """
    problems = []
    for v in verdicts:
        if exact.get(v.method, True) and v.passed is False:
            problems.append(f"{v.method} fails {v.layer}: {v.worst}, allowed {v.threshold}")
    for method, is_exact in exact.items():
        mine = [v for v in verdicts if v.method == method]
        if not is_exact and mine and not any(v.passed is False for v in mine):
            problems.append(f"{method} declares itself inexact and no layer caught it")
    return problems
