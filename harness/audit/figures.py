"""One figure a layer, each with the numbers it drew beside it: pure functions of findings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from harness.audit.probe.law import TOLERANCE
from harness.audit.probe.scores import FUNCTIONS
from harness.audit.verdicts.acceptance import LEAST_TAU, drafted, paired_taus, tau_change
from harness.audit.verdicts.greedy import kind_of
from harness.audit.verdicts.replay import MEDIAN_FACTOR, Control, controls
from harness.audit.verdicts.sampling import scores_of
from harness.audit.verdicts.verdict import EXACT_DTYPES, Finding, by_cell
from harness.common import files as tables
from harness.common.names import method_order
from harness.forms.colours import colour
from harness.forms.figure import RC, save_figure

Recorded = Mapping[tuple[str, str], Finding]
Draw = Callable[[Axes, pd.DataFrame, dict[str, int]], None]
CONTROL = "control"
GREY, LINE = "#9a9a9a", "#444444"
LEAST = {"float64": 1e-17, "float32": 1e-9, "bfloat16": 1e-4, "float16": 1e-4}  # what is drawn at the left edge of a log axis


def draw_all(out: Path, findings: Sequence[Finding], recorded: Recorded) -> list[Path]:
    """`l1-law`, `l2-replay`, `l3-gaps`, `l4-scores`, `l5-acceptance`: png and csv, where there is anything to draw."""
    known = controls(findings)
    written: list[Path] = []
    for name, data, draw in (
        ("l1-law", law_data(findings), _draw_law),
        ("l2-replay", replay_data(findings, known), _draw_replay),
        ("l3-gaps", gap_data(findings, known), _draw_gaps),
        ("l4-scores", score_data(findings), _draw_scores),
        ("l5-acceptance", acceptance_data(findings, recorded), _draw_acceptance),
    ):
        if len(data):
            written += _figure(out / name, data, draw)
    return written


def _figure(stem: Path, data: pd.DataFrame, draw: Draw) -> list[Path]:
    """A panel for each value of `panel`; a row for each method of any panel."""
    panels = list(dict.fromkeys(data["panel"]))
    methods = sorted(set(data["method"]) - {CONTROL}, key=method_order) + [CONTROL] * (CONTROL in set(data["method"]))
    place = {method: i for i, method in enumerate(methods)}
    with matplotlib.style.context(["default", RC]):
        lines = 1 if len(panels) <= 3 else 2
        columns = -(-len(panels) // lines)
        size = (max(6.0, 1.5 + 3.2 * columns), lines * (1.5 + 0.27 * len(methods)))
        figure = Figure(figsize=size, layout="constrained")
        axes = np.atleast_1d(figure.subplots(lines, columns, sharey=True)).flatten()
        for ax, panel in zip(axes, panels, strict=False):
            ax.set_title(panel)
            draw(ax, data[data["panel"] == panel], place)
            ax.set_yticks(range(len(methods)), methods)
            ax.set_ylim(len(methods) - 0.4, -0.6)
            ax.grid(axis="x")
            if ax.get_xscale() == "log":
                low, high = ax.get_xlim()
                if high / low < 200:  # too few powers of ten to read a value off
                    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 40 else (1, 3)))
                    ax.xaxis.set_major_formatter("{x:g}")
                else:
                    ax.xaxis.set_major_locator(LogLocator(numticks=6))
                ax.minorticks_off()
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=4 if len(panels) > 1 else 2, fontsize=8.5)
        numbers = data.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        return [*save_figure(figure, stem), tables.write_file(stem.with_suffix(".csv"), numbers)]


def _rows(data: pd.DataFrame) -> Iterable[Any]:
    return data.itertuples()


def _limit(ax: Axes, at: float, label: str) -> None:
    ax.axvline(at, color=LINE, ls="--", lw=1, label=label)


def _shade(method: str, place: Mapping[str, int]) -> str:
    """A cell of a ledger has its method's colour."""
    return LINE if method == CONTROL else colour(method.split(" (")[0], place)


# ---- layer 1 ----


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


def _draw_law(ax: Axes, data: pd.DataFrame, place: dict[str, int]) -> None:
    for r in _rows(data):
        y = place[r.method]
        ax.plot(max(r.deviation, 1e-17), y, "o", color=_shade(r.method, place))
        ax.text(0.5, y, f"{r.branches:,} branches", ha="right", va="center", fontsize=7.5, color="#666666")
    _limit(ax, TOLERANCE, f"allowed: {TOLERANCE:.0e}")
    ax.set(xscale="log", xlim=(1e-17, 1), xlabel="largest error of the probability of any output")


