"""Drafters on the native engine: EAGLE heads and the draft LM, a level of the tree in one call.

They draft what the torch ones do, but for rounding. A node's logits do not depend on what other nodes are run beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from methods.base import SamplerParams
from methods.engine.draft_head import EagleDrafter, EagleHead
from methods.engine.draft_lm import LMDrafter
from methods.engine.eagle3 import Eagle3Drafter, Eagle3Head
from methods.engine.native.library import (
    NORMED_RESIDUAL,
    RAW_HIDDEN,
    Laws,
    NativeLinear,
    NativeModel,
    NativeNorm,
    best_children,
    draws,
)
from methods.engine.sampling import drawn_children


class _Draws:
    """Sampled drafts, drawn in C from the logits themselves: no law is made but those that verification asks for."""

    _native: NativeModel

    def drawn_children(self, logits: Tensor, u: Tensor, params: SamplerParams) -> tuple[Tensor, Any]:
        if params.top_p < 1:  # a nucleus is found by sorting
            return drawn_children(logits, u, params)
        library = self._native.library
        return draws(library, logits, params.temperature, u), Laws(library, logits, params.temperature)


class _Head(_Draws):
    """What the EAGLE heads' drafters have in common. Features, states and logits are float32 in either dtype."""

    reads_masks = False
    head: Any
    _clock: Any
    _names: Tensor | None
    _columns: Any
    _layer: Any
    _given: Callable[[Tensor], Tensor]
    _read: Callable[[Tensor], Tensor]

    def _run_by(self, native: NativeModel) -> None:
        self._native, self._cache = native, native.new_cache()
        self._hidden = torch.empty(0)
        del self._layer  # whose copy of q, k and v would lie beside the panels of ours

    def start(self, room: int, frequent: int | None = None, first: int | None = None) -> None:
        self._head, self._names = self._columns(frequent)
        self._native.reserve(self._cache, room, lambda positions: self.head.rotary(positions, torch.float32))

    @torch.inference_mode()
    def observe(self, tokens: list[int], features: Tensor) -> None:
        with self._clock:
            self._cache.n_waiting = 0
            out, _ = self._native.run(self._cache, torch.tensor(tokens), None, None, features=self._given(features))
        self._hidden = out[-1:]

    def rewind(self, n: int) -> None:
        self._cache.length -= n

    @torch.inference_mode()
    def root_logits(self) -> Tensor:
        with self._clock:
            logits: Tensor = self._head(self._read(self._hidden[:1]))
        return logits

    def best_children(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        with self._clock:
            return best_children(self._native.library, logits, min(k, logits.shape[1]))

    @torch.inference_mode()
    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        with self._clock:
            # by NumPy: torch shares such a gather among its threads, which then spin on the CPUs of ours
            features = torch.from_numpy(self._hidden.numpy()[parents.numpy() + 1])
            out, logits = self._native.run(self._cache, tokens, parents, self._head, features=features)
        self._hidden = torch.cat([self._hidden, out])
        return logits

    @torch.inference_mode()
    def hang(self, tokens: list[int], features: Tensor) -> Tensor:
        """Further pairs as entries, each on the one before: drafts may then hang on any of them. -> logits after each [m,
        columns].

        tokens [m], features [m, ..]: as of `observe`, which they follow. Drafts over many places of one text are so one tree.
        """
        first = self._cache.n_waiting
        parents = torch.arange(first - 1, first - 1 + len(tokens))
        with self._clock:
            given = self._given(features)
            out, logits = self._native.run(self._cache, torch.tensor(tokens), parents, self._head, features=given)
        self._hidden = torch.cat([self._hidden, out])
        return logits

    @property
    def n_entries(self) -> int:
        return self._cache.n_waiting

    def drop_entries(self, n: int) -> None:
        """Drop all entries but the first n."""
        self._cache.n_waiting, self._hidden = n, self._hidden[: n + 1]


class NativeEagleDrafter(_Head, EagleDrafter):
    """`EagleDrafter` with the C forward."""

    def __init__(self, head: EagleHead, embedding: Tensor, lm_head: NativeLinear, frequent: Tensor | None = None):
        super().__init__(head, embedding, lm_head, frequent, packed=False)
        c = head.config
        self._run_by(NativeModel(
            [head.layer], embedding, heads=c.num_attention_heads, kv_heads=c.num_key_value_heads, head_dim=c.head_dim,
            eps=c.rms_norm_eps, fc=NativeLinear(head.fc.weight, head.fc.bias, lm_head.library), library=lm_head.library,
        ))  # fmt: skip


class NativeEagle3Drafter(_Head, Eagle3Drafter):
    """`Eagle3Drafter` with the C forward: what it observes is fused first, and then runs as drafts do."""

    def __init__(self, head: Eagle3Head, embedding: Tensor, lm_head: NativeLinear):
        super().__init__(head, embedding, lm_head, packed=False)
        c, library = head.config, lm_head.library
        flags = (NORMED_RESIDUAL if c.norm_before_residual else 0) | (0 if c.norm_output else RAW_HIDDEN)
        self._run_by(NativeModel(
            [head.midlayer], embedding, heads=c.num_attention_heads, kv_heads=c.num_key_value_heads, head_dim=c.head_dim,
            eps=c.rms_norm_eps, final_norm=head.norm.weight, flags=flags, library=library,
        ))  # fmt: skip

        def norm(module: Any) -> Any:
            return NativeNorm(module.weight, c.rms_norm_eps, library)

        self._fc: Any = NativeLinear(head.fc.weight, head.fc.bias, library)
        self._norm = norm(head.norm)
        self._input_norm = None if head.input_norm is None else norm(head.input_norm)
        self._state_norms = [norm(module) for module in head.fc_norm]


class NativeLMDrafter(_Draws, LMDrafter):
    """`LMDrafter` with the C forward. Logits are float32 in either dtype."""

    def __init__(self, model: Any, library: Any):
        super().__init__(model, packed=False)
        c = model.config
        self._native = NativeModel(
            list(model.model.layers), self.embedding, heads=c.num_attention_heads, kv_heads=self._kv_heads,
            head_dim=self._head_dim, eps=c.rms_norm_eps, final_norm=model.model.norm.weight, library=library,
        )  # fmt: skip
        self._cache = self._native.new_cache()
        self._head = NativeLinear(model.lm_head.weight, library=library)

    def start(self, room: int, frequent: int | None = None, first: int | None = None) -> None:
        super().start(0, frequent, first)
        self._native.reserve(self._cache, room + 1, self._rotary)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.model.model.rotary_emb(torch.empty(0), positions[None])
        return cos[0], sin[0]

    @torch.inference_mode()
    def observe(self, tokens: list[int], features: Tensor) -> None:
        path = self._known(tokens)
        ids = [*self._unread, *tokens[len(path) :]]
        with self._clock:
            self._native.commit(self._cache, path)
            out, _ = self._native.run(self._cache, torch.tensor(ids), None, None)
            self._hidden = out[-1:]
        self._unread, self._n_entries = [], 0
        self._levels.clear()

    def rewind(self, n: int) -> None:
        self._cache.length -= n

    @torch.inference_mode()
    def root_logits(self) -> Tensor:
        with self._clock:
            return self._head(self._hidden)

    @torch.inference_mode()
    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        self._note(tokens, parents)
        with self._clock:
            return self._native.run(self._cache, tokens, parents, self._head)[1]
