"""The plots of a ledger, listed once: `harness plot` and the page take them from `PLOTS`, each with the numbers it draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import matplotlib.style
import pandas as pd
from matplotlib.figure import Figure

from harness.common.files import write_file
from harness.common.identities import shown_id
from harness.common.plain_names import made_plain, place
from harness.common.progress import Progress, showing_progress
from harness.forms.figure import AS_WRITTEN, png_bytes
from harness.metrics.groups import weights_and_machine
from harness.metrics.pairing import Setting
from harness.show.contents import Contents, read_contents
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


@dataclass(frozen=True, slots=True)
class LedgerPlot:
    """A plot that every setting may have. It is drawn where there are numbers for it."""

    name: str  # of its files
    title: str  # in the page
    numbers: Callable[[Panel], pd.DataFrame]
    draw: Callable[[Figure, pd.DataFrame, Panel], None]


PLOTS = (
    LedgerPlot("speedup", "Speedup", speedup_data, draw_speedup),
    LedgerPlot("tau", "Accept length τ", tau_data, draw_tau),
    LedgerPlot("acceptance", "Acceptance by depth", acceptance_data, draw_acceptance),
    LedgerPlot("time", "Where the time goes", time_data, draw_time),
    LedgerPlot("ablations", "EAGLE-2 against its ablations", ablation_data, draw_ablations),
    LedgerPlot("positions", "Acceptance by position", position_data, draw_positions),
    LedgerPlot("calibration", "Acceptance against confidence", calibration_data, draw_calibration),
    LedgerPlot("n_alpha", "Acceptance in chains", n_alpha_data, draw_n_alpha),
)


@dataclass(frozen=True, slots=True)
class DrawnPlot:
    """One plot of one setting: the picture, the numbers it draws, and what only the page says of it."""

    name: str  # of its files, without the suffix
    title: str
    caption: str  # weights and machine
    png: bytes
    csv: bytes


def drawn_plots(contents: Contents, progress: Progress) -> list[DrawnPlot]:
    """Every plot that there are numbers for, setting by setting; a step of `progress` each."""
    panels = panels_of(contents)
    progress.expect(len(panels) * len(PLOTS))
    names = _file_names([panel.setting for panel in panels])
    drawn = []
    for panel, name in zip(panels, names, strict=True):
        for plot in PLOTS:
            progress.step(f"plot {plot.name}")
            numbers = plot.numbers(panel)
            if numbers.empty:
                continue
            with matplotlib.style.context(["default", AS_WRITTEN]):
                figure = Figure(figsize=(9, 4.8), layout="constrained")
                plot.draw(figure, numbers, panel)
                png = png_bytes(figure)
            title = f"{plot.title}, T = {panel.setting.temperature:g}"
            caption = "; ".join(weights_and_machine(panel.summaries))
            drawn.append(DrawnPlot(made_plain(f"{plot.name}_{name}"), title, caption, png, _csv(numbers)))
    return drawn


def write_plots(folder: Path, out: Path | None = None, *, strict: bool = False) -> list[Path]:
    """Write every plot of a folder's records into `out` (default: `plots` in the folder), a PNG and a CSV each; -> the files.

    Raises:
        UserError: no records, a file beside them that cannot be read, `out` cannot be written, or `strict` and a line that
            cannot be read.
    """
    target = out or Path(folder) / "plots"
    with showing_progress("plots") as progress:
        return write_drawn_plots(drawn_plots(read_contents(folder, progress, strict), progress), target)


def write_drawn_plots(plots: Iterable[DrawnPlot], target: Path) -> list[Path]:
    """Write each plot as a PNG and a CSV into a folder; -> the files."""
    return [write_file(place(target, "plot", plot.name, suffix=suffix), content)
            for plot in plots for suffix, content in ((".png", plot.png), (".csv", plot.csv))]  # fmt: skip


def _file_names(settings: Sequence[Setting]) -> list[str]:
    """`model_T0_dtype`, with whatever else tells a folder's settings apart."""
    varying = [f.name for f in fields(Setting) if len({getattr(s, f.name) for s in settings}) > 1]
    units = {"top_p": "p{:g}", "threads": "{}threads", "max_new_tokens": "{}tokens", "seed": "seed{}"}
    names = []
    for i, s in enumerate(settings):
        parts = [s.model, f"T{s.temperature:g}", s.dtype]
        parts += [form.format(getattr(s, name)) for name, form in units.items() if name in varying]
        parts += [shown_id(s.target_sha, 8)] if "target_sha" in varying else []
        parts += [s.target_id[:8]] if "target_id" in varying else []
        parts += [f"{name}{i}" for name in ("machine", "system") if name in varying]
        names.append(made_plain("_".join(parts)))
    return names


def _csv(data: pd.DataFrame) -> bytes:
    return data.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode()
