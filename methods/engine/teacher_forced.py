"""An EAGLE head over a finished text: every position is predicted in one pass, from the target's own features.

Drafting runs the head step by step. Over a known text one pass gives the same predictions. Training and the audit use it.

Further passes feed the head its own features, as drafting does. The idea is that of HASS (arXiv 2408.15766) and of EAGLE-3's
training-time test (arXiv 2503.01840). In pass s the last s-1 positions carry features and keys that the head made itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine.draft_head import EagleHead


def teacher_forced(
    head: EagleHead, embedding: Tensor, ids: Tensor, features: Tensor, valid: Tensor, levels: int, noise: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (predicted features [b, n-1, hidden], which entries are valid [b, n-1]) for pass 1 .. `levels`.

    ids: [b, n]; features: [b, n, hidden], the target's; valid: [b, n-1] bool, the entries to predict in pass 1.
    noise: true features are moved by up to so much, at random. Entries that are not valid come out as zeros.

    Entry i of pass s predicts f_{i+1} from t_{i+1} and a feature f_i. In pass 1 that is the true f_i. In pass s > 1 it is what
    pass s-1 predicted; the entry then sees keys of true features up to i-s+1, and keys of the passes 2 .. s after them.
    """
    own = torch.arange(ids.shape[1] - 1, device=ids.device)
    embedded = F.embedding(ids[:, 1:], embedding)
    rotary = head.rotary(own, embedding.dtype)
    given = features[:, :-1].float()
    if noise:
        given = given + torch.empty_like(given).uniform_(-noise, noise)
    group = head.config.num_attention_heads // head.config.num_key_value_heads
    distance = own[:, None] - own[None]  # from a query back to a key
    keys: list[Tensor] = []
    values: list[Tensor] = []
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
        here = valid.flatten().nonzero()[:, 0]  # the others are context: only their keys and values are needed
        rows = head.finish(x.flatten(0, 1)[here, None], attended.transpose(1, 2).flatten(0, 1)[here, :, None])[:, 0]
        out = placed(rows, valid)
        yield out, valid
        given, valid = shifted(out, 1), next_valid(valid)


def shifted(x: Tensor, m: int) -> Tensor:
    """Entry i becomes what entry i-m was, along dim -2; the first m are zero."""
    return x if m == 0 else F.pad(x, (0, 0, m, 0))[..., : x.shape[-2], :]


def next_valid(valid: Tensor) -> Tensor:
    """The entries of the next pass: those that are valid and whose predecessor is valid too. valid: [b, n-1]."""
    return valid & shifted(valid[..., None], 1)[..., 0]


def placed(rows: Tensor, valid: Tensor) -> Tensor:
    """Rows [m, hidden] of the m valid entries, back in their places [b, n-1, hidden]; zeros elsewhere."""
    here = valid.flatten().nonzero()[:, 0]
    return rows.new_zeros(valid.numel(), rows.shape[-1]).index_copy(0, here, rows).unflatten(0, valid.shape)
