"""The engines a forward can be watched on: transformers' own module, the torch path, and one that shows its logits alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from harness.common.errors import UserError
from harness.load.model import Loaded
from harness.localise import ENGINES, ROW_INVARIANT
from harness.localise.tape import Operator
from methods.engine.attention import grouped_attention
from methods.engine.llama import LlamaTarget, is_lean
from methods.engine.native.target import NativeTarget
from methods.engine.row_invariant.target import RowInvariantTarget
from methods.engine.target import HFTarget
from methods.engine.tree import Tree, chain

LM_HEAD = Operator(None, "LM head")
ENTERING = "what enters"
DTYPES = ("float32", "bfloat16", "float16")  # of the row-invariant torch path
See = Callable[[Operator, Tensor], None]


class Watched:
    """An engine whose forwards show to `see` what their operators make. Of this class: the logits alone.

    title: what it is, for a reader. is_whole: every operator is shown, and may be overwritten while it is shown.
    """

    is_whole = False

    def __init__(self, target: HFTarget, title: str):
        self.target, self.title = target, title

    def watching(self, see: See) -> AbstractContextManager[None]:
        """Within it every forward of the target shows its operators."""
        return nullcontext()

    def step(self, token: int, see: See) -> Tensor:
        """One plain step -> logits [1, vocab]."""
        with self.watching(see):
            logits = self.target.step(token)[None]
        return self._shown(logits, see)

    def verify(self, tree: Tree, see: See) -> Tensor:
        """A forward over a tree, of which nothing is kept -> logits [n, vocab]."""
        with self.watching(see):
            _, logits = self.target.verify(tree)
        return self._shown(logits, see)

    @torch.inference_mode()
    def prefill(self, ids: list[int], room: int, see: See) -> Tensor:
        """A prefill into an empty cache -> logits of its last rows: of all [n, vocab] where the engine is whole, else [1, vocab].

        The LM head is called for one row at a time, as prefills do, and is not shown.
        """
        with self.watching(lambda operator, made: None if operator == LM_HEAD else see(operator, made)):
            features, last = self.target.prefill(ids, room)
        if not self.is_whole:
            return last[None]
        return torch.cat([self.target.lm_head(features[i : i + 1]) for i in range(len(ids))])

    def empty(self, room: int) -> None:
        """Forget every token; make room for so many."""
        self.target.cache.reserve(room)

    def rewind(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        self.target.cache.length = length

    def _shown(self, logits: Tensor, see: See) -> Tensor:
        if not self.is_whole:
            see(LM_HEAD, logits)
        return logits


class WatchedModule(Watched):
    """transformers' module, of any architecture, with the attention and the cache that decoding here gives it.

    Shown are what every module makes; what goes into those that hold no others, where it is not what one of them made (sums,
    products, the rotary embedding); and the attention.
    """

    is_whole = True

    @contextmanager
    def watching(self, see: See) -> Iterator[None]:
        body, before = self.target.body, self.target.model.config._attn_implementation
        hooks = []
        for path, module in [*body.named_modules(), ("LM head", self.target.lm_head)]:
            if not path or isinstance(module, nn.ModuleList):
                continue
            if module is not self.target.lm_head and not any(module.children()):
                hooks.append(module.register_forward_pre_hook(_entering(path, see), with_kwargs=True))
            hooks.append(module.register_forward_hook(_leaving(path, see)))
        _seen_by.append(see)
        self.target.model.set_attn_implementation("shown")
        try:
            yield
        finally:
            self.target.model.set_attn_implementation(before)
            _seen_by.pop()
            for hook in hooks:
                hook.remove()


def _entering(path: str, see: See) -> Callable[..., None]:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor):
                see(operator_at(path, f"{ENTERING} {{}}"), x)

    return hook


def _leaving(path: str, see: See) -> Callable[..., None]:
    def hook(module: Any, given: Any, made: Any) -> None:
        for x in made if isinstance(made, tuple | list) else (made,):
            if isinstance(x, Tensor):
                see(operator_at(path), x)

    return hook


@cache
def operator_at(path: str, form: str = "{}") -> Operator:
    """`layers.3.mlp.down_proj` -> layer 3's `mlp.down_proj`; `layers.3` -> its `output`."""
    first, _, rest = path.partition(".")
    number, _, name = rest.partition(".")
    if first == "layers" and number.isdecimal():
        return Operator(int(number), form.format(name or "output"))
    return Operator(None, form.format(path))


_seen_by: list[See] = []  # what watches now: the attention is called by its name, and is given nothing else


