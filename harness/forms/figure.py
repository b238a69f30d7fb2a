"""How a figure is written: one style for all, as a PNG whose bytes depend on nothing but what is drawn."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

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
AS_WRITTEN = RC | {"text.parse_math": False}  # where names out of a ledger are drawn: dollars in them begin no formula

COLOURS = 256


def png_bytes(figure: Figure) -> bytes:
    """The picture without date or version, in 256 colours, which is a third of the size: the same records give the same bytes."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    picture = Image.open(drawn).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write STEM.png; -> the files written, which is this one.

    Raises:
        UserError: names the folder that cannot be written.
    """
    return [write_file(stem.with_name(f"{stem.name}.png"), png_bytes(figure))]
