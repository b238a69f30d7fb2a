"""A lean LLaMA forward on the weights of transformers' module: the same numbers in a third of the calls, half on a GPU.

At one row a forward through transformers' module graph spends as long between its matmuls as in them. On a CPU its matmuls repack
their weights at every call, too. Both arms of every ratio run on this. What it does not know (attention bias, other activations,
other rotary tables) and float64 (where transformers' norms still round to float32, and exactness is what counts) stay with
`HFTarget`. Layers may lie on several GPUs: what they share goes over once a device, not once a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine.attention import grouped_attention
from methods.engine.layer import PACKED_DTYPES, DecoderLayer, Linear, Norm, rotary_rows
from methods.engine.target import HFTarget, cannot_verify
from methods.engine.transfer import sent

LEAN_ROPE = ("default", "linear", "llama3")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def is_plain_llama(model: Any) -> bool:
    """Whether `DecoderLayer` is this model's layer, by its config and its modules.

    That is: linear maps without biases, SiLU, one eps, and a rotary table of whole heads that does not depend on the length.
    """
    c = model.config
    if type(model).__name__ != "LlamaForCausalLM" or cannot_verify(c) is not None:
        return False
    rope = getattr(c, "rope_parameters", None) or {}
    return bool(
        c.hidden_act in ("silu", "swish")
        and not (c.attention_bias or c.mlp_bias)
        and rope.get("rope_type", "default") in LEAN_ROPE
        and rope.get("partial_rotary_factor") in (None, 1)
        and getattr(c, "quantization_config", None) is None
        and all(_is_plain(layer, c.rms_norm_eps) for layer in model.model.layers)
        and type(model.lm_head) is torch.nn.Linear
        and model.lm_head.bias is None
    )


def _is_plain(layer: Any, eps: float) -> bool:
    maps = {name.rpartition(".")[2]: m for name, m in layer.named_modules() if name.endswith("_proj")}
    return (
        set(maps) == set(PROJECTIONS)
        and all(type(m) is torch.nn.Linear and m.bias is None for m in maps.values())
        and torch.equal(layer.mlp.act_fn(x := torch.linspace(-4, 4, 9)), F.silu(x))
        and {n.variance_epsilon for n in (layer.input_layernorm, layer.post_attention_layernorm)} == {eps}
    )


def is_lean(model: Any, dtype: torch.dtype | None = None) -> bool:
    """Whether `LlamaTarget` can run this model of transformers; in another dtype, if one is given."""
    on = {p.device.type for p in model.parameters()}
    known = {frozenset({"cpu"}): PACKED_DTYPES, frozenset({"cuda"}): (*PACKED_DTYPES, torch.float16)}.get(frozenset(on), ())
    return is_plain_llama(model) and (dtype or model.dtype) in known and {p.dtype for p in model.parameters()} == {model.dtype}


def share(attention: Any, fused: Tensor) -> None:
    """Let a module's three projections be rows of the fused one [q + k + v, hidden]: a second copy would take a GPU's memory."""
    at = 0
    for name in ("q_proj", "k_proj", "v_proj"):
        projection = getattr(attention, name)
        rows = projection.weight.shape[0]
        projection.weight = torch.nn.Parameter(fused[at : at + rows], requires_grad=False)
        at += rows


class LlamaTarget(HFTarget):
    """`HFTarget` with its own forward. `packed=False` uses plain matmuls: the path that tests compare with."""

    def __init__(self, model: Any, packed: bool = True):
        super().__init__(model)
        if not self.runs(model):
            raise ValueError(f"{type(model).__name__} with these settings has no lean forward")
        model.set_attn_implementation("sdpa")  # the module itself only serves transformers' own `generate`
        c = model.config
        self._norm = Norm(self.body.norm.weight, c.rms_norm_eps, packed)
        self._layers = []
        for module in self.body.layers:
            layer = DecoderLayer(module, c.num_attention_heads, self._kv_heads, c.rms_norm_eps, packed=packed)
            if self.device.type != "cpu":  # layer by layer, or all would be there twice at once
                share(module.self_attn, layer.qkv.weight)
            self._layers.append(layer)
        self.lm_head = Linear(self.lm_head.weight, packed=packed)
        self._scale = self.cache.head_dim**-0.5
        self._placed = list(enumerate(self.cache.devices))  # of each layer its place in the cache, and the device it lies on
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._n_positions = 0

    @classmethod
    def runs(cls, model: Any, dtype: torch.dtype | None = None) -> bool:
        """Whether it can run a model of transformers; in another dtype, if one is given."""
        return is_lean(model, dtype)

    @classmethod
    def engine_in(cls, model: Any, dtype: torch.dtype) -> str:
        return "lean"

    @property
    def runs_module(self) -> bool:
        return False

    @property
    def stock_model(self) -> Any:
        return self.model  # which never has another attention

    @contextmanager
    def shallow(self, layers: list[int]) -> Iterator[None]:
        every, placed = self._layers, self._placed
        self._layers, self._placed = [every[i] for i in layers], [placed[i] for i in layers]
        try:
            with super().shallow(layers):
                yield
        finally:
            self._layers, self._placed = every, placed

    def _seen(self, n: int, mask: Tensor | None, device: torch.device) -> Any:
        """What `_attended` is told of the keys that each of n rows sees, made once for all layers of a device."""
        return None if mask is None else mask.to(device)

    def _attended(self, query: Tensor, keys: Tensor, values: Tensor, seen: Any) -> Tensor:
        """query [1, heads, n, d]; keys, values [1, kv_heads, length, d] -> [1, n, heads, d]."""
        return grouped_attention(None, query, keys, values, seen, self._scale)[0]

    def _make_tables(self) -> None:
        """Rotary rows for every place in the cache, on each device."""
        if self._n_positions < self.cache.capacity:
            self._n_positions = self.cache.capacity
            cos, sin = self.body.rotary_emb(self.embedding[:0], torch.arange(self._n_positions, device=self.device)[None])
            table = rotary_rows(cos[0], sin[0])
            self._tables = {device: (table[0].to(device), table[1].to(device)) for device in self.devices}

    def _forward(self, ids: list[int], positions: Tensor, mask: Tensor | None) -> Tensor:
        self._make_tables()
        n, x, here = len(ids), F.embedding(sent(ids, self.device), self.embedding), None
        states: dict[int, Tensor] = {}
        for number, (layer, (i, device)) in enumerate(zip(self._layers, self._placed, strict=True)):
            if number in self.aux_layers:
                states[number] = x
            if device != here:
                here, x, places = device, x.to(device), positions.to(device)
                cos, sin = self._tables[device]
                rotary, seen = (cos[places], sin[places]), self._seen(n, mask, device)

            def attend(q: Tensor, k: Tensor, v: Tensor, i: int = i, seen: Any = seen) -> Tensor:
                keys, values = self.cache.update(k[None], v[None], i)
                return self._attended(q[None], keys, values, seen)[0].view(n, -1)

            x = layer(x, rotary, attend)
        return self._beside(self._norm(x.to(self.devices[-1])), states)
