"""Training an EAGLE head: what is its own beside the trainer.

`unroll` passes feed the head its own features, as drafting does (the idea of HASS, arXiv 2408.15766, and of EAGLE-3's
training-time test, arXiv 2503.01840): in pass s the last s-1 positions carry features and keys the head made itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.train.batches import Batch, NormalisedInput, next_valid, placed, shifted, some_pairs, spread
from harness.train.data import Conversation
from harness.train.kinds import initialise, plain_head, predicted_features
from harness.train.settings import TrainSettings
from methods.engine.draft_head import EagleHead


@predicted_features.register
def _(head: EagleHead, embedding: Tensor, batch: Batch, levels: int, noise: float = 0.0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (predicted features [b, n-1, hidden], zero where not valid, which pairs are valid [b, n-1]) for pass 1 .. `levels`.

    Entry i of pass s predicts f_{i+1} from t_{i+1} and, for s = 1, the true f_i; for s > 1 the prediction of f_i that
    pass s-1 made, seeing keys of true features up to i-s+1 and keys of the passes 2 .. s after them.
    """
    n = batch.ids.shape[1]
    embedded = F.embedding(batch.ids[:, 1:], embedding)
    rotary = head.rotary(torch.arange(n - 1), embedding.dtype)
    given = batch.features[:, :-1].float()
    if noise:
        given = given + torch.empty_like(given).uniform_(-noise, noise)
    group = head.config.num_attention_heads // head.config.num_key_value_heads
    distance = torch.arange(n - 1)[:, None] - torch.arange(n - 1)[None]  # from a query back to a key
    keys: list[Tensor] = []
    values: list[Tensor] = []
    valid = batch.trained
    for s in range(1, levels + 1):
        x = head.fc(torch.cat([embedded, given.to(embedded.dtype)], dim=-1))
        q, k, v = head.qkv(x, rotary)
        keys.append(k.repeat_interleave(group, dim=1))
        values.append(v.repeat_interleave(group, dim=1))
        if s == 1:
            attended = F.scaled_dot_product_attention(q, keys[0], values[0], is_causal=True)
        else:  # of pass r > 1 the key s-r back: the last s-1 positions are the head's own
            sees = torch.cat([distance >= s - 1, *(distance == s - r for r in range(2, s + 1))], dim=1)
            attended = F.scaled_dot_product_attention(q, torch.cat(keys, 2), torch.cat(values, 2), attn_mask=sees)
        here = valid.flatten().nonzero()[:, 0]  # the others are context: their keys and values are all that is needed of them
        rows = head.finish(x.flatten(0, 1)[here, None], attended.transpose(1, 2).flatten(0, 1)[here, :, None])[:, 0]
        out = placed(rows, valid)
        yield out, valid
        given, valid = shifted(out, 1), next_valid(valid)


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
