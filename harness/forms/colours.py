"""Colours, fills and marks of methods: the one place that plots take them from."""

from __future__ import annotations

from collections.abc import Iterable

from harness.common.names import VANILLA

# Okabe and Ito's colours, which stay apart under the common colour blindnesses. Greys are for what drafts with no model.
_METHODS = {
    VANILLA: "#4d4d4d",
    "hf-generate": "#a6a6a6",
    "hf-assisted": "#bbaf8f",
    "hf-prompt-lookup": "#8fa3bb",
    "sps": "#f0e442",
    "pld": "#e69f00",
    "lookahead": "#999933",
    "medusa": "#882255",
    "medusa-typical": "#c98aa8",
    "hydra": "#332288",
    "eagle1": "#0072b2",
    "eagle2-no-both": "#cc79a7",
    "eagle2-no-value": "#56b4e9",
    "eagle2-no-rerank": "#009e73",
    "eagle2": "#d55e00",
    "eagle2-fr": "#7f3300",
    "eagle3": "#117733",
}
_OTHER_COLOURS = ("#44aa99", "#aa4499", "#661100", "#ddcc77", "#cc6677", "#88ccee")  # of Tol's muted set
_PRESET_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo")
_PRESET_MARKERS = ("o", "s", "^", "D", "v", "P")

# A step's parts in the order they are stacked; the two models in strong colours, what is left in grey.
PARTS = {"draft": "#d55e00", "verify": "#0072b2", "prefill": "#56b4e9", "other": "#bdbdbd", "untraced": "#e8e8e8"}


def colour(method: str, shown: Iterable[str] = ()) -> str:
    """A method's colour; a method unknown here takes one by its place among the unknown methods `shown` beside it."""
    if method in _METHODS:
        return _METHODS[method]
    others = sorted({*shown, method} - set(_METHODS))
    return _OTHER_COLOURS[others.index(method) % len(_OTHER_COLOURS)]


def hatch(place: int) -> str:
    """The fill that tells a method's presets apart; `place` counts them from 0."""
    return _PRESET_HATCHES[place % len(_PRESET_HATCHES)]


def marker(place: int) -> str:
    """The mark that tells a method's presets apart; `place` counts them from 0."""
    return _PRESET_MARKERS[place % len(_PRESET_MARKERS)]
