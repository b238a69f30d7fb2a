"""Attention of prompts: causal without a mask of all rows by all keys, and right behind keys that are there already."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from random_llamas import head_of, module_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from methods.engine.attention import grouped_attention
from methods.engine.draft_head import EagleDrafter
from methods.engine.draft_lm import LMDrafter
from methods.engine.layer import additive, attend_over, causal
from methods.engine.llama import LlamaTarget
from methods.engine.target import HFTarget

N = 700  # tokens of a prompt: n * n is far more than any other tensor of the tiny model has
TEXT = [3 + 7 * i % 380 for i in range(N + 1)]
CPU = torch.device("cpu")


class _Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made meanwhile, inside of torch's attention, too."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            with self:
                return func.decompose(*args, **(kwargs or {}))
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, tuple | list) else (made,):
            self.numbers = max(self.numbers, x.numel() if isinstance(x, Tensor) else 0)
        return made


@contextmanager
def no_square(n: int) -> Iterator[None]:
    with _Largest() as largest:
        yield
    assert 0 < largest.numbers < n * n / 2


def drafter_of(kind: str, dtype: torch.dtype) -> Any:
    module = module_of("tiny", dtype)
    if kind == "lm":
        return LMDrafter(module)
    return EagleDrafter(head_of("tiny", dtype), module.get_input_embeddings().weight, module.lm_head)


def features_of(n: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n, 64, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["eagle", "lm"])
def test_a_drafter_makes_no_mask_of_a_prompt(kind: str, dtype: torch.dtype) -> None:
    drafter = drafter_of(kind, dtype)
    drafter.start(N + 20, None, TEXT[0])
    with no_square(N):
        drafter.observe(TEXT[1:], features_of(N, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [LlamaTarget, HFTarget])
def test_a_target_makes_no_mask_of_a_prompt(kind: type[HFTarget], dtype: torch.dtype) -> None:
    target = kind(copy.deepcopy(module_of("tiny", dtype)))
    target.prefill(TEXT[:5], N)
    with no_square(N):
        target.prefill(TEXT[:N], 20)


def test_a_mask_of_a_prompt_would_be_seen() -> None:
    with _Largest() as largest:
        torch.zeros(N, N)
    assert largest.numbers == N * N
    with torch.inference_mode(), _Largest() as inside:  # what torch makes itself
        x = torch.zeros(1, 2, N, 16, device="meta")
        F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(N, N, device="meta"))
    assert inside.numbers >= N * N


@pytest.mark.parametrize("before", [0, 1, 40, 500])
@pytest.mark.parametrize("kind", ["eagle", "lm"])
def test_rows_after_keys_that_are_there_are_those_of_the_whole_text(kind: str, before: int) -> None:
    """A mask that is causal from the first key on would let each row see too little of what lies before."""
    features, found = features_of(N, torch.float32), []
    for parts in ((0, N), (0, before, N)):
        drafter = drafter_of(kind, torch.float32)
        drafter.start(N + 20, None, TEXT[0])
        for start, end in zip(parts, parts[1:], strict=False):
            if end > start:
                drafter.observe(TEXT[1 + start : 1 + end], features[start:end])
        found.append(drafter.root_logits())
    assert torch.allclose(*found, atol=1e-4)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_causal_attention_is_that_of_a_mask(kv_heads: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 50, 16), torch.randn(kv_heads, 50, 16), torch.randn(kv_heads, 50, 16)
    keys, values = torch.zeros(2, kv_heads, 64, 16)
    mask = additive(torch.ones(50, 50, dtype=torch.bool).triu(1), torch.float32, 4 // kv_heads)
    assert causal(50, 0, torch.float32, 4 // kv_heads, CPU) is None
    masked, plain = (attend_over(keys, values, 0, m)(q, k, v) for m in (mask, None))
    assert torch.allclose(masked, plain, atol=1e-5)


def test_rows_after_others_need_a_mask() -> None:
    x = torch.zeros(1, 2, 9, 16)
    with pytest.raises(ValueError, match="^3 tokens after 6 others need a mask$"):
        grouped_attention(None, x[:, :, :3], x, x, None)
