"""Layer 2: a method's logits beside a plain forward's over the same text. The control tells what noise is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from harness.audit.verdicts.verdict import EXACT_DTYPES, Finding, Verdict, beyond, broken, by_cell, counted, share

REPLAY_FACTOR = 20.0  # times the control's largest difference
MEDIAN_FACTOR = 3.0  # times the control's median, in 16 bits
GAP_FACTOR = 1.5  # times the control's largest gap noise
# Transformers' norms round to float32 even in float64. Two forwards agree to 1e-14, until an element falls on the other side of
# a rounding boundary, and then to 1e-7. A fault moves logits by whole units.
FLOOR = {"float64": 1e-5}
# The most that rounding can do to the control itself (in 16 bits: to its median). A fault of the engine is in the control too,
# and thresholds that are multiples of the control's noise would excuse it. On SmolLM2-135M healthy noise is at most 1e-7, 1e-4,
# and 0.55 in bfloat16. Wrong masks, positions and cache rows move its logits by 4 and more in the median.
MOST_NOISE = {"float64": 1e-4, "float32": 1e-2, "bfloat16": 1.0, "float16": 1.0}


@dataclass(frozen=True, slots=True)
class Control:
    """What the target alone shows in one dtype, over `n` scored positions.

    `largest`, `median`: difference from the plain forward. `gap`: the largest movement of a gap between two best tokens.
    `flipped`: texts in which many rows have another argmax than a single row, within `exposed` positions in all.

    If it fails, its noise sets no threshold: layer 2 is judged by the bound on rounding, and no gap is a near-tie.
    """

    dtype: str
    n: int
    largest: float
    median: float
    gap: float
    flipped: int
    exposed: int

    @property
    def noise(self) -> float:
        """What the bound is on: the largest difference; in 16 bits the median."""
        return self.largest if self.dtype in EXACT_DTYPES else self.median

    @property
    def fails(self) -> str:
        """Why it sets no thresholds; empty if it does."""
        most = MOST_NOISE[self.dtype]
        if self.noise <= most and math.isfinite(self.gap):  # false for NaN
            return ""
        return f"the control fails: its noise of {self.noise:.2g} is over {most:g}"

    @property
    def gap_tol(self) -> float | None:
        return None if self.fails else GAP_FACTOR * self.gap

    @property
    def limit(self) -> tuple[float, str]:
        """(layer 2's limit of the largest difference, in 16 bits of the median; where it comes from)."""
        if self.fails:
            return MOST_NOISE[self.dtype], "more than rounding: the control fails"
        if self.dtype not in EXACT_DTYPES:
            return MEDIAN_FACTOR * self.median, f"{MEDIAN_FACTOR:g} x control's median"
        own, floor = REPLAY_FACTOR * self.largest, FLOOR.get(self.dtype, 0.0)
        return (own, f"{REPLAY_FACTOR:g} x control's largest") if own > floor else (floor, "a rounding of float32 norms")


def controls(findings: Iterable[Finding]) -> dict[str, Control]:
    """dtype -> what its control findings without errors show together."""
    found = {}
    for (dtype, _), mine in by_cell(findings, "control").items():
        whole = [f for f in mine if "error" not in f]
        differences = [d for f in whole for d in f["differences"]]
        gaps = [g for f in whole for g in f["gaps"]]
        if gaps:
            flipped, exposed = (sum(f[k] for f in whole) for k in ("flipped", "exposed"))
            largest, gap = (x if all(map(math.isfinite, values)) else math.nan for x, values in
                            ((max(differences), differences), (max(gaps), gaps)))  # fmt: skip
            found[dtype] = Control(dtype, len(gaps), largest, median(differences), gap, flipped, exposed)
    return found


def control_verdicts(findings: Iterable[Finding], known: Mapping[str, Control]) -> list[Verdict]:
    """L2 of the target alone, for all methods: whether the control's noise is small enough to set thresholds."""
    found = []
    for (dtype, _), mine in by_cell(findings, "control").items():
        # if the audit's own control raised an error, nothing was run, and a row of its own says so
        if failed := broken(f"L3 control of a ledger, {dtype}", "all", [f for f in mine if "of" in f]):
            found.append(failed)
        if dtype not in known:
            continue
        control, most, is_exact = known[dtype], MOST_NOISE[dtype], dtype in EXACT_DTYPES
        noise = control.noise
        what, seen = ("", f"{most:g} in any logit") if is_exact else ("median ", f"a shift of the median by {most - noise:.2g}")
        why = "no rounding is as large: the target's own forwards are at fault" if control.fails else ""
        found.append(
            Verdict(f"L2 control, {dtype}", "all", f"the target alone, {counted(control.n, 'position')}", f"{what}{noise:.1e}",
                    f"{most:g} = more than rounding", seen, not why, why, cells=len(mine), ratio=noise / most)
        )  # fmt: skip
    return found


def bits_verdicts(findings: Iterable[Finding]) -> list[Verdict]:
    """L2 on a row-invariant engine: every row's bits are plain decoding's. First the target alone, then each method."""
    found, threshold, seen = [], "none: every row has plain decoding's bits", "the last bit of one number"
    for (dtype, _), mine in by_cell(findings, "control").items():
        whole = [f for f in mine if "other_bits" in f]
        if whole:
            n, at = sum(len(f["ids"]) - 1 for f in whole), [i for f in whole for i in f["other_bits"]]
            worst = f"{counted(len(at), 'row')} with other bits, the first at token {min(at)}" if at else "none with other bits"
            why = f"lossy: this engine is not row-invariant in {dtype}" if at else ""
            checked = f"the target alone, {counted(n, 'position')} among many rows"
            found.append(Verdict(f"L2 control, same bits, {dtype}", "all", checked, worst, threshold, seen, not at, why,
                                 cells=len(whole), ratio=beyond(len(at))))  # fmt: skip
    for (dtype, method), mine in by_cell(findings, "greedy").items():
        whole = [f for f in mine if "other_bits" in f]
        if not whole:
            continue
        n, rows = sum(f["n_bits"] for f in whole), sum(len(f["other_bits"]) for f in whole)
        features, rejected = sum(len(f["other_features"]) for f in whole), sum(len(f.get("other_rejected", ())) for f in whole)
        n_rejected = sum(f.get("n_rejected", 0) for f in whole)
        checked = counted(n, "row") + (f", {counted(n_rejected, 'rejected draft')}" if n_rejected else "")
        parts = f"{counted(rows, 'row')} of logits and {features:,} of features"
        parts += f" and {counted(rejected, 'rejected draft')}" if rejected else ""
        wrong = rows + features + rejected
        why = "lossy: it was given other numbers than plain decoding has" if wrong else ""
        worst = f"{parts} with other bits" if wrong else "none"
        found.append(Verdict(f"L2 same bits, {dtype}", method, checked, worst, threshold, seen, not wrong, why, cells=len(whole),
                             ratio=beyond(wrong)))  # fmt: skip
    return found


def replay_verdicts(findings: Iterable[Finding], known: Mapping[str, Control]) -> list[Verdict]:
    """L2: the logits used, in greedy and sampled outputs, beside the plain forward's, position by position."""
    found, cells = [], by_cell(findings, "greedy", "sampled")
    seen = {
        (method, dtype)
        for (dtype, method), mine in cells.items()
        if dtype in EXACT_DTYPES and any(f.get("n_offside") for f in mine)
    }
    for (dtype, method), everything in cells.items():
        layer = f"L2 logit replay, {dtype}"
        if failed := broken(layer, method, everything):
            found.append(failed)
            continue
        mine = [f for f in everything if "differences" in f]
        if not mine:
            found.append(Verdict.not_applicable(layer, method, "another's loop keeps no logits"))
            continue
        control = known.get(dtype)
        if control is None:
            found.append(Verdict.missing(layer, method, f"no control in {dtype}"))
            continue
        differences = [d for f in mine for d in f["differences"]]
        offside, branching = (sum(f[k] for f in mine) for k in ("n_offside", "n_branching"))
        checked = counted(len(differences), "position") + (f", {offside:,} paths off the first rows" if branching else "")
        why, passed = "", None
        limit, source = control.limit
        if dtype in EXACT_DTYPES:
            worst, detectable = f"{max(differences):.1e}", f"{limit:.1e} in any logit"
            threshold, holds = f"{limit:.1e} = {source}", max(differences) <= limit
            ratio = share(max(differences), limit)
        else:
            middle = median(differences)
            worst, detectable = f"median {middle:.2g}", f"a shift of the median by {limit - middle:.2g}"
            threshold, holds = f"{limit:.2g} = {source}", middle <= limit
            ratio = share(middle, limit)
            why = "16 bits: medians are compared"
        passed = holds
        if holds and branching and not offside:
            where = next((d for d in EXACT_DTYPES if (method, d) in seen), None)  # one code keeps the rows in every dtype
            passed = True if where else None
            why = (
                f"that the right rows are kept was seen in {where}" if where
                else "no accepted path left the first rows: a cache that keeps wrong rows would not have shown"
            )  # fmt: skip
        found.append(Verdict(layer, method, checked, worst, threshold, detectable, passed, why, blocks=passed is None,
                             cells=len(mine), ratio=ratio))  # fmt: skip
    return found
