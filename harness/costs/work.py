"""How much a step of a method has to do, in calls of the two models: found by running the method on stand-ins that count.

Whatever the text, EAGLE-1 and EAGLE-2 do the same in every step. A method whose draft depends on the text (prompt lookup, or a
tree that stops early) has no such number: a run tells it. So the stand-ins say what makes drafts differ most: text that repeats
and text that never does, drafts that are all alike (nothing is out of reach), and drafts that are nearly so, whose every level
ranks below all of the one above (what is out of reach is so at once).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import methods
from harness.common.errors import UserError
from harness.costs.step import StepWork
from methods.base import SamplerParams
from methods.engine.tree import Tree

VOCAB, HIDDEN, TOKENS = 256, 4, 6
REPEATED = 6  # tokens that a text which repeats is made of
ONE_ROW = ("medusa",)  # drafters of which all nodes of a level have the same children


@dataclass(slots=True)
class _Seen:
    drafter: str
    steps: list[StepWork] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    root: int = 0

    def step(self, rows: int, *, is_plain: bool) -> None:
        self.steps.append(StepWork(rows, tuple(self.levels), self.root, is_plain, self.drafter))
        self.levels, self.root = [], 0


Rows = Callable[[int, torch.Generator], Tensor]
"""Makes logits [n, VOCAB]."""


def _mixed(n: int, random: torch.Generator) -> Tensor:
    """Rows that are now flat, now peaked, as those of models are."""
    return torch.randn(n, VOCAB, generator=random) * (1 + 9 * torch.rand(n, 1, generator=random))


def _alike(n: int, random: torch.Generator) -> Tensor:
    """Rows whose every token is as likely."""
    return torch.zeros(n, VOCAB)


def _nearly_alike(n: int, random: torch.Generator) -> Tensor:
    """Rows without two tokens that are as likely, whose path product falls more from level to level than within one."""
    return 0.01 * torch.rand(n, VOCAB, generator=random)


def _repeating(n: int, random: torch.Generator) -> Tensor:
    """Rows of a target whose text says the same again and again: there is something to copy."""
    logits = _mixed(n, random)
    logits[:, :REPEATED] += 100.0
    return logits


class _Target:
    """A target that says anything, and counts."""

    forward_s, runs_module, device, vocab_size = 0.0, False, torch.device("cpu"), VOCAB

    def __init__(self, seen: _Seen, seed: int, rows: Rows):
        self._seen, self._random, self._made = seen, torch.Generator().manual_seed(seed), rows
        self.length = 0

    def _rows(self, n: int) -> Tensor:
        return self._made(n, self._random)

    def prefill(self, prompt_ids: list[int], room: int, aux_layers: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        self.length = len(prompt_ids)
        return torch.zeros(self.length, HIDDEN), self._rows(1)[0]

    def step(self, token: int) -> Tensor:
        self._seen.step(1, is_plain=True)
        self.length += 1
        return self._rows(1)[0]

    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        self._seen.step(len(tree), is_plain=False)
        return torch.zeros(len(tree), HIDDEN), self._rows(len(tree))

    def commit(self, path: list[int]) -> None:
        self.length += len(path)


class _Drafter:
    """A drafter that says anything, and counts."""

    forward_s = 0.0

    def __init__(self, seen: _Seen, seed: int, rows: Rows):
        self._seen, self._random, self._made = seen, torch.Generator().manual_seed(seed), rows

    def start(self, room: int, frequent: int | None = None, first: int | None = None) -> None: ...

    def observe(self, tokens: list[int], features: Tensor) -> None: ...

    def named(self, columns: Tensor) -> Tensor:
        return columns

    def root_logits(self) -> Tensor:
        self._seen.root += 1
        return self._made(1, self._random)

    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        n = 1 if self._seen.drafter in ONE_ROW else len(tokens)
        self._seen.levels.append(n)
        return self._made(n, self._random)


def work_of(m: methods.Method, options: Mapping[str, Any], temperature: float = 0.0) -> StepWork | None:
    """What each step of a method does. None: it differs from text to text, or with what a drafter says of itself, or its options
    name costs or weights that are not here."""
    if m.external:
        return None
    key = (m.build, repr(sorted(options.items())), temperature)
    if key not in _FOUND:
        _FOUND[key] = _work_of(m, options, temperature)
    return _FOUND[key]


_FOUND: dict[tuple[Any, str, float], StepWork | None] = {}  # a table of the paper asks for a method in each of its cells


def _work_of(m: methods.Method, options: Mapping[str, Any], temperature: float) -> StepWork | None:
    found: set[StepWork] = set()
    for seed, (says, drafts) in enumerate(_STAND_INS):
        seen = _Seen(m.drafter or methods.EAGLE)
        random = torch.Generator().manual_seed(seed)
        prompt = torch.randint(VOCAB, (4,), generator=random).repeat(3).tolist()  # of which something can be copied
        try:
            decode = m.build(**options)
        except (UserError, ValueError):  # of another machine's records
            return None
        drafter: Any = _Drafter(seen, seed, drafts) if m.drafter else None
        target: Any = _Target(seen, seed, says)
        try:
            decode(prompt, target, drafter, SamplerParams(TOKENS, temperature=temperature, key=seed))
        except ValueError:  # a tree that is chosen by the heads' own accuracies
            return None
        found |= set(seen.steps)
        if len(found) > 1:
            return None
    return found.pop() if found else None


_STAND_INS: tuple[tuple[Rows, Rows], ...] = (
    (_repeating, _mixed), (_repeating, _mixed), (_mixed, _mixed), (_alike, _alike), (_mixed, _nearly_alike),
)  # fmt: skip
"""What the target says, and what the drafter does."""
