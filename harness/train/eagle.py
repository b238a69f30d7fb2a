"""How an EAGLE head is trained: what the training loop must know of this kind of drafter."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import LlamaConfig

from harness.train.batches import Batch, NormalisedInput, least_squares, some_pairs, spread
from harness.train.data import Conversation
from harness.train.settings import TrainSettings
from methods.engine.draft_head import EagleHead, HeadConfig
from methods.engine.teacher_forced import teacher_forced

UNUSED = frozenset({"width", "layers", "draft_vocab", "aux_layers"})


def new_head(target: LlamaConfig, settings: TrainSettings) -> EagleHead:
    """An untrained head as wide as the target: one more of its layers, its MLP as wide as the target's unless settings say."""
    c, rope = target, target.rope_parameters
    assert rope is not None and rope["rope_theta"] is not None  # a plain LLaMA has them
    return EagleHead(
        HeadConfig(
            hidden_size=c.hidden_size, intermediate_size=settings.intermediate_size or c.intermediate_size,
            num_attention_heads=c.num_attention_heads, num_key_value_heads=c.num_key_value_heads or c.num_attention_heads,
            rms_norm_eps=c.rms_norm_eps, rope_theta=rope["rope_theta"], vocab_size=c.vocab_size, bias=True,
        )
    )  # fmt: skip


def predicted_features(
    head: EagleHead, embedding: Tensor, batch: Batch, levels: int, noise: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """The head's teacher-forced passes over the batch; pass 1 predicts the pairs that are trained."""
    yield from teacher_forced(head, embedding, batch.ids, batch.features, batch.trained, levels, noise)


@torch.no_grad()
def shipped(head: EagleHead) -> EagleHead:
    """The head as it is shipped: its `fc` is a linear map of the inputs as they are."""
    done = EagleHead(head.config)
    state = head.state_dict()
    if isinstance(head.fc, NormalisedInput):
        weight, bias = head.fc.plain()
        state = {k: v for k, v in state.items() if not k.startswith("fc.")} | {"fc.weight": weight}
        if bias is not None:
            state["fc.bias"] = bias
    done.load_state_dict(state)
    return done


@torch.no_grad()
def initialise(head: EagleHead, embedding: Tensor, pool: list[Conversation], settings: TrainSettings) -> None:
    """Give all matrices noise, and have `fc` read normalised inputs.

    With `settings.linear_start`, `fc` begins as the least-squares map from them to the next feature. Attention and MLP then add
    nothing to it until they have learnt to.
    """
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
        offset = y.mean(0) if head.fc.bias is not None else torch.zeros_like(y[0])
        head.fc.weight.copy_(least_squares(x, y - offset))
        if head.fc.bias is not None:
            head.fc.bias.copy_(offset)
        for matrix in (head.layer.self_attn.o_proj, head.layer.mlp.down_proj):
            torch.nn.init.zeros_(matrix.weight)
    head.fc = NormalisedInput(head.fc, mean, std)  # type: ignore[assignment]
