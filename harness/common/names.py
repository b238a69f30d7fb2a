"""The names of methods, tasks and presets: their order, and how tables and plots write them."""

from __future__ import annotations

VANILLA = "vanilla"  # the reference arm: every speedup and every identity check is against its records
SERVER, SERVER_PLAIN = "server", "server-plain"  # an engine elsewhere, and its own reference: the same with speculation off
BASELINES = (VANILLA, SERVER_PLAIN)
"""What others are compared with. No record is compared with both: those of an engine elsewhere have another target than ours."""
SERVED_DTYPE = "served"
"""The dtype of records of an engine elsewhere: it is the engine's own. What it tells of it stands in the environment."""

# The order of tables and legends: baselines first, then EAGLE-2 with its parts put back one by one.
KNOWN_METHODS = (
    VANILLA, "hf-generate", "hf-assisted", "hf-prompt-lookup", "sps", "pld", "lookahead", "medusa", "medusa-typical", "hydra",
    "eagle1", "eagle2-no-both", "eagle2-no-value", "eagle2-no-rerank", "eagle2", "eagle2-fr", "eagle3", SERVER_PLAIN, SERVER,
)  # fmt: skip

# The paper's six tasks, in its order; the six-task mean is over exactly these.
SIX_TASKS = ("mt_bench", "humaneval", "gsm8k", "alpaca", "cnn_dm", "natural_questions")


# How titles and legends write a method or a task; tables and files have the names of the command line.
_WORDS = {
    "hf-generate": "HF generate", "hf-assisted": "HF assisted", "hf-prompt-lookup": "HF prompt lookup",
    "sps": "SpS", "pld": "PLD", "lookahead": "Lookahead", "medusa": "Medusa", "medusa-typical": "Medusa, typical",
    "hydra": "Hydra", "eagle1": "EAGLE-1", "eagle2-no-both": "EAGLE-2 without both", "eagle2-no-value": "EAGLE-2 without value",
    "eagle2-no-rerank": "EAGLE-2 without reranking", "eagle2": "EAGLE-2", "eagle2-fr": "EAGLE-2 FR", "eagle3": "EAGLE-3",
    "mt_bench": "MT-bench", "humaneval": "HumanEval", "gsm8k": "GSM8K", "alpaca": "Alpaca", "cnn_dm": "CNN/DM",
    "natural_questions": "Natural Questions", SERVER_PLAIN: "Server, plain", SERVER: "Server",
}  # fmt: skip


def in_words(name: str) -> str:
    """`EAGLE-2` for `eagle2`, `MT-bench` for `mt_bench`; a method or task that is not known here keeps its name."""
    return _WORDS.get(name, name)


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


def label_in_words(method: str, label_: str) -> str:
    """`EAGLE-2 (depth=5, total=25)` for `eagle2` and its label `eagle2 (paper+depth=5+total=25)`."""
    return in_words(method) + label_.removeprefix(method).replace("(paper+", "(").replace("+", ", ")
