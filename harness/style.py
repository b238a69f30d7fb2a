"""Order, label and colour of methods and tasks: the one place that tables and plots take them from."""

from __future__ import annotations

from collections.abc import Iterable

VANILLA = "vanilla"  # the reference arm: every speedup and every identity check is against its records

# The order of tables and legends: baselines first, then EAGLE-2 with its parts put back one by one.
KNOWN_METHODS = (
    VANILLA, "hf-generate", "hf-assisted", "hf-prompt-lookup", "sps", "pld", "lookahead", "medusa", "medusa-typical", "hydra",
    "eagle1", "eagle2-no-both", "eagle2-no-value", "eagle2-no-rerank", "eagle2", "eagle2-fr",
)  # fmt: skip

# Okabe and Ito's colours, which stay apart under the common colour blindnesses; greys are the arms that draft nothing.
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
}
_OTHER_COLOURS = ("#44aa99", "#aa4499", "#117733", "#ddcc77", "#cc6677", "#88ccee")  # of Tol's muted set
_PRESET_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo")
_PRESET_MARKERS = ("o", "s", "^", "D", "v", "P")

# The paper's six tasks, in its order; the six-task mean is over exactly these.
SIX_TASKS = ("mt_bench", "humaneval", "gsm8k", "alpaca", "cnn_dm", "natural_questions")

# A step's parts in the order they are stacked; the two models in strong colours, what is left in grey.
PARTS = {"draft": "#d55e00", "verify": "#0072b2", "prefill": "#56b4e9", "other": "#bdbdbd", "untraced": "#e8e8e8"}


def method_order(method: str) -> tuple[int, str]:
    """Sort key: the known methods in their order, then every other one by name."""
    return (KNOWN_METHODS.index(method) if method in KNOWN_METHODS else len(KNOWN_METHODS), method)


def task_order(task: str) -> tuple[int, str]:
    return (SIX_TASKS.index(task) if task in SIX_TASKS else len(SIX_TASKS), task)


def preset_order(preset: str) -> tuple[bool, str]:
    """The default preset before the others."""
    return (preset != "paper", preset)


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
    return _PRESET_MARKERS[place % len(_PRESET_MARKERS)]


def label(method: str, preset: str) -> str:
    """`eagle2`, or `eagle2 (paper+total=24)` where the preset is not the default."""
    return method if preset == "paper" else f"{method} ({preset})"
