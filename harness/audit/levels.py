"""How much an audit checks: its levels, the smaller trees that some layers use, and the prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tasks
from harness.common.names import SIX_TASKS

if TYPE_CHECKING:  # torch is not loaded to look up a level
    from harness.audit.probe.subject import Subject
    from harness.load.model import Loaded

Prompt = tuple[str, list[int]]
"""A prompt's name and its token ids."""


@dataclass(frozen=True, slots=True)
class Level:
    """How much is checked.

    `new_tokens`: the budget of an output, except in layer 4's score test, where it is `score_length`.
    `prompts`: in float32 and in 16 bits. 16 bits come along where a ledger has them, whatever `dtypes` says.
    `exact_prompts`: in float64 at T = 0. `coupled_prompts`: in float64 at T = 1. `exact_whole` and `coupled_whole` say how many
    of them have the trees that tables measure; the rest have `EXACT_TREE`.
    `score_tokens`: how many tokens the score test needs in all, from `score_prompts` prompts.
    `shortest`: take the shortest of the tasks' first prompts.
    `law_tokens`: how many tokens' joint law is enumerated, the prefill's included.
    `width`: rows of the control's forwards.
    `law_s`, `sampled_law_s`: seconds that a case of layer 1 takes, for the estimate. They were measured on 2 cores of an AMD
    EPYC. Layer 1 takes minutes on any machine.
    """

    dtypes: tuple[str, ...]
    new_tokens: int
    prompts: int
    exact_prompts: int
    coupled_prompts: int
    exact_whole: int
    coupled_whole: int
    score_tokens: int
    score_length: int
    score_prompts: int
    law_tokens: int
    law_s: float
    sampled_law_s: float
    width: int
    shortest: bool

    @property
    def most_prompts(self) -> int:
        return max(self.prompts, self.exact_prompts, self.score_prompts)

    @property
    def room(self) -> int:
        """Tokens that must fit into the context after a prompt."""
        return self.new_tokens + self.width


LEVELS = {
    "quick": Level(
        dtypes=("float32", "float64"), new_tokens=14, prompts=2, exact_prompts=1, coupled_prompts=1, exact_whole=1,
        coupled_whole=1, score_tokens=48, score_length=48, score_prompts=2, shortest=True,
        law_tokens=3, law_s=0.06, sampled_law_s=0.12, width=60,
    ),
    "full": Level(
        dtypes=("bfloat16", "float32", "float64"), new_tokens=128, prompts=6, exact_prompts=20, coupled_prompts=6, exact_whole=4,
        coupled_whole=2, score_tokens=20_000, score_length=128, score_prompts=20, shortest=False,
        law_tokens=3, law_s=0.12, sampled_law_s=0.55, width=60,
    ),
}  # fmt: skip
SCORE_DTYPE, SCORE_TEMPERATURE = "float32", 1.0
# For methods that have these options. The score test on these trees takes a third of the time, float64 the half.
_NODES_8, _NODES_15 = "0 1 2 00 01 10 000 001", "0 1 2 3 00 01 02 10 11 20 000 001 010 0000 0001"
SCORE_TREE = {"top_k": 4, "depth": 2, "total": 8, "window": 3, "ngram": 3, "guesses": 3, "shape": _NODES_8, "tree": _NODES_8}
EXACT_TREE = {"top_k": 8, "depth": 3, "total": 15, "window": 3, "ngram": 4, "guesses": 3, "shape": _NODES_15, "tree": _NODES_15}
SCORE_LONGEST = 200  # tokens of a prompt in the score test: longer ones took half of its time
MOST_ROUNDS = 2000  # over the score test's prompts


def bundled(loaded: Loaded, n: int, room: int, shortest: bool = False, longest: int | None = None) -> list[Prompt]:
    """Up to n bundled prompts, from the six tasks in turn, or the shortest of them.

    room: tokens that must fit into the context after a prompt. longest: tokens that a prompt may have.
    """
    sets = [tasks.load(name, source="bundled", limit=n) for name in SIX_TASKS]
    turns = [(f"{ps.task}/{ps.prompts[i].id}", ps.prompts[i].turns[0]) for i in range(n) for ps in sets if i < len(ps.prompts)]
    encoded = ((name, loaded.encode(loaded.render([("user", text)]))) for name, text in turns)
    most = min(loaded.config.context_length - room, longest or math.inf)
    found = [(name, ids) for name, ids in encoded if len(ids) <= most]
    return (sorted(found, key=lambda p: len(p[1])) if shortest else found)[:n]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Bundled prompts of a level, as many as it needs, or fewer where fewer fit. `usual`: for greedy outputs in float32 and 16
    bits; `exact`: in float64; `coupled`: for sampled outputs in float64; `scored`: for the score test."""

    usual: Sequence[Prompt]
    exact: Sequence[Prompt]
    coupled: Sequence[Prompt]
    scored: Sequence[Prompt]

    @classmethod
    def of(cls, loaded: Loaded, level: Level) -> Prompts:
        counts = (level.prompts, level.exact_prompts, level.coupled_prompts)
        usual, exact, coupled = (bundled(loaded, n, level.room, level.shortest) for n in counts)
        return cls(usual, exact, coupled, bundled(loaded, level.score_prompts, level.room, level.shortest, SCORE_LONGEST))


def on_exact_trees(subjects: Sequence[Subject]) -> list[Subject]:
    """The same methods on smaller trees; those without trees as they are."""
    return [s.with_options(EXACT_TREE) for s in subjects]
