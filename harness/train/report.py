"""The figures beside a trained drafter's weights: `training.png` (its learning curve) and `calibration.png`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.forms.figure import RC, save_figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def write_report(folder: Path) -> list[Path]:
    """Draw a drafter's `curve.jsonl` and `calibration.jsonl` -> the files written."""
    written: list[Path] = []
    for name, draw, panels in (("training", _draw_curve, 2), ("calibration", _draw_calibration, 2)):
        file = folder / {"training": "curve.jsonl", "calibration": "calibration.jsonl"}[name]
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        if not rows:
            continue
        with matplotlib.style.context(["default", RC]):
            figure = Figure(figsize=(9, 3.8), layout="constrained")
            draw(list(figure.subplots(1, panels)), rows)
            written += save_figure(figure, folder / name)
    return written


def _draw_curve(axes: list[Axes], rows: list[dict[str, Any]]) -> None:
    """The last row stands apart: old trainings were checked on few conversations by the way, and on all of them at the end."""
    left, right = axes
    by_the_way, last = rows[:-1], rows[-1]

    def line(ax: Axes, key: str, label: str, colour: str) -> None:
        if key not in last:
            return  # a head trained before this was looked at
        x = [row["tokens"] / 1e6 for row in by_the_way if key in row]
        ax.plot(x, [row[key] for row in by_the_way if key in row], color=colour, label=label, lw=1.4)
        ax.plot([last["tokens"] / 1e6], [last[key]], "o", ms=5, color=colour)

    line(left, "train_top1", "top-1, trained", "#a6a6a6")
    line(left, "top1", "top-1, held out", _COLOURS[0])
    line(left, "top10", "top-10, held out", _COLOURS[2])
    left.set(title="Agreement with the target's argmax", ylabel="share of pairs", ylim=(0, 1))
    names = {"chain_tau": "all prompts", "chain_tau_short": "short prompts (< 100 tokens)",
             "chain_tau_medium": "medium prompts (100-400)", "chain_tau_long": "long prompts (> 400)"}  # fmt: skip
    for (key, label), colour in zip(names.items(), _COLOURS, strict=False):
        line(right, key, label, colour)
    right.set(title="Tokens a step of a greedy chain of 4 drafts, held out", ylabel="τ of the chain")
    for ax in axes:
        ax.set_xlabel("million positions seen (dots: at the end)")
        ax.grid(axis="y")
        ax.legend(fontsize=8)


def _draw_calibration(axes: list[Axes], rows: list[dict[str, Any]]) -> None:
    titles = {"accepted": "T = 0: share that is the target's argmax", "sampled": "T = 1: the target's probability"}
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        ax.plot([0, 1], [0, 1], color="#a6a6a6", lw=1, ls="--")
        for depth in sorted({row["depth"] for row in rows}):
            mine = [row for row in rows if row["depth"] == depth]
            ece = sum(r["n"] * abs(r[key] - r["confidence"]) for r in mine) / sum(r["n"] for r in mine)
            ax.plot(
                [r["confidence"] for r in mine], [r[key] for r in mine], marker="o", ms=3.5, lw=1.2,
                color=_COLOURS[(depth - 1) % len(_COLOURS)], label=f"level {depth} (ECE {ece:.3f})",
            )  # fmt: skip
        ax.set(title=title, xlabel="the head's confidence in a child", ylabel="acceptance", xlim=(0, 1), ylim=(0, 1))
        ax.grid()
        ax.legend(fontsize=8)
