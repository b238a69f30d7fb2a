"""`LlamaTarget` with steps of fixed shapes: rows in buckets, keys in multiples of 256, positions and masks made on the device.

A row that fills a bucket up sees the context and itself, and what it computes is dropped. Its keys and values lie behind those
that are kept, where the next forward writes. Prompts, and trees of more rows than the largest bucket, run as on `LlamaTarget`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine.layer import Attend
from methods.engine.llama import LlamaTarget
from methods.engine.static.replay import Replayer, bucket
from methods.engine.tree import Tree

ROWS = (1, 8, 16, 32, 64, 128)
KEYS = 256  # keys are read in multiples of so many


class _Inputs:
    """What a forward over a bucket of rows reads. `sees` [rows, rows]: which rows of its own each attends to."""

    def __init__(self, rows: int, device: torch.device):
        self.rows = rows
        self.ids = torch.zeros(rows, dtype=torch.long, device=device)
        self.depths = torch.zeros(rows, dtype=torch.long, device=device)
        self.sees = torch.eye(rows, dtype=torch.bool, device=device)

    def fill(self, tree: Tree) -> None:
        """A tree, and behind it rows that see only themselves."""
        n = len(tree)
        ids, depths = (torch.zeros(self.rows, dtype=torch.long) for _ in range(2))
        sees = torch.eye(self.rows, dtype=torch.bool)
        ids[:n], depths[:n], sees[:n, :n] = torch.tensor(tree.tokens), torch.tensor(tree.depths()), tree.ancestors()
        for buffer, values in ((self.ids, ids), (self.depths, depths), (self.sees, sees)):
            buffer.copy_(values, non_blocking=True)


def visible(sees: Tensor, length: Tensor, keys: int) -> Tensor:
    """[rows, keys] bool: all of the `length` first keys, and of the rows behind them those that `sees` [rows, rows] says."""
    own = torch.arange(keys, device=sees.device) - length  # which row's key it is, from 0 on
    rows = sees.shape[1]
    inside = (own >= 0) & (own < rows)
    return (own < 0)[None] | (sees[:, own.clamp(0, rows - 1)] & inside[None])


def additive(seen: Tensor, dtype: torch.dtype, group: int) -> Tensor:
    """seen [rows, keys] bool -> the mask that attention adds, rows repeated for the heads of a group."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
    return mask.repeat(group, 1)


def attend_in(keys: Tensor, values: Tensor, at: Tensor, n_keys: int, mask: Tensor) -> Attend:
    """An `Attend` that writes its rows' keys and values at the places `at` [rows] of the buffers, and attends by the mask."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys.index_copy_(1, at, k)
        values.index_copy_(1, at, v)
        grouped = q.reshape(1, keys.shape[0], -1, q.shape[-1])  # heads of a group as rows of one query
        out = F.scaled_dot_product_attention(grouped, keys[None, :, :n_keys], values[None, :, :n_keys], attn_mask=mask)
        return out.reshape(q.shape).transpose(0, 1).reshape(len(at), -1)

    return attend


class StaticTarget(LlamaTarget):
    """The target on one device, whose steps a GPU replays as graphs. What it gives is overwritten by its next forward."""

    def __init__(self, model: Any):
        super().__init__(model, packed=False)
        if len(self.devices) > 1:
            raise ValueError(f"layers lie on {len(self.devices)} devices; steps of fixed shapes run on one")
        self.replayer = Replayer(self.device)
        self._inputs = {rows: _Inputs(rows, self.device) for rows in ROWS}
        self._length = torch.zeros((), dtype=torch.long, device=self.device)

    @classmethod
    def engine_in(cls, model: Any, dtype: torch.dtype) -> str:
        return "lean static"

    @torch.inference_mode()
    def prefill(self, prompt_ids: list[int], room: int) -> tuple[Tensor, Tensor]:
        before = self.cache.capacity
        found = super().prefill(prompt_ids, room + max(ROWS))
        if self.cache.capacity > before:
            self.replayer.forget()
        return found

    @torch.inference_mode()
    def step(self, token: int) -> Tensor:
        inputs = self._inputs[1]
        inputs.ids.fill_(token)
        with self._clock:
            _, logits = self._replayed(inputs)
        self.cache.append(1)
        return logits[0]

    @torch.inference_mode()
    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        n, rows = len(tree), bucket(len(tree), ROWS)
        if rows is None or self.cache.length + rows > self.cache.capacity:
            return super().verify(tree)
        inputs = self._inputs[rows]
        inputs.fill(tree)
        with self._clock:
            features, logits = self._replayed(inputs)
        self._n_pending = n
        return features[:n], logits[:n]

    def _replayed(self, inputs: _Inputs) -> tuple[Tensor, Tensor]:
        keys = min(-(-(self.cache.length + inputs.rows) // KEYS) * KEYS, self.cache.capacity)
        self._length.fill_(self.cache.length)
        layers = tuple(i for i, _ in self._placed)
        return self.replayer((layers, inputs.rows, keys), lambda: self._rows(inputs, keys))

    def _rows(self, inputs: _Inputs, keys: int) -> tuple[Tensor, Tensor]:
        """-> features [rows, hidden], logits [rows, vocab]; keys and values are written behind those of the text."""
        at = self._length + torch.arange(inputs.rows, device=self.device)
        places = self._length + inputs.depths
        mask = additive(visible(inputs.sees, self._length, keys), self.dtype, self._group)
        cos, sin = self._tables[self.device]
        x = F.embedding(inputs.ids, self.embedding)
        for layer, (i, _) in zip(self._layers, self._placed, strict=True):
            own_keys, own_values = self.cache.of_layer(i)

            x = layer(x, (cos[places], sin[places]), attend_in(own_keys, own_values, at, keys, mask))
        features = self._norm(x)
        return features, self.lm_head(features)
