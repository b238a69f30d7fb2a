"""The order in which methods, tasks and presets are named, and how."""

from __future__ import annotations

VANILLA = "vanilla"  # the reference arm: every speedup and every identity check is against its records

# The order of tables and legends: baselines first, then EAGLE-2 with its parts put back one by one.
KNOWN_METHODS = (
    VANILLA, "hf-generate", "hf-assisted", "hf-prompt-lookup", "sps", "pld", "lookahead", "medusa", "medusa-typical", "hydra",
    "eagle1", "eagle2-no-both", "eagle2-no-value", "eagle2-no-rerank", "eagle2", "eagle2-fr",
)  # fmt: skip

# The paper's six tasks, in its order; the six-task mean is over exactly these.
SIX_TASKS = ("mt_bench", "humaneval", "gsm8k", "alpaca", "cnn_dm", "natural_questions")


def method_order(method: str) -> tuple[int, str]:
    """Sort key: the known methods in their order, then every other one by name."""
    return (KNOWN_METHODS.index(method) if method in KNOWN_METHODS else len(KNOWN_METHODS), method)


def task_order(task: str) -> tuple[int, str]:
    return (SIX_TASKS.index(task) if task in SIX_TASKS else len(SIX_TASKS), task)


def preset_order(preset: str) -> tuple[bool, str]:
    """The default preset before the others."""
    return (preset != "paper", preset)


def label(method: str, preset: str) -> str:
    """`eagle2`, or `eagle2 (paper+total=24)` where the preset is not the default."""
    return method if preset == "paper" else f"{method} ({preset})"
