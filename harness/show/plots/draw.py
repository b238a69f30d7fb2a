"""Figures from records: PNG and PDF, and beside each a CSV of the numbers drawn.

Every figure belongs to one setting (model, temperature, dtype, threads, budget, machine), which its title states.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.common.names import SIX_TASKS
from harness.forms.colours import PARTS, marker
from harness.metrics import acceptance
from harness.metrics.groups import MEAN, weights_and_machine
from harness.show.plots.data import Look, Panel

MANY = 10  # arms: more bars a task than that cannot be told apart


def draw_speedup(ax: Axes, data: pd.DataFrame, panel: Panel) -> None:
    if data["label"].nunique() > MANY:
        _rows_of_tasks(ax, data, "speedup", "speedup over vanilla")
        _finish(ax, "Speedup over vanilla on the same prompts, 95 % intervals of the mean", panel, grid="x")
        return
    _grouped_bars(ax, data, "speedup", panel)
    ax.axhline(1.0, color="#333333", linewidth=1, linestyle="--", label="vanilla")
    ax.set_ylabel("speedup over vanilla")
    _finish(ax, "Speedup over vanilla on the same prompts, 95 % intervals", panel)


def draw_tau(ax: Axes, data: pd.DataFrame, panel: Panel) -> None:
    if data["label"].nunique() > MANY:
        _rows_of_tasks(ax, data, "tau", "τ, tokens per target forward")
        _finish(ax, "Accept length τ, 95 % intervals of the mean", panel, grid="x")
        return
    places = _grouped_bars(ax, data, "tau", panel)
    looped = data["tau_no_loop"].notna() & (data["tau_no_loop"] != data["tau"])
    ax.axhline(1.0, color="#333333", linewidth=1, linestyle="--", label="vanilla")
    if looped.any():
        ax.plot(places[looped], data["tau_no_loop"][looped], "_", color="black", markersize=5, markeredgewidth=1.6,
                label="without looping outputs")  # fmt: skip
    ax.set_ylabel("τ, tokens per target forward")
    _finish(ax, "Accept length τ, 95 % intervals", panel)


def draw_acceptance(ax: Axes, data: pd.DataFrame, panel: Panel) -> None:
    data, only = _few(data)
    shown = _with_n_tasks(data)
    names = list(dict.fromkeys(data["label"]))
    for i, name in enumerate(names):
        rows = data[data["label"] == name]
        look = _look(panel, name)
        xs = rows["depth"] + 0.07 * (i - (len(names) - 1) / 2)  # apart, so that whiskers do not hide each other
        _whiskers(ax, xs, rows, look.colour)
        ax.plot(xs, rows["rate"], look.marker, linestyle="--" if look.hatch else "-", color=look.colour, linewidth=1.4,
                markersize=5, zorder=3, label=shown[name])  # fmt: skip
        bare = rows["low"].isna()
        ax.plot(xs[bare], rows["rate"][bare], look.marker, color=look.colour, mfc="white", markersize=5, zorder=4)
    if data["low"].isna().any():
        ax.plot([], [], "o", color="#777777", mfc="white", markersize=5, label="too few for an interval")
    ax.set_xticks(range(1, int(data["depth"].max()) + 1))
    ax.set_xlabel("depth d in the draft tree")
    ax.set_ylabel("accepted at d, of those accepted at d - 1")
    ax.set_ylim(0, 1.02)
    _finish(ax, f"Acceptance rate by depth, tasks pooled, 95 % intervals{only}", panel)


def draw_time(ax: Axes, data: pd.DataFrame, panel: Panel) -> None:
    left = pd.Series(0.0, index=data.index)
    places = range(len(data))[::-1]  # the first method on top
    for part, fill in PARTS.items():
        if data[part].any():
            ax.barh(places, data[part], left=left, color=fill, height=0.7, label=part, edgecolor="white", linewidth=0.5)
        left += data[part]
    for place, total in zip(places, left, strict=True):
        clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # of the line that stands for vanilla
        ax.annotate(f"{total:.2f}", (total, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5, bbox=clear)
    if data["unit"].iloc[0].startswith("vanilla"):
        ax.axvline(1.0, color="#333333", linewidth=1, linestyle="--")
    shown = _with_n_tasks(data)
    ax.set_yticks(places, [shown[name] for name in data["label"]])
    ax.set_xlim(0, left.max() * 1.08)
    ax.set_xlabel("time per generated token, in units of " + data["unit"].iloc[0])
    _finish(ax, "Where the time goes, tasks pooled", panel, grid="x")


def draw_ablations(ax: Axes, data: pd.DataFrame, panel: Panel) -> None:
    groups = _groups(data)
    places = _places(data, groups, 0.16)
    for name in dict.fromkeys(data["label"]):
        rows = data[data["label"] == name]
        look = _look(panel, name)
        _whiskers(ax, places[rows.index], rows, look.colour)
        ax.plot(places[rows.index], rows["tau_difference"], look.marker, color=look.colour, markersize=6, zorder=4,
                label=f"against {name}")  # fmt: skip
    ax.axhline(0.0, color="#333333", linewidth=1, linestyle="--")
    _task_ticks(ax, groups)
    ax.set_ylabel("τ of eagle2 less τ of the ablation")
    _finish(ax, "What full EAGLE-2 gains in τ over each ablation, paired by prompt, 95 % intervals", panel)


def draw_positions(ax: Axes, data: pd.DataFrame, panel: Panel) -> None:
    names = list(dict.fromkeys(data["label"]))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        look = _look(panel, name)
        for at, position in enumerate(acceptance.POSITIONS):
            rows = data[(data["label"] == name) & (data["position"] == position)].sort_values(["task", "sample_id"])
            middle = at + width * (i - (len(names) - 1) / 2)
            # side by side, so that equal rates stay apart
            xs = middle + np.linspace(-0.36, 0.36, len(rows)) * width if len(rows) > 1 else [middle]
            ax.plot(xs, rows["rate"], look.marker, color=look.colour, alpha=0.55, markersize=3.5, markeredgewidth=0, zorder=3,
                    label=f"{name}, a conversation" if at == 0 else None)  # fmt: skip
            if len(rows):
                pooled = rows["accepted"].sum() / rows["n"].sum()
                ax.hlines(pooled, middle - 0.42 * width, middle + 0.42 * width, color="black", linewidth=1.6, zorder=4,
                          label="all together" if at == i == 0 else "_")  # fmt: skip
    ax.set_xticks(range(len(acceptance.POSITIONS)), [
        "P1\nbest child\nof the root", "P2\nsecond child\nof the root", "P3\nbest child\nof P1", "P4\nsecond child\nof P1",
        "P5\nbest child\nof P2", "P6\nsecond child\nof P2",
    ])  # fmt: skip
    ax.tick_params(axis="x", length=0)
    ax.set_ylim(-0.02, 1.02)
    ax.set_ylabel("accepted with all its ancestors")
    _finish(ax, "Acceptance by position in the draft tree (the paper's Figure 5), tasks pooled", panel)


def draw_calibration(ax: Axes, data: pd.DataFrame, panel: Panel) -> None:
    data, only = _few(data)
    ax.plot([0, 1], [0, 1], color="#333333", linewidth=1, linestyle="--", label="confidence = acceptance")
    shown = _with_n_tasks(data)
    for name in dict.fromkeys(data["label"]):
        rows = data[data["label"] == name]
        look = _look(panel, name)
        _whiskers(ax, rows["mean_confidence"], rows, look.colour)
        ax.plot(rows["mean_confidence"], rows["rate"], look.marker, linestyle="--" if look.hatch else "-", color=look.colour,
                linewidth=1.2, markersize=4, zorder=3,
                label=f"{shown[name]}: slope {rows['slope'].iloc[0]:.2f}, ECE {rows['ece'].iloc[0]:.3f}")  # fmt: skip
    ax.set_xticks(np.linspace(0, 1, 11))
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("mean confidence of the draft in each of 20 bins")
    ax.set_ylabel("accepted, of the nodes tried")
    _finish(ax, f"Acceptance against the draft's confidence (the paper's Figure 6), tasks pooled, 95 % intervals{only}", panel)


def draw_n_alpha(ax: Axes, data: pd.DataFrame, panel: Panel) -> None:
    shown = _with_n_tasks(data)
    for name in dict.fromkeys(data["label"]):
        rows = data[data["label"] == name]
        look = _look(panel, name)
        _whiskers(ax, rows["n_features"], rows, look.colour)
        ax.plot(rows["n_features"], rows["rate"], look.marker, linestyle="--" if look.hatch else "-", color=look.colour,
                linewidth=1.4, markersize=5, zorder=3, label=shown[name])  # fmt: skip
    ax.set_xticks(range(int(data["n_features"].max()) + 1))
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("n: features before the draft that were the head's own")
    ax.set_ylabel("n-α, acceptance of the next draft")
    _finish(ax, "Acceptance in chains by the number of drafted features, tasks pooled, 95 % intervals", panel)


def _grouped_bars(ax: Axes, data: pd.DataFrame, value: str, panel: Panel) -> pd.Series:
    """One group a task, one bar an arm; returns where the bars stand."""
    groups = _groups(data)
    width = 0.86 / max(6, data["label"].nunique())
    places = _places(data, groups, width)
    for name in dict.fromkeys(data["label"]):
        rows = data[data["label"] == name]
        look = _look(panel, name)
        ax.bar(places[rows.index], rows[value], width * 0.94, color=look.colour, hatch=look.hatch, edgecolor="white",
               linewidth=0.3, label=name)  # fmt: skip
        _whiskers(ax, places[rows.index], rows, "#222222")
    _task_ticks(ax, groups)
    return places


def _rows_of_tasks(ax: Axes, data: pd.DataFrame, value: str, name: str) -> None:
    """One row an arm, one mark a task, the six-task mean with its interval: for many arms."""
    names = list(dict.fromkeys(data["label"]))
    height = pd.Series({label: len(names) - 1 - i for i, label in enumerate(names)})
    tasks = [group for group in _groups(data) if group[0] != MEAN]
    keys = pd.Series(_keys(data), data.index)
    for i, (task, source) in enumerate(tasks):
        rows = data[keys == (task, source)]
        ax.plot(rows[value], height[rows["label"]], marker(i), color=_TASK_COLOURS[i % len(_TASK_COLOURS)], markersize=4.5,
                alpha=0.85, markeredgewidth=0, label=f"{task} ({source})")  # fmt: skip
    mean = data[data["task"] == MEAN]
    known = mean[mean["low"].notna()]
    ax.hlines(height[known["label"]], known["low"], known["high"], color="black", linewidth=1.4, zorder=4)
    ax.plot(mean[value], height[mean["label"]], "|", color="black", markersize=11, markeredgewidth=2, zorder=5, label=MEAN)
    for place, x in zip(height[mean["label"]], mean[value], strict=True):
        ax.annotate(f"{x:.2f}", (1.005, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
    ax.axvline(1.0, color="#333333", linewidth=1, linestyle="--", label="vanilla")
    ax.set_yticks(height, names)
    ax.set_ylim(-0.7, len(names) - 0.3)
    ax.set_xlim(left=0)
    ax.set_xlabel(name)
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    figure.set_figheight(2.2 + 0.27 * len(names))


_TASK_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def _few(data: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """All of it, or of many arms those at the paper's options, and words that say so; the CSV has them all."""
    if data["label"].nunique() <= MANY:
        return data, ""
    return data[data["preset"] == "paper"], "; arms with other options: in the CSV"


