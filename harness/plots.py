"""Figures from records: PNG and PDF, and beside each a CSV of the numbers drawn.

Every figure belongs to one setting (model, temperature, dtype, threads, budget, machine), which its title states.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.metrics import (
    Arm,
    CellSummary,
    Interval,
    Setting,
    acceptance_by_depth,
    arm,
    compared,
    point,
    setting_of,
    six_task_mean,
    summarise,
    time_split,
    tokens_per_s,
    variant_of,
)
from harness.records import Record, read
from harness.style import PARTS, SIX_TASKS, VANILLA, colour, hatch, preset_order
from harness.tables import MEAN, Variant, by_setting, by_variant, comparisons, facts, labels, shown_cells, write_file

_RC = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,  # text stays text
}
# No dates and no versions: the same records give the same bytes.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@dataclass(frozen=True, slots=True)
class Panel:
    """What a drawing gets: one setting's records and summaries, and how its arms look."""

    setting: Setting
    summaries: tuple[CellSummary, ...]
    records: tuple[Record, ...]
    looks: dict[Variant, Look]


@dataclass(frozen=True, slots=True)
class Look:
    label: str
    colour: str
    hatch: str


def write_plots(folder: Path, out: Path | None = None) -> list[Path]:
    """Draw every figure that a folder's records allow into `out` (default: `plots` in the folder).

    Raises:
        UserError: no records, or `out` cannot be written.
    """
    panels = _panels(read(folder))
    target = out or Path(folder) / "plots"
    names = _file_names([panel.setting for panel in panels])
    written = []
    for panel, name in zip(panels, names, strict=True):
        for drawing, (collect, draw) in _DRAWINGS.items():
            data = collect(panel)
            if data.empty:
                continue
            with matplotlib.style.context(["default", _RC]):
                figure = Figure(figsize=(9, 4.2), layout="constrained")
                draw(figure.subplots(), data, panel)
                figure.supxlabel(
                    "   ".join(facts(panel.summaries)[1:3]), fontsize=7, color="#777777", x=0.995, ha="right"
                )
                written += _save(figure, target / f"{drawing}_{name}")
            written.append(write_file(target / f"{drawing}_{name}.csv", _csv(data)))
    return written


# ---- what is drawn --------------------------------------------------------------------------------------------------


def speedup_data(panel: Panel) -> pd.DataFrame:
    """Speedup over vanilla by task and method, with intervals; the six-task mean has none."""
    return _by_task(panel, "speedup", lambda s: s.speedup_ci95)


def tau_data(panel: Panel) -> pd.DataFrame:
    """Tokens per target forward by task and method, with intervals, and without looping outputs."""
    return _by_task(panel, "tau", lambda s: s.tau_ci95)


def _by_task(panel: Panel, name: str, interval: Callable[[CellSummary], Interval | None]) -> pd.DataFrame:
    rows = []
    for variant, cells in by_variant(s for s in panel.summaries if s.method != VANILLA):
        for s in cells:
            row = {
                "task": s.task,
                "source": s.source,
                "prompts": s.prompts,
                name: getattr(s, name),
                **_ends(interval(s)),
            }
            rows.append(_arm(panel, variant) | row | ({"tau_no_loop": s.tau_no_loop} if name == "tau" else {}))
        mean = six_task_mean(cells)
        if getattr(mean, name) is not None:
            row = {"task": MEAN, "source": "", "prompts": sum(s.prompts for s in cells), name: getattr(mean, name)}
            rows.append(_arm(panel, variant) | row | ({"tau_no_loop": mean.tau_no_loop} if name == "tau" else {}))
    data = pd.DataFrame(rows)
    return data[data[name].notna()] if rows else data


def acceptance_data(panel: Panel) -> pd.DataFrame:
    """Acceptance rate by depth, all tasks pooled, for every method that drafts."""
    rows = []
    for variant, _ in by_variant(panel.summaries):
        for d in acceptance_by_depth(_arm_of(panel, variant).values(), intervals=True):
            counts = {"depth": d.depth, "n_reached": d.n_reached, "n_accepted": d.n_accepted, "rate": d.rate}
            rows.append(_arm(panel, variant) | counts | _ends(d.ci95))
    return pd.DataFrame(rows)


def time_data(panel: Panel) -> pd.DataFrame:
    """Where the time of a generated token goes, all tasks pooled, in units of vanilla's on the same prompts.

    Without a baseline in the setting: in milliseconds.
    """
    base = _pooled(panel, lambda r: r["method"] == VANILLA)
    relative = any(compared(_arm_of(panel, v), base) for v, _ in by_variant(panel.summaries) if v[0] != VANILLA)
    rows = []
    for variant, _ in by_variant(panel.summaries):
        everything = _arm_of(panel, variant)
        own = compared(everything, base) if relative else everything
        speed = point([own, base], lambda _, b: tokens_per_s(b)) if relative else 1e-3
        total = point([own], tokens_per_s)
        if not speed or not total:
            continue
        split = time_split(list(own.values()))
        parts = {part: getattr(split, part) if split else 0.0 for part in PARTS if part != "untraced"}
        parts["untraced"] = 0.0 if split else 1 / total
        unit = "vanilla's time per token" if relative else "ms per token"
        rows.append(_arm(panel, variant) | {part: seconds * speed for part, seconds in parts.items()} | {"unit": unit})
    return pd.DataFrame(rows)


