"""Attention over keys that are kept: what the forwards in torch's operations have in common."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """SDPA without copying keys for grouped heads: the query heads of a group become rows of one query.

    query [1, heads, n, d]; key, value [1, kv_heads, length, d]; attention_mask: None (one token after all others, or n > 1 that
    are the whole text: causal, and no mask is made) or additive [.., group * n, length], its rows already repeated for the group.

    Raises:
        ValueError: several tokens after others, and no mask.
    """
    batch, heads, n, d = query.shape
    kv_heads, length = key.shape[1], key.shape[2]
    if attention_mask is None and n > 1:
        if n != length:  # `is_causal` would set the first row beside the first key
            raise ValueError(f"{n} tokens after {length - n} others need a mask")
        if heads != kv_heads and query.device.type == "cuda" and query.dtype == torch.float32:
            # kernels that know of groups are for half precision; without one torch makes all scores [heads, n, n] at once
            key, value = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (key, value))
            kv_heads = heads
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=heads != kv_heads)
    else:
        grouped = query.reshape(batch, kv_heads, (heads // kv_heads) * n, d)
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
        out = out.reshape(batch, heads, n, d)
    return out.transpose(1, 2).contiguous(), None
