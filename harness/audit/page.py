"""The audit's page: what each layer shows, one table of verdicts, one figure a layer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness import tables
from harness.audit.law import TOLERANCE
from harness.audit.scores import FUNCTIONS
from harness.audit.verdicts import EXACT_DTYPES, MEDIAN_FACTOR, Control, Finding, Verdict, by_cell, controls, scores_of
from harness.plots import RC, save_figure
from harness.style import colour, method_order

SAID = {True: "holds", False: "FAILS", None: "not judged"}

LAYERS = {
    "L1": """**L1, exact law.** Every branch of a method's random choices is walked on stand-in models over four tokens, and the
        weights are summed: the joint law of its first tokens against plain decoding's. Corner cases: disjoint support, one-hot
        laws, ties, equal laws, all mass among the candidates; T = 0.5, 1, 1.4 with top-p, and 0.""",
    "L2": """**L2, logit replay.** The logits behind every emitted token against one plain forward over the finished text, without
        cache and without tree. The control is the target alone, scoring the same text one row and many rows at a time: its
        noise is this machine's rounding.""",
    "L3": """**L3, greedy equality.** Outputs against vanilla's, token by token. Where they first differ, both tokens must lie
        within `gap_tol` of the best by the plain forward: 1.5 x the largest movement of a gap that the control shows. Divergences
        may not be more frequent than argmaxes of one row that differ from many rows' in the control (Fisher's exact test).""",
    "L4": """**L4, sampling.** Given the text before it a token's law is known, so the sum of g(token) minus its expectation is a
        martingale: six functions g, Holm-corrected over all methods. In float64 methods that draw the target's own tokens
        must emit vanilla's ids at T = 1, so that their rows are the same tokens and no confirmations of each other. Each row says
        how small a shift of the mean would have been found, and how many tokens a shift of 0.02 needs.""",
    "L5": """**L5, acceptance.** tau against the figure kept beside the draft head, paired by prompt: stale features and wrong
        heads leave the law alone and show nowhere else. Which layer sees which planted fault: `harness verify --mutants`.""",
}


def table(rows: Sequence[Verdict], title: str, level: str) -> tables.Table:
    """One section a layer and dtype."""
    sections = []
    for layer in dict.fromkeys(v.layer for v in rows):
        shown = pd.DataFrame(
            [
                {"method": v.method, "verdict": SAID[v.passed] + (f" ({v.why})" if v.why else ""), "checked": v.checked,
                 "worst": v.worst, "threshold": v.threshold, "smallest detectable": v.detectable}
                for v in rows if v.layer == layer
            ]
        )  # fmt: skip
        sections.append(tables.Section(layer, (), shown))
    numbers = pd.DataFrame([asdict(v) for v in rows])
    return tables.Table("audit", tuple(sections), (f"{title}, level {level}",), numbers)


def plain(rows: Sequence[Verdict], title: str, level: str) -> str:
    return tables.plain(table(rows, title, level))


def write(
    out: Path, rows: Sequence[Verdict], findings: Sequence[Finding], facts: Mapping[str, Any], title: str, level: str
) -> list[Path]:  # fmt: skip
    """`audit.md`, `audit.csv`, `lossless.json` and the figures; -> what was written."""
    report = table(rows, title, level)
    figures = _figures(out, findings)
    said = [SAID[v.passed] for v in rows]
    counts = f"{said.count('holds')} verdicts hold, {said.count('FAILS')} fail, {said.count('not judged')} were not judged"
    shown = ", ".join(f"{k} {str(v)[:16] if k in ('target', 'head') else v}" for k, v in facts.items())
    parts = [f"# Losslessness of {title}", f"{counts} (the reason stands in the row).", f"Level {level}; {shown}"]
    for layer, text in LAYERS.items():
        parts.append(" ".join(text.split()))
        parts += [f"![{layer}]({path.name})" for path in figures if path.name.startswith(layer.lower()) and path.suffix == ".png"]
    parts.append(tables.markdown(report))
    word = {"model": facts["model"], "level": level, "methods": summary(rows, level)}
    return [
        tables.write_file(out / "audit.md", "\n\n".join(parts)),
        tables.write_file(out / "audit.csv", tables.csv(report)),
        tables.write_file(out / tables.AUDIT.name, json.dumps(word) + "\n"),
        *figures,
    ]


def _figures(out: Path, findings: Sequence[Finding]) -> list[Path]:
    known = controls(findings)
    written: list[Path] = []
    draws: dict[str, Callable[[], tuple[list[str], Callable[[Axes, str], None]]]] = {
        "l1-law": lambda: (["all"] if by_cell(findings, "law") else [], lambda ax, _: _draw_law(ax, findings)),
        "l2-replay": lambda: (list(known), lambda ax, dtype: _draw_replay(ax, dtype, findings, known[dtype])),
        "l3-gaps": lambda: ([d for d in known if d != "float64"], lambda ax, d: _draw_gaps(ax, d, findings, known[d])),
        "l4-scores": lambda: (
            list(FUNCTIONS) if by_cell(findings, "sampled") else [],
            lambda ax, g: _draw_scores(ax, g, findings),
        ),
    }
    for name, prepare in draws.items():
        panels, draw = prepare()
        if not panels:
            continue
        with matplotlib.style.context(["default", RC]):
            rows = 1 if len(panels) <= 3 else 2
            columns = -(-len(panels) // rows)
            figure = Figure(figsize=(max(5.5, 3.4 * columns), 3.6 * rows), layout="constrained")
            axes = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).flatten()
            for ax, panel in zip(axes, panels, strict=False):
                draw(ax, panel)
            written += save_figure(figure, out / name)
    return written


