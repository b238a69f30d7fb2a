"""How each plot is drawn from its numbers.

Every figure belongs to one setting (model, temperature, dtype, threads, budget, machine), which its title states. Methods stand
in the order of their values, the best first.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.common.names import SIX_TASKS, VANILLA, in_words
from harness.forms.colours import PARTS, marker
from harness.forms.table import number
from harness.metrics import acceptance
from harness.metrics.groups import MEAN
from harness.metrics.marks import NOTES
from harness.show.plots.data import Look, Panel

MANY_BARS = 10  # methods: more bars a task than that cannot be told apart
MANY_CURVES = 6  # in one picture; more are drawn as small multiples
N_COLUMNS = 4  # of small multiples

_GREY = "#d5d5d5"
_NO_LOOPS, _POOLED, _EQUAL = "without looping outputs", "all together", "confidence = acceptance"
_LAST = (_NO_LOOPS, _POOLED, _EQUAL, MEAN, VANILLA)  # in legends
_TASK_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


# ---- by task --------------------------------------------------------------------------------------------------------


def draw_speedup(figure: Figure, data: pd.DataFrame, panel: Panel) -> None:
    _draw_by_task(figure, data, panel, "speedup", "Speedup over vanilla on the same prompts", "speedup over vanilla")


def draw_tau(figure: Figure, data: pd.DataFrame, panel: Panel) -> None:
    _draw_by_task(figure, data, panel, "tau", "Accept length τ", "τ, tokens per target forward")


def _draw_by_task(figure: Figure, data: pd.DataFrame, panel: Panel, value: str, title: str, said: str) -> None:
    """Bars a task, or a row a method where there are many of them."""
    ax = figure.subplots()
    order = _best_first(data, value)
    is_row = len(order) > MANY_BARS
    if is_row:
        _rows_of_tasks(ax, data, panel, order, value, said)
        ax.axvline(1.0, color="#333333", linewidth=1, linestyle="--", label=VANILLA)
    else:
        places = _grouped_bars(ax, data, panel, order, value)
        ax.axhline(1.0, color="#333333", linewidth=1, linestyle="--", label=VANILLA)
        if value == "tau":
            looped = data["tau_no_loop"].notna() & (data["tau_no_loop"] != data["tau"])
            ax.plot(places[looped], data["tau_no_loop"][looped], "_", color="black", markersize=5, markeredgewidth=1.6,
                    label=_NO_LOOPS)  # fmt: skip
        ax.set_ylabel(said)
    intervals = ", 95 % intervals of the mean" if is_row else ", 95 % intervals"
    _finish(figure, ax, title + (intervals if data["low"].notna().any() else ""), panel, grid="x" if is_row else "y",
            has_speeds=value == "speedup")  # fmt: skip


def _best_first(data: pd.DataFrame, value: str, lowest: bool = False) -> list[str]:
    """Labels by their six-task mean, or their mean over the rows where they have none."""
    of_mean = data[data["task"] == MEAN].groupby("label")[value].mean() if "task" in data else pd.Series(dtype=float)
    values = of_mean.combine_first(data.groupby("label")[value].mean())
    return list(values.sort_values(ascending=lowest, kind="stable").index)


def _grouped_bars(ax: Axes, data: pd.DataFrame, panel: Panel, order: Sequence[str], value: str) -> pd.Series:
    """One group a task, one bar a method; returns where the bars stand."""
    groups = _groups(data)
    width = 0.86 / max(6, len(order))
    places = _places(data, groups, order, width)
    for label in order:
        rows = data[data["label"] == label]
        look = _look(panel, label)
        ax.bar(places[rows.index], rows[value], width * 0.94, color=look.colour, hatch=look.hatch, edgecolor="white",
               linewidth=0.3, label=look.name)  # fmt: skip
        _whiskers(ax, places[rows.index], rows, "#222222")
    _task_ticks(ax, groups)
    return places


def _rows_of_tasks(ax: Axes, data: pd.DataFrame, panel: Panel, order: Sequence[str], value: str, said: str) -> None:
    """One row a method, one mark a task, the six-task mean with its interval: for many methods."""
    height = pd.Series({label: len(order) - 1 - i for i, label in enumerate(order)})
    tasks = [group for group in _groups(data) if group[0] != MEAN]
    keys = pd.Series(_keys(data), data.index)
    names = _task_names(tasks)
    for i, group in enumerate(tasks):
        rows = data[keys == group]
        ax.plot(rows[value], height[rows["label"]], marker(i), color=_TASK_COLOURS[i % len(_TASK_COLOURS)], markersize=4.5,
                alpha=0.85, markeredgewidth=0, label=names[group])  # fmt: skip
    mean = data[data["task"] == MEAN]
    known = mean[mean["low"].notna()]
    ax.hlines(height[known["label"]], known["low"], known["high"], color="black", linewidth=1.4, zorder=4)
    ax.plot(mean[value], height[mean["label"]], "|", color="black", markersize=11, markeredgewidth=2, zorder=5, label=MEAN)
    for place, x in zip(height[mean["label"]], mean[value], strict=True):
        ax.annotate(f"{x:.2f}", (1.005, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
    ax.set_yticks(height, [_look(panel, label).name for label in order])
    ax.set_ylim(-0.7, len(order) - 0.3)
    ax.set_xlim(left=0)
    ax.set_xlabel(said)
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    figure.set_figheight(2.2 + 0.27 * len(order))


def draw_ablations(figure: Figure, data: pd.DataFrame, panel: Panel) -> None:
    ax = figure.subplots()
    groups, order = _groups(data), _best_first(data, "tau_difference")
    places = _places(data, groups, order, 0.16)
    for label in order:
        rows = data[data["label"] == label]
        look = _look(panel, label)
        _whiskers(ax, places[rows.index], rows, look.colour)
        ax.plot(places[rows.index], rows["tau_difference"], look.marker, color=look.colour, markersize=6, zorder=4,
                label=f"against {look.name}")  # fmt: skip
    ax.axhline(0.0, color="#333333", linewidth=1, linestyle="--")
    _task_ticks(ax, groups)
    ax.set_ylabel("τ of EAGLE-2 less τ of the ablation")
    intervals = ", 95 % intervals" if data["low"].notna().any() else ""
    _finish(figure, ax, f"What full EAGLE-2 gains in τ over each ablation, paired by prompt{intervals}", panel)


# ---- all tasks pooled -----------------------------------------------------------------------------------------------


def draw_time(figure: Figure, data: pd.DataFrame, panel: Panel) -> None:
    ax = figure.subplots()
    data = data.assign(total=data[list(PARTS)].sum(axis=1)).sort_values("total", kind="stable").reset_index(drop=True)
    left = pd.Series(0.0, index=data.index)
    places = range(len(data))[::-1]  # the fastest on top
    for part, fill in PARTS.items():
        if data[part].any():
            ax.barh(places, data[part], left=left, color=fill, height=0.7, label=part, edgecolor="white", linewidth=0.5)
        left += data[part]
    for place, total in zip(places, left, strict=True):
        clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # of the line that stands for vanilla
        ax.annotate(f"{total:.2f}", (total, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5, bbox=clear)
    if data["unit"].iloc[0].startswith("vanilla"):
        ax.axvline(1.0, color="#333333", linewidth=1, linestyle="--")
    names = _names_with_n_tasks(data, panel)
    ax.set_yticks(places, [names[label] for label in data["label"]])
    ax.set_xlim(0, left.max() * 1.08)
    ax.set_ylim(-0.7, len(data) - 0.3)
    ax.set_xlabel("time per generated token, in units of " + data["unit"].iloc[0])
    figure.set_figheight(max(3.0, 1.8 + 0.27 * len(data)))
    _finish(figure, ax, "Where the time goes, tasks pooled", panel, grid="x", has_speeds=True)


def draw_acceptance(figure: Figure, data: pd.DataFrame, panel: Panel) -> None:
    order = _best_first(data[data["depth"] == 1], "rate")
    deepest = int(data["depth"].max())

    def dress(ax: Axes) -> None:
        ax.set_xticks(range(1, deepest + 1))
        ax.set_ylim(0, 1.02)

    _curves(figure, data, panel, order, "depth", dress, "depth d in the draft tree", "accepted at d, of those accepted at d - 1",
            "Acceptance rate by depth, tasks pooled", _names_with_n_tasks(data, panel), apart=0.07)  # fmt: skip


def draw_calibration(figure: Figure, data: pd.DataFrame, panel: Panel) -> None:
    order = _best_first(data, "ece", lowest=True)
    first = data.groupby("label")[["slope", "ece"]].first()
    fits = first.astype(object).where(first.notna(), None)  # a slope takes two different confidences
    names = {label: f"{name}: slope {number(fits['slope'][label])}, ECE {number(fits['ece'][label], '{:.3f}')}"
             for label, name in _names_with_n_tasks(data, panel).items()}  # fmt: skip

    def dress(ax: Axes) -> None:
        ax.plot([0, 1], [0, 1], color="#333333", linewidth=1, linestyle="--", label=_EQUAL)
        ax.set_xticks(np.linspace(0, 1, 6))
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)

    _curves(figure, data, panel, order, "mean_confidence", dress, "mean confidence of the draft in each of 20 bins",
            "accepted, of the nodes tried",
            "Acceptance against the draft's confidence (the paper's Figure 6), tasks pooled", names)  # fmt: skip


def draw_n_alpha(figure: Figure, data: pd.DataFrame, panel: Panel) -> None:
    order = _best_first(data[data["n_features"] == 0], "rate")
    most = int(data["n_features"].max())

    def dress(ax: Axes) -> None:
        ax.set_xticks(range(most + 1))
        ax.set_ylim(0, 1.02)

    _curves(figure, data, panel, order, "n_features", dress, "n: features before the draft that were the head's own",
            "n-α, acceptance of the next draft", "Acceptance in chains by the number of drafted features, tasks pooled",
            _names_with_n_tasks(data, panel))  # fmt: skip


def _curves(
    figure: Figure, data: pd.DataFrame, panel: Panel, order: Sequence[str], x: str, dress: Callable[[Axes], None],
    x_label: str, y_label: str, title: str, names: Mapping[str, str], apart: float = 0.0,
) -> None:  # fmt: skip
    """`rate` over `x`, a curve a method, with intervals: in one picture, or as small multiples with the others grey behind.

    dress: sets ticks and limits of an axes. apart: how far curves of one picture stand apart, so that whiskers stay visible.
    """
    if data["low"].notna().any():
        title += ", 95 % intervals"
    curves = {label: data[data["label"] == label] for label in order}
    if len(order) <= MANY_CURVES:
        ax = figure.subplots()
        dress(ax)
        for i, label in enumerate(order):
            rows = curves[label]
            _curve(ax, rows[x] + apart * (i - (len(order) - 1) / 2), rows, _look(panel, label), names[label])
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
        bare = Line2D([0], [0], linestyle="", marker="o", color="#777777", mfc="white", markersize=5,
                      label="no interval: under 5 prompts, or all alike")  # fmt: skip
        _finish(figure, ax, title, panel, more=[bare] if data["low"].isna().any() else [])
        return
    axes = _multiples(figure, len(order))
    for ax, label in zip(axes, order, strict=True):
        dress(ax)
        for other in order:
            ax.plot(curves[other][x], curves[other]["rate"], color=_GREY, linewidth=0.8, zorder=1)
        _curve(ax, curves[label][x], curves[label], _look(panel, label), "")
        ax.set_title(names[label].replace(": ", "\n"), fontsize=8)
        ax.grid(axis="y")
    figure.supxlabel(x_label, fontsize=9)
    figure.supylabel(y_label, fontsize=9)
    _head(figure, title + ("; hollow: none, under 5 prompts or all alike" if data["low"].isna().any() else ""), panel)


def _curve(ax: Axes, xs: pd.Series, rows: pd.DataFrame, look: Look, name: str) -> None:
    _whiskers(ax, xs, rows, look.colour)
    ax.plot(xs, rows["rate"], look.marker, linestyle="--" if look.hatch else "-", color=look.colour, linewidth=1.4,
            markersize=4.5, zorder=3, label=name)  # fmt: skip
    bare = rows["low"].isna()
    ax.plot(xs[bare], rows["rate"][bare], look.marker, color=look.colour, mfc="white", markersize=4.5, zorder=4)


def draw_positions(figure: Figure, data: pd.DataFrame, panel: Panel) -> None:
    order = _best_first(data[data["position"] == acceptance.POSITIONS[0]], "rate")
    title = "Acceptance by position in the draft tree (the paper's Figure 5), tasks pooled"
    if len(order) <= MANY_CURVES:
        ax = figure.subplots()
        _positions(ax, data, panel, order)
        ax.set_xticks(range(len(acceptance.POSITIONS)), [
            "P1\nbest child\nof the root", "P2\nsecond child\nof the root", "P3\nbest child\nof P1", "P4\nsecond child\nof P1",
            "P5\nbest child\nof P2", "P6\nsecond child\nof P2",
        ])  # fmt: skip
        ax.set_ylabel("accepted with all its ancestors")
        _finish(figure, ax, title, panel)
        return
    for ax, label in zip(_multiples(figure, len(order)), order, strict=True):
        _positions(ax, data, panel, [label])
        ax.set_xticks(range(len(acceptance.POSITIONS)), acceptance.POSITIONS)
        ax.set_title(textwrap.fill(_look(panel, label).name, 30), fontsize=8)
        ax.grid(axis="y")
    figure.supylabel("accepted with all its ancestors", fontsize=9)
    _head(figure, f"{title}; a mark a conversation, a line all together", panel)


def _positions(ax: Axes, data: pd.DataFrame, panel: Panel, order: Sequence[str]) -> None:
    """Side by side at each position: a mark a conversation, a line for all of them together."""
    width = 0.8 / len(order)
    for i, label in enumerate(order):
        look = _look(panel, label)
        for at, position in enumerate(acceptance.POSITIONS):
            rows = data[(data["label"] == label) & (data["position"] == position)].sort_values(["task", "sample_id"])
            middle = at + width * (i - (len(order) - 1) / 2)
            # side by side, so that equal rates stay apart
            xs = middle + np.linspace(-0.36, 0.36, len(rows)) * width if len(rows) > 1 else [middle]
            ax.plot(xs, rows["rate"], look.marker, color=look.colour, alpha=0.55, markersize=3.5, markeredgewidth=0, zorder=3,
                    label=f"{look.name}, a conversation" if at == 0 else None)  # fmt: skip
            if len(rows):
                pooled = rows["accepted"].sum() / rows["n"].sum()
                ax.hlines(pooled, middle - 0.42 * width, middle + 0.42 * width, color="black", linewidth=1.6, zorder=4,
                          label=_POOLED if at == i == 0 else "_")  # fmt: skip
    ax.tick_params(axis="x", length=0)
    ax.set_ylim(-0.02, 1.02)


# ---- pieces ---------------------------------------------------------------------------------------------------------


def _multiples(figure: Figure, n: int) -> list[Axes]:
    """n small axes with common scales; the figure grows with them."""
    n_rows = -(-n // N_COLUMNS)
    figure.set_figheight(1.1 + 1.75 * n_rows)
    grid = figure.subplots(n_rows, N_COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for ax in grid:
        ax.tick_params(labelsize=7)
    for ax in grid[n:]:
        ax.set_axis_off()
    for ax in grid[max(0, n - N_COLUMNS) : n]:  # the lowest of each column
        ax.tick_params(labelbottom=True)
    return list(grid[:n])


def _places(data: pd.DataFrame, groups: Sequence[tuple[str, str]], order: Sequence[str], step: float) -> pd.Series:
    """Side by side within a group, the best method first, without gaps for methods that the group lacks."""
    keys = pd.Series(_keys(data), data.index)
    by_value = data.assign(place=data["label"].map(list(order).index), key=keys).sort_values("place", kind="stable")
    nth = by_value.groupby("key").cumcount().reindex(data.index)
    size = data.groupby(keys)["label"].transform("size")
    return keys.map(list(groups).index) + step * (nth - (size - 1) / 2)


def _whiskers(ax: Axes, xs: pd.Series, rows: pd.DataFrame, colour: str) -> None:
    """Interval whiskers, from end to end: its middle is the value less its bias."""
    known = rows["low"].notna()
    ax.vlines(xs[known], rows["low"][known], rows["high"][known], color=colour, linewidth=1, zorder=3)


def _names_with_n_tasks(data: pd.DataFrame, panel: Panel) -> dict[str, str]:
    """Names by label; they say so where a method has fewer tasks than the fullest, since such pools are not alike."""
    n_tasks = {str(label): int(n) for label, n in data.groupby("label")["n_tasks"].max().items()}
    most = max(n_tasks.values())
    return {label: _look(panel, label).name + ("" if n == most else f", {n} of {most} tasks") for label, n in n_tasks.items()}


def _groups(data: pd.DataFrame) -> list[tuple[str, str]]:
    """(task, source) in the order of tables, the mean last."""
    order = [*SIX_TASKS, *sorted(set(data["task"]) - {*SIX_TASKS, MEAN}), MEAN]
    return sorted(set(_keys(data)), key=lambda key: (order.index(key[0]), key[1]))


def _keys(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return [(task, "" if task == MEAN else source) for task, source in zip(rows["task"], rows["source"], strict=True)]


def _task_names(groups: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Tasks in words, with the source of their prompts."""
    return {(task, source): f"{in_words(task)} ({source})" if source else task for task, source in groups}


