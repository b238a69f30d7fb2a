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

    predicted [m, hidden], lm_rows [rows, hidden], wanted [m, rows], all bf16. The gradient, and that of the rows where they are
    trained, is made with the loss, a few positions at a time, so no logits are kept.
    """

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, lm_rows: Tensor, wanted: Tensor) -> Tensor:
        loss = torch.zeros((), device=predicted.device)
        gradient = torch.empty_like(predicted)
        of_rows = torch.zeros_like(lm_rows, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for i in range(0, len(predicted), LOSS_ROWS):
            here = slice(i, i + LOSS_ROWS)
            log_p = F.linear(predicted[here], lm_rows).float().log_softmax(-1)
            loss -= torch.dot(log_p.flatten(), wanted[here].flatten().float())
            off = log_p.exp_().sub_(wanted[here]).to(lm_rows.dtype)
            gradient[here] = off @ lm_rows
            if of_rows is not None:
                of_rows += off.T @ predicted[here]
        ctx.save_for_backward(gradient, of_rows)
        return loss / len(predicted)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, Tensor | None, None]:
        gradient, of_rows = ctx.saved_tensors
        each = above / len(gradient)
        return gradient * each, None if of_rows is None else (of_rows * each).to(gradient.dtype), None


def logits_of(features: Tensor, lm_head: Tensor, tokens: Tensor | None = None, vocab: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """(some rows, their logits [rows, vocab]) of features [m, hidden], a few rows at a time: memory does not grow with m.

    tokens: of the rows of an LM head that has not all `vocab`; the others' logits are minus infinity.
    """
    for i in range(0, max(len(features), 1), LOSS_ROWS):
        here = slice(i, i + LOSS_ROWS)
        logits = F.linear(features[here].to(lm_head.dtype), lm_head)
        if tokens is not None:
            logits = logits.new_full((len(logits), vocab), -torch.inf).index_copy(1, tokens, logits)
        yield here, logits


@torch.no_grad()
def wanted_of(features: Tensor, lm_rows: Tensor) -> Tensor:
    """The target's distribution over the rows [m, rows], bf16, for its features [m, hidden]."""
    parts = [F.linear(part, lm_rows).float().softmax(-1).to(lm_rows.dtype) for part in features.split(LOSS_ROWS)]
    return torch.cat(parts)


@torch.no_grad()
def best_are_among(tokens: Tensor, features: Tensor, lm_head: Tensor) -> Tensor:
    """[m] bool: whether the target's argmax after each of its features [m, hidden] is one of the tokens."""
    among = torch.zeros(len(lm_head), dtype=torch.bool, device=lm_head.device).index_fill(0, tokens, True)
    return torch.cat([among[logits.max(-1).indices] for _, logits in logits_of(features, lm_head)])


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
