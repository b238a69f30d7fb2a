"""One figure a layer, and the numbers it draws in a CSV beside it. Pure functions of findings."""

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

from harness.audit.figure_data import CONTROL, Recorded, acceptance_data, gap_data, law_data, replay_data, score_data
from harness.audit.probe.law import TOLERANCE
from harness.audit.verdicts.acceptance import LEAST_TAU
from harness.audit.verdicts.replay import controls
from harness.audit.verdicts.verdict import Finding
from harness.common import files as tables
from harness.common.names import method_order
from harness.forms.colours import colour
from harness.forms.figure import RC, save_figure

Draw = Callable[[Axes, pd.DataFrame, dict[str, int]], None]
GREY, LINE = "#9a9a9a", "#444444"


def draw_all(out: Path, findings: Sequence[Finding], recorded: Recorded) -> list[Path]:
    """Write `l1-law`, `l2-replay`, `l3-gaps`, `l4-scores`, `l5-acceptance` as PNG and CSV, if there is anything to draw."""
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
    """A panel for each value of `panel`, with a row for each method of any panel."""
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
    """The colour of a method, or of a ledger's cell of that method."""
    return LINE if method == CONTROL else colour(method.split(" (")[0], place)


# ---- layer 1 ----


def _draw_law(ax: Axes, data: pd.DataFrame, place: dict[str, int]) -> None:
    for r in _rows(data):
        y = place[r.method]
        ax.plot(max(r.deviation, 1e-17), y, "o", color=_shade(r.method, place))
        ax.text(0.5, y, f"{r.branches:,} branches", ha="right", va="center", fontsize=7.5, color="#666666")
    _limit(ax, TOLERANCE, f"allowed: {TOLERANCE:.0e}")
    ax.set(xscale="log", xlim=(1e-17, 1), xlabel="largest error of the probability of any output")


# ---- layer 2 ----


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


def _draw_gaps(ax: Axes, data: pd.DataFrame, place: dict[str, int]) -> None:
    limit = data["gap_tol"].fillna(0.0).iloc[0]
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
    if data["gap_tol"].notna().all():
        _limit(ax, limit, "gap_tol: beyond it a divergence is a FAULT")
    ax.set(xscale="log", xlabel=f"how far below the best token\n(ties, and under {least:.0e}: at the left edge)")
    ax.set_xlim(least / 2, max(limit, data["gap"].max()) * 5000)


# ---- layer 4 ----


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
    """`mutants.png`: how far beyond its threshold each layer saw each planted fault.

    data: columns `fault`, `what`, and `L1 ratio` .. `L5 ratio`.
    """
    with matplotlib.style.context(["default", RC]):
        figure = Figure(figsize=(8.5, 0.8 + 0.24 * len(data)), layout="constrained")
        ax = figure.subplots()
        for layer, mark in MARKERS.items():
            column = f"{layer} ratio"
            if column in data:
                # several layers often have one value: they are drawn a little apart
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
