"""The one stop rule: a generation ends after a stop id or at the budget, wherever in a block of tokens that falls."""

from __future__ import annotations

from dataclasses import dataclass, field

from methods.base import SamplerParams


@dataclass(slots=True)
class Output:
    """New tokens so far. What a block holds beyond the end is cut and counted, never kept."""

    params: SamplerParams
    token_ids: list[int] = field(default_factory=list)
    finish: str | None = None
    n_cut: int = 0

    def extend(self, tokens: list[int]) -> bool:
        """Add a block; True when the generation is over."""
        for i, token in enumerate(tokens):
            self.token_ids.append(token)
            if token in self.params.stop_ids:
                self.finish = "stop"
            elif len(self.token_ids) >= self.params.max_new_tokens:
                self.finish = "length"
            if self.finish:
                self.n_cut = len(tokens) - i - 1
                return True
        return False
