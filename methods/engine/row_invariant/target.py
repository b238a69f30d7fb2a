"""A plain LLaMA whose rows do not depend on the rows beside them, in plain operations of torch on any device. It is slow.

A kernel of a matrix product chooses the order of its sums by the number of rows, and attention by the number of keys. Here both
numbers never change. Products and norms are over `ROWS` rows, which are filled up or come in blocks. Attention goes through the
keys that a row sees, in order of position, `SPAN` at a time: first the text's, then those of the row's own path. Other nodes of a
tree are not masked in it; they are not there. So a row has the same bits alone after its path, in any tree and in a text.

What a kernel does at a row's place among the others is not in torch's hands here: it is tried when an operator is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from methods.engine.layer import DecoderLayer, Linear
from methods.engine.llama import LlamaTarget, is_plain_llama

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS = 64  # of every product. An elementwise kernel of a CPU takes as many numbers at a time, or a part of it: no rest is left
SPAN = 128  # positions that are attended to at a time
BESIDE = 8  # rows in one batch of attention


@contextmanager
def on_one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU several threads would cut a tensor where their number says, and compute what lies at a cut in another way."""
    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class InBlocks:
    """An operator on rows, x [n, in] -> [n, out], that is always computed over `ROWS` rows. Rows that are missing are zeros."""

    def __init__(self, compute: Any):
        """compute: a `Linear` or a `Norm`.

        Raises:
            ValueError: on this device a row's result depends on its place among the others.
        """
        self.compute, self.weight = compute, compute.weight
        if isinstance(compute, Linear) and not self._keeps_places():
            raise ValueError(
                f"on {self.weight.device} a product of {ROWS} rows in {self.weight.dtype} depends on a row's place: "
                "it cannot be row-invariant here"
            )

    def like(self, weight: Tensor, bias: Tensor | None = None) -> InBlocks:
        return InBlocks(Linear(weight, bias, packed=False))

    def __call__(self, x: Tensor, **others: Any) -> Tensor:
        made = []
        with on_one_thread(x.device):
            for at in range(0, len(x), ROWS):
                here = slice(at, at + ROWS)
                beside = {name: filled(y[here]) if isinstance(y, Tensor) else y for name, y in others.items()}
                made.append(self.compute(filled(x[here]), **beside)[: len(x) - at])
        return made[0] if len(made) == 1 else torch.cat(made)

    @torch.inference_mode()
    def _keeps_places(self) -> bool:
        """Whether one row has the same bits in all places, and in its place beside others."""
        chance = torch.Generator().manual_seed(0)
        x = torch.randn(ROWS, self.weight.shape[1], generator=chance).to(self.weight)
        with on_one_thread(x.device):
            apart, alike = self.compute(x), [self.compute(x[i].expand_as(x).contiguous()) for i in (0, ROWS - 1)]
        return all(torch.equal(apart[i].expand_as(rows), rows) for i, rows in zip((0, ROWS - 1), alike, strict=True))


def filled(rows: Tensor, n: int = ROWS) -> Tensor:
    """At most n rows, and zeros behind them: [n, ..] in memory of its own, as kernels go by its alignment, too."""
    whole = rows.new_zeros(n, *rows.shape[1:])
    whole[: len(rows)] = rows
    return whole


def in_blocks(layer: DecoderLayer) -> DecoderLayer:
    """The same layer with every operator in blocks."""
    for name in ("norm1", "qkv", "o", "norm2", "gate", "up", "down"):
        if (compute := getattr(layer, name)) is not None:
            setattr(layer, name, InBlocks(compute))
    return layer


class Batch(NamedTuple):
    """Up to `BESIDE` rows that attend together, from row `first` on.

    counts [BESIDE, 1]: how many keys each sees; `most`: the largest of these; places [BESIDE, length]: where these keys lie, in
    order of position; None where they lie in that order from the start.
    """

    first: int
    counts: Tensor
    most: int
    places: Tensor | None


