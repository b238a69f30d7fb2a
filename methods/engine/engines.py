"""Which engine runs a model: the native one where it can, else torch's kernels, else transformers' own module.

`HARNESS_ENGINE` chooses another: `native`, `native:PATH` (a kind of machine code, `methods.engine.native.build.PATHS`), `torch`
or `module`.
"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from methods.engine.draft_head import EagleDrafter, EagleHead
from methods.engine.draft_lm import LMDrafter
from methods.engine.layer import PACKED_DTYPES
from methods.engine.llama import LlamaTarget, is_lean
from methods.engine.native.build import PATHS, NoNativeEngine
from methods.engine.native.drafters import NativeEagleDrafter, NativeLMDrafter
from methods.engine.native.target import NativeTarget
from methods.engine.target import HFTarget

VARIABLE = "HARNESS_ENGINE"
COSTS = "decoding takes two to three times as long, and bfloat16 outputs may differ from vanilla's at near-ties"
CHOICES = ("native", *(f"native:{path}" for path in PATHS), "torch", "module")


def target_of(model: Any, engine: str | None = None) -> HFTarget:
    """A target of a model of transformers. engine: one of `CHOICES`; what `HARNESS_ENGINE` says if None, else the best.

    Its `notice` says why it is not on the native engine, where another was taken though none was asked for.

    Raises:
        ValueError: no such engine, or one that was asked for and cannot run this model or on this machine.
    """
    asked = engine or os.environ.get(VARIABLE) or None
    if asked is not None and asked not in CHOICES:
        raise ValueError(f"{VARIABLE}={asked}: there is no such engine; choose from {', '.join(CHOICES)}")
    if asked == "module":
        return HFTarget(model)
    if asked == "torch":
        return LlamaTarget(model) if is_lean(model) else HFTarget(model)
    if not is_lean(model):
        name = type(model).__name__
        known = "it runs plain LLaMAs in float32 or bfloat16 on a CPU"
        if asked:
            raise ValueError(f"{VARIABLE}={asked}: the native engine does not run this {name}: {known}")
        # on a GPU, and in another dtype that was asked for, nobody expects it
        target = HFTarget(model)
        if model.device.type == "cpu" and model.dtype in PACKED_DTYPES:
            target.notice = f"the native engine does not run this {name} ({known}): {COSTS}"
        return target
    try:
        return NativeTarget(model, asked.removeprefix("native").lstrip(":") or None if asked else None)
    except NoNativeEngine as e:
        if asked:
            raise ValueError(f"{VARIABLE}={asked}: {e}") from e
        target = LlamaTarget(model)
        target.notice = f"no native engine ({e}): {COSTS}"
        return target


def eagle_drafter(target: HFTarget, head: EagleHead, embedding: Tensor, frequent: Tensor | None) -> EagleDrafter:
    """A drafter with an EAGLE head, on the engine of its target."""
    if isinstance(target, NativeTarget):
        return NativeEagleDrafter(head, embedding, target.lm_head, frequent)
    return EagleDrafter(head, embedding, target.lm_head, frequent)


def lm_drafter(target: HFTarget, model: Any) -> LMDrafter:
    """A drafter with a draft LM, on the engine of its target."""
    return NativeLMDrafter(model, target.library) if isinstance(target, NativeTarget) else LMDrafter(model)
