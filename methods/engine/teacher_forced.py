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

from methods.engine.draft_head import Head


def teacher_forced(
    head: Head, embedding: Tensor, ids: Tensor, features: Tensor, valid: Tensor, levels: int, noise: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (predicted states [b, n-1, hidden], which entries are valid [b, n-1]) for pass 1 .. `levels`.

    ids: [b, n]; features: [b, n, ..], the target's as the head observes them; valid: [b, n-1] bool, the entries to predict in
    pass 1. noise: true features are moved by up to so much, at random. Entries that are not valid come out as zeros.

    Entry i of pass s predicts f_{i+1} from t_{i+1} and a feature f_i. In pass 1 that is the true f_i. In pass s > 1 it is what
    pass s-1 predicted; the entry then sees keys of true features up to i-s+1, and keys of the passes 2 .. s after them.
    """
    own = torch.arange(ids.shape[1] - 1, device=ids.device)
    embedded = F.embedding(ids[:, 1:], embedding)
    rotary = head.rotary(own, embedding.dtype)
    given = features[:, :-1].to(torch.promote_types(features.dtype, torch.float32))
    if noise:
        given = given + torch.empty_like(given).uniform_(-noise, noise)
    given = head.fused(given)
    group = head.config.num_attention_heads // head.config.num_key_value_heads
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for _ in range(levels):
        x, read = head.read(embedded, given)
        q, k, v = head.qkv(read, rotary)
        keys.append(k.repeat_interleave(group, dim=1))
        values.append(v.repeat_interleave(group, dim=1))
        attended = _attended(q, keys, values)
        here = valid.flatten().nonzero()[:, 0]  # the others are context: only their keys and values are needed
        rows = head.finish(x.flatten(0, 1)[here, None], attended.transpose(1, 2).flatten(0, 1)[here, :, None])[:, 0]
        out = placed(rows, valid)
        yield out, valid
        given, valid = shifted(out, 1), next_valid(valid)


def _attended(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Attention of the newest pass s: to the keys of pass 1 that are s-1 or further back, and of pass r > 1 to that s-r back: the
    last s-1 positions are the head's own. q, keys and values of each pass: [b, heads, n, d].

    Those own keys are one a pass and query, so their scores are sums along it: a third of the time of one masked product.
    """
    s, n = len(keys), q.shape[-2]
    if s == 1:
        return F.scaled_dot_product_attention(q, keys[0], values[0], is_causal=True)
    own = torch.arange(n, device=q.device)
    scores = [(q @ keys[0].mT).masked_fill(own[:, None] - own[None] < s - 1, -torch.inf)]
    scores += [(q * shifted(k, s - r)).sum(-1, keepdim=True) for r, k in enumerate(keys[1:], start=2)]
    wide = torch.float32 if q.dtype in (torch.bfloat16, torch.float16) else q.dtype
    weights = (torch.cat(scores, -1) * q.shape[-1] ** -0.5).softmax(-1, dtype=wide).to(q.dtype)
    attended = weights[..., :n] @ values[0]
    for r, v in enumerate(values[1:], start=2):
        attended = attended + weights[..., n + r - 2, None] * shifted(v, s - r)
    return attended


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
