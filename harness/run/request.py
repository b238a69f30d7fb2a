"""What a run asks for: the options of `harness run`, typed, and checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harness.common.bounds import bounded
from harness.common.errors import UserError, unknown
from tasks.sources import SOURCES

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")
ON_OVERFLOW = ("error", "skip")
LEAST_T, MOST_T = 1e-3, 1e3
T = TypeVar("T")


def need(holds: bool, what: str) -> None:
    """Raises UserError with `what` where something does not hold."""
    if not holds:
        raise UserError(what)


@dataclass(frozen=True, slots=True)
class MoreTrees:
    """Another setting of a method, timed along with the methods that a request names. `changes`: KEY=VALUE each.

    is_asked: it is an error where it cannot be had; a tier's, which nobody named, is left out.
    """

    method: str
    preset: str = "paper"
    changes: tuple[str, ...] = ()
    is_asked: bool = True

    @classmethod
    def parsed(cls, text: str) -> MoreTrees:
        """`METHOD[+PRESET][+KEY=VALUE]...`, as tables name it: `eagle2+tuned`, `eagle2+total=25+depth=5`.

        Raises:
            UserError: several presets, no one method, or an option that has no name or is named twice.
        """
        method, *words = text.split("+")
        presets, changes = ([word for word in words if ("=" in word) is of_option] for of_option in (False, True))
        names = [word.partition("=")[0] for word in changes]
        need(method not in ("", "all") and len(presets) <= 1 and all(words) and all(names),
             f"--beside takes METHOD[+PRESET][+KEY=VALUE]... of one method, not {text!r}")  # fmt: skip
        twice = next((name for name in names if names.count(name) > 1), None)
        need(twice is None, f"--beside {text!r} names {twice} twice")
        return cls(method, presets[0] if presets else "paper", tuple(changes))


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` of `of`: of each task the conversations number, number + of, ... of the prompt set, counted from 1.

    Cells are those of the whole prompt set, so the ledgers of all parts, merged, are the ledger of one run.

    Raises:
        UserError: there is no such part.
    """

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        is_part = type(self.number) is type(self.of) is int and 1 <= self.number <= self.of
        need(is_part, f"--shard is {self}; it must be I/N: part I of N, counted from 1, such as 1/4")

    @classmethod
    def parsed(cls, text: str) -> Shard:
        """`2/4`."""
        number, slash, of = text.partition("/")
        is_whole = slash and all(word.isascii() and word.isdecimal() and len(word) < 7 for word in (number, of))
        need(bool(is_whole), f"--shard is {text!r}; it must be I/N: part I of N, counted from 1, such as 1/4")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def of_all(self, conversations: Sequence[T]) -> Sequence[T]:
        return conversations[self.number - 1 :: self.of]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One `harness run`. None stands for the model's own value.

    methods, tasks: names; `all` is every exact method the model has weights for, and every task
    that is for the model.
    temperature: 0 is greedy decoding. limit: prompts a task. max_new_tokens: one budget for every method.
    source: where prompts come from. prompts_dir: folder of the paper's prompt files. preset, changes: options of the methods.
    baseline: measure vanilla along. trees: keep every drafted tree. on_overflow: what a prompt too long is.
    head: a drafter's folder, instead of the model's own of that kind. beside: more settings, timed along. shard: only that part
    of the conversations of each task.
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
    shard: Shard = Shard()
    out: Path = Path("results/runs")

    def __post_init__(self) -> None:
        t, p = self.temperature, self.top_p
        for option, words in (("methods", self.methods), ("tasks", self.tasks), ("changes", self.changes)):
            several(option, words)
        need(bool(self.methods) and bool(self.tasks), "at least one method and one task must be named")
        need(math.isfinite(t) and t >= 0, f"--temperature is {t}; it must be 0 (greedy) or more")
        need(t <= MOST_T, f"--temperature is {t:g}; it may be at most {MOST_T:g}: beyond it every token is as likely as another")
        need(
            not t or t >= LEAST_T, f"--temperature is {t:g}; it must be 0 (greedy) or from {LEAST_T:g}: under it nothing is drawn"
        )
        need(0 < p <= 1, f"--top-p is {p}; it must be over 0 and at most 1")
        need(
            t > 0 or p == 1, f"--top-p is {p}; at --temperature 0, which takes the likeliest token, it does nothing: leave it out"
        )
        bounded("--limit", self.limit)
        bounded("--max-new-tokens", self.max_new_tokens)
        bounded("--repeats", self.repeats)
        bounded("--threads", self.threads)
        bounded("--seed", self.seed, least=0)
        one_of("dtype", self.dtype, DTYPES)
        one_of("source", self.source, ("auto", *SOURCES))
        one_of("on-overflow", self.on_overflow, ON_OVERFLOW)
        need(self.prompts_dir is None or self.source in ("auto", "paper"),
             f"--prompts {self.prompts_dir} is a folder of the paper's files, which --source {self.source} does not read: give "
             "--source paper, or leave one out")  # fmt: skip


def several(option: str, words: tuple[str, ...]) -> None:
    """Raises UserError where a text stands for a tuple of words: its letters would be taken for them."""
    need(not isinstance(words, str), f"{option} is the text {words!r}; it must be a tuple of words, such as ({words!r},)")


def one_of(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises UserError, with the choices, where a word is none of them."""
    if value not in choices:
        raise unknown(what, value, choices)
