"""What a run asks for: the options of `harness run`, typed, and checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from harness.common.errors import UserError, unknown
from tasks.sources import SOURCES

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")
ON_OVERFLOW = ("error", "skip")


@dataclass(frozen=True, slots=True)
class MoreTrees:
    """Another setting of a method, timed along with the methods that a request names. `changes`: KEY=VALUE each."""

    method: str
    preset: str = "paper"
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One `harness run`. None stands for the model's own value.

    methods, tasks: names; `all` is every exact method the model has weights for, and every task.
    temperature: 0 is greedy decoding. limit: prompts a task. max_new_tokens: one budget for every method.
    source: where prompts come from. prompts_dir: folder of the paper's prompt files. preset, changes: options of the methods.
    baseline: measure vanilla along. trees: keep every drafted tree. on_overflow: what a prompt too long is.
    head: a drafter's folder, instead of the model's own of that kind. beside: more settings, timed along.
    out: the ledger's folder.

    Raises:
        UserError: a value that cannot be; it names the option as the command line does.
    """

    methods: tuple[str, ...] = ("all",)
    tasks: tuple[str, ...] = ("all",)
    model: str = "smollm2-135m"
    temperature: float = 0.0
    top_p: float = 1.0
    limit: int | None = None
    max_new_tokens: int | None = None
    source: str = "auto"
    prompts_dir: Path | None = None
    preset: str = "paper"
    changes: tuple[str, ...] = ()
    dtype: str = "auto"
    threads: int | None = None
    seed: int = 0
    repeats: int = 1
    baseline: bool = True
    trees: bool = False
    on_overflow: str = "error"
    head: Path | None = None
    beside: tuple[MoreTrees, ...] = ()
    out: Path = Path("results/runs")

    def __post_init__(self) -> None:
        t, p = self.temperature, self.top_p
        for option, words in (("methods", self.methods), ("tasks", self.tasks), ("changes", self.changes)):
            several(option, words)
        need(bool(self.methods) and bool(self.tasks), "at least one method and one task must be named")
        need(math.isfinite(t) and t >= 0, f"--temperature is {t}; it must be 0 (greedy) or more")
        need(0 < p <= 1, f"--top-p is {p}; it must be over 0 and at most 1")
        at_least_1("--limit", self.limit)
        at_least_1("--max-new-tokens", self.max_new_tokens)
        at_least_1("--repeats", self.repeats)
        at_least_1("--threads", self.threads)
        one_of("dtype", self.dtype, DTYPES)
        one_of("source", self.source, ("auto", *SOURCES))
        one_of("on-overflow", self.on_overflow, ON_OVERFLOW)


def need(holds: bool, what: str) -> None:
    """Raises UserError with `what` where something does not hold."""
    if not holds:
        raise UserError(what)


def several(option: str, words: tuple[str, ...]) -> None:
    """Raises UserError where a text stands for a tuple of words: its letters would be taken for them."""
    need(not isinstance(words, str), f"{option} is the text {words!r}; it must be a tuple of words, such as ({words!r},)")


def at_least_1(option: str, value: int | None) -> None:
    """Raises UserError where a count is under 1; None is the default and fine."""
    need(value is None or value >= 1, f"{option} is {value}; it must be at least 1")


def one_of(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises UserError, with the choices, where a word is none of them."""
    if value not in choices:
        raise unknown(what, value, choices)
