"""A row-invariant engine for tests: every row of every forward is a plain step of its path. Slow, and exact to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.audit.faults.wrappers import with_last_bit
from methods.engine import engines
from methods.engine.llama import LlamaTarget
from methods.engine.target import HFTarget
from methods.engine.tree import Tree


class RowByRow(LlamaTarget):
    """The lean forward, one row at a time. Prefills, trees and kept paths all are plain steps."""

    is_row_invariant = True

    @classmethod
    def engine_in(cls, model: Any, dtype: torch.dtype) -> str:
        return "row by row"

    def _row(self, token: int) -> Tensor:
        """-> what `_forward` gives of one token [1, ..] after all in the cache, which it joins."""
        feature = self._forward([token], torch.full((1,), self.cache.length), None)
        self.cache.append(1)
        return feature

    @torch.inference_mode()
    def prefill(self, prompt_ids: list[int], room: int, aux_layers: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        self._observe(aux_layers)
        with self._clock:
            self.cache.reserve(len(prompt_ids) + room)
            last, features = self._parted(torch.cat([self._row(token) for token in prompt_ids]))
            return features, self.lm_head(last[-1:])[0]

    @torch.inference_mode()
    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        length, children = self.cache.length, tree.children()
        features, logits = [torch.empty(0)] * len(tree), [torch.empty(0)] * len(tree)
        self._tree = tree
        with self._clock:
            todo = [(0, length)]  # a node, and the cache's length before it: depth first, so that the cache holds its path
            while todo:
                node, self.cache.length = todo.pop()
                last, features[node] = self._parted(self._row(tree.tokens[node]))
                logits[node] = self.lm_head(last)
                todo += [(child, self.cache.length) for child in children[node]]
        self.cache.length, self._n_pending = length, len(tree)
        return torch.cat(features), torch.cat(logits)

    @torch.inference_mode()
    def commit(self, path: list[int]) -> None:
        if not path or path[0] != 0 or path[-1] >= self._n_pending:
            raise ValueError(f"path {path} is not one of the {self._n_pending} nodes last verified")
        for node in path:
            self._row(self._tree.tokens[node])
        self._n_pending = 0


class OneBitOff(RowByRow):
    """The same with a fault: in a forward over several rows the second one's logits have one number with another last bit."""

    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        features, logits = super().verify(tree)
        return features, with_last_bit(logits, min(1, len(tree) - 1))


class OneFeatureOff(RowByRow):
    """The same in the features, which the drafter is given."""

    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        features, logits = super().verify(tree)
        return with_last_bit(features, min(1, len(tree) - 1)), logits


class NotRowInvariant(LlamaTarget):
    """The lean forward, which says that it is row-invariant and is not."""

    is_row_invariant = True

    @classmethod
    def engine_in(cls, model: Any, dtype: torch.dtype) -> str:
        return "not row by row"


def run_on(monkeypatch: Any, engine: type[HFTarget]) -> None:
    """Have what is loaded from now on run on an engine, but in float64."""
    chosen = engines.target_type

    def target_type(model: Any, dtype: torch.dtype) -> type[HFTarget]:
        return engine if dtype in (torch.float32, torch.bfloat16) else chosen(model, dtype)

    for where in ("methods.engine.engines", "harness.load.model", "harness.audit.probe.lanes"):
        monkeypatch.setattr(f"{where}.target_type", target_type)
