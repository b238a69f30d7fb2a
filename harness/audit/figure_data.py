"""The numbers that the audit's figures draw: a data frame a figure, with a column `panel`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.audit.probe.scores import FUNCTIONS
from harness.audit.verdicts.acceptance import drafted, paired_taus, tau_change
from harness.audit.verdicts.greedy import LOSSY, UNJUDGED, classify, kind_of, must_be_identical
from harness.audit.verdicts.replay import Control
from harness.audit.verdicts.sampling import scores_of
from harness.audit.verdicts.verdict import EXACT_DTYPES, Finding, by_cell

Recorded = Mapping[tuple[str, str], Finding]
CONTROL = "control"
LEAST = {"float64": 1e-17, "float32": 1e-9, "bfloat16": 1e-4, "float16": 1e-4}  # the left edge of a log axis


def law_data(findings: Iterable[Finding]) -> pd.DataFrame:
    rows = []
    for (_, method), mine in by_cell(findings, "law").items():
        walked = [f for f in mine if "deviation" in f]
        if walked:
            worst = max(walked, key=lambda f: f["deviation"])
            rows.append({"panel": "L1: exact law", "method": method, "cases": len(walked),
                         "branches": sum(f["branches"] for f in walked), "deviation": worst["deviation"], "case": worst["case"],
                         "tree": worst["tree"]})  # fmt: skip
    return pd.DataFrame(rows)


def replay_data(findings: Sequence[Finding], known: Mapping[str, Control]) -> pd.DataFrame:
    rows = []
    for dtype, control in known.items():
        is_exact = dtype in EXACT_DTYPES
        limit, _ = control.limit
        cells = {method: mine for (d, method), mine in by_cell(findings, "greedy", "sampled").items() if d == dtype}
        cells[CONTROL] = [f for f in findings if f["kind"] == "control" and f["dtype"] == dtype]
        for method, mine in cells.items():
            values = [x for f in mine for x in f.get("differences", [])]
            if values:
                low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
                rows.append({"panel": f"L2: logits, {dtype}", "method": method, "positions": len(values), "p5": low,
                             "median": median, "p95": high, "max": max(values), "limit": limit,
                             "limit_of": "max" if is_exact else "median", "least": LEAST[dtype]})  # fmt: skip
    return pd.DataFrame(rows)


def divergence_data(findings: Iterable[Finding], known: Mapping[str, Control]) -> pd.DataFrame:
    """Every first divergence with its class, in the audit's own runs and in a ledger."""
    rows = []
    for kind in ("greedy", "ledger"):
        for (dtype, method), mine in by_cell(findings, kind).items():
            for f in mine:
                if not (d := f.get("divergence")):
                    continue
                control, gap_tol = known.get(dtype), None
                if must_be_identical(f):
                    name, gap_tol = LOSSY if f.get("row_invariant") else "FAULT", 0.0
                elif control is None:
                    name = classify(d, None)
                else:
                    name, gap_tol = kind_of(f, dtype, control), control.gap_tol
                why = "" if name != UNJUDGED else control.fails if control else f"there is no control in {dtype}"
                rows.append({"from": kind, "dtype": dtype, "method": method, "prompt": f["prompt"], "position": d["at"],
                             "gap_vanilla": d["gap_vanilla"], "gap_method": d["gap_method"], "ended": d["ended"],
                             "gap_tol": gap_tol, "class": name, "why": why})  # fmt: skip
    return pd.DataFrame(rows, columns=["from", "dtype", "method", "prompt", "position", "gap_vanilla", "gap_method", "ended",
                                       "gap_tol", "class", "why"])  # fmt: skip


def gap_data(findings: Sequence[Finding], known: Mapping[str, Control]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for dtype, control in known.items():
        if dtype == "float64":  # outputs are identical or not: there is no gap to show
            continue
        common = {"panel": f"L3: first divergences, {dtype}", "gap_tol": math.nan if control.gap_tol is None else control.gap_tol}
        noise = [g for f in findings if f["kind"] == "control" and f["dtype"] == dtype for g in f.get("gaps", [])]
        rows += [{**common, "method": CONTROL, "gap": g, "outputs": "", "class": ""} for g in sorted(noise)[-400:]]
        for (d, method), mine in by_cell(findings, "greedy", "ledger").items():
            whole = [f for f in mine if "divergence" in f]
            if d != dtype or method == "vanilla" or not whole or must_be_identical(whole[0]):
                continue
            n_same = sum(not f["divergence"] for f in whole)
            cell = {**common, "method": method, "outputs": f"{n_same} of {len(whole)} identical"}
            apart = [f for f in whole if f["divergence"]]
            gaps = [max(f["divergence"]["gap_vanilla"], f["divergence"]["gap_method"]) for f in apart]
            classes = [kind_of(f, dtype, control) for f in apart]
            rows += [{**cell, "gap": g, "class": c} for g, c in zip(gaps or [math.nan], classes or [""], strict=True)]
    return pd.DataFrame(rows)


def score_data(findings: Iterable[Finding]) -> pd.DataFrame:
    """Each function of each method: mean shift, 95 % interval, z, and the smallest shift that the test finds."""
    cells = {m: [f for f in mine if "n" in f] for (_, m), mine in by_cell(findings, "sampled").items()}
    scores = {m: scores_of(mine, len(cells) * len(FUNCTIONS)) for m, mine in cells.items() if mine}
    return pd.DataFrame(
        [
            {"panel": f"L4: {s.function}", "method": m, "tokens": s.n, "mean": s.mean, "low": s.ci95[0], "high": s.ci95[1],
             "z": s.z, "p_value": s.p_value, "detectable": s.detectable}
            for i in range(len(FUNCTIONS)) for m, s in ((m, found[i]) for m, found in scores.items())
        ]
    )  # fmt: skip


def acceptance_data(findings: Iterable[Finding], recorded: Recorded) -> pd.DataFrame:
    rows = []
    for method, whole in drafted(findings).items():
        pairs = paired_taus(whole, recorded)
        row: dict[str, Any] = {"panel": "L5: tau, float32", "method": method, "outputs": len(whole)}
        row["tau"] = sum(f["emitted"] for f in whole) / sum(f["forwards"] for f in whole)
        if pairs:
            t = tau_change(pairs)
            row |= {"tau": t.tau, "recorded": t.recorded, "low": t.recorded + t.low, "high": t.recorded + t.high}
        rows.append({"recorded": math.nan, "low": math.nan, "high": math.nan} | row)
    return pd.DataFrame(rows)
