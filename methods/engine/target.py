"""A Hugging Face causal LM as the target: prefill, one plain step, verify a tree, commit a path. It owns its KV cache."""

from __future__ import annotations

import copy
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, GenerationConfig, __version__

from methods.engine.attention import grouped_attention
from methods.engine.cache import TreeCache
from methods.engine.clock import ForwardClock
from methods.engine.transfer import sent
from methods.engine.tree import Tree


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Masks are built here, once a forward, not by transformers once a model call."""


AttentionInterface.register("grouped", grouped_attention)
AttentionMaskInterface.register("grouped", _no_mask)

FIXED_ROPE = ("default", "linear", "llama3", "yarn", "proportional")  # types whose table is the same at every length


def cannot_verify(config: Any, kind: Any = None) -> str | None:
    """Why trees cannot be verified with a model of transformers, by its config and class; None where neither says so.

    What shows in a few tokens need not be here: `harness.load.self_check` finds it. What shows in long texts alone must be.
    """
    layers = {str(x) for name in ("layer_types", "layers_block_type") for x in getattr(config, name, None) or ()}
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "models with a sliding window cannot verify trees here: the path kept may leave the window"
    if chunk := getattr(config, "attention_chunk_size", None):
        return f"it attends in chunks (attention_chunk_size = {chunk}), which a tree may cross"
    if odd := sorted(layers - {"full_attention", "attention"}):
        return f"it has layers of other kinds than full attention ({', '.join(odd)}), which cannot keep one path of a tree"
    if getattr(kind, "_is_stateful", False):
        return "it keeps a recurrent state, which cannot keep one path of a tree"
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if rank := getattr(config, "kv_lora_rank", None):
        return f"it compresses its keys and values (multi-head latent attention, kv_lora_rank = {rank})"
    if getattr(config, "alibi", False):
        return "it adds ALiBi's biases to the attention, which follow places in the cache and not positions in the text"
    rope = getattr(config, "rope_parameters", None) or {}
    for found in rope.values() if rope and all(isinstance(x, dict) for x in rope.values()) else [rope]:
        if (name := found.get("rope_type", "default")) not in FIXED_ROPE:
            return f"its rotary table depends on the length (rope_type {name!r}; fixed are {', '.join(FIXED_ROPE)})"
    if (prefix := getattr(kind, "base_model_prefix", "model")) != "model":
        return f"its modules go by other names than LLaMA's ({prefix!r} where LLaMA has 'model')"
    return None


@contextmanager
def given_to(layers: Any, numbers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Meanwhile what those layers of a module are given is noted: number -> hidden states [n, hidden]. Others are left out."""
    found: dict[int, Tensor] = {}

    def note(number: int, args: Any, kwargs: Any) -> None:
        found[number] = (args[0] if args else kwargs["hidden_states"])[0]

    hooks = [
        layers[i].register_forward_pre_hook(lambda _, args, kwargs, i=i: note(i, args, kwargs), with_kwargs=True)
        for i in numbers if i < len(layers)
    ]  # fmt: skip
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class HFTarget:
    """Implements methods.base.Target for decoder-only models of transformers: LLaMA's names, full attention in every layer."""

    is_row_invariant = False
    """Whether a row of any forward has the very bits that plain decoding of its path gives it."""
    notice: str | None = None
    """One line for the user on the engine that was taken, where there is something to say."""
    mode: Literal["eager", "graphs"] = "eager"
    """How steps are launched: call by call, or as CUDA graphs."""
    aux_layers: tuple[int, ...] = ()
    """The hidden states that forwards give as features since the last prefill: see `methods.base.Target.prefill`."""
    pages: str | None = None
    """Of what size the memory is in that the weights lie in (`methods.engine.native.pages`), set where that was asked for."""

    def __init__(self, model: Any):
        config = model.config
        if why := cannot_verify(config, type(model)):
            raise ValueError(why)
        model.eval()
        model.generation_config = GenerationConfig()  # no penalties or samplers of a repository's own in `hf-generate`
        model.set_attn_implementation("grouped")
        self.model, self.body, self.lm_head = model, model.model, model.get_output_embeddings()
        self.embedding: Tensor = model.get_input_embeddings().weight
        self.device, self.dtype = self.embedding.device, model.dtype
        self.vocab_size: int = config.vocab_size
        heads = config.num_attention_heads
        self._kv_heads = getattr(config, "num_key_value_heads", None) or heads
        self._group = heads // self._kv_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        of_layers = [next(layer.parameters()).device for layer in self.body.layers]
        self.devices = tuple(dict.fromkeys([self.device, *of_layers]))  # several where layers are spread over GPUs
        self.cache = TreeCache(of_layers, self._kv_heads, head_dim, model.dtype)
        self._clock = ForwardClock(self.devices[-1])
        self._n_pending = 0

    @classmethod
    def engine_in(cls, model: Any, dtype: torch.dtype) -> str:
        """Whose forward runs a module of transformers in `dtype`, in short words. It is part of the target's identity."""
        return f"transformers {__version__} {type(model).__name__}"

    @property
    def runs_module(self) -> bool:
        """Whether its forwards are those of transformers' module."""
        return True

    def decoding(self) -> AbstractContextManager[None]:
        """What a method decodes inside of, so that nothing between the forwards slows them."""
        return nullcontext()

    @property
    def engine(self) -> str:
        """Whose forward runs here, in short words."""
        return self.engine_in(self.model, self.dtype)

    @property
    def engine_facts(self) -> dict[str, Any]:
        """What else a run's environment tells of the engine, as plain JSON: see `harness.common.machine.describe`."""
        return {} if self.pages is None else {"pages": self.pages}

    @cached_property
    def stock_model(self) -> Any:
        """The module with transformers' own attention, on the same weights: what its own `generate` is measured with.

        A copy that shares every tensor: switching the module itself to and fro would be timed with each generation.
        """
        tensors = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        model = copy.deepcopy(self.model, tensors)
        model.set_attn_implementation("sdpa")
        return model

    @contextmanager
    def shallow(self, layers: list[int]) -> Iterator[None]:
        """Only these of its layers for a while, here and in transformers' module."""
        every = self.body.layers
        self.body.layers = torch.nn.ModuleList([every[i] for i in layers])
        try:
            yield
        finally:
            self.body.layers = every

    def synchronise(self) -> None:
        """Wait for every device, so that the clock reads finished work."""
        if self.device.type == "cuda":
            for device in self.devices:
                torch.cuda.synchronize(device)

    def reset_peak(self) -> None:
        """Let `peak_bytes` begin anew with what is allocated now, on GPUs. A process's own peak cannot be taken back."""
        if self.device.type == "cuda":
            for device in self.devices:
                torch.cuda.reset_peak_memory_stats(device)

    def peak_bytes(self) -> int:
        """Peak memory since `reset_peak`, summed over the GPUs where there are any; else of the process so far."""
        if self.device.type == "cuda":
            return sum(torch.cuda.max_memory_allocated(device) for device in self.devices)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    @property
    def forward_s(self) -> float:
        return self._clock.seconds

    @property
    def length(self) -> int:
        return self.cache.length

    def _forward(self, ids: list[int], positions: Tensor, mask: Tensor | None) -> Tensor:
        """-> [n, (1 + len(aux_layers)) * hidden]: the last hidden state after the final norm, and those of `aux_layers`."""
        with given_to(self.body.layers, self.aux_layers) as states:
            out = self.body(
                input_ids=sent([ids], self.device),
                position_ids=positions[None],
                attention_mask=mask,
                past_key_values=self.cache,
                use_cache=True,
            )
        last: Tensor = out.last_hidden_state[0]
        return self._beside(last, states)

    def _beside(self, last: Tensor, states: dict[int, Tensor]) -> Tensor:
        """last [n, hidden], and the states of `aux_layers` behind it. states: by number, but for the last one."""
        if not self.aux_layers:
            return last
        return torch.cat([last, *(states[i].to(last.device) if i in states else last for i in self.aux_layers)], dim=-1)

    def _parted(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What `_forward` gave -> (what the LM head reads [n, hidden], what is given as features)."""
        if not self.aux_layers:
            return rows, rows
        hidden = self.embedding.shape[1]
        return rows[:, :hidden].contiguous(), rows[:, hidden:]

    def _observe(self, aux_layers: Sequence[int]) -> None:
        """Begin a text whose features are those hidden states.

        Raises:
            ValueError: there is no such state.
        """
        n = len(self.body.layers)
        if bad := [i for i in aux_layers if not 0 <= i <= n]:
            raise ValueError(f"hidden state {bad[0]} was asked for; a target of {n} layers has those from 0 to {n}")
        self.aux_layers = tuple(aux_layers)

    @torch.inference_mode()
    def prefill(self, prompt_ids: list[int], room: int, aux_layers: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        self._observe(aux_layers)
        with self._clock:
            self.cache.reserve(len(prompt_ids) + room)
            rows = self._forward(prompt_ids, torch.arange(len(prompt_ids), device=self.device), None)
            self.cache.append(len(prompt_ids))
            last, features = self._parted(rows)
            logits = self.lm_head(last[-1:])[0]
        return features, logits

    @torch.inference_mode()
    def step(self, token: int) -> Tensor:
        with self._clock:
            rows = self._forward([token], torch.full((1,), self.cache.length, device=self.device), None)
            self.cache.append(1)
            logits: Tensor = self.lm_head(self._parted(rows)[0])[0]
        return logits

    @torch.inference_mode()
    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        length, n = self.cache.length, len(tree)
        blocked = ~tree.ancestors()
        mask = torch.zeros(n, length + n, dtype=self.dtype)
        mask[:, length:].masked_fill_(blocked, torch.finfo(self.dtype).min)  # additive: bool masks are wrong under eager
        mask = sent(mask.repeat(self._group, 1)[None, None], self.device)
        positions = length + sent(tree.depths(), self.device)
        with self._clock:
            last, features = self._parted(self._forward(tree.tokens, positions, mask))
            logits = self.lm_head(last)
        self._n_pending = n
        return features, logits

    @torch.inference_mode()
    def commit(self, path: list[int]) -> None:
        if not path or path[0] != 0 or path[-1] >= self._n_pending:
            raise ValueError(f"path {path} is not one of the {self._n_pending} nodes last verified")
        self._keep(path)
        self._n_pending = 0

    def _keep(self, path: list[int]) -> None:
        self.cache.keep(path)
