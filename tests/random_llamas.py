"""Small LLaMAs with random weights, of odd sizes, and the bits of what comes out of them."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from places import TINY
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from methods.engine.draft_head import EagleHead, HeadConfig
from methods.engine.eagle3 import Eagle3Config, Eagle3Head
from methods.engine.native.target import NativeTarget

VOCAB = 517

# hidden, heads, heads of keys, head_dim, intermediate, tied: groups of 1, 2, 3 and 4, hardly a multiple of 64 among them
SHAPES: dict[str, tuple[int, int, int, int, int, bool]] = {
    "48, one head a group": (48, 3, 3, 8, 100, False),
    "72, three heads a group": (72, 9, 3, 16, 100, True),
    "192, four heads a group": (192, 4, 1, 64, 300, True),
    "72, wide heads": (72, 2, 1, 128, 100, False),
    "64, whole panels": (64, 4, 2, 32, 128, False),
    "264, for threads": (264, 4, 2, 66, 600, False),  # the engine shares few weights among threads: these are enough for four
}


@cache
def random_llama(shape: str, dtype: torch.dtype) -> Any:
    """A module of transformers, its weights so large that attention is uneven and logits differ by units. Leave it as it is."""
    hidden, heads, kv_heads, head_dim, intermediate, tied = SHAPES[shape]
    torch.manual_seed(sorted(SHAPES).index(shape))
    model: Any = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, tie_word_embeddings=tied, initializer_range=0.6 * hidden**-0.5,
        max_position_embeddings=4096, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    ))  # fmt: skip
    spread(model)
    return model.to(dtype).eval()


@torch.no_grad()
def spread(module: torch.nn.Module) -> None:
    """Weights of norms are not all 1."""
    for name, weight in module.named_parameters():
        if "norm" in name:
            weight.uniform_(0.5, 1.5)


@cache
def tiny_llama(dtype: torch.dtype) -> Any:
    """The tiny model's module. Leave it as it is."""
    return LlamaForCausalLM.from_pretrained(TINY.parent / "target", dtype=dtype).eval()


def module_of(name: str, dtype: torch.dtype) -> Any:
    """`tiny`, or one of `SHAPES`."""
    return tiny_llama(dtype) if name == "tiny" else random_llama(name, dtype)


@cache
def target_of(name: str, dtype: torch.dtype, path: str, which: int = 0) -> NativeTarget:
    """One that all tests share: each begins with a prefill. which: several of one kind."""
    return fresh_target(name, dtype, path)


def fresh_target(name: str, dtype: torch.dtype, path: str | None = None) -> NativeTarget:
    return NativeTarget(copy.deepcopy(module_of(name, dtype)), path)


@cache
def head_of(name: str, dtype: torch.dtype, bias: bool = True) -> EagleHead:
    """An EAGLE head with random weights for `module_of` that model."""
    c = module_of(name, dtype).config
    torch.manual_seed(7)
    head = EagleHead(HeadConfig(
        hidden_size=c.hidden_size, intermediate_size=c.intermediate_size, num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads, rms_norm_eps=c.rms_norm_eps, rope_theta=10000.0, vocab_size=c.vocab_size,
        bias=bias, head_dim=c.head_dim,
    ))  # fmt: skip
    spread(head)
    return head.to(dtype).eval()


@cache
@torch.inference_mode(False)
def eagle3_head_of(name: str, dtype: torch.dtype, **changes: Any) -> Eagle3Head:
    """An EAGLE-3 head with random weights for `module_of` that model, over a third of its vocabulary. changes: of its config."""
    c = module_of(name, dtype).config
    torch.manual_seed(9)
    config = Eagle3Config(
        hidden_size=c.hidden_size, intermediate_size=c.intermediate_size, num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads, rms_norm_eps=c.rms_norm_eps, rope_theta=10000.0, vocab_size=c.vocab_size,
        head_dim=c.head_dim, draft_vocab_size=c.vocab_size // 3, aux_layers=(0, 1, 2),
    )  # fmt: skip
    head = Eagle3Head(replace(config, **changes))
    spread(head)
    head.draft_over(torch.randperm(c.vocab_size)[: len(head.d2t)])
    return head.to(dtype).eval()


def bits(x: Tensor) -> Tensor:
    """The bits of float32, as whole numbers: 0 and -0 differ, and NaN equals itself."""
    assert x.dtype == torch.float32
    return x.detach().contiguous().view(torch.int32)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(bits(a), bits(b))
