"""What a step of EAGLE-2 costs by context and tree size: a view of a table of costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.figure import Figure

from harness.common.files import write_file
from harness.costs.price import step_costs
from harness.costs.step import StepWork
from harness.costs.table import CostTable
from harness.forms.figure import RC, save_figure

TAU = 3.0  # accepted tokens that the head runs over after a step: that costs hardly more or less with another number


def swept(table: CostTable, works: Sequence[tuple[int, StepWork]], contexts: Sequence[int]) -> pd.DataFrame:
    """A row for each context and tree, and one for vanilla: what a step costs, in milliseconds and plain steps, and of what.

    works: (nodes asked for, what a step does). `plain_steps` is the τ above which the tree is faster than plain decoding.
    """
    rows: list[dict[str, Any]] = []
    for context in contexts:
        for arm, nodes, work in [("vanilla", 0, StepWork(1, is_plain=True)), *((f"{n} nodes", n, w) for n, w in works)]:
            c = step_costs(table, work, 1.0 if work.is_plain else TAU, context)
            rows.append(
                {"context": context, "arm": arm, "tree": nodes, "step_ms": c.total * c.plain_ms, "plain_steps": c.total,
                 "c_verify": c.verify, "c_draft": c.draft, "c_other": c.other}
            )  # fmt: skip
    return pd.DataFrame(rows)


def write_sweep(rows: pd.DataFrame, title: str, folder: Path) -> list[Path]:
    """`sweep.csv`, and what a step costs by context (PNG)."""
    written = [write_file(folder / "sweep.csv", rows.to_csv(index=False))]
    with matplotlib.style.context(["default", RC]):
        figure = Figure(figsize=(10, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        arms = list(dict.fromkeys(rows["arm"]))
        shades = matplotlib.colormaps["viridis"]
        for i, label in enumerate(arms):
            mine = rows[rows["arm"] == label]
            look: dict[str, Any] = (
                {"color": "#4d4d4d", "linestyle": "--"} if label == "vanilla" else {"color": shades(i / max(len(arms), 1))}
            )
            left.plot(mine["context"], mine["plain_steps"], marker="o", markersize=4, label=label, **look)
            right.plot(mine["context"], mine["step_ms"], marker="o", markersize=4, **look)
        for axes, name in (
            (left, "plain steps per step: faster than plain decoding at a τ above"),
            (right, "milliseconds per step"),
        ):
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(set(rows["context"])), [str(c) for c in sorted(set(rows["context"]))])
            axes.set_ylim(bottom=0)
            axes.set_xlabel("tokens of context")
            axes.set_title(name)
            axes.grid(axis="y")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        figure.legend(loc="outside lower center", ncols=6, fontsize=8.5)
        written += save_figure(figure, folder / "sweep")
    return written
