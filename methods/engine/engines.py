"""Which engine runs a model: the native one where it can, else torch's kernels, else transformers' own module.

`HARNESS_ENGINE` chooses another: `native`, `native:PATH` (a kind of machine code, `methods.engine.native.build.PATHS`), `torch`,
`static` (steps of fixed shapes, which a GPU replays as graphs), `row-invariant` (torch's kernels on numbers of rows and keys that
never change: slow, and to the bit what plain decoding gives) or `module`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from methods.engine.draft_head import EagleDrafter, EagleHead
from methods.engine.draft_lm import LMDrafter
from methods.engine.eagle3 import Eagle3Drafter, Eagle3Head
from methods.engine.layer import PACKED_DTYPES, Linear
from methods.engine.llama import LlamaTarget, is_lean
from methods.engine.native import build
from methods.engine.native.drafters import NativeEagle3Drafter, NativeEagleDrafter, NativeLMDrafter
from methods.engine.native.library import NativeLinear
from methods.engine.native.target import NativeTarget
from methods.engine.row_invariant.drafters import (
    RowInvariantEagle3Drafter,
    RowInvariantEagleDrafter,
    RowInvariantLMDrafter,
)
from methods.engine.row_invariant.target import RowInvariantTarget
from methods.engine.static.drafter import StaticEagleDrafter
from methods.engine.static.target import StaticTarget
from methods.engine.target import HFTarget

ROW_INVARIANT = "row-invariant"
CHOICES = ("native", *(f"native:{path}" for path in build.PATHS), "torch", "static", ROW_INVARIANT, "module")
COSTS = "decoding takes two to three times as long, and bfloat16 outputs may differ from vanilla's at near-ties"
RUNS = "it runs plain LLaMAs in float32 and bfloat16 on a CPU"


def target_type(model: Any, dtype: torch.dtype) -> type[HFTarget]:
    """The engine that runs a model of transformers in `dtype`, where it lies now; the model may be loaded in another dtype.

    Raises:
        ValueError: `HARNESS_ENGINE` names no engine, or one that cannot run this model or on this machine.
    """
    asked = os.environ.get(build.VARIABLE) or "best"
    if asked not in (*CHOICES, "best"):
        raise ValueError(f"{build.VARIABLE}={asked}: there is no such engine; choose from {', '.join(CHOICES)}")
    if asked == "module":
        return HFTarget
    if asked == ROW_INVARIANT and RowInvariantTarget.runs(model, dtype):
        return RowInvariantTarget  # in float16 on a CPU, too
    if asked == ROW_INVARIANT and dtype != torch.float64:
        raise ValueError(
            f"{build.VARIABLE}={asked}: the row-invariant forward is a plain LLaMA's, not {type(model).__name__}'s here"
        )
    if not is_lean(model, dtype):
        # float64 is what exactness is checked in, whatever the engine
        if asked.startswith("native") and dtype != torch.float64:
            raise ValueError(f"{build.VARIABLE}={asked}: the native engine does not run {type(model).__name__} here: {RUNS}")
        if asked == "static" and dtype != torch.float64:
            raise ValueError(
                f"{build.VARIABLE}=static: steps of fixed shapes are a plain LLaMA's, not {type(model).__name__}'s here"
            )
        return HFTarget
    if asked == "static":
        return StaticTarget
    if model.device.type != "cpu":
        if asked.startswith("native"):
            raise ValueError(f"{build.VARIABLE}={asked}: the native engine does not run on {model.device}: {RUNS}")
        return LlamaTarget
    if asked == "torch" or (asked == "best" and _no_native_engine()):
        return LlamaTarget
    if why := _no_native_engine():
        raise ValueError(f"{build.VARIABLE}={asked}: {why}")
    return NativeTarget


def target_of(model: Any) -> HFTarget:
    """A target on the engine of `target_type`. Its `notice` says why that is not the native one, where none was asked for.

    Raises:
        ValueError: as `target_type` does.
    """
    kind = target_type(model, model.dtype)
    target = kind(model)
    if kind is not NativeTarget and not os.environ.get(build.VARIABLE):
        # on a GPU, and in a dtype of one's own choice, nobody expects it
        if kind is HFTarget and model.device.type == "cpu" and model.dtype in PACKED_DTYPES:
            target.notice = f"the native engine does not run {type(model).__name__} ({RUNS}): {COSTS}"
        elif kind is LlamaTarget and model.device.type == "cpu":
            target.notice = f"no native engine ({_no_native_engine()}): {COSTS}"
    return target


def _no_native_engine() -> str | None:
    """Why there is none on this machine, or not the one asked for; None where there is."""
    try:
        build.library(build.asked_path())
    except build.NoNativeEngine as e:
        return str(e)
    return None


def linear_here(device: torch.device) -> type[Linear] | type[NativeLinear]:
    """The linear map with which a plain LLaMA decodes on a device of this machine."""
    asked = os.environ.get(build.VARIABLE) or "native"
    return NativeLinear if device.type == "cpu" and asked.startswith("native") and not _no_native_engine() else Linear


def eagle_drafter(target: HFTarget, head: EagleHead, embedding: Tensor, frequent: Tensor | None) -> EagleDrafter:
    """A drafter with an EAGLE head, on the engine of its target."""
    if isinstance(target, NativeTarget):
        return NativeEagleDrafter(head, embedding, target.lm_head, frequent)
    if isinstance(target, RowInvariantTarget):
        return RowInvariantEagleDrafter(head, embedding, target.lm_head, frequent)
    if isinstance(target, StaticTarget):
        return StaticEagleDrafter(head, embedding, target.lm_head, frequent, target.replayer)
    return EagleDrafter(head, embedding, target.lm_head, frequent)


def eagle3_drafter(target: HFTarget, head: Eagle3Head, embedding: Tensor) -> Eagle3Drafter:
    """A drafter with an EAGLE-3 head, on the engine of its target; beside one of fixed shapes it is launched call by call."""
    if isinstance(target, NativeTarget):
        return NativeEagle3Drafter(head, embedding, target.lm_head)
    kind = RowInvariantEagle3Drafter if isinstance(target, RowInvariantTarget) else Eagle3Drafter
    return kind(head, embedding, target.lm_head)


def begin(target: HFTarget, drafters: Iterable[Any]) -> None:
    """Before the methods of a run or a race warm up: what others asked for earlier is not recorded for them."""
    for part in _static(target, drafters):
        part.begin()
    if isinstance(target, StaticTarget):
        target.replayer.recording.is_prepared = target.replayer.recording.refused_late = False


def prepare(target: HFTarget, drafters: Iterable[Any], tokens: int) -> None:
    """Before anything is timed: make what steps behind texts of up to so many tokens would else make when they first need it.

    Recordings (`static/`) are of what the methods asked for since `begin`: each is to have decoded a little before.
    """
    for part in _static(target, drafters):
        part.prepare(tokens)
    if isinstance(target, StaticTarget):
        target.replayer.recording.is_prepared = True


def _static(target: HFTarget, drafters: Iterable[Any]) -> list[StaticTarget | StaticEagleDrafter]:
    return [part for part in (target, *drafters) if isinstance(part, StaticTarget | StaticEagleDrafter)]


def n_recordings(target: Any) -> int:
    """How many recordings the target and its drafters have tried so far: one while a clock runs spoils its time, also where it
    is refused."""
    return target.replayer.recording.n_tried if isinstance(target, StaticTarget) else 0


def refused_late(target: Any) -> str | None:
    """Why recordings were refused after `prepare`, when others had been replayed already; None where they were not."""
    recording = target.replayer.recording if isinstance(target, StaticTarget) else None
    return recording.refused if recording is not None and recording.refused_late else None


def lm_drafter(target: HFTarget, model: Any) -> LMDrafter:
    """A drafter with a draft LM, on the engine of its target."""
    if isinstance(target, NativeTarget):
        return NativeLMDrafter(model, target.library)
    return RowInvariantLMDrafter(model) if isinstance(target, RowInvariantTarget) else LMDrafter(model)
