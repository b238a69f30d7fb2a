"""The tables and plots of `harness profile`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.figure import Figure

from harness.common.files import write_file
from harness.costs.ceiling import Ceiling
from harness.costs.steps import GROWTH, LOOP, MASK, TARGET, Profile, all_parts, outside, place
from harness.forms.figure import RC, save_figure


def profile_rows(profiles: Sequence[Profile], base: Profile, limit: Ceiling, best: Mapping[str, float]) -> pd.DataFrame:
    """A row for each method and part: milliseconds a step, the same in vanilla steps, and the share of the step.

    Beside them the ceilings: a vanilla step at the memory's bandwidth, and the decode speedup that `harness tune` raced
    with the options it chose (`best`, by method).
    """
    rows = [
        {"method": p.method, "preset": p.preset, "part": part, "ms": ms, "vanilla_steps": ms / base.total, "share": ms / p.total,
         "tau": p.tau, "steps": p.steps, "measured_ms": p.measured_ms,
         "bandwidth_limit_ms": limit.step_ms, "best_raced": best.get(p.method)}
        for p in profiles for part in all_parts(profiles) if (ms := p.parts.get(part)) is not None
    ]  # fmt: skip
    return pd.DataFrame(rows)


def report(profiles: Sequence[Profile], limit: Ceiling, where: str, best: Mapping[str, float], costs: str) -> str:
    """The profile as Markdown, with the ceilings. best: the decode speedup that `harness tune` raced, by method; costs: which
    table has the prices."""
    base = profiles[0]
    lines = [f"Where a step's time goes: {where}. In milliseconds a step (share of the step), by {costs}.", ""]
    parts = all_parts(profiles)
    lines.append(
        "| part | " + " | ".join(p.method if p.preset == "paper" else f"{p.method} ({p.preset})" for p in profiles) + " |"
    )
    lines.append("|:--|" + "--:|" * len(profiles))
    for part in parts:
        cells = (f"{three_digits(p.parts[part])} ({p.parts[part] / p.total:.0%})" if part in p.parts else "" for p in profiles)
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    for name, value in (
        ("**one step**", lambda p: f"{three_digits(p.total)} ms"),
        ("one step, as timed here", lambda p: f"{three_digits(p.measured_ms)} ms ({p.total / p.measured_ms - 1:+.0%})"),
        ("in vanilla steps", lambda p: f"{p.total / base.total:.2f}"),
        ("outside both models", lambda p: f"{outside(p):.1%}"),
        ("τ", lambda p: f"{p.tau:.2f}"),
        ("decode speedup", lambda p: f"{p.tau * base.total / p.total:.2f}×"),
        ("decode speedup, as timed here", lambda p: f"{p.tau * base.measured_ms / p.measured_ms:.2f}×"),
        ("best options raced by `harness tune`", lambda p: f"{best[p.method]:.2f}×" if p.method in best else ""),
    ):
        shown = [value(p) for p in profiles]
        if any(shown):
            lines.append(f"| {name} | " + " | ".join(shown) + " |")
    lines += [
        "",
        f"Ceiling of plain decoding: a step reads {three_digits(limit.weight_bytes / 1e6)} MB of weights; at the "
        f"{limit.bandwidth / 1e9:.1f} GB/s measured here that takes {three_digits(limit.step_ms)} ms "
        f"({1e3 / limit.step_ms:.0f} tokens/s). "
        f"Vanilla's step reaches {limit.step_ms / base.total:.0%} of it.",
        "",
    ]
    return "\n".join(lines)


def three_digits(x: float) -> str:
    """`269`, `13.6`, `0.0225`: three digits from the first that is not 0."""
    return f"{x:.{max(2 - math.floor(math.log10(abs(x))), 0)}f}" if x else "0"


def write_profile(rows: pd.DataFrame, text: str, title: str, folder: Path) -> list[Path]:
    """Write `profile.csv`, `profile.md`, and the parts of a step as stacked bars (PNG) -> the files."""
    written = [write_file(folder / "profile.csv", rows.to_csv(index=False)), write_file(folder / "profile.md", text)]
    with matplotlib.style.context(["default", RC]):
        figure = Figure(figsize=(9, 1.6 + 0.55 * rows.groupby(["method", "preset"]).ngroups), layout="constrained")
        axes = figure.subplots()
        names = list(dict.fromkeys(zip(rows["method"], rows["preset"], strict=True)))
        parts = list(dict.fromkeys(rows.sort_values("part", key=lambda c: c.map(place), kind="stable")["part"]))
        colours = _part_colours(parts)
        left = dict.fromkeys(names, 0.0)
        for part in parts:
            for i, name in enumerate(names):
                mine = rows[(rows["method"] == name[0]) & (rows["preset"] == name[1]) & (rows["part"] == part)]
                if len(mine):
                    width = float(mine["vanilla_steps"].iloc[0])
                    axes.barh(i, width, left=left[name], color=colours[part], edgecolor="white", linewidth=0.4)
                    left[name] += width
        for i, name in enumerate(names):
            tau = float(rows[(rows["method"] == name[0]) & (rows["preset"] == name[1])]["tau"].iloc[0])
            best = rows[(rows["method"] == name[0]) & (rows["preset"] == name[1])]["best_raced"].iloc[0]
            said = f"  {left[name]:.2f} for τ {tau:.2f}: {tau / left[name]:.2f}×" + (
                "" if pd.isna(best) else f" (best options raced: {best:.2f}×)"
            )
            axes.text(left[name], i, said, va="center", fontsize=8.5)
        limit = rows["bandwidth_limit_ms"].iloc[0] * rows["vanilla_steps"].iloc[0] / rows["ms"].iloc[0]
        ceiling = axes.axvline(limit, color="black", linestyle=":", label="weights read at the memory's bandwidth")
        axes.set_yticks(range(len(names)), [m if p == "paper" else f"{m} ({p})" for m, p in names])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.6 * max(left.values()))
        axes.set_xlabel("one step, in vanilla steps")
        axes.set_title(title)
        handles = [*(axes.barh(0, 0, color=colours[p], label=p) for p in parts), ceiling]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
        written += save_figure(figure, folder / "profile")
    return written


def _part_colours(parts: Sequence[str]) -> dict[str, Any]:
    fixed = {TARGET: "#0072b2", GROWTH: "#009e73", MASK: "#999999", LOOP: "#dddddd"}
    oranges = matplotlib.colormaps["Oranges"]
    levels = [p for p in parts if p.startswith("draft level")]
    return {p: fixed.get(p) or oranges(0.75 - 0.45 * levels.index(p) / max(len(levels), 1)) for p in parts}
