"""Stand-ins for a target whose answer is known: a method runs on them unchanged, and no forward of the target is run.

Under `walk` a draft is accepted exactly where it is the token that vanilla draws. So all that a method can ask of the target is
in vanilla's answer, and in some tokens after its end, up to which the last step may draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from harness.common.errors import UserError
from methods.base import SamplerParams
from methods.engine.sampling import Chooser
from methods.engine.tree import Tree

BEYOND = 32  # tokens that are known after an answer's end: a path of a tree is no longer


@dataclass(frozen=True, slots=True)
class KnownText:
    """A prompt and vanilla's answer to it, as token ids. `beyond`: what vanilla would have gone on with."""

    prompt: list[int]
    answer: list[int]
    beyond: list[int]

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.answer, *self.beyond]

    @property
    def tokens(self) -> list[int]:
        """By output position."""
        return [*self.answer, *self.beyond]


class _Unknown:
    """In place of the target's logits, which a replay does not have. It has a length and a device, and nothing else."""

    device = torch.device("cpu")

    def __init__(self, n: int):
        self._n = n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: Any) -> _Unknown:
        return self

    def __getattr__(self, name: str) -> NoReturn:
        raise UserError("it looks at the target's logits, which a replay does not have: such a method has to be run")


class _Known(list[int]):
    """Tokens by output position, up to where they are known."""

    def __getitem__(self, i: Any) -> Any:
        try:
            return super().__getitem__(i)
        except IndexError:
            raise UserError(f"it goes beyond what is known: {len(self)} tokens") from None


class KnownChooser(Chooser):
    """Draws what is known to be drawn, by output position. `known`: those tokens."""

    def __init__(self, params: SamplerParams, known: Sequence[int]):
        super().__init__(params)
        self.known = _Known(known)

    def token(self, logits: Any, position: int) -> int:
        token: int = self.known[position]
        return token

    def tokens(self, logits: Any, positions: Sequence[int]) -> list[int]:
        # nodes deeper than what is known are never reached: the paths above them are too long
        return [self.known[p] if p < len(self.known) else -1 for p in positions]

    def law(self, logits: Any) -> NoReturn:
        raise UserError("it draws from the target's law by itself, which a replay does not have: such a method has to be run")

    draft_law = draw = accept = children = law  # type: ignore[assignment]


class KnownTarget:
    """A target that says nothing: what is drawn is known to `KnownChooser`. Nothing takes time."""

    forward_s, runs_module, device = 0.0, False, torch.device("cpu")

    def __init__(self) -> None:
        self.length = 0

    def prefill(self, prompt_ids: list[int], room: int, aux_layers: Sequence[int] = ()) -> tuple[Tensor, Any]:
        self.length = len(prompt_ids)
        return torch.empty(self.length, 0), _Unknown(1)

    def step(self, token: int) -> Any:
        self.length += 1
        return _Unknown(1)

    def verify(self, tree: Tree) -> tuple[Tensor, Any]:
        return torch.empty(len(tree), 0), _Unknown(len(tree))

    def commit(self, path: list[int]) -> None:
        self.length += len(path)
