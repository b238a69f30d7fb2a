"""A LLaMA forward over many conversations at once, one new token each: what the target's answers are made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from methods.engine.layer import DecoderLayer, Linear, Norm, rotary_rows
from methods.engine.llama import is_plain_llama


class BatchedLlama:
    """The target's packed layers, as decoding uses them, with a slot for each of many conversations.

    Keys and values are of each layer [slots, kv_heads, width, head_dim], exactly `width` long and contiguous: batched matmuls
    over a strided slice of a longer buffer cost 2.5 times as much on a CPU. They are remade in steps of 64, layer by layer, so
    that little is held twice. A step is of the first slots. All conversations begin with the tokens of `prefix`, run once.
    """

    def __init__(self, model: LlamaForCausalLM, n_slots: int, prefix: list[int], aux_layers: Sequence[int] = ()):
        """aux_layers: other hidden states that stand behind each feature, as `methods.base.Target.prefill` numbers them."""
        if not is_plain_llama(model):
            raise ValueError(f"{type(model).__name__} with these settings cannot generate training data: only plain LLaMA can")
        c = model.config
        self.heads: int = c.num_attention_heads
        self.kv_heads: int = c.num_key_value_heads or c.num_attention_heads
        self.head_dim: int = c.head_dim or c.hidden_size // c.num_attention_heads
        self.layers = [DecoderLayer(m, self.heads, self.kv_heads, c.rms_norm_eps) for m in model.model.layers]
        self.lm_head = Linear(model.lm_head.weight)
        self.norm = Norm(model.model.norm.weight, c.rms_norm_eps)
        self.embedding: torch.Tensor = model.model.embed_tokens.weight.detach()
        self.device, self.dtype = self.embedding.device, model.dtype
        self.width, self.n_slots = 0, n_slots  # tokens that a slot has room for
        self.keys, self.values = ([self._room(0) for _ in self.layers] for _ in range(2))
        self.aux_layers = aux_layers
        self._rotary_of = model.model.rotary_emb
        self._cos = self._sin = torch.empty(0)
        wide = (1 + len(aux_layers)) * c.hidden_size
        self.n_prefix, self._prefix_features = 0, torch.zeros(0, wide, dtype=self.dtype, device=self.device)
        if prefix:
            self._prefix_features = self.prefill([0], [prefix])[0]
            for kept in (*self.keys, *self.values):
                kept[1:, :, : len(prefix)] = kept[:1, :, : len(prefix)]
            self.n_prefix = len(prefix)

    def _room(self, width: int) -> torch.Tensor:
        """For keys or values of a layer."""
        return torch.zeros(self.n_slots, self.kv_heads, width, self.head_dim, dtype=self.dtype, device=self.device)

    def fit(self, longest: int) -> None:
        """Make slots hold `longest` tokens, and not many more."""
        if longest <= self.width <= longest + 128:
            return
        width = -(-longest // 64) * 64
        kept = min(width, self.width)
        for of_layers in (self.keys, self.values):
            for i, old in enumerate(of_layers):
                of_layers[i] = self._room(width)
                of_layers[i][:, :, :kept] = old[:, :, :kept]
        self.width = width

    def move(self, source: int, to: int, n: int) -> None:
        """Copy the first n keys and values of one slot over another's."""
        for kept in (*self.keys, *self.values):
            kept[to, :, :n] = kept[source, :, :n]

    def _rotary(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        most = int(positions.max()) + 1
        if len(self._cos) < most:
            cos, sin = self._rotary_of(self.embedding[:0], torch.arange(2 * most, device=self.device)[None])
            self._cos, self._sin = rotary_rows(cos[0], sin[0])
        return self._cos[positions], self._sin[positions]

    def _run(self, ids: torch.Tensor, positions: torch.Tensor, attend: Callable[..., torch.Tensor]) -> torch.Tensor:
        """-> features [n, (1 + len(aux_layers)) * hidden]."""
        x, rotary, aux_layers = F.embedding(ids, self.embedding), self._rotary(positions), self.aux_layers
        states: dict[int, torch.Tensor] = {}
        for i, layer in enumerate(self.layers):
            if i in aux_layers:
                states[i] = x
            x = layer(x, rotary, partial(attend, i))
        last = self.norm(x)
        return torch.cat([last, *(states.get(i, last) for i in aux_layers)], dim=-1) if aux_layers else last

    def prefill(self, slots: list[int], prompts: list[list[int]]) -> list[torch.Tensor]:
        """Run all `prompts` in one forward, and keep their keys and values in `slots` -> the features [n, ..] of each."""
        skip, group = self.n_prefix, self.heads // self.kv_heads
        self.fit(max(self.width, *(len(p) for p in prompts)))
        sizes = [len(p) - skip for p in prompts]
        ends = np.cumsum(sizes).tolist()
        masks = [
            torch.ones(n, skip + n, dtype=torch.bool, device=self.device).tril_(skip) if skip else None for n in sizes
        ]  # fmt: skip

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = []
            for slot, n, end, mask in zip(slots, sizes, ends, masks, strict=True):
                here, there = slice(end - n, end), slice(skip, skip + n)
                self.keys[i][slot, :, there], self.values[i][slot, :, there] = k[:, here], v[:, here]
                keys, values = (x[i][slot, :, : skip + n].repeat_interleave(group, 0) for x in (self.keys, self.values))
                found = F.scaled_dot_product_attention(
                    q[None, :, here], keys[None], values[None], attn_mask=mask, is_causal=mask is None
                )
                out.append(found[0].transpose(0, 1).reshape(n, -1))
            return torch.cat(out)

        ids = torch.tensor([t for p in prompts for t in p[skip:]], device=self.device)
        positions = torch.cat([torch.arange(skip, skip + n, device=self.device) for n in sizes])
        made = self._run(ids, positions, attend).split(sizes)
        return [torch.cat([self._prefix_features, features]) for features in made]

    def features(self, texts: list[list[int]]) -> list[torch.Tensor]:
        """Run whole texts in one forward, without padding -> the features [n, ..] of each. No keys are kept."""
        sizes, group = [len(text) for text in texts], self.heads // self.kv_heads

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            k, v = (x.repeat_interleave(group, 0) for x in (k, v))
            queries, keys, values = (x[None].split(sizes, 2) for x in (q, k, v))
            found = map(partial(F.scaled_dot_product_attention, is_causal=True), queries, keys, values)
            return torch.cat([x[0].transpose(0, 1).flatten(1) for x in found])

        ids = torch.tensor([t for text in texts for t in text], device=self.device)
        positions = torch.cat([torch.arange(n, device=self.device) for n in sizes])
        return list(self._run(ids, positions, attend).split(sizes))

    def step(self, tokens: list[int], at: list[int]) -> torch.Tensor:
        """Run one token of each of the first n slots -> features [n, ..]. tokens, at: [n], the tokens and their positions."""
        here = torch.tensor(at, device=self.device)
        self.fit(max(at) + 1)
        n, group = len(at), self.heads // self.kv_heads
        rows = torch.arange(n, device=self.device)
        blocked = torch.arange(self.width, device=self.device)[None] > here[:, None]
        mask = torch.zeros(n, self.width, dtype=self.dtype, device=self.device)
        mask = mask.masked_fill_(blocked, torch.finfo(self.dtype).min)[:, None, None]  # [n, 1, 1, width]
        scale = self.head_dim**-0.5

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self.keys[i][:n], self.values[i][:n]
            keys[rows, :, here], values[rows, :, here] = k.transpose(0, 1), v.transpose(0, 1)
            grouped = (q.transpose(0, 1) * scale).reshape(n, self.kv_heads, group, self.head_dim)
            weights = torch.matmul(grouped, keys.transpose(-1, -2)).add_(mask).softmax(-1)
            return torch.matmul(weights, values).view(n, -1)

        return self._run(torch.tensor(tokens, device=self.device), here, attend)