def _places(data: pd.DataFrame, groups: Sequence[tuple[str, str]], step: float) -> pd.Series:
    """Side by side within a group, in the order of methods, without gaps for arms that the group lacks."""
    keys = pd.Series(_keys(data), data.index)
    nth = data.groupby(keys).cumcount()
    size = data.groupby(keys)["label"].transform("size")
    return keys.map(list(groups).index) + step * (nth - (size - 1) / 2)


def _whiskers(ax: Axes, xs: pd.Series, rows: pd.DataFrame, colour: str) -> None:
    """Interval whiskers, from end to end: a bootstrap interval need not hold the value at its middle."""
    if "low" in rows:
        known = rows["low"].notna()
        ax.vlines(xs[known], rows["low"][known], rows["high"][known], color=colour, linewidth=1, zorder=3)


def _with_n_tasks(data: pd.DataFrame) -> dict[str, str]:
    """Labels that say so where an arm's pool has fewer tasks than the fullest: such pools are not alike."""
    n_tasks = {str(name): int(n) for name, n in data.groupby("label")["n_tasks"].max().items()}
    most = max(n_tasks.values())
    return {name: name if n == most else f"{name}, {n} of {most} tasks" for name, n in n_tasks.items()}


def _groups(data: pd.DataFrame) -> list[tuple[str, str]]:
    """(task, source) in the order of tables, the mean last."""
    order = [*SIX_TASKS, *sorted(set(data["task"]) - {*SIX_TASKS, MEAN}), MEAN]
    keys = set(_keys(data))
    return sorted(keys, key=lambda key: (order.index(key[0]), key[1]))


