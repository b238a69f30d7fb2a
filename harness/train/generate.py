"""The target's own answers to training prompts, with the features of every token: batched, one forward a step for all slots.

A slot holds one conversation; those that end are replaced a few at a time, in one forward. The feature of a token (the
target's hidden state after the final norm) is a by-product of generating, and is what the draft head learns to predict.
Training data only: the sampler draws from a recycled noise table, which is fast and not good enough for measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from os.path import commonprefix
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from methods.engine.layer import DecoderLayer, Linear, Norm, rotary_rows
from methods.engine.llama import is_plain_llama

LOOP_CHECK = 8  # tokens between two looks for a loop
REFILL, PREFILL_ROWS = 6, 600  # free slots before new prompts are run; tokens of them in one forward


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
    over a strided slice of a longer buffer cost 2.5 times as much on a CPU. They are remade in steps of 64. The conversations
    stepped are always those of the first slots, and all begin with the tokens of `prefix`, which are run once.
    """

    def __init__(self, model: Any, n_slots: int, prefix: list[int] = []):  # noqa: B006  (never written to)
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
        self.shape = (len(self.layers), n_slots, self.kv_heads, 0, self.head_dim)
        self.keys = self.values = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        self._rotary_of = model.model.rotary_emb
        self._cos = self._sin = torch.empty(0)
        self.n_prefix, self._prefix_features = 0, torch.zeros(0, c.hidden_size, dtype=self.dtype, device=self.device)
        if prefix:
            self._prefix_features = self.prefill([0], [prefix])[0]
            self.keys[:, 1:, :, : len(prefix)] = self.keys[:, :1, :, : len(prefix)]
            self.values[:, 1:, :, : len(prefix)] = self.values[:, :1, :, : len(prefix)]
            self.n_prefix = len(prefix)

    @property
    def width(self) -> int:
        return self.keys.shape[3]

    def fit(self, longest: int) -> None:
        if longest <= self.width <= longest + 128:
            return
        width = -(-longest // 64) * 64
        kept = min(width, self.width)

        def remade(old: torch.Tensor) -> torch.Tensor:
            new = torch.zeros(*self.shape[:3], width, self.shape[4], dtype=old.dtype, device=old.device)
            new[:, :, :, :kept] = old[:, :, :, :kept]
            return new

        self.keys = remade(self.keys)  # one after the other: the old one is let go of in between
        self.values = remade(self.values)

    def move(self, source: int, to: int, n: int) -> None:
        """Copy the first n keys and values of one slot over another's."""
        for kept in (self.keys, self.values):
            kept[:, to, :, :n] = kept[:, source, :, :n]

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

    def prefill(self, slots: list[int], prompts: list[list[int]]) -> list[torch.Tensor]:
        """One forward over all `prompts`, their keys and values into `slots` -> the features [n, hidden] of each."""
        skip, group = self.n_prefix, self.heads // self.kv_heads
        self.fit(max(self.width, *(len(p) for p in prompts)))
        sizes = [len(p) - skip for p in prompts]
        ends = np.cumsum(sizes).tolist()
        masks = [
            torch.ones(n, skip + n, dtype=torch.bool, device=self.device).tril_(skip) if skip else None for n in sizes
        ]  # fmt: skip

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = []
            for slot, n, end, mask in zip(slots, sizes, ends, masks, strict=True):
                here, there = slice(end - n, end), slice(skip, skip + n)
                self.keys[i, slot, :, there], self.values[i, slot, :, there] = k[:, here], v[:, here]
                keys, values = (x[i, slot, :, : skip + n].repeat_interleave(group, 0) for x in (self.keys, self.values))
                found = F.scaled_dot_product_attention(
                    q[None, :, here], keys[None], values[None], attn_mask=mask, is_causal=mask is None
                )
                out.append(found[0].transpose(0, 1).reshape(n, -1))
            return torch.cat(out)

        ids = torch.tensor([t for p in prompts for t in p[skip:]], device=self.device)
        positions = torch.cat([torch.arange(skip, skip + n, device=self.device) for n in sizes])
        made = self._run(ids, positions, attend).split(sizes)
        return [torch.cat([self._prefix_features, features]) for features in made]

    def step(self, tokens: list[int], at: list[int]) -> torch.Tensor:
        """tokens [n], at [n]: the token and position of each of the first n slots -> features [n, hidden]."""
        here = torch.tensor(at, device=self.device)
        self.fit(max(at) + 1)
        n, group = len(at), self.heads // self.kv_heads
        rows = torch.arange(n, device=self.device)
        blocked = torch.arange(self.width, device=self.device)[None] > here[:, None]
        mask = torch.zeros(n, self.width, dtype=self.dtype, device=self.device)
        mask = mask.masked_fill_(blocked, torch.finfo(self.dtype).min)[:, None, None]  # [n, 1, 1, width]
        scale = self.head_dim**-0.5

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self.keys[i, :n], self.values[i, :n]
            keys[rows, :, here], values[rows, :, here] = k.transpose(0, 1), v.transpose(0, 1)
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


class Sampler:
    """Next tokens of many conversations: the argmax, or a draw at T = 1 by Gumbel-max with noise from a recycled table."""

    def __init__(self, generator: torch.Generator, vocab: int, n_slots: int):
        self.generator, self.size = generator, 4 * vocab * n_slots
        noise = torch.rand(self.size + 1, generator=generator).clamp_(1e-9, 1 - 1e-7)
        self.gumbel = noise.log_().neg_().log_().neg_()

    def __call__(self, logits: torch.Tensor, greedy: list[bool]) -> list[int]:
        """logits [n, vocab] -> n tokens."""
        tokens = logits.max(-1).indices
        rows = torch.tensor([i for i, g in enumerate(greedy) if not g])
        if len(rows):
            sampled = logits[rows]
            offset = int(torch.randint(self.size - sampled.numel(), (1,), generator=self.generator))
            tokens[rows] = (sampled + self.gumbel[offset : offset + sampled.numel()].view_as(sampled)).max(-1).indices
        return tokens.tolist()


@dataclass(slots=True)
class Open:
    """A conversation that is being answered. The last of `ids` has no keys and no feature yet."""

    index: int
    ids: list[int]
    features: np.ndarray
    n_prompt: int
    greedy: bool

    def is_done(self, stop_ids: set[int], max_new_tokens: int) -> bool:
        n = len(self.ids) - self.n_prompt
        looks = n % LOOP_CHECK == 0 and is_looping(self.ids[-n:])
        return self.ids[-1] in stop_ids or n >= max_new_tokens or looks

    def answer(self) -> Answer:
        ids = np.array(self.ids, dtype=np.int32)
        return Answer(self.index, ids, self.features[: len(ids)].copy(), self.n_prompt, self.greedy)


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM,
    prompts: list[list[int]],
    *,
    stop_ids: set[int],
    max_new_tokens: int,
    n_slots: int = 128,
    greedy_share: float = 0.5,
    seed: int = 0,
    progress: Callable[[int], None] = lambda n: None,
) -> Iterator[Answer]:
    """Answers to `prompts` (token ids, template included), in order of completion; deterministic for a given seed and number
    of slots.

    The longest prompts first: buffers are as wide as the longest conversation open, so those of a length should be open
    together, and the last ones, when slots stay empty, should be short.
    """
    generator = torch.Generator().manual_seed(seed)
    n_slots = min(n_slots, len(prompts))
    prefix = list(commonprefix(prompts))[: min(map(len, prompts)) - 1]  # of each prompt at least one token is to be run
    llama = BatchedLlama(model, n_slots, prefix)
    sampler = Sampler(generator, model.config.vocab_size, n_slots)
    is_greedy = (torch.rand(len(prompts), generator=generator) < greedy_share).tolist()
    waiting = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), -i))  # taken from the end
    active: list[Open] = []  # the conversation in slot 0, 1, ...

    def fill() -> None:
        first = len(active)
        while waiting and len(active) < n_slots and sum(c.n_prompt for c in active[first:]) < PREFILL_ROWS:
            ids = prompts[i := waiting.pop()]
            room = np.zeros((len(ids) + max_new_tokens, model.config.hidden_size), dtype=np.uint16)
            active.append(Open(i, [*ids], room, len(ids), is_greedy[i]))
        fresh = active[first:]
        made = llama.prefill(list(range(first, len(active))), [c.ids for c in fresh])
        tokens = sampler(llama.lm_head(torch.stack([features[-1] for features in made])), [c.greedy for c in fresh])
        for c, features, token in zip(fresh, made, tokens, strict=True):
            c.features[: c.n_prompt] = _bits(features)
            c.ids.append(token)

    while waiting or active:
        while waiting and len(active) <= n_slots - min(REFILL, n_slots):
            fill()
        features = llama.step([c.ids[-1] for c in active], [len(c.ids) - 1 for c in active])
        tokens, bits = sampler(llama.lm_head(features), [c.greedy for c in active]), _bits(features)
        progress(len(active))
        for slot in reversed(range(len(active))):  # the last one first: what is moved into a hole has been looked at
            c = active[slot]
            c.features[len(c.ids) - 1] = bits[slot]
            if not c.is_done(stop_ids, max_new_tokens):
                c.ids.append(tokens[slot])
                continue
            yield c.answer()
            last = active.pop()
            if last is not c:
                llama.move(len(active), slot, len(last.ids))
                active[slot] = last


def _bits(features: torch.Tensor) -> np.ndarray:
    return features.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)


@torch.inference_mode()
def text_features(
    model: LlamaForCausalLM, texts: list[tuple[list[int], int]], batch_tokens: int = 2048, n_slots: int = 16
) -> Iterator[Answer]:
    """Features of given texts `(ids, n_prompt)`: off-policy data, several times as fast to make as answers."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i][0]))
    llama = BatchedLlama(model, n_slots)
    while order:
        n = min(n_slots, max(1, batch_tokens // len(texts[order[0]][0])))
        chunk, order = order[:n], order[n:]
        made = llama.prefill(list(range(len(chunk))), [texts[i][0] for i in chunk])
        for i, features in zip(chunk, made, strict=True):
            tokens, n_prompt = texts[i]
            yield Answer(i, np.array(tokens, dtype=np.int32), _bits(features).copy(), n_prompt, False)
