"""A LLaMA decoder layer for decoding: fused projections, weights packed once for the CPU's matmul kernels.

oneDNN repacks a weight matrix at every call unless it is given one packed before: at 1-60 rows that is up to half of a
matmul. The packed operator is torch's own (inductor emits it) but not public API: a tiny product is tried once, and
where it fails or the dtype or device has no such kernel, `F.linear` does the same work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine.attention import grouped_attention
from methods.engine.transfer import sent

PACKED_DTYPES = (torch.float32, torch.bfloat16)


class Linear:
    """x [.., in] -> x @ weight.T + bias [.., out], then `silu`, `+ plus` or `* times` (each [.., out]) in the same kernel.

    `packed=False` keeps to `F.linear`: the plain path that tests compare with.
    """

    engine = "torch"

    def __init__(self, weight: Tensor, bias: Tensor | None = None, packed: bool = True):
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.packed: Tensor | None = None
        if packed and weight.device.type == "cpu" and weight.dtype in PACKED_DTYPES and _can_pack(weight.dtype):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def __call__(self, x: Tensor, *, silu: bool = False, plus: Tensor | None = None, times: Tensor | None = None) -> Tensor:
        if self.packed is None:
            out = F.linear(x, self.weight, self.bias)
            out = F.silu(out) if silu else out
            return out + plus if plus is not None else out * times if times is not None else out
        other = plus if plus is not None else times
        if other is None:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "swish" if silu else "none", [], "")
        else:
            result = torch.ops.mkldnn._linear_pointwise(x, other, self.packed, self.bias, "add" if plus is not None else "mul")
        return result


def linear_beside(lm_head: Any, weight: Tensor, bias: Tensor | None = None, packed: bool = True) -> Any:
    """A linear map on the engine of an LM head: its own kind where it names one (`like`), else `Linear`."""
    like = getattr(lm_head, "like", None)
    return Linear(weight, bias, packed=packed) if like is None else like(weight, bias)


@cache
def _can_pack(dtype: torch.dtype) -> bool:
    try:
        x, w, other = (torch.ones(shape, dtype=dtype) for shape in ((2, 8), (4, 8), (2, 4)))
        packed = torch.ops.mkldnn._reorder_linear_weight(w, None)
        plain = torch.ops.mkldnn._linear_pointwise(x, packed, None, "swish", [], "")
        added = torch.ops.mkldnn._linear_pointwise(x, other, packed, None, "add")
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return bool(plain.float().isclose(F.silu(torch.tensor(8.0)), rtol=1e-2).all() and (added == 9).all())


class Norm:
    """RMS norm: x [.., size] -> the same shape.

    On a CPU torch composes it of eight operations and as many temporaries, a tenth of a forward over 60 rows. Its layer norm
    is one fused kernel, and over [x, -x], whose mean is zero, layer norm is RMS norm. `packed=False` keeps to `F.rms_norm`.
    """

    def __init__(self, weight: Tensor, eps: float, packed: bool = True):
        self.size, self.eps = weight.shape[0], eps
        self.doubled = packed and weight.device.type == "cpu" and weight.dtype in PACKED_DTYPES
        self.weight = torch.cat([weight, weight]).detach() if self.doubled else weight.detach()

    def __call__(self, x: Tensor) -> Tensor:
        if not self.doubled:
            return F.rms_norm(x, (self.size,), self.weight, self.eps)
        return F.layer_norm(torch.cat([x, -x], dim=-1), (2 * self.size,), self.weight, None, self.eps)[..., : self.size]


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class DecoderLayer:
    """One layer on the weights of a module with LLaMA's names; `input_norm=False` leaves out its first norm (EAGLE)."""

    def __init__(self, module: Any, heads: int, kv_heads: int, eps: float, input_norm: bool = True, packed: bool = True):
        a, mlp = module.self_attn, module.mlp
        self.qkv = Linear(torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]), packed=packed)
        self.o, self.down = Linear(a.o_proj.weight, packed=packed), Linear(mlp.down_proj.weight, packed=packed)
        self.gate, self.up = Linear(mlp.gate_proj.weight, packed=packed), Linear(mlp.up_proj.weight, packed=packed)
        self.norm1 = Norm(module.input_layernorm.weight, eps, packed) if input_norm else None
        self.norm2 = Norm(module.post_attention_layernorm.weight, eps, packed)
        self.heads, self.kv_heads = heads, kv_heads

    def __call__(self, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend, read: Tensor | None = None) -> Tensor:
        """x [n, hidden], rotary of the rows (`rotary_rows`) -> [n, hidden]. read: what attention reads in place of x, as it is.

        `attend(q [heads, n, d], k [kv_heads, n, d], v [kv_heads, n, d]) -> [n, heads * d]` keeps the keys and values.
        """
        n, heads, kv = x.shape[0], self.heads, self.kv_heads
        cos, sin = rotary
        d = cos.shape[-1]
        if read is None:
            read = x if self.norm1 is None else self.norm1(x)
        qkv = self.qkv(read).view(n, heads + 2 * kv, d)
        qk = qkv[:, : heads + kv]
        qk = torch.addcmul(qk * cos, qk.roll(d // 2, -1), sin).transpose(0, 1)
        x = self.o(attend(qk[:heads], qk[heads:], qkv[:, heads + kv :].transpose(0, 1)), plus=x)
        h = self.norm2(x)
        return self.down(self.up(h, times=self.gate(h, silu=True)), plus=x)


def rotary_rows(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """[n, d] each -> [n, 1, d] each, the first half of sin negated: rotating is then a roll and an addcmul."""
    half = sin.shape[-1] // 2
    return cos[:, None], torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)[:, None]


def attend_over(keys: Tensor, values: Tensor, at: int, mask: Tensor | None) -> Attend:
    """An `Attend` that writes its rows' keys and values at `at` of the buffers [kv_heads, capacity, d] and sees all up to them.

    mask: additive [group * n, length], its rows repeated for the heads of a group (`additive`), or None: see `grouped_attention`.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = k.shape[1]
        end = at + n
        keys[:, at:end], values[:, at:end] = k, v
        return grouped_attention(None, q[None], keys[None, :, :end], values[None, :, :end], mask)[0].view(n, -1)

    return attend


def additive(blocked: Tensor, dtype: torch.dtype, group: int) -> Tensor:
    """blocked [n, length] bool -> the additive mask of `attend_over`."""
    mask = torch.zeros(blocked.shape, dtype=dtype, device=blocked.device)
    return mask.masked_fill_(blocked, torch.finfo(dtype).min).repeat(group, 1)


def causal(n: int, before: int, dtype: torch.dtype, group: int, device: torch.device) -> Tensor | None:
    """The mask of n tokens in a row after `before` others; None where `grouped_attention` needs none, as for a whole prompt."""
    if n == 1 or before == 0:
        return None
    return additive(torch.ones(n, before + n, dtype=torch.bool, device=device).triu(before + 1), dtype, group)


def level_mask(sees: Tensor, before: int, dtype: torch.dtype, group: int, device: torch.device) -> Tensor:
    """The mask of a level of entries: sees [m, entries + m], and all of the `before` tokens ahead of them."""
    blocked = torch.zeros(len(sees), before + sees.shape[1], dtype=torch.bool, device=device)
    blocked[:, before:] = ~sent(sees, device)
    return additive(blocked, dtype, group)