# ---- layer 2 ----


def replay_data(findings: Sequence[Finding], known: Mapping[str, Control]) -> pd.DataFrame:
    rows = []
    for dtype, control in known.items():
        is_exact = dtype in EXACT_DTYPES
        limit = control.replay_limit if is_exact else MEDIAN_FACTOR * control.median
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


def _draw_replay(ax: Axes, data: pd.DataFrame, place: dict[str, int]) -> None:
    least = data["least"].iloc[0]
    for i, r in enumerate(_rows(data)):
        y, c = place[r.method], _shade(r.method, place)
        low, median, high, largest = (max(x, least) for x in (r.p5, r.median, r.p95, r.max))
        ax.plot([low, high], [y, y], color=c, lw=3, solid_capstyle="butt", label=None if i else "5-95 % of positions")
        ax.plot(median, y, "o", color=c, ms=5, label=None if i else "median")
        ax.plot(largest, y, "|", color=c, ms=12, mew=1.5, label=None if i else "largest")
    _limit(ax, data["limit"].iloc[0], "allowed (in 16 bits: for the median)")
    is_cut = bool((data[["p5", "median", "max"]].to_numpy() < least).any())
    edge = f" (under {least:.0e} at the left edge)" if is_cut else ""
    ax.set(xscale="log", xlabel=f"largest difference of a logit from the\nplain forward's{edge}")
    if is_cut:
        ax.set_xlim(left=least / 2)


# ---- layer 3 ----


def divergence_data(findings: Iterable[Finding], known: Mapping[str, Control]) -> pd.DataFrame:
    """Every first divergence with its class: of the audit's own runs and of a ledger."""
    rows = []
    for kind in ("greedy", "ledger"):
        for (dtype, method), mine in by_cell(findings, kind).items():
            for f in mine:
                d = f.get("divergence")
                if d and (dtype in known or dtype == "float64"):
                    name = kind_of(f, dtype, known[dtype]) if dtype != "float64" else "FAULT"
                    rows.append({"from": kind, "dtype": dtype, "method": method, "prompt": f["prompt"], "position": d["at"],
                                 "gap_vanilla": d["gap_vanilla"], "gap_method": d["gap_method"], "ended": d["ended"],
                                 "gap_tol": known[dtype].gap_tol if dtype != "float64" else 0.0, "class": name})  # fmt: skip
    return pd.DataFrame(rows, columns=["from", "dtype", "method", "prompt", "position", "gap_vanilla", "gap_method", "ended",
                                       "gap_tol", "class"])  # fmt: skip