def ablation_data(panel: Panel) -> pd.DataFrame:
    """What full EAGLE-2 gains in tau over each ablation on the same prompts, by task."""
    rows = []
    for c in comparisons(panel.records, panel.summaries):
        if c.against_method != "eagle1":
            row = {"method": c.against_method, "label": c.against, "task": c.task, "source": c.source}
            row |= {"prompts": c.tau_difference.prompts, "tau_difference": c.tau_difference.value}
            rows.append(row | _ends(c.tau_difference.ci95))
    data = pd.DataFrame(rows)
    return data[data["tau_difference"].notna()] if rows else data


# ---- how it is drawn ------------------------------------------------------------------------------------------------


def _draw_speedup(ax: Axes, data: pd.DataFrame, panel: Panel) -> None:
    _grouped_bars(ax, data, "speedup", panel)
    ax.axhline(1.0, color="#333333", linewidth=1, linestyle="--", label="vanilla")
    ax.set_ylabel("speedup over vanilla")
    _finish(ax, "Speedup over vanilla on the same prompts, 95 % intervals", panel)


def _draw_tau(ax: Axes, data: pd.DataFrame, panel: Panel) -> None:
    places = _grouped_bars(ax, data, "tau", panel)
    looped = data["tau_no_loop"].notna() & (data["tau_no_loop"] != data["tau"])
    if looped.any():
        xs = [x for x, differs in zip(places, looped, strict=True) if differs]
        ax.plot(xs, data.loc[looped, "tau_no_loop"], "_", color="black", markersize=5, markeredgewidth=1.6,
                label="without looping outputs")  # fmt: skip
    ax.axhline(1.0, color="#333333", linewidth=1, linestyle="--", label="vanilla")
    ax.set_ylabel("τ, tokens per target forward")
    _finish(ax, "Accept length τ, 95 % intervals", panel)


def _draw_acceptance(ax: Axes, data: pd.DataFrame, panel: Panel) -> None:
    names = list(dict.fromkeys(data["label"]))
    for i, name in enumerate(names):
        rows = data[data["label"] == name]
        look = _look(panel, name)
        xs = rows["depth"] + 0.07 * (i - (len(names) - 1) / 2)  # apart, so that whiskers do not hide each other
        _whiskers(ax, xs, rows, "rate")
        ax.plot(xs, rows["rate"], color=look.colour, linewidth=1.4, linestyle="--" if look.hatch else "-", zorder=3)
        bare = rows["low"].isna()
        ax.plot(xs[~bare], rows["rate"][~bare], "o", color=look.colour, markersize=5, zorder=4, label=name)
        ax.plot(xs[bare], rows["rate"][bare], "o", color=look.colour, markerfacecolor="white", markersize=5, zorder=4)
    if data["low"].isna().any():
        ax.plot([], [], "o", color="#777777", markerfacecolor="white", markersize=5, label="too few for an interval")
    ax.set_xticks(range(1, int(data["depth"].max()) + 1))
    ax.set_xlabel("depth d in the draft tree")
    ax.set_ylabel("accepted at d, of those accepted at d - 1")
    ax.set_ylim(0, 1.02)
    _finish(ax, "Acceptance rate by depth, all tasks pooled, 95 % intervals", panel)


