"""The loss on the target's distribution, over the rows of the vocabulary that matter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROUND_ROWS = 1024
LOSS_ROWS = 256  # positions whose logits are in the cache at once


class SoftCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of softmax(predicted @ lm_rows.T) against `wanted`.

    predicted [m, hidden], lm_rows [rows, hidden], wanted [m, rows], all bf16. The gradient is made with the loss, a few positions
    at a time, so no logits are kept.
    """

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, lm_rows: Tensor, wanted: Tensor) -> Tensor:
        loss = torch.zeros((), device=predicted.device)
        gradient = torch.empty_like(predicted)
        for i in range(0, len(predicted), LOSS_ROWS):
            here = slice(i, i + LOSS_ROWS)
            log_p = F.linear(predicted[here], lm_rows).float().log_softmax(-1)
            loss -= torch.dot(log_p.flatten(), wanted[here].flatten().float())
            gradient[here] = log_p.exp_().sub_(wanted[here]).to(lm_rows.dtype) @ lm_rows
        ctx.save_for_backward(gradient)
        return loss / len(predicted)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (above / len(gradient)), None, None


def logits_of(features: Tensor, lm_head: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(some rows, their logits [rows, vocab]) of features [m, hidden], a few rows at a time: memory does not grow with m."""
    for i in range(0, max(len(features), 1), LOSS_ROWS):
        here = slice(i, i + LOSS_ROWS)
        yield here, F.linear(features[here].to(lm_head.dtype), lm_head)


@torch.no_grad()
def wanted_of(features: Tensor, lm_rows: Tensor) -> Tensor:
    """The target's distribution over the rows [m, rows], bf16, for its features [m, hidden]."""
    parts = [F.linear(part, lm_rows).float().softmax(-1).to(lm_rows.dtype) for part in features.split(LOSS_ROWS)]
    return torch.cat(parts)


def scored_rows(frequent: Tensor, ids: Tensor, vocab: int) -> Tensor:
    """The tokens [rows] that a batch's cross-entropy is over: frequent ones, those of the batch, and others at random.

    There are as many others as make a multiple of ROUND_ROWS, so that kernels of one size serve all batches.
    """
    wanted = torch.zeros(vocab, dtype=torch.bool, device=ids.device)
    wanted[frequent] = True
    wanted[ids.flatten()] = True
    n = int(wanted.sum())
    others = (~wanted).nonzero()[:, 0]
    wanted[others[torch.randperm(len(others))[: -n % ROUND_ROWS].to(ids.device)]] = True
    return wanted.nonzero()[:, 0]
