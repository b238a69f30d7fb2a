"""How a narrow draft LM (`methods.engine.draft_lm`) is trained: what the training loop must know of this kind of drafter.

It reads the text's tokens, and nothing of the target's features. So all levels are one: whatever it drafts, its next prediction
is the one that it would make of the text. One level is trained; held-out chains ask for several.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig

from harness.common.errors import UserError
from harness.train.batches import Batch
from harness.train.data import Conversation
from harness.train.settings import TrainSettings
from methods.engine.draft_lm import NarrowConfig, NarrowLM
from methods.engine.teacher_forced import next_valid

DEFAULTS = replace(TrainSettings(), unroll=1, unroll_from=0.0, feature_weight=0.0, ce_weight=1.0, noise=0.0)
UNUSED = frozenset(
    {"feature_weight", "noise", "linear_start", "unroll", "unroll_from", "unroll_decay", "draft_vocab", "aux_layers"}
)


def new_lm(target: LlamaConfig, settings: TrainSettings) -> NarrowLM:
    """An untrained draft LM for a target. Its MLP is 8/3 as wide as it is, in steps of 32, unless settings say.

    Raises:
        UserError: no such width.
    """
    width = settings.width
    if settings.layers < 1 or width < 2 or width % min(width, 64) or width % 2:
        raise UserError(
            f"width {width}, layers {settings.layers}: width must be even and, from 64 on, a multiple of 64; layers over 0"
        )
    return NarrowLM(
        NarrowConfig(
            hidden_size=target.hidden_size, vocab_size=target.vocab_size, width=width, num_layers=settings.layers,
            intermediate_size=settings.intermediate_size or -(-width * 8 // 96) * 32, rms_norm_eps=target.rms_norm_eps,
            rope_theta=10000.0,
        )
    )  # fmt: skip


def predicted_features(
    head: NarrowLM, embedding: Tensor, batch: Batch, levels: int, noise: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """`predicted_features` of `harness.train.trainers.Trainer`; features are not looked at, so noise does nothing."""
    out = head(F.embedding(batch.ids, embedding))[:, 1:]  # after token j + 1: what its feature is for
    valid = batch.trained
    for _ in range(levels):
        yield out.masked_fill(~valid[..., None], 0.0), valid
        valid = next_valid(valid)


@torch.no_grad()
def initialise(head: NarrowLM, embedding: Tensor, pool: list[Conversation], settings: TrainSettings) -> None:
    """Give all matrices noise; `down` is scaled so that projected embeddings are of size one, whatever the target's are."""
    for name, p in head.named_parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.02)
        elif name.endswith("norm.weight"):
            torch.nn.init.ones_(p)
    size = float(embedding.float().pow(2).mean().sqrt())
    torch.nn.init.normal_(head.down.weight, std=1 / max(size, 1e-6) / embedding.shape[1] ** 0.5)
    torch.nn.init.normal_(head.up.weight, std=head.up.in_features**-0.5)


def shipped(head: NarrowLM) -> NarrowLM:
    """The weights as they are."""
    return head
