"""Draws the pictures of README.md and docs/results.md from the CSVs that commands wrote into results/.

python scripts/pictures.py     # writes docs/eagle2.png and docs/methods.png
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from harness.forms.figure import png_bytes

ROOT = Path(__file__).resolve().parents[1]
METHODS = ROOT / "results/smollm2-135m-methods/tables/means.csv"  # an AMD EPYC, 5 prompts a task
PUBLISHED = ROOT / "harness/paper/published.csv"
PAPER, OURS, TUNED = "#8c8c8c", "#0b62a4", "#d9730d"
TITLES = {"tau": "τ: tokens a target forward", "speedup": "speed over plain decoding (red: slower)"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a picture: its label, our rows of a CSV with their colours, and the paper's name of the method."""

    label: str
    ours: tuple[tuple[dict[str, str], str], ...]
    paper: str | None = None
    temperature: int = 0


def rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def mean(path: Path, method: str, preset: str = "paper", temperature: int = 0) -> dict[str, str]:
    """The row of a six-task mean."""
    return next(r for r in rows(path) if (r["method"], r["preset"], r["temperature"]) == (method, preset, str(temperature)))


def tuned(method: str) -> list[dict[str, str]]:
    """The row at tuned options; none where the method is fastest at its own."""
    return [r for r in rows(METHODS) if (r["method"], r["preset"], r["temperature"]) == (method, "tuned", "0")]


def published(method: str, metric: str, temperature: int, models: tuple[str, ...] = ()) -> list[float]:
    """The paper's six-task means of Table 1, a value a model."""
    return [
        float(r["value"])
        for r in rows(PUBLISHED)
        if r["paper"].startswith("EAGLE-2 (") and r["table"] == "Table 1" and r["task"] == "Mean"
        and (r["method"], r["metric"], r["temperature"]) == (method, metric, str(temperature))
        and (not models or r["model"] in models)
    ]  # fmt: skip


def draw(panel: Axes, lines: list[Line], metric: str, models: tuple[str, ...] = ()) -> None:
    panel.axvline(1, color="#444444", linewidth=1)
    for y, line in enumerate(reversed(lines)):
        theirs = published(line.paper, metric, line.temperature, models) if line.paper else []
        panel.plot(theirs, [y] * len(theirs), "D", color=PAPER, markersize=5.5, alpha=0.8, linestyle="none")
        for place, (row, colour) in enumerate(line.ours):
            at = y + 0.14 * (len(line.ours) - 1) - 0.28 * place
            value = float(row[metric])
            ends = [float(row[f"{metric}_low"]), float(row[f"{metric}_high"])]
            panel.plot(ends, [at, at], color=colour, linewidth=2.2)
            panel.plot([value], [at], "o", color=colour, markersize=6)
            crosses = value < 1 < max(ends) + 0.45  # a label on the right would lie on the line of plain decoding
            end, shift, side = (min(ends), -6, "right") if crosses else (max(ends), 6, "left")
            text = {"textcoords": "offset points", "va": "center", "ha": side, "fontsize": 8.5, "color": colour}
            panel.annotate(f"{value:.2f}", (end, at), (shift, 0), **text)
    panel.set_yticks(range(len(lines)), [line.label for line in reversed(lines)])
    panel.set_ylim(-0.6, len(lines) - 0.4)
    panel.set_xlim(0, 5.2 if metric == "tau" else 4.6)
    panel.set_title(TITLES[metric], fontsize=10.5, loc="left")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="#e5e5e5")
    panel.set_axisbelow(True)


def picture(path: Path, lines: list[Line], legend: list[tuple[str, str, str]], models: tuple[str, ...] = ()) -> None:
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(9.6, 0.3 * sum(1 + len(line.ours) for line in lines) / 2 + 0.16 * len(lines) + 1.25),
        sharey=True,
        layout="constrained",
    )
    draw(left, lines, "tau", models)
    draw(right, lines, "speedup", models)
    right.axvspan(0, 1, color="#f6e3e0", linewidth=0, zorder=0)
    marks = [plt.Line2D([], [], color=colour, marker=marker, linestyle="none", label=label) for label, colour, marker in legend]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=9)
    figure.set_dpi(110)
    path.write_bytes(png_bytes(figure))
    plt.close(figure)


def eagle2() -> None:
    """What EAGLE-2 is about: its tree, a smaller one, EAGLE-1's, at both temperatures, beside the paper's four models."""
    small = mean(METHODS, "eagle2", "tuned")
    lines = [
        Line("EAGLE-2, 59 nodes (the paper's tree)", ((mean(METHODS, "eagle2"), OURS),), "EAGLE-2"),
        Line("EAGLE-1, 25 nodes", ((mean(METHODS, "eagle1"), OURS),), "EAGLE"),
        Line("EAGLE-2, 25 nodes", ((mean(METHODS, "eagle2", "paper+depth=5+total=25"), OURS),)),
        Line("EAGLE-2, 4 nodes (tuned)", ((small, TUNED),)),
        Line("EAGLE-2, 59 nodes, T = 1", ((mean(METHODS, "eagle2", temperature=1), OURS),), "EAGLE-2", 1),
        Line("EAGLE-1, 25 nodes, T = 1", ((mean(METHODS, "eagle1", temperature=1), OURS),), "EAGLE", 1),
    ]
    legend = [
        ("paper: four models of 7B and 13B, GPU", PAPER, "D"),
        ("here: 135M model, two CPU cores, AMD EPYC", OURS, "o"),
        ("the same, options tuned", TUNED, "o"),
    ]
    picture(ROOT / "docs/eagle2.png", lines, legend)


def all_methods() -> None:
    """Every method of the paper's Table 1, at the paper's options and at tuned ones, beside the paper's Vicuna-7B."""
    names = {
        "EAGLE-2": "eagle2",
        "EAGLE": "eagle1",
        "Hydra": "hydra",
        "Medusa": "medusa",
        "SpS": "sps",
        "PLD": "pld",
        "Lookahead": "lookahead",
    }
    lines = [
        Line(paper.replace("EAGLE", "EAGLE-1") if paper == "EAGLE" else paper,
             ((mean(METHODS, name), OURS), *((row, TUNED) for row in tuned(name))), paper)
        for paper, name in names.items()
    ]  # fmt: skip
    legend = [
        ("paper: Vicuna-7B, GPU", PAPER, "D"),
        ("here: the paper's options", OURS, "o"),
        ("here: options tuned for this CPU", TUNED, "o"),
    ]
    picture(ROOT / "docs/methods.png", lines, legend, ("Vicuna-7B",))


if __name__ == "__main__":
    plt.rcParams.update({"font.size": 9.5, "svg.hashsalt": "draft-tree-harness"})
    eagle2()
    all_methods()
