"""How a figure is written: one style for all, as a PNG whose bytes depend on nothing but what is drawn."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from harness.common.files import write_file

RC = {
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
}


def png_bytes(figure: Figure) -> bytes:
    """The picture without date or version: the same records give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write STEM.png; -> the files written, which is this one.

    Raises:
        UserError: names the folder that cannot be written.
    """
    return [write_file(stem.with_name(f"{stem.name}.png"), png_bytes(figure))]
