"""The EAGLE-3 draft head (Li et al., arXiv 2503.01840): hidden states of the target and the next token -> the token after it.

Facts that trained checkpoints rely on (SafeAILab's release, SpecForge, vLLM):
- `fc` fuses three of the target's hidden states, low to high, to the state h of a pair; by default those that layers 2, n/2 and
  n - 3 are given. There is no loss on features: h is whatever helps;
- attention reads [input_layernorm(embedding); hidden_norm(h)], the residual is h as it is; embeddings are the target's own;
- logits are `lm_head(norm(.))` of the layer's output, over a draft vocabulary: column i is token i + d2t[i]. That output without
  the norm is the state of the pairs that hang on it;
- the rotary position of the pair (h_i, t_{i+1}) is i, as in EAGLE.

Checkpoint layout: `model.safetensors` with `fc`, `midlayer.*`, `norm`, `lm_head`, `d2t`, `t2d`; `config.json`. Loading is strict.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.engine.draft_head import EagleDrafter, Head, HeadConfig, Layer, LMHead, RMSNorm
from methods.engine.layer import Norm, linear_beside

N_STATES = 3


def default_layers(n: int) -> tuple[int, ...]:
    """The hidden states that a head for a target of n layers reads where its config names none.

    Raises:
        ValueError: the target is too shallow to have three such.
    """
    found = (2, n // 2, n - 3)
    if not 2 < n // 2 < n - 3:
        raise ValueError(f"a target of {n} layers has no usual three (2, {n // 2}, {n - 3}): name them")
    return found


def is_usual(layers: tuple[int, ...], n: int) -> bool:
    """Whether these are the hidden states that everybody takes of a target of n layers where none are named."""
    try:
        return layers == default_layers(n)
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Eagle3Config(HeadConfig):
    """Sizes and choices of a head. `hidden_size`: the target's, too.

    aux_layers: which hidden states it reads, by transformers' numbers. fc_norm: each of them is normed before `fc`;
    norm_before_fc: all of them together are. norm_output: a drafted pair's state is normed, too (vLLM's meaning of the word).
    norm_before_residual: the residual is the normed state. n_layers: of the target, for the record; 0: not known.
    """

    bias: bool = False
    draft_vocab_size: int = 0
    aux_layers: tuple[int, ...] = ()
    fc_norm: bool = False
    norm_before_fc: bool = False
    norm_output: bool = False
    norm_before_residual: bool = False
    n_layers: int = field(default=0, compare=False)


class MidLayer(Layer):
    """The layer, whose attention reads an embedding and a state."""

    def __init__(self, c: Eagle3Config):
        super().__init__(c, 2 * c.hidden_size)
        self.hidden_norm, self.input_layernorm = (RMSNorm(c.hidden_size, c.rms_norm_eps) for _ in range(2))


class Eagle3Head(Head):
    """The weights of an EAGLE-3 head, by their names on the disk."""

    config: Eagle3Config

    def __init__(self, config: Eagle3Config):
        super().__init__(config)
        hidden, eps, wide = config.hidden_size, config.rms_norm_eps, len(config.aux_layers) * config.hidden_size
        self.fc = nn.Linear(wide, hidden, bias=config.bias)
        self.fc_norm = nn.ModuleList(RMSNorm(hidden, eps) for _ in config.aux_layers if config.fc_norm)
        self.input_norm = RMSNorm(wide, eps) if config.norm_before_fc else None
        self.midlayer = MidLayer(config)
        self.norm = RMSNorm(hidden, eps)
        self.lm_head = nn.Linear(hidden, config.draft_vocab_size, bias=False)
        self.d2t: Tensor
        self.t2d: Tensor
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.long))
        self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))

    @property
    def layer(self) -> MidLayer:
        return self.midlayer

    @property
    def tokens(self) -> Tensor:
        """[draft_vocab_size]: the draft vocabulary, ascending."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def draft_over(self, tokens: Tensor) -> None:
        """Make these ids [draft_vocab_size], each once, the draft vocabulary."""
        tokens = tokens.sort().values.to(self.d2t.device)
        self.d2t.copy_(tokens - torch.arange(len(tokens), device=tokens.device))
        self.t2d.zero_()
        self.t2d[tokens] = True

    def fused(self, features: Tensor) -> Tensor:
        """features [.., n, aux_layers * hidden]: the hidden states side by side -> [.., n, hidden]."""
        features = features.to(self.fc.weight.dtype)
        if self.input_norm is not None:
            features = self.input_norm(features)
        if self.fc_norm:
            states = features.split(self.config.hidden_size, dim=-1)
            features = torch.cat([norm(x) for norm, x in zip(self.fc_norm, states, strict=True)], dim=-1)
        fused: Tensor = self.fc(features)
        return fused

    def read(self, embedded: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.midlayer.hidden_norm(given)
        both = torch.cat([self.midlayer.input_layernorm(embedded), normed.to(embedded.dtype)], dim=-1)
        return normed if self.config.norm_before_residual else given, both

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """As `Head.finish`; -> the states that pairs hang on."""
        out = super().finish(x, attended)
        return self.norm(out) if self.config.norm_output else out

    def readable(self, states: Tensor) -> Tensor:
        """What the LM head reads of states [.., hidden]."""
        return states if self.config.norm_output else self.norm(states)


class Eagle3Drafter(EagleDrafter):
    """Implements methods.base.Drafter with an EAGLE-3 head. It observes the target's hidden states `aux_layers`."""

    head: Eagle3Head  # type: ignore[assignment]

    def __init__(self, head: Eagle3Head, embedding: Tensor, lm_head: LMHead, packed: bool = True):
        """lm_head: the target's, on whose engine the head's own is."""
        own = linear_beside(lm_head, head.lm_head.weight.detach(), packed=packed)
        super().__init__(head, embedding, own, None, packed)  # type: ignore[arg-type]
        c, layer = head.config, head.midlayer
        self.aux_layers = c.aux_layers
        self._tokens = head.tokens

        def norm(module: RMSNorm) -> Any:
            return Norm(module.weight, c.rms_norm_eps, packed)

        self._embedding_norm, self._hidden_norm, self._norm = map(norm, (layer.input_layernorm, layer.hidden_norm, head.norm))
        self._input_norm = None if head.input_norm is None else norm(head.input_norm)
        self._state_norms = [norm(module) for module in head.fc_norm]  # type: ignore[arg-type]

    def _columns(self, frequent: int | None) -> tuple[Any, Tensor]:
        if frequent is not None:
            raise ValueError(
                f"frequent={frequent}: an EAGLE-3 head drafts over its own vocabulary of {len(self._tokens):,} tokens"
            )
        return self._lm_head, self._tokens

    def _given(self, features: Tensor) -> Tensor:
        if self._input_norm is not None:
            features = self._input_norm(features)
        if self._state_norms:
            states = features.split(self.head.config.hidden_size, dim=-1)
            features = torch.cat([norm(x) for norm, x in zip(self._state_norms, states, strict=True)], dim=-1)
        return self._fc(features)

    def _read(self, hidden: Tensor) -> Tensor:
        return hidden if self.head.config.norm_output else self._norm(hidden)

    def _run(self, tokens: Tensor, features: Tensor, positions: Tensor, at: int, mask: Tensor | None) -> Tensor:
        c, normed = self.head.config, self._hidden_norm(features)
        both = torch.cat([self._embedding_norm(F.embedding(tokens, self.embedding)), normed], dim=-1)
        attend = self.attend_over(self._keys, self._values, at, mask)
        x = normed if c.norm_before_residual else features
        out = self._layer(x, (self._cos[positions], self._sin[positions]), attend, both)
        return self._norm(out) if c.norm_output else out
