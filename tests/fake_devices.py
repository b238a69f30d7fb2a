"""Devices that are not there: tensors with a shape, a dtype and one of several devices, and no numbers.

An operation over two of them fails as it would over two GPUs. torch's `meta` device has no numbers either, but is only one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import LlamaConfig, LlamaForCausalLM

from harness.load.architecture import Architecture
from harness.load.placement import device_map

NAME = "chip"


@cache
def _registered() -> None:
    _setup_privateuseone_for_python_backend(NAME)


def chip(index: int) -> torch.device:
    _registered()
    return torch.device(NAME, index)


@contextmanager
def fake() -> Iterator[None]:
    """Whatever tensors are made within have no numbers."""
    _registered()
    # else it computes with tensors of one number, which a device that is not there cannot
    with patch("torch._subclasses.fake_tensor.CONSTANT_NUMEL_LIMIT", 0), FakeTensorMode(), torch.inference_mode():
        yield


def llama_of(sizes: Architecture, dtype: torch.dtype, context: int) -> Any:
    """A module of transformers of these sizes, on torch's `meta` device."""
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**sizes.model_dump(), max_position_embeddings=context)).to(dtype)


def spread(model: Any, layers: list[int]) -> Any:
    """Within `fake`: the model on fake devices. layers: of each layer the index of its device."""
    for name, index in device_map(layers).items():
        put(model.get_submodule(name), chip(index))
    return model


def put(module: nn.Module, device: torch.device) -> None:
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    store[name] = nn.Parameter(empty, requires_grad=False)


class Copies(TorchFunctionMode):
    """Counts what goes to each device from another, by `to` or into a buffer there."""

    def __init__(self) -> None:
        super().__init__()
        self.to: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        source = args[1] if name == "copy_" else args[0] if name in ("to", "cpu", "cuda") else None
        if isinstance(source, Tensor) and isinstance(made, Tensor) and source.device != made.device:
            self.to[-1 if made.device.type == "cpu" else made.device.index] += 1
        return made


def bytes_of(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