def _draw_time(ax: Axes, data: pd.DataFrame, panel: Panel) -> None:
    left = pd.Series(0.0, index=data.index)
    places = range(len(data))[::-1]  # the first method on top
    for part, fill in PARTS.items():
        if data[part].any():
            ax.barh(places, data[part], left=left, color=fill, height=0.7, label=part, edgecolor="white", linewidth=0.5)
        left += data[part]
    for place, total in zip(places, left, strict=True):
        ax.annotate(
            f"{total:.2f}", (total, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    if data["unit"].iloc[0].startswith("vanilla"):
        ax.axvline(1.0, color="#333333", linewidth=1, linestyle="--")
    ax.set_yticks(places, data["label"])
    ax.set_xlim(0, left.max() * 1.08)
    ax.set_xlabel(
        "time per generated token, in " + data["unit"].iloc[0].replace("time per token", "on the same prompts")
    )
    _finish(ax, "Where the time goes, all tasks pooled", panel, grid="x")


def _draw_ablations(ax: Axes, data: pd.DataFrame, panel: Panel) -> None:
    groups = _groups(data)
    names = list(dict.fromkeys(data["label"]))
    for i, name in enumerate(names):
        rows = data[data["label"] == name]
        look = _look(panel, name)
        xs = pd.Series([groups.index(key) for key in _keys(rows)], rows.index) + 0.16 * (i - (len(names) - 1) / 2)
        _whiskers(ax, xs, rows, "tau_difference")
        ax.plot(xs, rows["tau_difference"], "o" if not look.hatch else "s", color=look.colour, markersize=6, zorder=4,
                label=f"against {name}")  # fmt: skip
    ax.axhline(0.0, color="#333333", linewidth=1, linestyle="--")
    _task_ticks(ax, groups)
    ax.set_ylabel("τ of eagle2 less τ of the ablation")
    _finish(ax, "What full EAGLE-2 gains in τ over each ablation, paired by prompt, 95 % intervals", panel)


def _grouped_bars(ax: Axes, data: pd.DataFrame, value: str, panel: Panel) -> list[float]:
    """One group a task, one bar an arm; returns the bars' places in the order of `data`."""
    groups = _groups(data)
    names = list(dict.fromkeys(data["label"]))
    width = 0.84 / max(len(names), 3)
    places = pd.Series(0.0, index=data.index)
    for i, name in enumerate(names):
        rows = data[data["label"] == name]
        look = _look(panel, name)
        xs = pd.Series([groups.index(key) for key in _keys(rows)], rows.index) + width * (i - (len(names) - 1) / 2)
        ax.bar(xs, rows[value], width * 0.94, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0.3,
               label=name)  # fmt: skip
        _whiskers(ax, xs, rows, value)
        places[rows.index] = xs
    _task_ticks(ax, groups)
    return list(places)


def _whiskers(ax: Axes, xs: pd.Series, rows: pd.DataFrame, value: str) -> None:
    """Interval whiskers; drawn from end to end, since a bootstrap interval need not hold the value at its middle."""
    if "low" in rows:
        known = rows["low"].notna()
        ax.vlines(xs[known], rows["low"][known], rows["high"][known], color="#222222", linewidth=0.9, zorder=3)


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
    ax.set_title(f"{title}\n{panel.setting.title()}")
    ax.grid(axis=grid)  # type: ignore[arg-type]
    handles, names = ax.get_legend_handles_labels()
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    figure.legend(handles, names, loc="outside right upper", fontsize=8.5, handlelength=1.4)


# ---- panels, files --------------------------------------------------------------------------------------------------


def _panels(records: Sequence[Record]) -> list[Panel]:
    panels = []
    for setting, summaries in by_setting(shown_cells(summarise(records))):
        here = tuple(r for r in records if setting_of(r) == setting)
        panels.append(Panel(setting, tuple(summaries), here, _looks(summaries)))
    return panels


def _looks(summaries: Sequence[CellSummary]) -> dict[Variant, Look]:
    names = labels(summaries)
    methods = {method for method, *_ in names}
    looks = {}
    for method in methods:
        siblings = sorted((v for v in names if v[0] == method), key=lambda v: (preset_order(v[1]), v))
        for place, variant in enumerate(siblings):
            looks[variant] = Look(names[variant], colour(method, methods), hatch(place))
    return looks


def _look(panel: Panel, name: str) -> Look:
    return next(look for look in panel.looks.values() if look.label == name)


def _arm(panel: Panel, variant: Variant) -> dict[str, Any]:
    return {"method": variant[0], "preset": variant[1], "label": panel.looks[variant].label}


def _arm_of(panel: Panel, variant: Variant) -> Arm:
    return _pooled(panel, lambda r: variant_of(r) == variant)


def _pooled(panel: Panel, wanted: Callable[[Record], bool]) -> Arm:
    return arm(r for r in panel.records if wanted(r))


def _ends(ci95: Interval | None) -> dict[str, float | None]:
    low, high = ci95 or (None, None)
    return {"low": low, "high": high}


def _file_names(settings: Sequence[Setting]) -> list[str]:
    """`model_T0_dtype`, with whatever else tells a folder's settings apart."""
    varying = [f.name for f in fields(Setting) if len({getattr(s, f.name) for s in settings}) > 1]
    units = {"top_p": "p{:g}", "threads": "{}threads", "max_new_tokens": "{}tokens", "seed": "seed{}"}
    names = []
    for i, s in enumerate(settings):
        parts = [s.model, f"T{s.temperature:g}", s.dtype]
        parts += [form.format(getattr(s, name)) for name, form in units.items() if name in varying]
        parts += [s.target_sha[:8]] if "target_sha" in varying else []
        parts += [f"machine{i}"] if "machine" in varying else []
        names.append(re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)))
    return names


def _save(figure: Figure, stem: Path) -> list[Path]:
    paths = []
    for suffix, metadata in _METADATA.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata)
        paths.append(write_file(stem.with_name(f"{stem.name}.{suffix}"), buffer.getvalue()))
    return paths


def _csv(data: pd.DataFrame) -> bytes:
    return data.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode()


_Collect = Callable[[Panel], pd.DataFrame]
_Draw = Callable[[Axes, pd.DataFrame, Panel], None]
_DRAWINGS: dict[str, tuple[_Collect, _Draw]] = {
    "speedup": (speedup_data, _draw_speedup),
    "tau": (tau_data, _draw_tau),
    "acceptance": (acceptance_data, _draw_acceptance),
    "time": (time_data, _draw_time),
    "ablations": (ablation_data, _draw_ablations),
}
