"""The tasks' prompts, which no training may see, and whether a text overlaps one of them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import tasks
from harness.common.errors import UserError, say


def evaluation_prompts() -> dict[str, list[str]]:
    """`task/source` -> its prompts, for every task and source at hand.

    The hub is not asked. A source that is not here is left out; what was checked is recorded with the drafter.
    """
    out: dict[str, list[str]] = {}
    for name in tasks.names():
        for source in tasks.sources_of(name):
            try:
                if source != "hub":
                    found = tasks.load(name, source=source)
                    out[f"{name}/{source}"] = [turn for p in found.prompts for turn in p.turns]
            except UserError:
                continue
    return out


def checked_prompts(checked: dict[str, list[str]] | None = None) -> list[str]:
    """All texts of `evaluation_prompts` (`checked`, if given), with a warning where the paper's own are not among them."""
    checked = evaluation_prompts() if checked is None else checked
    missing = [name for name in tasks.names() if f"{name}/paper" not in checked]
    if missing:
        say(f"warning: the paper's prompts of {', '.join(missing)} are not here, so overlap with them is not checked")
    return [text for texts in checked.values() for text in texts]


def normalised(text: str) -> str:
    """Letters and digits only, lower case: what two copies of a prompt share whatever their layout."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


RUN, LEAST = 13, 5  # words: what two texts share to overlap; texts shorter than LEAST overlap only when equal


def runs(words: list[str], n: int) -> set[str]:
    """All runs of n words."""
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


class Overlap:
    """Whether a text overlaps any evaluation prompt: a shared run of 13 words, or the whole of the shorter of the two."""

    def __init__(self, evaluation: Iterable[str]):
        texts = [normalised(text).split() for text in evaluation]
        self._whole = {" ".join(words) for words in texts}
        self._runs: dict[int, set[str]] = {n: set() for n in range(LEAST, RUN + 1)}
        self._short: dict[int, set[str]] = {}
        for words in texts:
            for n in self._runs:
                self._runs[n] |= runs(words, n)
            if LEAST <= len(words) < RUN:
                self._short.setdefault(len(words), set()).add(" ".join(words))

    def __call__(self, text: str) -> bool:
        words = normalised(text).split()
        if " ".join(words) in self._whole:
            return True
        if not runs(words, RUN).isdisjoint(self._runs[RUN]):
            return True
        if LEAST <= len(words) < RUN and " ".join(words) in self._runs[len(words)]:
            return True  # cut from an evaluation prompt
        return any(not runs(words, n).isdisjoint(short) for n, short in self._short.items())  # holds a short one whole


def without_overlap(candidates: list[str], evaluation: Iterable[str]) -> tuple[list[str], int]:
    """Drop every candidate that overlaps an evaluation prompt. Returns (kept, n_dropped)."""
    overlaps = Overlap(evaluation)
    kept = [c for c in candidates if not overlaps(c)]
    return kept, len(candidates) - len(kept)
