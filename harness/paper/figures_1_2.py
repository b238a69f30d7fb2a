"""The paper's Figures 1 and 2, speedup on MT-bench by model and method: our bars, the paper's numbers as diamonds."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib.style
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from harness.common.names import in_words, method_order
from harness.forms.colours import colour
from harness.forms.figure import AS_WRITTEN, save_figure

OURS = "speedup_of_questions"


def write_bars(numbers: pd.DataFrame, stem: Path) -> list[Path]:
    """Write a figure's cells as STEM.png; -> the files, none where nothing was measured.

    numbers: those of `judged_table`, whose CSV stands beside it. A bar is our value with its 95 % interval, by the paper's
    formula (a quotient of means over questions). A diamond is the paper's number, hollow where it is a transcription. A dotted
    line is the paper's range, where our model stands in for several.
    """
    here = numbers[numbers["method"].notna()]
    if "machine" in here:  # several: a group of bars each
        places = [model if pd.isna(on) else textwrap.fill(f"{model} on {on}", 40)
                  for model, on in zip(here["model"], here["machine"], strict=True)]  # fmt: skip
        here = here.assign(model=places)
    if here[OURS].notna().sum() == 0:
        return []
    models = list(dict.fromkeys(here["model"]))
    ours = here.groupby("method")[OURS].mean().dropna()
    measured = list(ours.sort_values(ascending=False, kind="stable").index)  # the fastest first, then those not measured
    methods = [*measured, *sorted(set(here["method"]) - set(measured), key=method_order)]
    width = 0.8 / len(methods)
    with matplotlib.style.context(["default", AS_WRITTEN]):
        figure = Figure(figsize=(max(4.5, 1.6 * len(models) * len(methods)), 4.2), layout="constrained")
        ax = figure.subplots()
        for row in here.to_dict("records"):
            x = models.index(row["model"]) + (methods.index(row["method"]) - (len(methods) - 1) / 2) * width
            shade = colour(row["method"])
            if pd.notna(row[OURS]):
                ax.bar(x, row[OURS], 0.9 * width, color=shade)
            if pd.notna(row[f"{OURS}_low"]):
                ax.vlines(x, row[f"{OURS}_low"], row[f"{OURS}_high"], color="black", linewidth=1)
            if pd.notna(row["paper_speedup_low"]):
                face = "black" if row["paper_speedup_confirmed"] else "none"
                ends = sorted({row["paper_speedup_low"], row["paper_speedup_high"]})
                ax.plot([x] * len(ends), ends, color="black", linestyle=":", marker="D", markersize=4, markerfacecolor=face)
        handles: list[Artist] = [Patch(color=colour(method), label=in_words(method)) for method in measured]
        if here["paper_speedup_low"].notna().any():
            handles.append(Line2D([], [], color="black", linestyle=":", marker="D", markersize=4, label="the paper's"))
        ax.axhline(1, color="#4d4d4d", linewidth=0.8)
        ax.set_xticks(range(len(models)), models)
        ax.set_ylabel("speedup over vanilla on MT-bench, by questions")
        name, temperature = str(numbers["item"].iloc[0]).capitalize(), numbers["temperature"].iloc[0]
        ax.set_title(f"The paper's {name}: speedup on MT-bench, T = {temperature:g}")
        ax.grid(axis="y")
        ax.legend(handles=handles, ncols=len(handles), loc="upper center", bbox_to_anchor=(0.5, -0.1))
        return save_figure(figure, stem)