def _keys(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return [(task, "" if task == MEAN else source) for task, source in zip(rows["task"], rows["source"], strict=True)]


def _task_ticks(ax: Axes, groups: Sequence[tuple[str, str]]) -> None:
    names = [task.replace("natural_questions", "natural_\nquestions") for task, _ in groups]
    ax.set_xticks(range(len(groups)), [f"{name}\n({source})" if source else name.replace(" ", "\n")
                                       for name, (_, source) in zip(names, groups, strict=True)])  # fmt: skip
    ax.set_xlim(-0.6, len(groups) - 0.4)
    if groups[-1][0] == MEAN:
        ax.axvline(len(groups) - 1.5, color="#bbbbbb", linewidth=0.8)
    ax.tick_params(axis="x", length=0)


def _finish(ax: Axes, title: str, panel: Panel, grid: str = "y") -> None:
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    ax.set_title(f"{textwrap.fill(title, int(12 * figure.get_figwidth()))}\n{panel.setting.title()}")
    ax.grid(axis=grid)  # type: ignore[arg-type]
    handles, names = ax.get_legend_handles_labels()
    n_columns = max(1, min(len(names), 120 // (max(map(len, names), default=0) + 6)))  # as many as the width has room for
    facts = [*weights_and_machine(panel.summaries), *["† not exact"] * any(not s.exact for s in panel.summaries)]
    if apart := sorted({panel.looks[s.variant].label for s in panel.summaries if s.is_apart}):
        facts.append(f"Baseline from another process: {', '.join(apart)}")
    width = int(15 * figure.get_figwidth())
    # the facts as the legend's title, since the layout keeps no room for a line of their own beside it
    legend = figure.legend(handles, names, loc="outside lower center", ncols=n_columns, fontsize=8.5, handlelength=1.6,
                           title=textwrap.fill("   ".join(facts), width, break_on_hyphens=False), title_fontsize=7)  # fmt: skip
    legend.get_title().set_color("#777777")


def _look(panel: Panel, name: str) -> Look:
    return next(look for look in panel.looks.values() if look.label == name)
