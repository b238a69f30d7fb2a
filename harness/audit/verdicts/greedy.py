"""Layer 3: greedy outputs beside vanilla's. Every divergence is a benign tie, a near tie or a fault."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.audit.probe.scores import ALPHA, more_often, rate_bound
from harness.audit.verdicts.replay import GAP_FACTOR, Control
from harness.audit.verdicts.verdict import EXACT_DTYPES, Finding, Verdict, beyond, broken, by_cell, counted, share, unlikely
from harness.metrics.intervals import holm

UNJUDGED, LOSSY = "unjudged", "lossy"


def must_be_identical(f: Finding) -> bool:
    """Whether no difference from vanilla's ids can be rounding: in float64, and on a row-invariant engine in any dtype."""
    return f["dtype"] == "float64" or bool(f.get("row_invariant"))


def classify(divergence: Finding, gap_tol: float | None) -> str:
    """`benign_tie`, `near_tie` or `FAULT`, by how far vanilla's and the method's token lie below the reference's best.

    If one output ended and the other went on, that is a fault; so is a gap that is not finite. gap_tol: None if there is no
    control that tells what a near-tie is: a gap is `unjudged` then.
    """
    gaps = divergence["gap_vanilla"], divergence["gap_method"]
    if divergence["ended"] or not all(map(math.isfinite, gaps)):
        return "FAULT"
    if max(gaps) == 0:
        return "benign_tie"
    if gap_tol is None:
        return UNJUDGED
    return "near_tie" if max(gaps) <= gap_tol else "FAULT"


def greedy_verdicts(findings: Iterable[Finding], known: Mapping[str, Control]) -> list[Verdict]:
    """L3: ids beside vanilla's. The audit's own runs (`greedy`) and a ledger's (`ledger`) have rows of their own."""
    found, tests = [], []
    for kind in ("greedy", "ledger"):
        for (dtype, method), mine in by_cell(findings, kind).items():
            layer = f"L3 greedy equality, {dtype}" + (", ledger" if kind == "ledger" else "")
            if failed := broken(layer, method, mine):
                found.append(failed)
                continue
            row, p = _greedy_verdict(layer, dtype, method, mine, known.get(dtype))
            found.append(row)
            if not must_be_identical(mine[0]):  # else there is no rate to test
                tests.append((len(found) - 1, p))
    for (place, _), p in zip(tests, holm([p for _, p in tests]), strict=True):
        row = found[place]
        if p < ALPHA and row.passed is not False:
            why = f"diverges more often than the control: Holm-adjusted p = {p:.2g}"
            found[place] = replace(row, passed=False, why=why, blocks=False, ratio=max(row.ratio, unlikely(p)))
    return found


def on_smaller_trees(mine: Sequence[Finding]) -> str:
    """How many of a method's outputs have other options than its first output, which has those that tables measure."""
    n = sum(f.get("options") != mine[0].get("options") for f in mine)
    return f" ({n} on smaller trees)" if n else ""


def _greedy_verdict(
    layer: str, dtype: str, method: str, mine: Sequence[Finding], control: Control | None
) -> tuple[Verdict, float]:
    """The row, and a p-value: of the method's ids differing as often as they do, if they differ no more often than the
    control's argmaxes."""
    diverged = [f["divergence"] for f in mine if f["divergence"]]
    # outputs are not comparable after a divergence: the positions end there
    positions = sum(f["divergence"]["at"] + 1 if f["divergence"] else f["n"] for f in mine)
    smaller = on_smaller_trees(mine)
    checked = f"{counted(len(mine), 'output')}{smaller}, {counted(positions, 'token')}"
    cells = len({f.get("cell", i) for i, f in enumerate(mine)})
    if must_be_identical(mine[0]):
        seen = f"fault rate under {rate_bound(len(diverged), len(mine)):.2%} of outputs (95 %)"
        worst, why = f"{len(diverged)} differ" if diverged else "all identical", ""
        if diverged and mine[0].get("row_invariant"):
            gap = max(max(d["gap_vanilla"], d["gap_method"]) for d in diverged)
            why = f"{LOSSY}, whatever the gap (here {gap:.2g}): this engine does not round one row unlike another"
        return Verdict(
            layer, method, checked, worst, "identical", seen, not diverged, why, cells=cells, ratio=beyond(len(diverged))
        ), 1.0
    if control is None:
        return Verdict.missing(layer, method, f"no control in {dtype}"), 1.0
    kinds = [kind_of(f, dtype, control) for f in mine if f["divergence"] or f.get("not_argmax")]
    counts = "".join(f", {kinds.count(kind)} {kind}" for kind in ("benign_tie", "near_tie", UNJUDGED, "FAULT") if kind in kinds)
    largest = max((max(d["gap_vanilla"], d["gap_method"]) for d in diverged), default=0.0)
    p, threshold = 1.0, f"none: {control.fails}"
    short = f"the control has {control.n:,} positions, {positions:,} were checked" if control.n < positions else ""
    if control.gap_tol is not None:
        p = more_often(len(diverged), positions, control.flipped, control.exposed)
        threshold = (
            f"gap {control.gap_tol:.2g} = {GAP_FACTOR:g} x control's largest; as rare as the control's {control.flipped} in "
            f"{control.exposed:,} (p = {p:.2g})"
        )
    elif UNJUDGED in kinds:
        short = control.fails
    passed = False if "FAULT" in kinds else None if short else True
    row = Verdict(
        layer, method, checked,
        f"{len(mine) - len(kinds)} identical{counts}; largest gap {largest:.2g}",
        threshold,
        f"fault rate under {rate_bound(kinds.count('FAULT'), len(mine)):.2%} of outputs (95 %)",
        passed, short, blocks=passed is None, cells=cells,
        ratio=max(0.0 if control.gap_tol is None else share(largest, control.gap_tol), beyond(kinds.count("FAULT"))),
    )  # fmt: skip
    return row, p


def kind_of(f: Finding, dtype: str, control: Control) -> str:
    """The class of one output's first divergence.

    It is a fault, whatever the gap, if some token up to there is not its own logits' argmax, or if logits are beyond layer 2's
    limit.
    """
    at = f["divergence"]["at"] if f["divergence"] else f["n"]
    if any(position <= at for position in f.get("not_argmax", ())):
        return "FAULT"
    if dtype in EXACT_DTYPES and max(f.get("differences", [])[: at + 1], default=0.0) > control.limit[0]:
        return "FAULT"
    return classify(f["divergence"], control.gap_tol) if f["divergence"] else "identical"
