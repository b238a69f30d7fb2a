"""Whether a loaded target computes what its own module does: a tree, a kept path and a step against one plain forward.

Configs name much that decoding here leaves out, but not all of it. So every model runs a few tokens once, before anything is
measured. `cannot_verify` refuses by its config what shows in long texts alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from methods.engine.attention import grouped_attention
from methods.engine.engines import target_of
from methods.engine.target import HFTarget
from methods.engine.tree import Tree

# Largest share of a row's spread by which its logits may be off. Rounding alone makes about a tenth of it over two layers.
TOLERANCE = {"float64": 1e-5, "float32": 1e-4, "float16": 0.03, "bfloat16": 0.15}
MOST_LAYERS = 8  # that are run
TEXTS = 5  # In half precision rounding can send a token to another expert, which is no fault: one text of these must be right.

TREE, KEPT = ((-1, 0, 0, 2, 1), (0, 2, 3))  # parents; a path off the first rows, so that keys must be moved
PROMPT = 6  # tokens

HONOURED = ("dropout", "is_causal", "position_ids", "use_cache", "output_attentions")  # what attention may be given besides


def make_target(model: Any) -> HFTarget:
    """A model of transformers, with its weights, as a target.

    Raises:
        ValueError: it cannot be one: its modules have other names, or what it computes is not what its own forward does.
    """
    if bad := next((name for name, p in model.named_parameters() if not is_finite(p)), None):
        raise ValueError(f"its weights hold NaN or infinity ({bad})")
    try:
        target = target_of(model)
    except AttributeError as e:
        raise ValueError(f"its modules go by other names than LLaMA's ({e})") from e
    try:
        check(target)
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError) as e:
        said = f"{type(e).__name__}: {(str(e).splitlines() or ['?'])[0]}"
        raise ValueError(f"it cannot run a tree in {name_of(target.dtype)}: {said}") from e
    return target


def is_finite(tensor: Tensor) -> bool:
    """Whether no number in it is NaN or infinite. One pass, and no copy but of numbers of one byte."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    tensor = tensor.detach()
    return all(math.isfinite(end) for end in torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor))


def check(target: HFTarget) -> None:
    """
    Raises:
        ValueError: the target's logits are not those of its module, or the module asks for what decoding here leaves out.
    """
    most, n = TOLERANCE[name_of(target.dtype)], PROMPT + len(TREE) + 1
    with target.shallow(layers_of_each_kind(list(target.body.layers))):
        for text in range(TEXTS):
            off = deviation(target, [(7919 * i + 11) % target.vocab_size for i in range(text * n, text * n + n)])
            if off <= most:
                break
    target.cache.reserve(0)
    if off > most:
        raise ValueError(f"its logits in a tree are off its own forward by {off:.2g} of their spread ({most:g} is rounding)")


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def deviation(target: HFTarget, ids: list[int]) -> float:
    """How far a prefill, a tree, and a step after a kept path of it are off the module's forward, as a share of the spread."""
    prompt, nodes, last = ids[:PROMPT], ids[PROMPT:-1], ids[-1]
    with _watched(target) as asked:
        first = target.prefill(prompt, len(TREE) + 2)[1]
    if asked:
        raise ValueError(f"its attention is more than is honoured here ({', '.join(sorted(asked))})")
    rows = target.verify(Tree(nodes, list(TREE)))[1]
    target.commit(list(KEPT))
    found = torch.stack([first, *rows[list(KEPT)], target.step(last)]).double()
    wanted = _plain(target, [*prompt, *(nodes[i] for i in KEPT), last])[PROMPT - 1 :].double()
    if not (found.isfinite().all() and wanted.isfinite().all()):
        raise ValueError("its logits are NaN or infinite")
    return float(((found - wanted).pow(2).mean(dim=-1).sqrt() / wanted.std(dim=-1).clamp_min(1e-30)).max())


def layers_of_each_kind(layers: list[Any]) -> list[int]:
    """The first two layers of each kind: of one class, with the same classes and settings inside.

    Rounding grows with depth: over all layers of a model in bfloat16 it hides what is looked for.
    """
    seen: dict[object, list[int]] = {}
    for i, layer in enumerate(layers):
        inside = tuple((type(m), _settings(m)) for m in layer.modules())
        seen.setdefault(inside, []).append(i)
    return sorted(i for found in seen.values() for i in found[:2])[:MOST_LAYERS]


def _settings(module: Any) -> tuple[tuple[str, object], ...]:
    """What sets a module apart from others of its class, but for its place in the model."""
    plain = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | str) and not k.endswith(("idx", "id", "index"))}
    return tuple(sorted(plain.items()))


@torch.inference_mode()
def _plain(target: HFTarget, ids: list[int]) -> Tensor:
    """Logits [n, vocab] of the module's own forward, with transformers' plainest attention.

    Raises:
        ValueError: they are not what the LM head alone makes of the last hidden state.
    """
    model, before, head = target.model, target.model.config._attn_implementation, target.model.get_output_embeddings()
    read: list[Tensor] = []
    model.set_attn_implementation("eager")
    hook = head.register_forward_hook(lambda module, given, made: read.append(made))
    try:
        logits: Tensor = model(input_ids=torch.tensor([ids], device=target.device), use_cache=False).logits[0]
    finally:
        hook.remove()
        model.set_attn_implementation(before)
    if len(read) != 1 or not torch.equal(read[0].view_as(logits).to(logits.dtype), logits):
        raise ValueError("it changes its logits after the LM head, which decoding here would leave out")
    return logits.to(target.lm_head.weight.device)


_asked: set[str] = set()


@contextmanager
def _watched(target: HFTarget) -> Iterator[set[str]]:
    """What the module asks of its attention meanwhile, besides what is honoured: windows, caps, sinks, other masks."""
    _asked.clear()
    model, before = target.model, target.model.config._attn_implementation
    if before == "grouped":  # else the module does not run: LLaMA's lean forward does
        model.set_attn_implementation("watched")
    try:
        yield _asked
    finally:
        if before == "grouped":
            model.set_attn_implementation(before)


def _watched_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                       scaling: float | None = None, **others: Any) -> tuple[Tensor, None]:  # fmt: skip
    _asked.update(name for name, x in others.items() if x is not None and name not in HONOURED)
    return grouped_attention(module, query, key, value, attention_mask, scaling)


def _watched_mask(*args: Any, mask_function: Any = None, local_size: int | None = None, **_: Any) -> None:
    if local_size:
        _asked.add(f"a window of {local_size}")
    elif local_size is None and getattr(mask_function, "__name__", "") != "causal_mask_function":
        _asked.add("another mask than the causal one")


AttentionInterface.register("watched", _watched_attention)
AttentionMaskInterface.register("watched", _watched_mask)
