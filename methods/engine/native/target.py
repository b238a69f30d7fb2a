"""A plain LLaMA as the target, on the native engine: every row's numbers are those of plain decoding, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from methods.engine.llama import is_lean
from methods.engine.native import build, library, pages
from methods.engine.native.library import NativeLinear, NativeModel, torch_on_one_thread
from methods.engine.target import HFTarget
from methods.engine.tree import Tree


class NativeTarget(HFTarget):
    """`HFTarget` with the C forward. Features and logits are float32 in either dtype: they are never rounded to bfloat16."""

    is_row_invariant = True

    def __init__(self, model: Any, path: str | None = None):
        """path: the machine code, one of `build.PATHS`; what the environment asks for if None, else the best here.

        Raises:
            ValueError: the model is no plain LLaMA on the CPU.
            build.NoNativeEngine: nothing can be compiled or run here.
        """
        super().__init__(model)
        if self.device.type != "cpu" or not is_lean(model):
            raise ValueError(f"{type(model).__name__} with these settings has no native forward")
        model.set_attn_implementation("sdpa")  # the module itself only serves transformers' own `generate`
        c = model.config
        self.path = path or build.asked_path() or build.best_path()
        self.library = library.functions(self.path)
        heads, head_dim = c.num_attention_heads, self.cache.head_dim
        self.lm_head = NativeLinear(self.lm_head.weight, library=self.library)
        self.native = NativeModel(
            list(self.body.layers), self.embedding, heads=heads, kv_heads=self._kv_heads, head_dim=head_dim, eps=c.rms_norm_eps,
            final_norm=self.body.norm.weight, library=self.library,
        )  # fmt: skip
        self.cache: Any = self.native.new_cache()

    @classmethod
    def engine_in(cls, model: Any, dtype: torch.dtype) -> str:
        return f"native {build.asked_path() or build.best_path()}"

    @property
    def runs_module(self) -> bool:
        return False

    @property
    def engine(self) -> str:
        return f"native {self.path}"

    @property
    def engine_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"native": build.describe(self.path)}
        if pages.matter(self.model):
            facts["pages"] = pages.in_words(pages.granted(self.lm_head._panels))
        return facts

    @property
    def weight_bytes(self) -> int:
        """What a plain step reads: all layers and the LM head."""
        return self.native.bytes + self.lm_head.bytes

    @property
    def stock_model(self) -> Any:
        return self.model  # which never has another attention

    @contextmanager
    def shallow(self, layers: list[int]) -> Iterator[None]:
        every = list(range(len(self.body.layers)))
        self.native.only(layers)
        try:
            with super().shallow(layers):
                yield
        finally:
            self.native.only(every)

    def decoding(self) -> AbstractContextManager[None]:
        return torch_on_one_thread()

    def reserve(self, capacity: int) -> None:
        """Empty the cache and make room for so many tokens, nodes of a tree included."""
        self.native.reserve(self.cache, capacity, self._rotary)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.body.rotary_emb(torch.empty(0), positions[None])
        return cos[0], sin[0]

    @torch.inference_mode()
    def prefill(self, prompt_ids: list[int], room: int, aux_layers: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        self._observe(aux_layers)
        with self._clock:
            self.reserve(len(prompt_ids) + room)
            features, logits = self.native.run(
                self.cache, torch.tensor(prompt_ids), None, self.lm_head, 1, states=self.aux_layers
            )
        return features, logits[0]

    @torch.inference_mode()
    def step(self, token: int) -> Tensor:
        with self._clock:
            logits = self.native.run(self.cache, torch.tensor([token]), None, self.lm_head)[1]
        return logits[0]

    @torch.inference_mode()
    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        ids, parents = torch.tensor(tree.tokens), torch.tensor(tree.parents)
        with self._clock:
            self.cache.n_waiting = 0
            features, logits = self.native.run(self.cache, ids, parents, self.lm_head, states=self.aux_layers)
        self._n_pending = len(tree)
        return features, logits

    @torch.inference_mode()
    def tapped(self, tree: Tree) -> dict[str, Tensor]:
        """What every operator gives for the nodes of a tree: "layer.operator" -> [nodes, size], in order; the logits last."""
        sizes, n = self.native.tap_sizes(), len(tree)
        taps = torch.empty(n * sum(sizes.values()))
        self.cache.n_waiting = 0
        _, logits = self.native.run(self.cache, torch.tensor(tree.tokens), torch.tensor(tree.parents), self.lm_head, taps=taps)
        self._n_pending = n
        found = dict(zip(sizes, taps.split([n * size for size in sizes.values()]), strict=True))
        return {name: x.view(n, -1) for name, x in found.items()} | {f"{self.native.c.n_layers}.logits": logits}

    @torch.inference_mode()
    def commit(self, path: list[int]) -> None:
        if not path or path[0] != 0 or path[-1] >= self._n_pending:
            raise ValueError(f"path {path} is not one of the {self._n_pending} nodes last verified")
        self.native.commit(self.cache, path)
        self._n_pending = 0
