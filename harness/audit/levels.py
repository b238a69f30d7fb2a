"""How much an audit checks: its levels, the smaller trees that some layers use, and the prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tasks
from harness.common.names import SIX_TASKS

if TYPE_CHECKING:  # torch is not loaded to look up a level
    from harness.load.model import Loaded

Prompt = tuple[str, list[int]]
"""A prompt's name and its token ids."""


# For methods that have these options. The score test on these trees takes a third of the time, float64 the half.
_NODES_8, _NODES_15 = "0 1 2 00 01 10 000 001", "0 1 2 3 00 01 02 10 11 20 000 001 010 0000 0001"
SCORE_TREE = {"top_k": 4, "depth": 2, "total": 8, "window": 3, "ngram": 3, "guesses": 3, "shape": _NODES_8, "tree": _NODES_8}
EXACT_TREE = {"top_k": 8, "depth": 3, "total": 15, "window": 3, "ngram": 4, "guesses": 3, "shape": _NODES_15, "tree": _NODES_15}
# Narrow and six levels deep; heads that have a level each reach four.
DEEP_TREE = {"top_k": 2, "depth": 6, "total": 12, "window": 3, "ngram": 4, "guesses": 3,
             "shape": "0 1 00 01 000 0000 00000 00001 000000", "tree": "0 1 00 01 000 001 0000 0001"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Level:
    """How much is checked.

    `new_tokens`: the budget of an output, except of long ones (`long_tokens`) and in layer 4's score test (`score_length`).
    `prompts`: in float32 and in 16 bits. 16 bits come along where a ledger has them, whatever `dtypes` says.
    `long_tokens`: the budget of one more output there, after a prompt of `LONG` tokens, on `long_tree`. It ends at its budget
    alone, and its drafter is guided: see `probe.guided`.
    `exact_prompts`: in float64 at T = 0. `coupled_prompts`: in float64 at T = 1. `exact_whole` and `coupled_whole` say how many
    of them have the trees that tables measure; the rest have `exact_tree`. `exact_guided`: drafters are guided in float64, too.
    `score_tokens`: how many tokens the score test needs in all, from `score_prompts` prompts, on `score_tree`. `score_stops`:
    stop ids end its outputs. Without them every output has its whole length.
    `shortest`: take the shortest of the tasks' first prompts.
    `law_tokens`: how many tokens' joint law is enumerated, the prefill's included.
    `width`: rows of the control's forwards.
    `law_s`, `sampled_law_s`: seconds that a case of layer 1 takes, for the estimate. They were measured on 2 cores of an AMD
    EPYC. Layer 1 takes minutes on any machine.
    """

    dtypes: tuple[str, ...]
    new_tokens: int
    prompts: int
    long_tokens: int
    long_tree: Mapping[str, Any]
    exact_prompts: int
    coupled_prompts: int
    exact_whole: int
    coupled_whole: int
    exact_tree: Mapping[str, Any]
    exact_guided: bool
    score_tokens: int
    score_length: int
    score_prompts: int
    score_tree: Mapping[str, Any]
    score_stops: bool
    law_tokens: int
    law_s: float
    sampled_law_s: float
    width: int
    shortest: bool

    @property
    def most_prompts(self) -> int:
        return max(self.prompts, self.exact_prompts, self.score_prompts)

    @property
    def most_tokens(self) -> int:
        """Of an output."""
        return max(self.new_tokens, self.long_tokens, self.score_length)

    @property
    def longest(self) -> int:
        """Tokens of the longest text that is run on bundled prompts, a tree behind it."""
        prompt = LONG if self.shortest else max(LONG, LONGEST_BUNDLED)
        return prompt + self.most_tokens + self.width

    @property
    def room(self) -> int:
        """Tokens that must fit into the context after a prompt."""
        return self.new_tokens + self.width


LEVELS = {
    "quick": Level(
        dtypes=("float32", "float64"), new_tokens=14, prompts=1, long_tokens=64, long_tree=DEEP_TREE, exact_prompts=1,
        coupled_prompts=0, exact_whole=0, coupled_whole=0, exact_tree=DEEP_TREE, exact_guided=True, score_tokens=64,
        score_length=64, score_prompts=1, score_tree=DEEP_TREE, score_stops=False, shortest=True,
        law_tokens=3, law_s=0.06, sampled_law_s=0.12, width=60,
    ),
    "full": Level(
        dtypes=("bfloat16", "float32", "float64"), new_tokens=128, prompts=6, long_tokens=128, long_tree={}, exact_prompts=20,
        coupled_prompts=6, exact_whole=4, coupled_whole=2, exact_tree=EXACT_TREE, exact_guided=False, score_tokens=20_000,
        score_length=128, score_prompts=20, score_tree=SCORE_TREE, score_stops=True, shortest=False,
        law_tokens=3, law_s=0.12, sampled_law_s=0.55, width=60,
    ),
}  # fmt: skip
SCORE_DTYPE, SCORE_TEMPERATURE = "float32", 1.0
SCORE_LONGEST = 200  # tokens of a prompt in the score test: longer ones took half of its time
LONGEST_BUNDLED = 1600  # at least as many tokens as any bundled prompt has, of the six tasks' first ones
LONG = 320  # tokens of a long prompt: caches and rotary tables begin with 256
MOST_ROUNDS = 2000  # over the score test's prompts


def bundled(loaded: Loaded, n: int, room: int, shortest: bool = False, longest: int | None = None) -> list[Prompt]:
    """Up to n bundled prompts, or the shortest of them: from the six tasks in turn, or from the model's own where it has any.

    room: tokens that must fit into the context after a prompt. longest: tokens that a prompt may have.
    """
    most = min(loaded.config.context_length - room, longest or math.inf)
    found = [(name, ids) for name, ids in _first(loaded, n) if len(ids) <= most]
    return (sorted(found, key=lambda p: len(p[1])) if shortest else found)[:n]


def long_prompt(loaded: Loaded, room: int) -> list[Prompt]:
    """The first bundled prompt of over `LONG` tokens, cut to so many; none if they do not fit into the context."""
    found = [(f"{name}, {LONG} tokens", ids[:LONG]) for name, ids in _first(loaded, 2) if len(ids) > LONG]
    return found[:1] if LONG + room <= loaded.config.context_length else []


def _first(loaded: Loaded, n: int) -> list[Prompt]:
    """The first n bundled prompts of each of those tasks, in turn."""
    names = tasks.own(loaded.config.name) or SIX_TASKS
    sets = [tasks.load(name, source="bundled", limit=n).prompts if n else [] for name in names]
    turns = [
        (f"{name}/{ps[i].id}", ps[i].turns[0]) for i in range(n) for name, ps in zip(names, sets, strict=True) if i < len(ps)
    ]
    return [(name, loaded.encode(loaded.render([("user", text)]), f"prompt {name}")) for name, text in turns]


@dataclass(frozen=True, slots=True)
class Case:
    """A greedy output of every method. `tree`: options that replace a method's own. `guided`: its drafter is told the text.
    `stops`: stop ids end it, else its budget alone."""

    prompt: Prompt
    new_tokens: int
    tree: Mapping[str, Any] = field(default_factory=dict)
    guided: bool = False
    stops: bool = True


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a level runs on bundled prompts, as many as it needs, or fewer where fewer fit.

    `usual`: greedy outputs in float32 and, but for long ones, in 16 bits; `exact`: in float64; `coupled`: prompts of sampled
    outputs in float64; `coupled_bits`: of those on a row-invariant engine; `scored`: of the score test.
    """

    usual: Sequence[Case]
    exact: Sequence[Case]
    coupled: Sequence[Prompt]
    scored: Sequence[Prompt]
    coupled_bits: Sequence[Prompt] = ()

    @classmethod
    def of(cls, loaded: Loaded, level: Level) -> Prompts:
        counts = (level.prompts, level.exact_prompts, level.coupled_prompts, max(level.coupled_prompts, 1))
        usual, exact, coupled, coupled_bits = (bundled(loaded, n, level.room, level.shortest) for n in counts)
        long = long_prompt(loaded, level.long_tokens + level.width)
        longest = None if tasks.own(loaded.config.name) else SCORE_LONGEST  # all prompts of a task of its own may be longer
        trees = [{} if i < level.exact_whole else level.exact_tree for i in range(len(exact))]
        beyond = [Case(p, level.long_tokens, level.long_tree, guided=True, stops=False) for p in long]
        return cls(
            [*(Case(p, level.new_tokens) for p in usual), *beyond],
            [Case(p, level.new_tokens, tree, level.exact_guided) for p, tree in zip(exact, trees, strict=True)],
            coupled, bundled(loaded, level.score_prompts, level.room, level.shortest, longest), coupled_bits,
        )  # fmt: skip

    def greedy(self, dtype: str, is_row_invariant: bool = False) -> Sequence[Case]:
        """The greedy outputs in a dtype. Long ones are judged where rounding hides least at a fair price: in float32, and in any
        dtype on a row-invariant engine."""
        if dtype == "float64":
            return self.exact
        return [case for case in self.usual if case.stops or dtype == "float32" or is_row_invariant]

    @property
    def has_long(self) -> bool:
        return any(case.guided for case in self.usual)
