"""How large the numbers of options may be, and why. What is beyond is a slip, and is told before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from harness.common.errors import UserError


class Bound(NamedTuple):
    """The most that an option may be, and why."""

    most: int
    why: str


_CONTEXT = Bound(2**20, "no model here has a longer context")
_TREE = Bound(4096, "verifying a tree takes memory for the square of its nodes")
_PATH = Bound(256, "each takes a forward of the drafter, and no draft is accepted so far")
OF_METHODS: dict[str, Bound] = {  # options that are whole numbers
    "total": _TREE, "nodes": _TREE, "n_draft": _TREE, "depth": _PATH, "gamma": _PATH, "top_k": _PATH, "max_ngram": _PATH,
    "window": _PATH, "guesses": _PATH, "ngram": _PATH, "frequent": Bound(2**24, "no vocabulary is as large"),
}  # fmt: skip
BOUNDS: dict[str, Bound] = {
    "threads": Bound(os.cpu_count() or 1, "this machine has no more cores"),
    "limit": Bound(10**6, "no task has as many prompts"),
    "max_new_tokens": _CONTEXT,
    "repeats": Bound(1000, "each measures every prompt again"),
    "seed": Bound(2**63 - 1, "torch takes none that is larger"),
    "conversations": Bound(100_000, "there are not so many held-out prompts"),
    "shards": Bound(10**6, "no matrix has as many conversations"),
    "gpus": Bound(1024, "no machine has as many"),
    "context": _CONTEXT,
    "tree": _TREE,
    "rows": _TREE,
    "layers": Bound(4096, "no model has as many"),
    "rounds": Bound(1000, "medians of fewer are as good"),
    "prompt_tokens": _CONTEXT,
    "answer_tokens": Bound(10**10, "a drafter of these sizes learns from a thousandth of that"),
    "text_tokens": Bound(10**10, "ShareGPT has no more"),
    "tokens": Bound(10**12, "that is more than targets are trained on"),
    "generations": Bound(10_000, "the page holds them all"),
    **OF_METHODS,
}


def bounded(option: str, value: int | None, least: int = 1) -> None:
    """Raises UserError where a number is out of its option's bounds; None is the default and fine.

    option: as messages are to name it, such as `--max-new-tokens`.
    """
    if value is None:
        return
    if type(value) is not int:
        raise UserError(f"{option} is {value!r}; it must be a whole number")
    if value < least:
        raise UserError(f"{option} is {value}; it must be at least {least}")
    if why := _beyond(option.lstrip("-").replace("-", "_"), value):
        raise UserError(f"{option} is {why}")


def check_options(options: Mapping[str, Any]) -> None:
    """Raises ValueError where a method's option of a known name is out of bounds. What is too small the method's builder says."""
    for name, value in options.items():
        if name in BOUNDS and type(value) is int and (why := _beyond(name, value)):
            raise ValueError(f"{name} is {why}")


def _beyond(name: str, value: int) -> str | None:
    """`1,000,000; it may be at most 4,096: why`; None where a value is within its bound."""
    most, why = BOUNDS[name]
    shown = f"{value:,}" if value < 10**15 else f"a number of {len(str(value))} digits"
    return f"{shown}; it may be at most {most:,}: {why}" if value > most else None
