"""Training Medusa's and Hydra's heads: what is their own beside the trainer.

Level s is head s - 1, on the target's own feature s pairs back (and, Hydra, on the text's tokens since): all levels are trained
from the first step, each at every position. Medusa's authors train on the text's next tokens, weighted 0.8^k; here it
is the target's distributions after them, whose mean over sampled text is the same loss with less noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.train.data import Conversation
from harness.train.trainer import (
    MOST_HELD_OUT,
    Batch,
    NormalisedInput,
    TrainSettings,
    collate,
    initialise,
    plain_head,
    predicted_features,
    shifted,
    some_pairs,
    spread,
)
from methods.engine.heads import HeadsConfig, ResidualHead, ResidualHeads

DEFAULTS = replace(
    TrainSettings(), unroll=4, unroll_from=0.0, unroll_decay=0.8, feature_weight=0.0, ce_weight=1.0, noise=0.0
)  # fmt: skip
UNUSED = frozenset({"feature_weight", "linear_start", "width", "layers"})
RANKS = 10  # candidates of a level whose accuracy is kept


def new_heads(model_config: Any, settings: TrainSettings, sees_tokens: bool) -> ResidualHeads:
    """Untrained heads for a target: MLPs as wide as its features, Hydra's two thirds of that, as its heads have longer inputs."""
    hidden = model_config.hidden_size
    own = hidden * 2 // 3 if sees_tokens else hidden
    return ResidualHeads(
        HeadsConfig(hidden, settings.intermediate_size or own, settings.unroll, model_config.vocab_size, sees_tokens)
    )


@predicted_features.register
def _(
    head: ResidualHeads, embedding: Tensor, batch: Batch, levels: int, noise: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    features, embedded = batch.features[:, :-1], F.embedding(batch.ids[:, 1:], embedding)
    if noise:
        features = features + torch.empty_like(features).uniform_(-noise, noise)
    valid = batch.trained
    for k in range(levels):
        here = valid.flatten().nonzero()[:, 0]

        def back(x: Tensor, by: int, here: Tensor = here) -> Tensor:
            return shifted(x, by).flatten(0, 1)[here]

        feature, x = back(features, k), back(features, k)
        if head.config.sees_tokens:  # the token of the pair the draft begins at, and those drafted since
            x = torch.cat([x, *(back(embedded, k - j) for j in range(k + 1))], dim=-1)
        rows = head.heads[k](feature, x)
        out = rows.new_zeros(valid.numel(), rows.shape[-1]).index_copy(0, here, rows).unflatten(0, valid.shape)
        yield out, valid
        valid = valid & shifted(valid[..., None], 1)[..., 0]


@initialise.register
@torch.no_grad()
def _(head: ResidualHeads, embedding: Tensor, pool: list[Conversation], settings: TrainSettings) -> None:
    """Noise on normalised inputs, nothing added to the feature: every head begins as the target's own next token."""
    hidden = head.config.hidden_size
    mean, std = spread(some_pairs(embedding, pool, settings)[0])
    of_token, of_feature = (mean[:hidden], std[:hidden]), (mean[hidden:], std[hidden:])
    for k, one in enumerate(cast("list[ResidualHead]", list(head.heads))):
        torch.nn.init.normal_(one.up.weight, std=one.up.in_features**-0.5)
        torch.nn.init.zeros_(one.up.bias)
        torch.nn.init.zeros_(one.down.weight)
        parts = [of_feature] + [of_token] * (k + 1 if head.config.sees_tokens else 0)
        one.up = cast("nn.Linear", NormalisedInput(one.up, *(torch.cat(column) for column in zip(*parts, strict=True))))


@plain_head.register
@torch.no_grad()
def _(head: ResidualHeads) -> ResidualHeads:
    """Each `up` a linear map of its inputs as they are."""
    done = ResidualHeads(head.config)
    for ours, theirs in zip(
        cast("list[ResidualHead]", list(done.heads)), cast("list[ResidualHead]", list(head.heads)), strict=True
    ):
        weight, bias = theirs.up.plain() if isinstance(theirs.up, NormalisedInput) else (theirs.up.weight, theirs.up.bias)
        assert bias is not None
        ours.load_state_dict({"up.weight": weight, "up.bias": bias, "down.weight": theirs.down.weight})
    return done


@torch.no_grad()
def held_out_accuracies(head: ResidualHeads, embedding: Tensor, lm_head: Tensor, items: list[Conversation]) -> list[list[float]]:
    """[heads][ranks]: the share of held-out pairs where a head's candidate of that rank is the target's argmax: what a tree is
    chosen from (Medusa, section 2.3.3)."""
    n = len(head.heads)
    hits, pairs = np.zeros((n, RANKS)), np.zeros((n, 1))
    items = sorted(items, key=lambda c: len(c.ids))
    for first in range(0, len(items), 8):
        batch = collate(items[first : first + 8], MOST_HELD_OUT, embedding.shape[1])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for k, (out, valid) in enumerate(predicted_features(head, embedding, batch, n)):
                target = F.linear(batch.features[:, 1:][valid], lm_head).max(-1).indices
                best = F.linear(out[valid].to(torch.bfloat16), lm_head).topk(RANKS).indices
                hits[k] += (best == target[:, None]).sum(0).numpy()
                pairs[k] += len(target)
    return [[round(float(x), 4) for x in row] for row in hits / np.maximum(pairs, 1)]
