"""What a drafter does on answers it was not trained on: agreement, accept length, calibration."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness.train.batches import held_out_batches, target_tokens
from harness.train.data import Conversation
from harness.train.loss import logits_of
from harness.train.trainers import Trainer, W
from methods.engine.teacher_forced import shifted

PROMPTS = {"short": 100, "medium": 400, "long": 10**9}  # of fewer tokens, template included; long ones are articles


@torch.no_grad()
def held_out_acceptance(
    trainer: Trainer[W],
    head: W,
    embedding: Tensor,
    lm_head: Tensor,
    items: list[Conversation],
    depth: int = 4,
) -> dict[str, float]:
    """How a drafter agrees with the target on held-out conversations, over the whole vocabulary. The text is given, not drafted.

    `top1`, `top10`: the share of pairs where the target's argmax is the drafter's, or among its ten best, at level 1.
    `chain_tau`: 1 + the sum over d <= depth of P(the first d tokens of a greedy chain are all the target's argmax). The same
    again for prompts of each length in `PROMPTS` that occurs.
    """
    n, top1, top10, chained = (np.zeros(len(items)) for _ in range(4))  # by conversation
    for here, batch in held_out_batches(items, embedding):
        with torch.autocast(embedding.device.type, dtype=torch.bfloat16):
            target = target_tokens(batch, lm_head)
            right = batch.trained  # where the chain's tokens so far are all the target's
            for s, (out, valid) in enumerate(trainer.predicted_features(head, embedding, batch, depth)):
                asked = valid if s == 0 else valid & shifted(right[..., None], 1)[..., 0]
                wanted, first, ten = target[asked][:, None], list[Tensor](), list[Tensor]()
                for some, logits in trainer.logits_of(head, out[asked], lm_head):
                    first.append(logits.max(-1).indices == wanted[some, 0])
                    if s == 0:
                        theirs = logits.gather(1, wanted[some])
                        ten.append(((logits > theirs).sum(-1) < 10) & theirs[:, 0].isfinite())  # a token that is drafted at all
                right = torch.zeros_like(valid)
                right[asked] = torch.cat(first)
                chained[here] += right.sum(-1).numpy(force=True)
                if s == 0:
                    among = torch.zeros_like(valid)
                    among[asked] = torch.cat(ten)
                    n[here], top1[here], top10[here] = (x.sum(-1).numpy(force=True) for x in (valid, right, among))
    found = {"top1": top1.sum() / n.sum(), "top10": top10.sum() / n.sum(), "chain_tau": 1 + chained.sum() / n.sum()}
    lengths, least = np.array([c.n_prompt for c in sorted(items, key=lambda c: len(c.ids))]), 0
    for kind, most in PROMPTS.items():
        mine = (lengths >= least) & (lengths < most)
        if n[mine].sum():
            found[f"chain_tau_{kind}"] = 1 + chained[mine].sum() / n[mine].sum()
        least = most
    return {name: float(value) for name, value in found.items()}


@torch.no_grad()
def calibration(
    trainer: Trainer[W],
    head: W,
    embedding: Tensor,
    lm_head: Tensor,
    items: list[Conversation],
    *,
    top_k: int = 10,
    depth: int = 4,
    n_bins: int = 10,
) -> list[dict[str, float]]:
    """A drafter's confidence against what happens, on held-out conversations: EAGLE-2's value rests on their agreement.

    One row a depth and confidence bin: `n` children (the drafter's top_k at each pair); their mean `confidence`; `accepted`, the
    share of them that is the target's argmax; `sampled`, the target's mean probability of them (acceptance at T = 1). At depth
    s > 1 the drafter reads its own features, and the s - 1 tokens before are the answer's.
    """
    sums = np.zeros((depth, n_bins, 4))
    for _, batch in held_out_batches(items, embedding):
        with torch.autocast(embedding.device.type, dtype=torch.bfloat16):
            for s, (out, valid) in enumerate(trainer.predicted_features(head, embedding, batch, depth)):
                theirs = logits_of(batch.features[:, 1:][valid], lm_head)
                for (_, ours), (_, target) in zip(trainer.logits_of(head, out[valid], lm_head), theirs, strict=True):
                    best = ours.float().softmax(-1).topk(top_k)
                    hit = best.indices == target.max(-1).indices[:, None]
                    mass = target.float().softmax(-1).gather(1, best.indices)
                    bins = (best.values * n_bins).long().clamp_(max=n_bins - 1).flatten().numpy(force=True)
                    for column, values in enumerate((torch.ones_like(mass), best.values, hit.float(), mass)):
                        weights = values.flatten().double().numpy(force=True)
                        sums[s, :, column] += np.bincount(bins, weights=weights, minlength=n_bins)
    return [
        {"depth": s + 1, "bin": round(b / n_bins, 3), "n": int(n), "confidence": round(c / n, 4), "accepted": round(a / n, 4),
         "sampled": round(m / n, 4)}
        for s in range(depth) for b, (n, c, a, m) in enumerate(sums[s]) if n > 0
    ]  # fmt: skip