def _task_ticks(ax: Axes, groups: Sequence[tuple[str, str]]) -> None:
    names = _task_names(groups)
    ax.set_xticks(range(len(groups)), [names[group].replace(" ", "\n") for group in groups])
    ax.set_xlim(-0.6, len(groups) - 0.4)
    if groups[-1][0] == MEAN:
        ax.axvline(len(groups) - 1.5, color="#bbbbbb", linewidth=0.8)
    ax.tick_params(axis="x", length=0)


def _titled(figure: Figure, title: str, panel: Panel) -> str:
    width = int(12 * figure.get_figwidth())
    return "\n".join(textwrap.fill(text, width) for text in (title, panel.title or panel.setting.title()))


def _head(figure: Figure, title: str, panel: Panel) -> None:
    """The title of a figure of several axes."""
    figure.suptitle(_titled(figure, title, panel), x=0.01, ha="left",
                    fontsize=10.5)  # fmt: skip


def _finish(
    figure: Figure, ax: Axes, title: str, panel: Panel, grid: str = "y", more: Sequence[Artist] = (), has_speeds: bool = False
) -> None:  # fmt: skip
    """Title, grid and legend of a figure of one axes. more: entries of the legend that no curve has.

    has_speeds: it shows times or speeds. What a sign says of them in tables is then said below, with the methods it holds for.
    """
    ax.set_title(_titled(figure, title, panel))
    ax.grid(axis=grid)  # type: ignore[arg-type]
    entries = [(handle, name) for handle, name in zip(*ax.get_legend_handles_labels(), strict=True) if _is_drawn(handle, ax)]
    entries.sort(key=lambda entry: entry[1] in _LAST)  # after the methods
    entries += [(handle, str(handle.get_label())) for handle in more]
    longest = max((len(name) for _, name in entries), default=0)
    n_columns = max(1, min(len(entries), 120 // (longest + 6)))  # as many as the width has room for
    marks = ["† not exact"] * any(not s.exact for s in panel.summaries)
    if apart := sorted({panel.looks[s.variant].name for s in panel.summaries if s.is_apart}):
        marks.append(f"Baseline from another process: {', '.join(apart)}")
    for sign, note in NOTES.items() if has_speeds else ():
        if named := sorted({panel.looks[s.variant].name for s in panel.summaries if sign in s.signs}):
            marks.append(f"{', '.join(named)}: {note.removeprefix(sign).strip()}")
    width = int(15 * figure.get_figwidth())
    # the marks as the legend's title, since the layout keeps no room for a line of their own beside it
    legend = figure.legend([handle for handle, _ in entries], [name for _, name in entries], loc="outside lower center",
                           ncols=n_columns, fontsize=8.5, handlelength=1.6,
                           title=textwrap.fill("   ".join(marks), width, break_on_hyphens=False), title_fontsize=7)  # fmt: skip
    legend.get_title().set_color("#777777")


def _is_drawn(handle: object, ax: Axes) -> bool:
    """Whether something of it is in the picture: an entry for what is not there tells nothing."""
    if isinstance(handle, Line2D):
        xs, ys = (np.asarray(values, dtype=float) for values in handle.get_data())
        is_upright = len(xs) == 2 and xs[0] == xs[1] and handle.get_transform() != ax.transData  # a line across the axes
        low, high = ax.get_xlim() if is_upright else (-np.inf, np.inf)
        return bool(np.any(np.isfinite(xs) & np.isfinite(ys) & (xs >= low) & (xs <= high)))
    if isinstance(handle, BarContainer):
        return any(np.isfinite(bar.get_height()) for bar in handle)
    return True


def _look(panel: Panel, label: str) -> Look:
    return next(look for look in panel.looks.values() if look.label == label)
