"""Training an EAGLE head: what the trainer must know of this kind of drafter."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from harness.train.batches import Batch, NormalisedInput, some_pairs, spread
from harness.train.data import Conversation
from harness.train.kinds import initialise, plain_head, predicted_features
from harness.train.settings import TrainSettings
from methods.engine.draft_head import EagleHead
from methods.engine.teacher_forced import teacher_forced


@predicted_features.register
def _(head: EagleHead, embedding: Tensor, batch: Batch, levels: int, noise: float = 0.0) -> Iterator[tuple[Tensor, Tensor]]:
    """The head's teacher-forced passes over the batch; pass 1 predicts the pairs that are trained."""
    yield from teacher_forced(head, embedding, batch.ids, batch.features, batch.trained, levels, noise)


@plain_head.register
@torch.no_grad()
def _(head: EagleHead) -> EagleHead:
    """The head as it is shipped: its `fc` a linear map of the inputs as they are."""
    done = EagleHead(head.config)
    state = head.state_dict()
    if isinstance(head.fc, NormalisedInput):
        weight, bias = head.fc.plain()
        state = {k: v for k, v in state.items() if not k.startswith("fc.")} | {"fc.weight": weight}
        if bias is not None:
            state["fc.bias"] = bias
    done.load_state_dict(state)
    return done


@initialise.register
@torch.no_grad()
def _(head: EagleHead, embedding: Tensor, pool: list[Conversation], settings: TrainSettings) -> None:
    """Noise for all matrices; `fc` on normalised inputs and, if `settings.linear_start`, the least-squares map from them to
    the next feature, with nothing added to it by attention and MLP until they have learnt to."""
    for name, p in head.named_parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.02)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(p)
    x, y = some_pairs(embedding, pool, settings)
    mean, std = spread(x)
    if head.fc.bias is None:
        mean = torch.zeros_like(mean)
    if settings.linear_start:
        x = (x - mean) / std
        offset = y.mean(0) if head.fc.bias is not None else torch.zeros(y.shape[1])
        gram = (x.T @ x).double()
        gram.diagonal().add_(1e-3 * len(x))
        head.fc.weight.copy_(torch.linalg.solve(gram, (x.T @ (y - offset)).double()).T)
        if head.fc.bias is not None:
            head.fc.bias.copy_(offset)
        for matrix in (head.layer.self_attn.o_proj, head.layer.mlp.down_proj):
            torch.nn.init.zeros_(matrix.weight)
    head.fc = NormalisedInput(head.fc, mean, std)  # type: ignore[assignment]
