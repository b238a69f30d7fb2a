"""A lean LLaMA forward for CPUs, on the weights of transformers' module: the same numbers in a third of the calls.

At one row a forward through transformers' module graph spends as long between its matmuls as in them, and its matmuls
repack their weights at every call. Both arms of every ratio run on this. What it does not know (attention bias, other
activations, rotary tables that depend on the length), float64 (where transformers' norms still round to float32, and
exactness is what counts) and every GPU stay with `HFTarget`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine.layer import PACKED_DTYPES, DecoderLayer, Linear, Norm, rotary_rows
from methods.engine.target import HFTarget, grouped_attention

FIXED_ROPE = ("default", "linear", "llama3")


def is_plain_llama(model: Any) -> bool:
    """Whether `DecoderLayer` is this model's layer: no biases, SiLU, a rotary table that does not depend on the length."""
    c = model.config
    rope = (getattr(c, "rope_parameters", None) or {}).get("rope_type", "default")
    return bool(
        type(model).__name__ == "LlamaForCausalLM"
        and c.hidden_act == "silu"
        and not (c.attention_bias or c.mlp_bias)
        and rope in FIXED_ROPE
    )


def is_lean(model: Any) -> bool:
    """Whether `LlamaTarget` can run this model of transformers."""
    on = {p.device.type for p in model.parameters()}
    return is_plain_llama(model) and model.dtype in PACKED_DTYPES and on == {"cpu"}


class LlamaTarget(HFTarget):
    """`HFTarget` with its own forward. `packed=False` uses plain matmuls: the path that tests compare with."""

    def __init__(self, model: Any, packed: bool = True):
        super().__init__(model)
        if not is_lean(model):
            raise ValueError(f"{type(model).__name__} with these settings has no lean forward")
        model.set_attn_implementation("sdpa")  # the module itself only serves transformers' own `generate`
        c = model.config
        self._norm = Norm(self.body.norm.weight, c.rms_norm_eps, packed)
        self._layers = [
            DecoderLayer(module, c.num_attention_heads, self._kv_heads, c.rms_norm_eps, packed=packed)
            for module in self.body.layers
        ]
        self.lm_head = Linear(self.lm_head.weight, packed=packed)
        self._scale = self.cache.head_dim**-0.5
        self._cos = self._sin = torch.empty(0)

    @property
    def stock_model(self) -> Any:
        return self.model  # which never has another attention

    def _forward(self, ids: list[int], positions: Tensor, mask: Tensor | None) -> Tensor:
        if len(self._cos) < self.cache.capacity:
            cos, sin = self.body.rotary_emb(self.embedding[:0], torch.arange(self.cache.capacity)[None])
            self._cos, self._sin = rotary_rows(cos[0], sin[0])
        n, rotary = len(ids), (self._cos[positions], self._sin[positions])
        x = F.embedding(torch.tensor(ids), self.embedding)
        for i, layer in enumerate(self._layers):

            def attend(q: Tensor, k: Tensor, v: Tensor, i: int = i) -> Tensor:
                keys, values = self.cache.update(k[None], v[None], i)
                return grouped_attention(None, q[None], keys, values, mask, self._scale)[0].view(n, -1)

            x = layer(x, rotary, attend)
        return self._norm(x)
