"""`harness plot`: every plot of a ledger, each with a CSV of what it draws."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.common.files import write_file
from harness.forms.figure import RC, save_figure
from harness.ledger.ledger import read
from harness.ledger.trees import read_drafts
from harness.metrics.pairing import Setting
from harness.show.plots.data import (
    Panel,
    ablation_data,
    acceptance_data,
    calibration_data,
    n_alpha_data,
    panels_of,
    position_data,
    speedup_data,
    tau_data,
    time_data,
)
from harness.show.plots.draw import (
    draw_ablations,
    draw_acceptance,
    draw_calibration,
    draw_n_alpha,
    draw_positions,
    draw_speedup,
    draw_tau,
    draw_time,
)


def write_plots(folder: Path, out: Path | None = None, suffixes: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Draw every figure that a folder's records and drafted trees allow into `out` (default: `plots` in the folder).

    Raises:
        UserError: no records, or `out` cannot be written.
    """
    panels = panels_of(read(folder), read_drafts(folder))
    target = out or Path(folder) / "plots"
    names = _file_names([panel.setting for panel in panels])
    written = []
    for panel, name in zip(panels, names, strict=True):
        for drawing, (collect, draw) in _DRAWINGS.items():
            data = collect(panel)
            if data.empty:
                continue
            with matplotlib.style.context(["default", RC]):
                figure = Figure(figsize=(9, 4.8), layout="constrained")
                draw(figure.subplots(), data, panel)
                written += save_figure(figure, target / f"{drawing}_{name}", suffixes)
            written.append(write_file(target / f"{drawing}_{name}.csv", _csv(data)))
    return written


def _file_names(settings: Sequence[Setting]) -> list[str]:
    """`model_T0_dtype`, with whatever else tells a folder's settings apart."""
    varying = [f.name for f in fields(Setting) if len({getattr(s, f.name) for s in settings}) > 1]
    units = {"top_p": "p{:g}", "threads": "{}threads", "max_new_tokens": "{}tokens", "seed": "seed{}"}
    names = []
    for i, s in enumerate(settings):
        parts = [s.model, f"T{s.temperature:g}", s.dtype]
        parts += [form.format(getattr(s, name)) for name, form in units.items() if name in varying]
        parts += [s.target_sha[:8]] if "target_sha" in varying else []
        parts += [f"{name}{i}" for name in ("machine", "system") if name in varying]
        names.append(re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)))
    return names


def _csv(data: pd.DataFrame) -> bytes:
    return data.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode()


_Collect = Callable[[Panel], pd.DataFrame]
_Draw = Callable[[Axes, pd.DataFrame, Panel], None]
_DRAWINGS: dict[str, tuple[_Collect, _Draw]] = {
    "speedup": (speedup_data, draw_speedup),
    "tau": (tau_data, draw_tau),
    "acceptance": (acceptance_data, draw_acceptance),
    "time": (time_data, draw_time),
    "ablations": (ablation_data, draw_ablations),
    "positions": (position_data, draw_positions),
    "calibration": (calibration_data, draw_calibration),
    "n_alpha": (n_alpha_data, draw_n_alpha),
}
