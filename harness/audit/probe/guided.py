"""A drafter that is told the text to come at some steps and misled at others, so that paths of every length are walked.

A drafter's own luck decides how deep a path goes: of Medusa's four levels it may never reach the last. Verification must be right
whatever is drafted. So a guided drafter puts the text's next token first at every fifth step, down to the last level. At two it
puts it last, so that 64 tokens take more than 16 steps. At two it drafts as it is. A block that holds the end of the budget is
told too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OWN, TOLD, MISLED = "own", "told", "misled"
STEPS = (OWN, TOLD, OWN, MISLED, MISLED)
SURE = 5.0  # above the best other logit: the token gets over 0.98 of the mass
LAST = 6  # tokens to go at which every step is told


class GuidedDrafter:
    """`drafter` beside the text: prompt and plain decoding's output. Where what it observes is not that text, it is left alone.

    `first`: (output position, logits [columns]) of what was drafted first at each step, before any guiding. `names` [columns]:
    their tokens.
    """

    def __init__(self, drafter: Any, prompt: list[int], ids: list[int]):
        self._drafter, self._text, self._n_prompt = drafter, [*prompt, *ids], len(prompt)
        self.first: list[tuple[int, Tensor]] = []
        self.names = torch.empty(0, dtype=torch.long)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def start(self, *args: Any, **more: Any) -> None:
        self._drafter.start(*args, **more)
        self.first, self._seen, self._step = [], list[int](), -1

    def observe(self, tokens: list[int], features: Tensor) -> None:
        self._drafter.observe(tokens, features)
        self._seen += tokens
        self._step += 1
        at, left = 1 + len(self._seen), len(self._text) - 1 - len(self._seen)
        is_text = self._text[1:at] == self._seen
        self._how = OWN if not is_text else TOLD if left <= LAST else STEPS[self._step % len(STEPS)]
        self._ahead = self._text[at:]  # what follows what was observed

    def root_logits(self) -> Tensor:
        logits: Tensor = self._drafter.root_logits()
        if not len(self.names) or len(self.names) != logits.shape[-1]:
            self.names = self._drafter.named(torch.arange(logits.shape[-1], device=logits.device)).cpu()
        self.first.append((1 + len(self._seen) - self._n_prompt, logits[0].detach().cpu().clone()))
        self._on_text = list[bool]()  # for each entry, whether its path is the text's
        self._level = 0
        return self._guided(logits, [True])

    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        logits: Tensor = self._drafter.expand(tokens, parents, sees)
        due = self._ahead[self._level] if self._level < len(self._ahead) else None
        here = [
            token == due and (parent < 0 or self._on_text[parent])
            for token, parent in zip(tokens.tolist(), parents.tolist(), strict=True)
        ]
        self._on_text += here
        self._level += 1
        return self._guided(logits, here if len(logits) == len(here) else [any(here)])

    def _guided(self, logits: Tensor, on_text: list[bool]) -> Tensor:
        """The text's next token put first, or last, in the rows whose path is the text's."""
        if self._how == OWN or self._level >= len(self._ahead) or not any(on_text):
            return logits
        columns = (self.names == self._ahead[self._level]).nonzero().flatten().tolist()
        logits = logits.clone()
        for row in (i for i, on in enumerate(on_text) if on):
            best, least = logits[row].max() + SURE, logits[row].min()
            logits[row, columns] = best if self._how == TOLD else least
        return logits
