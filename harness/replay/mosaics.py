"""What the steps of a replay did where in a picture of the task `digits`: by kind of cell, and as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from harness.common.errors import UserError
from harness.forms.figure import AS_WRITTEN
from harness.forms.table import Section, Table, bracketed, number
from harness.metrics.definitions import estimated
from harness.metrics.intervals import Array
from harness.replay.record import Replay
from harness.replay.tables import Summed, strata
from harness.show.mosaic import CELL, LEVELS, SIDE, UNKNOWN, cell_kinds

NAME = "trees-by-region"
BEFORE = 1  # tokens of a text before its first pixel: BOS
PIXELS = SIDE * SIDE
KINDS = ("digit", "blank", "plain", "noisy")
PAIRS = {"drafted right": "{:.1%}", "tau": "{:.2f}", "nodes": "{:.1f}", "calls a step": "{:.2f}"}


def steps_of_pixels(r: Replay) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Of each pixel of a picture [1024] in raster order: the number of the step that made it, -1 where none did (the prompt, the
    prefill's token, what is beyond the answer's end); and whether it was drafted right, not the target's own at a step's end."""
    step, right = np.full(PIXELS, -1), np.zeros(PIXELS, bool)
    at = first_pixel(r)
    for i, accepted in enumerate(r.accepted):
        step[at : at + accepted + 1], right[at : at + accepted] = i, True
        at += accepted + 1
    end = r.n_prompt - BEFORE + r.tokens
    step[end:], right[end:] = -1, False
    return step, right


def first_pixel(r: Replay) -> int:
    """The first one that a step drafts: the prefill made the one before."""
    return r.n_prompt - BEFORE + 1


def map_of(r: Replay, values: Sequence[float]) -> Array:
    """[32, 32]: at each pixel the value of the step that made it; nan where none did."""
    step, _ = steps_of_pixels(r)
    return np.where(step < 0, np.nan, np.asarray(values, dtype=float)[step]).reshape(SIDE, SIDE)


def kinds_of_pixels(levels: NDArray[np.int64]) -> NDArray[Any]:
    """[1024]: what the pixel's cell shows, by its own pixels, given or made; "" where it is not whole."""
    kinds = np.array([[kind or "" for kind in row] for row in cell_kinds(levels)])
    return kinds.repeat(CELL, axis=0).repeat(CELL, axis=1).flatten()


def by_kind(replays: Sequence[Replay], pictures: Mapping[str, NDArray[np.int64]]) -> Summed:
    """By (kind of cell, picture): [pixels made, those drafted right, steps that begin there, their tokens, nodes and calls].

    A step is of the cell in which the first pixel that it drafts lies. pictures: by the key of vanilla's record.

    Raises:
        UserError: a picture is lacking.
    """
    found: dict[tuple[str, str], Array] = {}
    for r in replays:
        if r.answer not in pictures:
            raise UserError(f"replay of {r.answer}: its picture is not here, as its record is not in the ledger")
        kinds = kinds_of_pixels(pictures[r.answer])
        step, right = steps_of_pixels(r)
        accepted, sizes, calls = np.array(r.accepted), np.array(r.sizes), np.array([len(c) for c in r.calls])
        begin = first_pixel(r) + np.concatenate([[0], np.cumsum(accepted + 1)[:-1]]) if len(accepted) else np.empty(0, int)
        inside = begin < PIXELS
        where = kinds[begin[inside]]
        for kind in KINDS:
            made = (step >= 0) & (kinds == kind)
            of = np.flatnonzero(inside)[where == kind]
            sums = [made.sum(), (made & right).sum(), len(of), (accepted[of] + 1).sum(), sizes[of].sum(), calls[of].sum()]
            if made.any() and len(of):
                key = (kind, r.sample_id)
                found[key] = found.get(key, 0.0) + np.array(sums, dtype=float)
    return found


_OF = {"drafted right": (1, 0), "tau": (3, 2), "nodes": (4, 2), "calls a step": (5, 2)}


def region_table(
    arms: Mapping[float, Mapping[str, Sequence[Replay]]], pictures: Mapping[str, NDArray[np.int64]], costs: str
) -> Table:  # fmt: skip
    """Per temperature a section; a kind of cell and arm a row. arms: by temperature and name, as chosen for `costs`."""
    sections, numbers = [], []
    for t, own in arms.items():
        found = {name: strata([by_kind(replays, pictures)]) for name, replays in own.items()}
        rows = []
        for kind in KINDS:
            for name, by in found.items():
                if kind not in by:
                    continue
                shown = {"cell": kind, "method": name}
                for statistic, form in PAIRS.items():
                    top, bottom = _OF[statistic]
                    e = estimated([by[kind]], lambda sums, top=top, bottom=bottom: sums[top] / sums[bottom], 0.0)  # type: ignore[misc]
                    shown[statistic] = bracketed(number(e.value, form), e.ci95 if statistic == "tau" else None, form)
                    low, high = e.ci95 or (None, None)
                    numbers.append({"temperature": t, "cell": kind, "method": name, "statistic": statistic, "value": e.value,
                                    "value_low": low, "value_high": high, "pictures": e.prompts})  # fmt: skip
                rows.append(shown)
        n = len({r.sample_id for replays in own.values() for r in replays})
        sections.append(
            Section(f"T = {t:g}", (f"{n} pictures; intervals over them; options: those for {costs}",), pd.DataFrame(rows))
        )
    return Table(NAME, tuple(sections), NOTES, pd.DataFrame(numbers))


NOTES = (
    "cell: by its own pixels (`harness.show.mosaic.cell_kinds`), as no one says what a generated cell was meant to be.",
    "drafted right: share of the pixels made there that were accepted drafts. tau, nodes, calls: of the steps whose first drafted"
    " pixel lies there.",
)


def mosaics(pictures: Sequence[NDArray[np.int64]], maps: Mapping[str, Sequence[Array]]) -> Figure:
    """A column a picture: the mosaic itself, and under it each of `maps` as a heat map, in a pale tint where nothing is known.

    A row has one scale from 0 to its greatest value, and a bar beside it.
    """
    style: Any = AS_WRITTEN
    n = len(pictures)
    with rc_context(style):
        made = Figure(figsize=(1.75 * n + 1.2, 1.85 * (len(maps) + 1)), layout="constrained")
        axes = made.subplots(len(maps) + 1, n + 1, squeeze=False, width_ratios=[*[1.0] * n, 0.06])
        shown = {"mosaic": [np.where(levels == UNKNOWN, np.nan, levels) for levels in pictures], **maps}
        for i, (row, (title, own)) in enumerate(zip(axes, shown.items(), strict=True)):
            most = max(float(np.nanmax(m)) for m in own) if i else LEVELS - 1
            for ax, values in zip(row, own, strict=False):
                drawn = ax.imshow(
                    values, cmap=colormaps["viridis" if i else "Greys"].with_extremes(bad="#f4e9df"), vmin=0, vmax=most
                )
                ax.axhline(CELL - 0.5, color="#d55e00", linewidth=1)  # below it: generated
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
            row[0].set_ylabel(title)
            made.colorbar(drawn, cax=row[n])
    return made