def batches(n: int, before: int, mask: Tensor | None, device: torch.device) -> list[Batch]:
    """The batches of n rows. mask: as `grouped_attention` has it; where it is None they are a text after `before` tokens."""
    if mask is None:
        counts, places = torch.arange(before + 1, before + n + 1), None
    else:
        sees = (mask.view(-1, mask.shape[-1])[:n] == 0).to(device)
        counts = sees.sum(-1).cpu()
        places = torch.where(sees, 0, 1).argsort(dim=-1, stable=True)  # keys that a row sees first; parents lie before children
    found = []
    for first in range(0, n, BESIDE):
        own = counts[first : first + BESIDE]
        whole = torch.ones(BESIDE, 1, dtype=torch.long)
        whole[: len(own), 0] = own
        some = None if places is None else filled(places[first : first + BESIDE], BESIDE)
        found.append(Batch(first, whole.to(device), int(own.max()), some))
    return found


def attended(query: Tensor, keys: Tensor, values: Tensor, rows: Sequence[Batch], scale: float) -> Tensor:
    """query [heads, n, d]; keys, values [kv_heads, length, d] -> [n, heads, d], each row over its own keys, in float32.

    The largest score of a row is looked for first: it is the same in any order. A span that a row has no key in adds zeros.
    """
    kv_heads, _, d = keys.shape
    by_row = query.transpose(0, 1)
    made = []
    with on_one_thread(query.device):
        for batch in rows:
            own = by_row[batch.first : batch.first + BESIDE]
            q = filled(own, BESIDE).unflatten(1, (kv_heads, -1)).transpose(0, 1).flatten(0, 1)  # [kv_heads * rows, group, d]
            q = q.float() * scale
            spans = [_span(batch, start) for start in range(0, batch.most, SPAN)]
            scores = []
            for places, is_there in spans:
                beyond = ~is_there.expand(kv_heads, -1, -1).reshape(-1, 1, SPAN)
                scores.append(torch.bmm(q, _gathered(keys, places).transpose(1, 2)).masked_fill_(beyond, -torch.inf))
            best = torch.stack([s.amax(-1, keepdim=True) for s in scores]).amax(0)
            total, sums = torch.zeros_like(best), torch.zeros_like(q)
            for s, (places, _) in zip(scores, spans, strict=True):
                weights = (s - best).exp_()
                total += weights.sum(-1, keepdim=True)
                sums += torch.bmm(weights, _gathered(values, places))
            out = (sums / total).to(query.dtype).unflatten(0, (kv_heads, -1)).transpose(0, 1)
            made.append(out.reshape(BESIDE, -1, d)[: len(own)])
    return torch.cat(made)


def _span(batch: Batch, start: int) -> tuple[Tensor, Tensor]:
    """-> places [BESIDE, SPAN] of the keys at positions from `start` on, and which of these a row has."""
    at = torch.arange(start, start + SPAN, device=batch.counts.device).expand(BESIDE, SPAN)
    is_there = at < batch.counts
    at = torch.where(is_there, at, 0)  # its own first key, not another row's
    return (at if batch.places is None else batch.places.gather(1, at)), is_there


def _gathered(kept: Tensor, places: Tensor) -> Tensor:
    """kept [kv_heads, length, d], places [rows, span] -> [kv_heads * rows, span, d] in float32."""
    return kept.index_select(1, places.flatten()).unflatten(1, places.shape).flatten(0, 1).float()


class RowInvariantTarget(LlamaTarget):
    """`LlamaTarget` whose rows are those of plain steps of their paths."""

    is_row_invariant = True

    def __init__(self, model: Any):
        super().__init__(model, packed=False)
        self._norm: Any = InBlocks(self._norm)
        self._layers = [in_blocks(layer) for layer in self._layers]
        self.lm_head: Any = InBlocks(self.lm_head)

    @classmethod
    def runs(cls, model: Any, dtype: torch.dtype | None = None) -> bool:
        stored = {p.dtype for p in model.parameters()} == {model.dtype}
        return stored and (dtype or model.dtype) in DTYPES and is_plain_llama(model)

    @classmethod
    def engine_in(cls, model: Any, dtype: torch.dtype) -> str:
        return "lean row-invariant"

    def _seen(self, n: int, mask: Tensor | None, device: torch.device) -> list[Batch]:
        return batches(n, self.cache.length, mask, device)

    def _attended(self, query: Tensor, keys: Tensor, values: Tensor, seen: list[Batch]) -> Tensor:
        return attended(query[0], keys[0], values[0], seen, self._scale)[None]

    def _forward(self, ids: list[int], positions: Tensor, mask: Tensor | None) -> Tensor:
        with on_one_thread(self.device):
            return super()._forward(ids, positions, mask)
