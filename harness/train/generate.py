"""The target's own answers to training prompts, with the features of every token: batched, one forward a step for all slots.

A slot holds one conversation; when it ends, the next prompt is prefilled into it at once. The feature of a token (the
target's hidden state after the final norm) is a by-product of generating, and is what the draft head learns to predict.
Training data only: the sampler draws from a recycled noise table, which is fast and not good enough for measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, LlamaForCausalLM
from transformers.cache_utils import Cache


@dataclass(slots=True)
class Answer:
    """One conversation: `ids` [n] (prompt, then answer), `features` [n, hidden] as bf16 bits (uint16), `n_prompt`."""

    index: int
    ids: np.ndarray
    features: np.ndarray
    n_prompt: int
    greedy: bool


class SlotCache(Cache):
    """Keys and values of `n_slots` conversations; each slot is written at its own position.

    The buffers are always exactly `width` long and contiguous: batched matmuls over a strided slice of a longer buffer
    cost 2.5 times as much on a CPU. They are remade in steps of 64 as the longest conversation grows or ends.
    """

    def __init__(self, model: LlamaForCausalLM, n_slots: int):
        self.layers = []  # what the base class asks about its layers holds for none: no sliding windows
        c = model.config
        head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
        self.shape = (c.num_hidden_layers, n_slots, c.num_key_value_heads or c.num_attention_heads, 0, head_dim)
        self.keys = self.values = torch.zeros(self.shape, dtype=model.dtype)
        self.rows = torch.arange(n_slots)
        self.at = torch.zeros(n_slots, dtype=torch.long)

    @property
    def width(self) -> int:
        return self.keys.shape[3]

    def fit(self, longest: int) -> None:
        if longest <= self.width <= longest + 192:
            return
        width = -(-longest // 64) * 64
        kept = min(width, self.width)

        def remade(old: torch.Tensor) -> torch.Tensor:
            new = torch.zeros(*self.shape[:3], width, self.shape[4], dtype=old.dtype)
            new[:, :, :, :kept] = old[:, :, :, :kept]
            return new

        self.keys, self.values = remade(self.keys), remade(self.values)

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):  # noqa: ANN001, ANN201
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self.rows, :, self.at] = key_states[:, :, 0]
        values[self.rows, :, self.at] = value_states[:, :, 0]
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.width


class PromptCache(Cache):
    """Catches the keys and values of one prompt's prefill."""

    def __init__(self) -> None:
        self.layers = []
        self.layers_kv: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):  # noqa: ANN001, ANN201
        self.layers_kv.append((key_states, value_states))
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def batched_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):  # noqa: ANN001, ANN003, ANN201
    """One query row a slot as plain batched matmuls, the heads of a group as rows of one query; prefill goes to SDPA."""
    batch, heads, q_len, dim = query.shape
    kv_heads = key.shape[1]
    if q_len > 1:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True)
    else:
        scores = torch.matmul(query.view(batch, kv_heads, heads // kv_heads, dim) * scaling, key.transpose(-1, -2))
        out = torch.matmul((scores + attention_mask).softmax(-1), value).view(batch, heads, 1, dim)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("batched", batched_attention)


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
    model.set_attn_implementation("batched")
    generator = torch.Generator().manual_seed(seed)
    n_slots = min(n_slots, len(prompts))
    longest = max(len(p) for p in prompts) + max_new_tokens
    vocab, hidden = model.config.vocab_size, model.config.hidden_size
    cache = SlotCache(model, n_slots)
    features = torch.zeros(n_slots, longest, hidden, dtype=torch.bfloat16)
    gumbel = -torch.log(-torch.log(torch.rand(4 * vocab * n_slots + 1, generator=generator).clamp_(1e-9, 1 - 1e-7)))
    is_greedy = torch.rand(len(prompts), generator=generator) < greedy_share
    waiting = iter(range(len(prompts)))
    slot_prompt: list[int | None] = [None] * n_slots
    slot_ids: list[list[int]] = [[] for _ in range(n_slots)]

    def pick(logits: torch.Tensor, greedy: list[bool]) -> list[int]:
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
        caught = PromptCache()
        n = len(ids)
        mask = torch.full((n, n), torch.finfo(model.dtype).min, dtype=model.dtype).triu(1)[None, None]
        h = model.model(torch.tensor([ids]), attention_mask=mask, past_key_values=caught, use_cache=True).last_hidden_state[0]
        cache.fit(max(n, cache.width))
        for layer, (k, v) in enumerate(caught.layers_kv):
            cache.keys[layer, slot, :, :n] = k[0]
            cache.values[layer, slot, :, :n] = v[0]
        features[slot, :n] = h
        slot_ids[slot] = [*ids, *pick(model.lm_head(h[-1:]), [bool(is_greedy[index])])]

    for slot in range(n_slots):
        fill(slot)
    while any(p is not None for p in slot_prompt):
        lengths = [max(len(ids), 1) for ids in slot_ids]
        at = torch.tensor(lengths) - 1  # the last token has no keys, no feature yet
        cache.at = at
        cache.fit(max(lengths))
        blocked = torch.arange(cache.width)[None] > at[:, None]
        mask = torch.zeros(n_slots, 1, 1, cache.width, dtype=model.dtype).masked_fill_(
            blocked[:, None, None], torch.finfo(model.dtype).min
        )
        last = torch.tensor([[ids[-1] if ids else 0] for ids in slot_ids])
        h = model.model(last, attention_mask=mask, position_ids=at[:, None], past_key_values=cache, use_cache=True)
        h = h.last_hidden_state[:, 0]
        features[cache.rows, at] = h.to(features.dtype)
        greedy = [bool(is_greedy[p]) if p is not None else True for p in slot_prompt]
        tokens = pick(model.lm_head(h), greedy)
        emitted = 0
        for slot, index in enumerate(slot_prompt):
            if index is None:
                continue
            ids, n_prompt = slot_ids[slot], len(prompts[index])
            emitted += 1
            if ids[-1] in stop_ids or len(ids) - n_prompt >= max_new_tokens or is_looping(ids[n_prompt:]):
                bits = features[slot, : len(ids)].view(torch.int16).numpy().view(np.uint16).copy()
                yield Answer(index, np.array(ids, dtype=np.int32), bits, n_prompt, bool(is_greedy[index]))
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