def gap_data(findings: Sequence[Finding], known: Mapping[str, Control]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for dtype, control in known.items():
        if dtype == "float64":  # identical or not: there is no gap to look at
            continue
        common = {"panel": f"L3: first divergences, {dtype}", "gap_tol": control.gap_tol}
        noise = [g for f in findings if f["kind"] == "control" and f["dtype"] == dtype for g in f.get("gaps", [])]
        rows += [{**common, "method": CONTROL, "gap": g, "outputs": "", "class": ""} for g in sorted(noise)[-400:]]
        for (d, method), mine in by_cell(findings, "greedy", "ledger").items():
            whole = [f for f in mine if "divergence" in f]
            if d != dtype or method == "vanilla" or not whole:
                continue
            n_same = sum(not f["divergence"] for f in whole)
            cell = {**common, "method": method, "outputs": f"{n_same} of {len(whole)} identical"}
            apart = [f for f in whole if f["divergence"]]
            gaps = [max(f["divergence"]["gap_vanilla"], f["divergence"]["gap_method"]) for f in apart]
            classes = [kind_of(f, dtype, control) for f in apart]
            rows += [{**cell, "gap": g, "class": c} for g, c in zip(gaps or [math.nan], classes or [""], strict=True)]
    return pd.DataFrame(rows)


def _draw_gaps(ax: Axes, data: pd.DataFrame, place: dict[str, int]) -> None:
    limit = data["gap_tol"].iloc[0]
    least = limit / 1e4 if limit else 1e-9
    rng = np.random.default_rng(0)
    for method, mine in data.groupby("method", sort=False):
        name, gaps, y = str(method), mine["gap"].dropna(), place[str(method)]
        at = y + rng.uniform(-0.22, 0.22, len(gaps))
        if name == CONTROL:
            ax.plot(gaps.clip(lower=least), at, ".", color=GREY, ms=3, label="control: its largest movements of a gap")
            continue
        ax.plot(gaps.clip(lower=least), at, "o", color=_shade(name, place), ms=4, alpha=0.8)
        ax.text(0.98, y, mine["outputs"].iloc[0], transform=ax.get_yaxis_transform(), ha="right", va="center", fontsize=7.5,
                color="#666666")  # fmt: skip
    _limit(ax, limit, "gap_tol: beyond it a divergence is a FAULT")
    ax.set(xscale="log", xlabel=f"how far below the best token\n(ties, and under {least:.0e}: at the left edge)")
    ax.set_xlim(least / 2, max(limit, data["gap"].max()) * 5000)


# ---- layer 4 ----


def score_data(findings: Iterable[Finding]) -> pd.DataFrame:
    """Each function of each method: mean shift, 95 % interval, z, and the smallest shift that would have been found."""
    cells = {m: [f for f in mine if "n" in f] for (_, m), mine in by_cell(findings, "sampled").items()}
    scores = {m: scores_of(mine, len(cells) * len(FUNCTIONS)) for m, mine in cells.items() if mine}
    return pd.DataFrame(
        [
            {"panel": f"L4: {s.function}", "method": m, "tokens": s.n, "mean": s.mean, "low": s.ci95[0], "high": s.ci95[1],
             "z": s.z, "p_value": s.p_value, "detectable": s.detectable}
            for i in range(len(FUNCTIONS)) for m, s in ((m, found[i]) for m, found in scores.items())
        ]
    )  # fmt: skip


def _draw_scores(ax: Axes, data: pd.DataFrame, place: dict[str, int]) -> None:
    shown = data[np.isfinite(data["detectable"])]
    for i, r in enumerate(_rows(shown)):
        y, c = place[r.method], _shade(r.method, place)
        ax.plot([-r.detectable, r.detectable], [y, y], color="#dddddd", lw=7, solid_capstyle="butt",
                label=None if i else "shifts found less than 95 times in 100")  # fmt: skip
        ax.plot([r.low, r.high], [y, y], color=c, lw=2, label=None if i else "95 % interval")
        ax.plot(r.mean, y, "o", color=c, ms=4, label=None if i else "mean")
    ax.axvline(0, color=LINE, lw=0.8)
    ax.set_xlabel("shift of the mean from what the law says")
    ax.locator_params(axis="x", nbins=5)


# ---- layer 5 ----


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


def _draw_acceptance(ax: Axes, data: pd.DataFrame, place: dict[str, int]) -> None:
    for i, r in enumerate(_rows(data)):
        y, c = place[r.method], _shade(r.method, place)
        if math.isfinite(r.recorded):
            ax.plot([r.low, r.high], [y, y], color=c, lw=2, label=None if i else "95 % interval of the change")
            ax.plot(r.recorded, y, "D", color="white", mec=c, ms=8, label=None if i else "recorded")
        ax.plot(r.tau, y, "o", color=c, ms=4.5, label=None if i else "here")
    _limit(ax, LEAST_TAU, f"least tau with a head: {LEAST_TAU}")
    ax.set(
        xlim=(1, None), xlabel="tokens per target forward" + (" (nothing recorded yet)" if data["recorded"].isna().all() else "")
    )


# ---- planted faults ----

MARKERS = {"L1": "o", "stop": "X", "L2": "s", "L3": "^", "L4": "D", "L5": "v"}
SHADES = {"L1": "#0072b2", "stop": "#4d4d4d", "L2": "#009e73", "L3": "#e69f00", "L4": "#cc79a7", "L5": "#d55e00"}


def draw_mutants(out: Path, data: pd.DataFrame) -> list[Path]:
    """`mutants.png`: how far over its threshold each layer saw each planted fault. data: fault, what, and a ratio a layer."""
    with matplotlib.style.context(["default", RC]):
        figure = Figure(figsize=(8.5, 0.8 + 0.24 * len(data)), layout="constrained")
        ax = figure.subplots()
        for layer, mark in MARKERS.items():
            column = f"{layer} ratio"
            if column in data:
                # several layers often stand at one place: apart by a little
                at = np.arange(len(data)) + (list(MARKERS).index(layer) - 2.5) * 0.07
                ax.plot(data[column].clip(lower=1e-5), at, mark, color=SHADES[layer], ms=5, label=layer)
        _limit(ax, 1.0, "the threshold")
        ax.set_yticks(range(len(data)), [f"{r.fault}  {r.what}" for r in _rows(data)])
        ax.set_ylim(len(data) - 0.4, -0.6)
        ax.grid(axis="both", lw=0.5)
        ax.tick_params(axis="y", labelsize=8)
        ax.set(xscale="log", xlabel="worst value over the threshold (1e-5 and less at the left edge)")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=7, fontsize=8.5)
        return save_figure(figure, out / "mutants")
