"""The EAGLE draft head: (feature f_i, next token t_{i+1}) -> feature f_{i+1}, whose logits are the target's LM head.

One head serves EAGLE-1 and EAGLE-2. Facts that trained checkpoints rely on (EAGLE, arXiv 2401.15077, and its release):
- `fc` takes [embedding; feature], embedding first; its bias is present unless config.json says `"bias": false`;
- one LLaMA decoder layer without input norm and without final norm; the feature is the target's hidden state *after*
  its final norm; embedding and LM head are the target's own;
- the rotary position of the pair (f_i, t_{i+1}) is i, one less than the target's position of the token.

Checkpoint layout: `model.safetensors` with `fc.*` and `layers.0.*`, `config.json`. Loading is strict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from methods.engine.clock import ForwardClock
from methods.engine.grow import best_children
from methods.engine.layer import DecoderLayer, Linear, attend_over, causal, level_mask, linear_beside, rotary_rows
from methods.engine.transfer import sent


@dataclass(frozen=True, slots=True)
class HeadConfig:
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float
    vocab_size: int
    bias: bool = True
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    rope_scaling: dict[str, Any] | None = None  # as transformers' `rope_parameters`; None: the table of rope_theta as it is

    def __post_init__(self) -> None:
        object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // self.num_attention_heads)


def inverse_frequencies(c: HeadConfig) -> Tensor:
    """[head_dim / 2] in float64, stretched as transformers stretches them."""
    if c.rope_scaling is None:
        exponents = torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim
        plain: Tensor = c.rope_theta**-exponents
        return plain
    like = LlamaConfig(
        hidden_size=c.hidden_size, num_attention_heads=c.num_attention_heads, head_dim=c.head_dim, rope_parameters=c.rope_scaling
    )  # fmt: skip
    stretched, attention_factor = ROPE_INIT_FUNCTIONS[c.rope_scaling["rope_type"]](like)
    if attention_factor != 1:
        raise ValueError(f"rope_type {c.rope_scaling['rope_type']} scales the attention, which a draft head does not")
    return stretched.double()


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c: HeadConfig, inputs: int):
        super().__init__()
        wide, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(inputs, wide, bias=False)
        self.k_proj = nn.Linear(inputs, kv, bias=False)
        self.v_proj = nn.Linear(inputs, kv, bias=False)
        self.o_proj = nn.Linear(wide, c.hidden_size, bias=False)


class MLP(nn.Module):
    def __init__(self, c: HeadConfig):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A decoder layer without its first norm. inputs: how wide what its attention reads is."""

    def __init__(self, c: HeadConfig, inputs: int):
        super().__init__()
        self.self_attn = Attention(c, inputs)
        self.mlp = MLP(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Head(nn.Module):
    """One layer, and the halves of its forward; the attention between them differs in training and in drafting."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        self._inverse_frequencies = inverse_frequencies(config)

    @property
    def layer(self) -> Layer:
        raise NotImplementedError

    def fused(self, features: Tensor) -> Tensor:
        """The target's features [.., n, ..] as the state [.., n, hidden] that a pair begins with."""
        return features

    def read(self, embedded: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """embedded, given [.., n, hidden]: of pairs their tokens and states -> (the residual [.., n, hidden]; what attention
        reads)."""
        raise NotImplementedError

    def rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos, sin [..., n, head_dim] for integer positions [..., n]."""
        angles = positions[..., None].to(torch.float64) * self._inverse_frequencies.to(positions.device)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def qkv(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x: [..., n, inputs] -> q [..., heads, n, d], k and v [..., kv_heads, n, d]; q and k are rotated."""
        attention, d = self.layer.self_attn, self.config.head_dim
        q, k, v = (p(x).unflatten(-1, (-1, d)).transpose(-3, -2) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        cos, sin = (r.unsqueeze(-3) for r in rotary)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """x: [..., n, hidden]; attended: [..., heads, n, d] -> predicted features [..., n, hidden]."""
        layer = self.layer
        x = x + layer.self_attn.o_proj(attended.transpose(-3, -2).flatten(-2))
        return x + layer.mlp(layer.post_attention_layernorm(x))


class EagleHead(Head):
    """The weights of an EAGLE-1/2 head."""

    def __init__(self, config: HeadConfig):
        super().__init__(config)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.bias)
        self.layers = nn.ModuleList([Layer(config, config.hidden_size)])  # a list of one, for the checkpoint's key names

    @property
    def layer(self) -> Layer:
        return cast(Layer, self.layers[0])

    def read(self, embedded: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        x = self.fc(torch.cat([embedded, given.to(embedded.dtype)], dim=-1))
        return x, x


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


class LMHead(Protocol):
    """The target's LM head: a module of transformers or `engine.layer.Linear`."""

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor: ...


class EagleDrafter:
    """Implements methods.base.Drafter with a head and the target's embedding and LM head.

    Keys and values of true features are kept across steps; those of a step's entries lie behind them and are dropped by
    the next `observe`, which runs the head on the accepted tokens' true features.
    """

    attend_over = staticmethod(attend_over)

    def __init__(
        self,
        head: EagleHead,
        embedding: Tensor,
        lm_head: LMHead,
        frequent: Tensor | None = None,
        packed: bool = True,
    ):
        """frequent: token ids, most frequent first; what `start(.., frequent=n)` takes its n from."""
        self.head, self.embedding, self._lm_head, self._frequent = head.eval(), embedding, lm_head, frequent
        self._logits: Callable[[Tensor], Tensor] = lm_head
        self._names: Tensor | None = None
        self._cut: dict[int, tuple[Any, Tensor]] = {}  # the rows of so many frequent tokens, and which they are
        self._packed = packed
        weight, c = head.fc.weight, head.config
        self.device, self.dtype = weight.device, weight.dtype
        self._clock = ForwardClock(self.device)
        self._group = c.num_attention_heads // c.num_key_value_heads
        self._fc = Linear(weight, head.fc.bias, packed=packed)
        self._layer = DecoderLayer(
            head.layer, c.num_attention_heads, c.num_key_value_heads, c.rms_norm_eps, input_norm=False, packed=packed
        )
        self._capacity = self._n_pairs = self._n_entries = self._level = 0
        self._hidden = torch.empty(0)  # [1 + entries, hidden]: what the head predicted after the root and each entry

    def start(self, room: int, frequent: int | None = None, first: int | None = None) -> None:
        c = self.head.config
        self._logits, self._names = self._columns(frequent)
        self._n_pairs = self._n_entries = self._level = 0
        if room > self._capacity:
            self._capacity = -(-room // 256) * 256
            shape = (c.num_key_value_heads, self._capacity, c.head_dim)
            self._keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
            self._values = torch.zeros(shape, dtype=self.dtype, device=self.device)
            self._cos, self._sin = rotary_rows(*self.head.rotary(torch.arange(self._capacity, device=self.device), self.dtype))

    def _columns(self, frequent: int | None) -> tuple[Any, Tensor | None]:
        """(the LM head of a generation, the tokens of its columns; None: all, in their order)."""
        return (self._lm_head, None) if frequent is None else self._cut_to(frequent)

    def _given(self, features: Tensor) -> Tensor:
        """Features of the target [m, ..] as states [m, hidden]."""
        return features

    def _read(self, hidden: Tensor) -> Tensor:
        """What the LM head reads of states [m, hidden] that the head predicted."""
        return hidden

    def _cut_to(self, n: int) -> tuple[Any, Tensor]:
        """The LM head's rows of the n most frequent tokens (FR-Spec, arXiv 2502.14856), of all listed if there are fewer."""
        if self._frequent is None or n < 1:
            raise ValueError(f"frequent={n}: it must be at least 1, and the draft head needs a list of frequent tokens")
        if n not in self._cut:
            names = self._frequent[:n].to(self.device)
            rows = self._lm_head.weight.detach()[names].contiguous()
            self._cut[n] = linear_beside(self._lm_head, rows, packed=self._packed), names
        return self._cut[n]

    def named(self, columns: Tensor) -> Tensor:
        return columns if self._names is None else self._names[columns]

    def _run(self, tokens: Tensor, features: Tensor, positions: Tensor, at: int, mask: Tensor | None) -> Tensor:
        """tokens [m], features [m, hidden], positions [m] -> predicted features [m, hidden]; keys written at `at`."""
        x = self._fc(torch.cat([F.embedding(tokens, self.embedding), features], dim=-1))
        attend = self.attend_over(self._keys, self._values, at, mask)
        return self._layer(x, (self._cos[positions], self._sin[positions]), attend)

    @torch.inference_mode()
    def observe(self, tokens: list[int], features: Tensor) -> None:
        at, m = self._n_pairs, len(tokens)
        mask = causal(m, at, self.dtype, self._group, self.device)
        with self._clock:
            ids = sent(tokens, self.device)
            out = self._run(ids, self._given(features.to(self.device)), torch.arange(at, at + m, device=self.device), at, mask)
            self._hidden = out[-1:]
        self._n_pairs, self._n_entries, self._level = at + m, 0, 0

    @property
    def forward_s(self) -> float:
        return self._clock.seconds

    def rewind(self, n: int) -> None:
        """Forget the last n observed pairs: for measuring a step at one place over and over."""
        self._n_pairs -= n

    @torch.inference_mode()
    def root_logits(self) -> Tensor:
        with self._clock:
            return self._logits(self._read(self._hidden[:1]))

    def best_children(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k likeliest children of each row and their log-probabilities: the head's own law, so its clock runs."""
        with self._clock:
            return best_children(logits, k)

    @torch.inference_mode()
    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        m, pairs = len(tokens), self._n_pairs
        mask = level_mask(sees, pairs, self.dtype, self._group, self.device)
        # a whole level shares one position: that of the pair (feature after the parent, this token)
        positions = torch.full((m,), pairs + self._level, device=self.device)
        with self._clock:
            features = self._hidden[sent(parents + 1, self.device)]
            out = self._run(sent(tokens, self.device), features, positions, pairs + self._n_entries, mask)
            logits = self._logits(self._read(out))
        self._hidden = torch.cat([self._hidden, out])
        self._n_entries += m
        self._level += 1
        return logits
