"""How Medusa's and Hydra's heads are trained: what the training loop must know of these kinds of drafters.

Level s is head s - 1. It reads the target's own feature s pairs back and, for Hydra, the text's tokens since. All levels are
trained from the first step, each at every position. Medusa's authors train on the text's next tokens, weighted 0.8^k. Here it is
the target's distributions after them: averaged over sampled text that is the same loss, with less noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig

from harness.train.batches import Batch, NormalisedInput, held_out_batches, some_pairs, spread, target_tokens
from harness.train.data import Conversation
from harness.train.loss import logits_of
from harness.train.settings import TrainSettings
from methods.engine.heads import HeadsConfig, ResidualHeads
from methods.engine.teacher_forced import next_valid, placed

DEFAULTS = replace(
    TrainSettings(), unroll=4, unroll_from=0.0, unroll_decay=0.8, feature_weight=0.0, ce_weight=1.0, noise=0.0
)  # fmt: skip
UNUSED = frozenset({"feature_weight", "linear_start", "width", "layers", "draft_vocab", "aux_layers"})
RANKS = 10  # candidates of a level whose accuracy is kept


def new_medusa(target: LlamaConfig, settings: TrainSettings) -> ResidualHeads:
    """Untrained Medusa heads for a target. Their MLPs are as wide as its features unless settings say."""
    return _new_heads(target, settings.intermediate_size or target.hidden_size, settings.unroll, sees_tokens=False)


def new_hydra(target: LlamaConfig, settings: TrainSettings) -> ResidualHeads:
    """Untrained Hydra heads for a target. Their MLPs are two thirds as wide as Medusa's, as their inputs are longer."""
    return _new_heads(target, settings.intermediate_size or target.hidden_size * 2 // 3, settings.unroll, sees_tokens=True)


def _new_heads(target: LlamaConfig, intermediate_size: int, n_heads: int, *, sees_tokens: bool) -> ResidualHeads:
    return ResidualHeads(HeadsConfig(target.hidden_size, intermediate_size, n_heads, target.vocab_size, sees_tokens))


def predicted_features(
    head: ResidualHeads, embedding: Tensor, batch: Batch, levels: int, noise: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """`predicted_features` of `harness.train.trainers.Trainer`."""
    features, embedded = batch.features[:, :-1], F.embedding(batch.ids[:, 1:], embedding)
    if noise:
        features = features + torch.empty_like(features).uniform_(-noise, noise)
    features, embedded, valid = features.flatten(0, 1), embedded.flatten(0, 1), batch.trained
    for k, one in enumerate(head.each[:levels]):
        here = valid.flatten().nonzero()[:, 0]  # the k entries before a valid one are of the same text
        x = feature = features[here - k]
        if head.config.sees_tokens:  # the token of the pair the draft begins at, and those drafted since
            x = torch.cat([feature, *(embedded[here - back] for back in range(k, -1, -1))], dim=-1)
        yield placed(one(feature, x), valid), valid
        valid = next_valid(valid)


@torch.no_grad()
def initialise(head: ResidualHeads, embedding: Tensor, pool: list[Conversation], settings: TrainSettings) -> None:
    """Have every head read normalised inputs and add nothing to the feature: it begins as the target's own next token."""
    hidden = head.config.hidden_size
    mean, std = spread(some_pairs(embedding, pool, settings)[0])
    of_token, of_feature = (mean[:hidden], std[:hidden]), (mean[hidden:], std[hidden:])
    for k, one in enumerate(head.each):
        torch.nn.init.normal_(one.up.weight, std=one.up.in_features**-0.5)
        torch.nn.init.zeros_(one.up.bias)
        torch.nn.init.zeros_(one.down.weight)
        parts = [of_feature] + [of_token] * (k + 1 if head.config.sees_tokens else 0)
        one.up = cast("nn.Linear", NormalisedInput(one.up, *(torch.cat(column) for column in zip(*parts, strict=True))))


@torch.no_grad()
def shipped(head: ResidualHeads) -> ResidualHeads:
    """The heads as they are shipped: each `up` is a linear map of its inputs as they are."""
    done = ResidualHeads(head.config)
    for ours, theirs in zip(done.each, head.each, strict=True):
        weight, bias = theirs.up.plain() if isinstance(theirs.up, NormalisedInput) else (theirs.up.weight, theirs.up.bias)
        assert bias is not None
        ours.load_state_dict({"up.weight": weight, "up.bias": bias, "down.weight": theirs.down.weight})
    return done


@torch.no_grad()
def held_out_accuracies(head: ResidualHeads, embedding: Tensor, lm_head: Tensor, items: list[Conversation]) -> list[list[float]]:
    """[heads][ranks]: the share of held-out pairs where a head's candidate of that rank is the target's argmax.

    Trees are chosen by these shares (Medusa, section 2.3.3). They are over greedy answers where there are any: a later head
    cannot know what was sampled before it.
    """
    items = [item for item in items if item.greedy] or items
    n = len(head.heads)
    hits, pairs = np.zeros((n, RANKS)), np.zeros((n, 1))
    for _, batch in held_out_batches(items, embedding):
        with torch.autocast(embedding.device.type, dtype=torch.bfloat16):
            target = target_tokens(batch, lm_head)
            for k, (out, valid) in enumerate(predicted_features(head, embedding, batch, n)):
                wanted = target[valid][:, None]
                for some, logits in logits_of(out[valid], lm_head):
                    hits[k] += (logits.topk(RANKS).indices == wanted[some]).sum(0).numpy(force=True)
                pairs[k] += len(wanted)
    return [[round(float(x), 4) for x in row] for row in hits / np.maximum(pairs, 1)]
