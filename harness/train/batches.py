"""Batches of cached conversations: which pairs are trained, and what their inputs are like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.train.data import Conversation
from harness.train.loss import logits_of
from harness.train.settings import TrainSettings

TEMPLATE_TOKENS = 24  # the system prompt opens every conversation: nothing to learn there


def batches(items: list[Conversation], settings: TrainSettings, epoch: int) -> list[list[int]]:
    """Indices of conversations, a list a batch: of similar length, about `batch_tokens` padded positions, in an order that
    seed and epoch decide."""
    rng = np.random.default_rng([settings.seed, epoch])
    lengths = np.array([min(len(c.ids), settings.max_length) for c in items])
    order = np.argsort(lengths + rng.uniform(0, 24, len(lengths)))
    out: list[list[int]] = []
    current: list[int] = []
    for i in order:
        if current and max(lengths[i], max(lengths[current])) * (len(current) + 1) > settings.batch_tokens:
            out.append(current)
            current = []
        current.append(int(i))
    out.append(current)
    rng.shuffle(out)
    return out


@dataclass(slots=True)
class Batch:
    """Several conversations side by side, padded to one length. Pair i is (feature i, token i+1).

    ids [b, n] int64; features [b, n, hidden] bf16, zero behind a text's end; trained [b, n-1]: whether token i+1 is of the
    answer; prompt [b, n-1]: the pairs before those, a share of which is trained as well. aux [b, n, states * hidden] bf16: other
    hidden states of the target, where a drafter reads them. Where several processes share a batch, each has the features of its
    own conversations alone; `of` is their part of the rest.
    """

    ids: Tensor
    features: Tensor
    trained: Tensor
    prompt: Tensor
    aux: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        parts = (self.ids, self.features, self.trained, self.prompt, self.aux)
        return Batch(*(x if x is None else x.to(device, non_blocking=True) for x in parts))  # type: ignore[arg-type]

    def of(self, rows: slice) -> Batch:
        """The conversations of these rows, whose features are here."""
        return Batch(self.ids[rows], self.features, self.trained[rows], self.prompt[rows], self.aux)


ALL = slice(0, None, 1)


def collate(items: list[Conversation], max_length: int, hidden: int, rows: slice = ALL) -> Batch:
    """Conversations as one batch, each cut to `max_length` tokens, with the features of `rows` of them.

    Features that are not kept are computed here, in one go.
    """
    n = min(max(len(c.ids) for c in items), max_length)
    ids = torch.zeros(len(items), n, dtype=torch.long)
    trained = torch.zeros(len(items), n - 1, dtype=torch.bool)
    prompt = torch.zeros(len(items), n - 1, dtype=torch.bool)
    for row, c in enumerate(items):
        m = min(len(c.ids), n)
        ids[row, :m] = torch.from_numpy(c.ids[:m].astype(np.int64))
        trained[row, c.n_prompt - 1 : m - 1] = True if c.asked is None else torch.from_numpy(c.asked[c.n_prompt : m])
        prompt[row, TEMPLATE_TOKENS : c.n_prompt - 1] = True
    made = padded_features(items[rows], n, hidden)
    aux = made[..., hidden:] if made.shape[-1] > hidden else None
    return Batch(ids, made[..., :hidden], trained, prompt, aux)


def padded_features(items: list[Conversation], n: int, hidden: int) -> Tensor:
    """The features [b, n, hidden] of the first n tokens of each, bf16: from the disk, or computed where the target is. Other
    hidden states stand behind each feature, where there are any."""
    if not items:
        return torch.zeros(0, n, hidden, dtype=torch.bfloat16)
    compute = items[0].features
    if isinstance(compute, np.ndarray):
        columns = ([cast("np.ndarray", c.features), *([] if c.aux is None else [c.aux])] for c in items)
        kept = (np.concatenate([x[:n] for x in own], axis=1) for own in columns)
        parts = [torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16) for bits in kept]
    else:
        parts = compute([c.ids[:n] for c in items])
    out = torch.zeros(len(items), n, parts[0].shape[1], dtype=torch.bfloat16, device=parts[0].device)
    for row, part in enumerate(parts):
        out[row, : len(part)] = part
    return out


MOST_HELD_OUT = 2048  # tokens of a held-out conversation that are looked at


def held_out_batches(items: list[Conversation], embedding: Tensor) -> Iterator[tuple[slice, Batch]]:
    """(which of the items in order of length, their batch where the embedding is), so that texts of one length share a batch."""
    items = sorted(items, key=lambda c: len(c.ids))
    for first in range(0, len(items), 8):
        here = slice(first, first + 8)
        yield here, collate(items[here], MOST_HELD_OUT, embedding.shape[1]).to(embedding.device)


def target_tokens(batch: Batch, lm_head: Tensor) -> Tensor:
    """The target's argmax after each pair [b, n-1], 0 where the pair is not trained."""
    target = torch.zeros(batch.trained.shape, dtype=torch.long, device=batch.ids.device)
    target[batch.trained] = torch.cat(
        [logits.max(-1).indices for _, logits in logits_of(batch.features[:, 1:][batch.trained], lm_head)]
    )
    return target


class NormalisedInput(nn.Module):
    """A first layer while it is trained: a linear map of (input - mean) / std, which is a linear map of the input.

    Embeddings are twenty times smaller than features, and a few dimensions of a feature are ten times larger than the rest.
    Gradient steps on the plain weights would go almost wholly into those. Without a bias the mean stays where it is.
    """

    def __init__(self, fc: nn.Linear, mean: Tensor, std: Tensor):
        """fc: of normalised inputs; mean, std: [inputs]."""
        super().__init__()
        self.weight, self.bias = fc.weight, fc.bias
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def plain(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the same map of inputs as they are."""
        weight = self.weight / self.std
        return weight, None if self.bias is None else self.bias - torch.mv(weight, self.mean)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.plain())


STATISTICS_OVER = 40_000  # pairs


def some_batches(pool: list[Conversation], settings: TrainSettings, embedding: Tensor) -> Iterator[tuple[Batch, Tensor]]:
    """Some conversations of the pool, each a batch where the embedding is, and which of its pairs count [n-1]: enough of them for
    statistics."""
    n = 0
    for i in np.random.default_rng(settings.seed).permutation(len(pool)):
        batch = collate([pool[i]], settings.max_length, embedding.shape[1]).to(embedding.device)
        rows = (batch.trained | batch.prompt)[0]
        yield batch, rows
        n += int(rows.sum())
        if n >= STATISTICS_OVER:
            break


@torch.no_grad()
def some_pairs(embedding: Tensor, pool: list[Conversation], settings: TrainSettings) -> tuple[Tensor, Tensor]:
    """Some pairs of the pool: (inputs [m, 2 * hidden]: a token's embedding and a feature; truth [m, hidden]: the next one)."""
    inputs, truth = [], []
    for batch, rows in some_batches(pool, settings, embedding):
        pair = torch.cat([F.embedding(batch.ids[0, 1:], embedding), batch.features[0, :-1]], dim=-1)
        inputs.append(pair[rows].float())
        truth.append(batch.features[0, 1:][rows].float())
    return torch.cat(inputs), torch.cat(truth)


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    """The map W [outputs, inputs] with x W^T nearest to y, a little drawn to 0. x: [m, inputs], y: [m, outputs]."""
    gram = (x.T @ x).double()
    gram.diagonal().add_(1e-3 * len(x))
    return torch.linalg.solve(gram, (x.T @ y).double()).T


def spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean [inputs], standard deviation [inputs]) of the columns of x [m, inputs]."""
    return x.mean(0), x.std(0).clamp_min(1e-3)