def _methods(ax: Axes, names: Sequence[str]) -> dict[str, int]:
    ordered = sorted(names, key=method_order)
    ax.set_yticks(range(len(ordered)), ordered)
    ax.set_ylim(len(ordered) - 0.5, -0.5)
    ax.grid(axis="x")
    return {name: i for i, name in enumerate(ordered)}


def _draw_law(ax: Axes, findings: Sequence[Finding]) -> None:
    worst: dict[str, float] = {}
    for (_, method), mine in by_cell(findings, "law").items():
        walked = [f["deviation"] for f in mine if "deviation" in f]
        if walked:
            worst[method] = max(walked)
    place = _methods(ax, list(worst))
    for method, value in worst.items():
        ax.plot(max(value, 1e-18), place[method], "o", color=colour(method, worst))
    ax.axvline(TOLERANCE, color="#444", ls="--", lw=1, label=f"allowed {TOLERANCE:.0e}")
    ax.set(xscale="log", xlim=(1e-18, 2), xlabel="largest error of an output's probability", title="L1 exact law")
    ax.legend()


def _draw_replay(ax: Axes, dtype: str, findings: Sequence[Finding], control: Control) -> None:
    rows = {"control": [d for f in findings if f["kind"] == "control" and f["dtype"] == dtype for d in f.get("differences", [])]}
    for (d, method), mine in by_cell(findings, "greedy", "sampled").items():
        values = [x for f in mine for x in f.get("differences", [])]
        if d == dtype and values:
            rows[method] = values
    place = _methods(ax, list(rows))
    for method, values in rows.items():
        low, mid, high = np.quantile(values, [0.05, 0.5, 0.95])
        y, c = place[method], "#444" if method == "control" else colour(method, rows)
        ax.plot([max(low, 1e-17), max(high, 1e-17)], [y, y], color=c, lw=3, solid_capstyle="butt")
        ax.plot(max(mid, 1e-17), y, "o", color=c, ms=5)
        ax.plot(max(max(values), 1e-17), y, "|", color=c, ms=12)
    limit = control.replay_limit if dtype in EXACT_DTYPES else MEDIAN_FACTOR * control.median
    ax.axvline(limit, color="#444", ls="--", lw=1)
    ax.set(xscale="log", xlabel="largest difference of a logit\n(5-95 %, median, maximum)", title=f"L2, {dtype}")


def _draw_gaps(ax: Axes, dtype: str, findings: Sequence[Finding], control: Control) -> None:
    noise = [g for f in findings if f["kind"] == "control" and f["dtype"] == dtype for g in f.get("gaps", [])]
    cells: dict[str, list[float]] = {"control": noise}
    for (d, method), mine in by_cell(findings, "greedy", "ledger").items():
        if d == dtype and method != "vanilla":
            cells[method] = [
                max(f["divergence"]["gap_vanilla"], f["divergence"]["gap_method"]) for f in mine if f.get("divergence")
            ]
    place = _methods(ax, list(cells))
    rng = np.random.default_rng(0)
    for method, values in cells.items():
        shown = sorted(values)[-400:] if method == "control" else values
        y = place[method] + rng.uniform(-0.25, 0.25, len(shown))
        c = "#999" if method == "control" else colour(method, cells)
        ax.plot(np.maximum(shown, 1e-9), y, ".", color=c, ms=4 if method == "control" else 7)
    ax.axvline(control.gap_tol, color="#444", ls="--", lw=1)
    ax.set(xscale="symlog" if dtype == "bfloat16" else "log", title=f"L3, {dtype}: first divergences")
    ax.set_xlabel("gap below the best token\n(control: its 400 largest gap noises)")


def _draw_scores(ax: Axes, function: str, findings: Sequence[Finding]) -> None:
    cells = {m: [f for f in mine if "n" in f] for (_, m), mine in by_cell(findings, "sampled").items()}
    place = _methods(ax, list(cells))
    for method, mine in cells.items():
        s = scores_of(mine, len(cells) * len(FUNCTIONS))[FUNCTIONS.index(function)]
        if not math.isfinite(s.detectable):
            continue
        y, c = place[method], colour(method, cells)
        ax.plot([-s.detectable, s.detectable], [y, y], color="#d9d9d9", lw=8, solid_capstyle="butt")
        ax.plot(s.ci95, [y, y], color=c, lw=2)
        ax.plot(s.mean, y, "o", color=c, ms=4)
    ax.axvline(0, color="#444", lw=0.8)
    ax.set(title=f"L4: {function}", xlabel="mean shift, 95 %\n(grey: not detectable)")
    ax.tick_params(axis="x", labelsize=7)


def summary(rows: Sequence[Verdict], level: str) -> dict[str, str]:
    """method -> one cell for the main table: `lossless (level)` where every layer that applies holds, else the first layer that
    fails or could not judge it."""
    found: dict[str, str] = {}
    for method in sorted({v.method for v in rows} - {"all"}, key=method_order):
        mine = [v for v in rows if v.method in (method, "all")]
        failed = [v.layer for v in mine if v.passed is False]
        open_ = [v.layer for v in mine if v.passed is None and (v.blocks or v.method == "all" or v.layer.startswith("all"))]
        held = {v.layer[:2] for v in mine if v.passed}
        lacks = sorted({"L3", "L4"} - held) if method != "vanilla" else []
        found[method] = (
            f"fails {failed[0][:2]}" if failed else "open" if open_ or lacks else f"lossless ({level})"
        )  # fmt: skip
    return found
