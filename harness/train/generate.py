"""The target's own answers to training prompts, with the features of every token: batched, one forward a step for all slots.

A slot holds one conversation; when it ends, the next prompt is prefilled into it at once. The feature of a token (the
target's hidden state after the final norm) is a by-product of generating, and is what the draft head learns to predict.
Training data only: the sampler draws from a recycled noise table, which is fast and not good enough for measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from methods.engine.layer import DecoderLayer, Linear, Norm, rotary_rows
from methods.engine.llama import is_plain_llama

LOOP_CHECK = 8  # tokens between two looks for a loop


@dataclass(slots=True)
class Answer:
    """One conversation: `ids` [n] (prompt, then answer), `features` [n, hidden] as bf16 bits (uint16), `n_prompt`."""

    index: int
    ids: np.ndarray
    features: np.ndarray
    n_prompt: int
    greedy: bool


class BatchedLlama:
    """A LLaMA forward over many conversations, one new token each, on the packed layers that decoding uses.

    Keys and values: [layers, slots, kv_heads, width, head_dim], always exactly `width` long and contiguous: batched matmuls
    over a strided slice of a longer buffer cost 2.5 times as much on a CPU. They are remade in steps of 64.
    """

    def __init__(self, model: Any, n_slots: int):
        if not is_plain_llama(model):
            raise ValueError(f"{type(model).__name__} with these settings cannot generate training data: only plain LLaMA can")
        c = model.config
        self.heads: int = c.num_attention_heads
        self.kv_heads: int = c.num_key_value_heads
        self.head_dim: int = c.head_dim or c.hidden_size // c.num_attention_heads
        self.layers = [DecoderLayer(m, self.heads, self.kv_heads, c.rms_norm_eps) for m in model.model.layers]
        self.lm_head = Linear(model.lm_head.weight)
        self.norm = Norm(model.model.norm.weight, c.rms_norm_eps)
        self.embedding = model.get_input_embeddings().weight.detach()
        self.device, self.dtype = self.embedding.device, model.dtype
        self.rows = torch.arange(n_slots, device=self.device)
        self.shape = (len(self.layers), n_slots, self.kv_heads, 0, self.head_dim)
        self.keys = self.values = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        self._rotary_of = model.model.rotary_emb
        self._cos = self._sin = torch.empty(0)

    @property
    def width(self) -> int:
        return self.keys.shape[3]

    def fit(self, longest: int) -> None:
        if longest <= self.width <= longest + 192:
            return
        width = -(-longest // 64) * 64
        kept = min(width, self.width)

        def remade(old: torch.Tensor) -> torch.Tensor:
            new = torch.zeros(*self.shape[:3], width, self.shape[4], dtype=old.dtype, device=old.device)
            new[:, :, :, :kept] = old[:, :, :, :kept]
            return new

        self.keys, self.values = remade(self.keys), remade(self.values)

    def _rotary(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        most = int(positions.max()) + 1
        if len(self._cos) < most:
            cos, sin = self._rotary_of(self.embedding[:0], torch.arange(2 * most, device=self.device)[None])
            self._cos, self._sin = rotary_rows(cos[0], sin[0])
        return self._cos[positions], self._sin[positions]

    def _run(self, ids: torch.Tensor, positions: torch.Tensor, attend: Callable[..., torch.Tensor]) -> torch.Tensor:
        x, rotary = F.embedding(ids, self.embedding), self._rotary(positions)
        for i, layer in enumerate(self.layers):
            x = layer(x, rotary, partial(attend, i))
        return self.norm(x)

    def prefill(self, slot: int, ids: list[int]) -> torch.Tensor:
        """-> features [n, hidden]; the keys and values go into the slot."""
        n = len(ids)
        self.fit(max(n, self.width))

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.keys[i, slot, :, :n], self.values[i, slot, :, :n] = k, v
            out = F.scaled_dot_product_attention(
                q[None], k[None], v[None], is_causal=True, enable_gqa=self.heads != self.kv_heads
            )
            return out[0].transpose(0, 1).reshape(n, -1)

        return self._run(torch.tensor(ids, device=self.device), torch.arange(n, device=self.device), attend)

    def step(self, tokens: list[int], at: list[int]) -> torch.Tensor:
        """tokens [slots], at [slots]: the position of each -> features [slots, hidden]."""
        here = torch.tensor(at, device=self.device)
        self.fit(max(at) + 1)
        n, group = len(at), self.heads // self.kv_heads
        blocked = torch.arange(self.width, device=self.device)[None] > here[:, None]
        mask = torch.zeros(n, self.width, dtype=self.dtype, device=self.device)
        mask = mask.masked_fill_(blocked, torch.finfo(self.dtype).min)[:, None, None]  # [slots, 1, 1, width]
        scale = self.head_dim**-0.5

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self.keys[i], self.values[i]
            keys[self.rows, :, here], values[self.rows, :, here] = k.transpose(0, 1), v.transpose(0, 1)
            grouped = (q.transpose(0, 1) * scale).reshape(n, self.kv_heads, group, self.head_dim)
            weights = torch.matmul(grouped, keys.transpose(-1, -2)).add_(mask).softmax(-1)
            return torch.matmul(weights, values).view(n, -1)

        return self._run(torch.tensor(tokens, device=self.device), here, attend)


def is_looping(ids: list[int], window: int = 48, gram: int = 6) -> bool:
    """The tail repeats itself: training on it would teach the head nothing but the loop."""
    tail = ids[-window:]
    if len(tail) < window:
        return False
    grams = [tuple(tail[i : i + gram]) for i in range(len(tail) - gram + 1)]
    return len(set(grams)) <= len(grams) // 2


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM,
    prompts: list[list[int]],
    *,
    stop_ids: set[int],
    max_new_tokens: int,
    n_slots: int = 64,
    greedy_share: float = 0.5,
    seed: int = 0,
    progress: Callable[[int], None] = lambda n: None,
) -> Iterator[Answer]:
    """Answers to `prompts` (token ids, template included), in order of completion; deterministic for a given seed."""
    generator = torch.Generator().manual_seed(seed)
    n_slots = min(n_slots, len(prompts))
    longest = max(len(p) for p in prompts) + max_new_tokens
    vocab, hidden = model.config.vocab_size, model.config.hidden_size
    llama = BatchedLlama(model, n_slots)
    features = torch.zeros(n_slots, longest, hidden, dtype=torch.bfloat16)
    gumbel = -torch.log(-torch.log(torch.rand(4 * vocab * n_slots + 1, generator=generator).clamp_(1e-9, 1 - 1e-7)))
    is_greedy = torch.rand(len(prompts), generator=generator) < greedy_share
    waiting = iter(range(len(prompts)))
    slot_prompt: list[int | None] = [None] * n_slots
    slot_ids: list[list[int]] = [[] for _ in range(n_slots)]

    def pick(h: torch.Tensor, greedy: list[bool]) -> list[int]:
        logits = llama.lm_head(h).to("cpu")
        tokens = logits.max(-1).indices
        rows = torch.tensor([i for i, g in enumerate(greedy) if not g])
        if len(rows):  # Gumbel-max: argmax(logits + noise) ~ softmax(logits)
            sampled = logits[rows].float()
            offset = int(torch.randint(3 * vocab * n_slots, (1,), generator=generator))
            sampled += gumbel[offset : offset + sampled.numel()].view_as(sampled)
            tokens[rows] = sampled.max(-1).indices
        return tokens.tolist()

    def fill(slot: int) -> None:
        index = next(waiting, None)
        slot_prompt[slot] = index
        if index is None:
            slot_ids[slot] = []
            return
        ids = prompts[index]
        h = llama.prefill(slot, ids)
        features[slot, : len(ids)] = h
        slot_ids[slot] = [*ids, *pick(h[-1:], [bool(is_greedy[index])])]

    for slot in range(n_slots):
        fill(slot)
    while any(p is not None for p in slot_prompt):
        at = [max(len(ids), 1) - 1 for ids in slot_ids]  # the last token has no keys, no feature yet
        h = llama.step([ids[-1] if ids else 0 for ids in slot_ids], at)
        features[torch.arange(n_slots), torch.tensor(at)] = h.to("cpu", features.dtype)
        tokens = pick(h, [bool(is_greedy[p]) if p is not None else True for p in slot_prompt])
        emitted = 0
        for slot, index in enumerate(slot_prompt):
            if index is None:
                continue
            ids, n = slot_ids[slot], len(slot_ids[slot]) - len(prompts[index])
            emitted += 1
            if ids[-1] in stop_ids or n >= max_new_tokens or (n % LOOP_CHECK == 0 and is_looping(ids[-n:])):
                bits = features[slot, : len(ids)].view(torch.int16).numpy().view(np.uint16).copy()
                yield Answer(index, np.array(ids, dtype=np.int32), bits, len(prompts[index]), bool(is_greedy[index]))
                fill(slot)
            else:
                ids.append(tokens[slot])
        progress(emitted)


@torch.inference_mode()
def text_features(model: LlamaForCausalLM, texts: list[tuple[list[int], int]], batch_tokens: int = 6144) -> Iterator[Answer]:
    """Features of given texts `(ids, n_prompt)`: off-policy data, about four times as fast to make as answers."""
    model.set_attn_implementation("sdpa")
    order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]))
    while order:
        n = max(1, batch_tokens // len(texts[order[0]][0]))
        chunk, order = order[:n], order[n:]
        longest = max(len(texts[i][0]) for i in chunk)
        ids = torch.zeros(len(chunk), longest, dtype=torch.long)
        for row, i in enumerate(chunk):
            ids[row, : len(texts[i][0])] = torch.tensor(texts[i][0])
        hidden = model.model(ids, use_cache=False).last_hidden_state.to(torch.bfloat16)  # padded on the right: causal
        for row, i in enumerate(chunk):
            tokens, n_prompt = texts[i]
            bits = hidden[row, : len(tokens)].view(torch.int16).numpy().view(np.uint16).copy()
            yield Answer(i, np.array(tokens, dtype=np.int32), bits, n_prompt, False)
