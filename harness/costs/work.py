"""How much a step of a method has to do, in calls of the two models: found by running the method on stand-ins that count.

Whatever the text, EAGLE-1 and EAGLE-2 do the same in every step. A method whose draft depends on the text (prompt lookup, or a
tree that stops early) has no such number: a run tells it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import methods
from methods.base import SamplerParams
from methods.engine.tree import Tree

VOCAB, HIDDEN, TOKENS = 256, 4, 9
TEXTS = 3  # that a method decodes here
REPEATED = 6  # tokens that texts are made of


@dataclass(frozen=True, slots=True)
class StepWork:
    """Of one step. `rows`: of the target's forward. `levels`: of each of the drafter's, the rows; `root`: how often the logits
    after the root are asked for. `is_plain`: a step of plain decoding, not a tree of one node."""

    rows: int
    levels: tuple[int, ...] = ()
    root: int = 0
    is_plain: bool = False

    @property
    def nodes(self) -> int:
        """Drafted nodes that are verified."""
        return self.rows - 1

    @property
    def depth(self) -> int:
        """Calls of the drafter, after each of which children are picked."""
        return self.root + len(self.levels)


@dataclass(slots=True)
class _Seen:
    steps: list[StepWork] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    root: int = 0

    def step(self, rows: int, *, is_plain: bool) -> None:
        self.steps.append(StepWork(rows, tuple(self.levels), self.root, is_plain))
        self.levels, self.root = [], 0


def _logits(n: int, random: torch.Generator) -> Tensor:
    """Rows that are now flat, now peaked, as those of models are."""
    return torch.randn(n, VOCAB, generator=random) * (1 + 9 * torch.rand(n, 1, generator=random))


class _Target:
    """A target that says anything, and counts."""

    forward_s, runs_module, device, vocab_size = 0.0, False, torch.device("cpu"), VOCAB

    def __init__(self, seen: _Seen, seed: int):
        self._seen, self._random = seen, torch.Generator().manual_seed(seed)
        self.length, self._n_pending = 0, 0

    def _rows(self, n: int) -> Tensor:
        logits = _logits(n, self._random)
        logits[:, :REPEATED] += 100.0  # a text that says the same again and again: there is something to copy
        return logits

    def prefill(self, prompt_ids: list[int], room: int) -> tuple[Tensor, Tensor]:
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

    def __init__(self, seen: _Seen, seed: int):
        self._seen, self._random = seen, torch.Generator().manual_seed(seed)

    def start(self, room: int, frequent: int | None = None, first: int | None = None) -> None: ...

    def observe(self, tokens: list[int], features: Tensor) -> None: ...

    def named(self, columns: Tensor) -> Tensor:
        return columns

    def root_logits(self) -> Tensor:
        self._seen.root += 1
        return _logits(1, self._random)

    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        self._seen.levels.append(len(tokens))
        return _logits(len(tokens), self._random)


def work_of(m: methods.Method, options: Mapping[str, Any], temperature: float = 0.0) -> StepWork | None:
    """What each step of a method does. None: it differs from text to text, or it drafts with others than an EAGLE head."""
    if m.external or (m.drafter is not None and not m.needs_head):
        return None
    found: set[StepWork] = set()
    for seed in range(TEXTS):
        seen = _Seen()
        random = torch.Generator().manual_seed(seed)
        prompt = torch.randint(VOCAB, (4,), generator=random).repeat(3).tolist()  # of which something can be copied
        decode = m.build(**options)
        drafter: Any = _Drafter(seen, seed) if m.needs_head else None
        target: Any = _Target(seen, seed)
        decode(prompt, target, drafter, SamplerParams(TOKENS, temperature=temperature, key=seed))
        found |= set(seen.steps)
    return found.pop() if len(found) == 1 else None
