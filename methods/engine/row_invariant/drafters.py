"""Drafters on the row-invariant engine: EAGLE heads and the draft LM, whose nodes do not depend on what is run beside them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from methods.engine.draft_head import EagleDrafter, EagleHead, LMHead
from methods.engine.draft_lm import LMDrafter
from methods.engine.eagle3 import Eagle3Drafter, Eagle3Head
from methods.engine.layer import Attend
from methods.engine.row_invariant.target import InBlocks, attended, batches, in_blocks, on_one_thread


def attend_over(keys: Tensor, values: Tensor, at: int, mask: Tensor | None) -> Attend:
    """`methods.engine.layer.attend_over`, each row over its own keys."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = k.shape[1]
        end = at + n
        keys[:, at:end], values[:, at:end] = k, v
        rows = batches(n, at, mask, q.device)
        return attended(q, keys[:, :end], values[:, :end], rows, q.shape[-1] ** -0.5).view(n, -1)

    return attend


class RowInvariantEagleDrafter(EagleDrafter):
    """`EagleDrafter`, every operator in blocks and every row over its own keys."""

    attend_over = staticmethod(attend_over)

    def __init__(self, head: EagleHead, embedding: Tensor, lm_head: LMHead, frequent: Tensor | None = None):
        super().__init__(head, embedding, lm_head, frequent, packed=False)
        self._fc: Any = InBlocks(self._fc)
        in_blocks(self._layer)

    def _run(self, tokens: Tensor, features: Tensor, positions: Tensor, at: int, mask: Tensor | None) -> Tensor:
        with on_one_thread(self.device):
            return super()._run(tokens, features, positions, at, mask)


class RowInvariantEagle3Drafter(Eagle3Drafter):
    """`Eagle3Drafter`, every operator in blocks and every row over its own keys."""

    attend_over = staticmethod(attend_over)

    def __init__(self, head: Eagle3Head, embedding: Tensor, lm_head: LMHead):
        super().__init__(head, embedding, lm_head, packed=False)
        in_blocks(self._layer)
        for name in ("_fc", "_embedding_norm", "_hidden_norm", "_norm", "_input_norm"):
            if (compute := getattr(self, name)) is not None:
                setattr(self, name, InBlocks(compute))
        self._state_norms = [InBlocks(norm) for norm in self._state_norms]

    def _run(self, tokens: Tensor, features: Tensor, positions: Tensor, at: int, mask: Tensor | None) -> Tensor:
        with on_one_thread(self.device):
            return super()._run(tokens, features, positions, at, mask)


class RowInvariantLMDrafter(LMDrafter):
    """`LMDrafter`, every operator in blocks and every row over its own keys."""

    attend_over = staticmethod(attend_over)

    def __init__(self, model: Any):
        super().__init__(model, packed=False)
        self._layers = [in_blocks(layer) for layer in self._layers]
        self._norm: Any = InBlocks(self._norm)
        self._lm_head: Any = InBlocks(self._lm_head)

    def _run(self, tokens: Tensor, positions: Tensor, at: int, mask: Tensor | None) -> Tensor:
        with on_one_thread(self.device):
            return super()._run(tokens, positions, at, mask)