def _shown_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                     scaling: float | None = None, **_: Any) -> tuple[Tensor, None]:  # fmt: skip
    n, layer = query.shape[2], module.layer_idx
    _seen_by[-1](Operator(layer, "rotary of q"), query)
    _seen_by[-1](Operator(layer, "rotary of k"), key[:, :, -n:])  # as they lie in the cache
    attended, _none = grouped_attention(module, query, key, value, attention_mask, scaling)
    _seen_by[-1](Operator(layer, "attention"), attended)
    return attended, None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The target makes its masks itself."""


AttentionInterface.register("shown", _shown_attention)
AttentionMaskInterface.register("shown", _no_mask)


class WatchedLlama(Watched):
    """The torch path: `LlamaTarget`, whose operators are few and fused."""

    is_whole = True
    target: LlamaTarget

    @contextmanager
    def watching(self, see: See) -> Iterator[None]:
        target, names = self.target, ("_layers", "_norm", "lm_head")
        before = {name: getattr(target, name) for name in names}
        target._layers = [_watched_layer(layer, i, see) for i, layer in enumerate(target._layers)]
        target._norm = _watched(target._norm, Operator(None, "final norm"), see)
        target.lm_head = _watched(target.lm_head, LM_HEAD, see)
        try:
            yield
        finally:
            for name in names:
                setattr(target, name, before[name])


FUSED = {  # the operators of `DecoderLayer`, and what they compute
    "norm1": "input norm", "qkv": "qkv projection", "o": "o projection + residual", "norm2": "norm after attention",
    "gate": "gate projection, SiLU", "up": "up projection x gate", "down": "down projection + residual",
}  # fmt: skip


def _watched(compute: Any, operator: Operator, see: See) -> Any:
    def computed(*args: Any, **kwargs: Any) -> Tensor:
        made: Tensor = compute(*args, **kwargs)
        see(operator, made)
        return made

    return computed


def _watched_layer(layer: Any, i: int, see: See) -> Any:
    """The same layer, its operators watched: `DecoderLayer.__call__` on other attributes."""
    layer = copy.copy(layer)
    for attribute, name in FUSED.items():
        setattr(layer, attribute, _watched(getattr(layer, attribute), Operator(i, name), see))

    def called(x: Tensor, rotary: tuple[Tensor, Tensor], attend: Callable[..., Tensor]) -> Tensor:
        def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            see(Operator(i, "rotary of q"), q)
            see(Operator(i, "rotary of k"), k)
            made = attend(q, k, v)
            see(Operator(i, "attention"), made)
            return made

        made: Tensor = layer(x, rotary, attended)
        return made

    return called


class WatchedNative(Watched):
    """The native engine, which shows every operator of a step and of a tree; nothing in it can be overwritten."""

    target: NativeTarget

    def step(self, token: int, see: See) -> Tensor:
        logits = self._tapped(Tree([token], [-1]), see)
        self.target.commit([0])
        return logits

    def verify(self, tree: Tree, see: See) -> Tensor:
        return self._tapped(tree, see)

    @torch.inference_mode()
    def prefill(self, ids: list[int], room: int, see: See) -> Tensor:
        self.empty(len(ids) + room)
        self._tapped(chain(ids[0], ids[1:]), lambda operator, made: None if operator == LM_HEAD else see(operator, made))
        features, _ = self.target.prefill(ids, room)
        return self.target.lm_head(features)

    def empty(self, room: int) -> None:
        self.target.reserve(room)

    def _tapped(self, tree: Tree, see: See) -> Tensor:
        *operators, (_, logits) = self.target.tapped(tree).items()
        for name, made in operators:
            layer, _, operator = name.partition(".")
            see(Operator(int(layer) if operator != "final norm" else None, operator), made)
        see(LM_HEAD, logits)
        return logits


def engines(loaded: Loaded, name: str) -> list[tuple[str, Watched]]:
    """The engines of that name; of `all`, those that this model can have, and the row-invariant one where it is the model's own.

    Raises:
        UserError: the model cannot have the one that is named.
    """
    if name != "all":
        return [(name, _engine(loaded, name))]
    own = (ROW_INVARIANT,) if isinstance(loaded.target, RowInvariantTarget) else ()
    return [(one, _engine(loaded, one)) for one in (*own, *ENGINES) if why_not(loaded, one) is None]


def why_not(loaded: Loaded, name: str) -> str | None:
    """Why this model cannot run on an engine; None where it can."""
    target = loaded.target
    if name == ROW_INVARIANT and not RowInvariantTarget.runs(target.model):
        return f"it is for plain LLaMA models in {', '.join(DTYPES)}, not for {type(target.model).__name__} in {loaded.dtype}"
    if name == "native" and (isinstance(target, RowInvariantTarget) or not target.is_row_invariant):
        return f"it runs on another here ({loaded.identity.engine})"
    if name == "torch" and not is_lean(target.model):
        what = f"{type(target.model).__name__} in {loaded.dtype} on {target.device.type}"
        return f"it is for plain LLaMA models in float32 or bfloat16 on a CPU, not for {what}"
    return None


def _engine(loaded: Loaded, name: str) -> Watched:
    if why := why_not(loaded, name):
        raise UserError(f"engine {name}: model {loaded.config.name} cannot have it: {why}")
    target = loaded.target
    if name == "native":
        shows = isinstance(target, NativeTarget)
        return (WatchedNative if shows else Watched)(target, "the native engine")
    if name == "torch":  # of its kind alone: others are made of it
        return WatchedLlama(target if type(target) is LlamaTarget else LlamaTarget(target.model), "the torch path")
    if name == ROW_INVARIANT:
        own = target if isinstance(target, RowInvariantTarget) else RowInvariantTarget(target.model)
        return WatchedLlama(own, "the row-invariant torch path")
    module = target if type(target) is HFTarget else HFTarget(target.model)
    return WatchedModule(module, f"transformers' {type(target.model).__name__}")
