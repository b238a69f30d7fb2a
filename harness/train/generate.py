"""The target's own answers to training prompts, with the features of every token, many conversations at once.

A slot holds one conversation. Those that end are replaced a few at a time, in one forward. The feature of a token (the target's
hidden state after the final norm) is a by-product of generating, and is what a draft head learns to predict. This is for training
data only: the sampler draws from a recycled noise table, which is fast and not good enough for measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix

import numpy as np
import torch
from transformers import LlamaForCausalLM

from harness.train.batched_llama import BatchedLlama

LOOP_CHECK = 8  # tokens between two looks for a loop
REFILL, PREFILL_ROWS = 6, 600  # free slots before new prompts are run; tokens of them in one forward


@dataclass(slots=True)
class Answer:
    """One conversation. `index`: of its prompt; `ids` [n]: prompt, then answer; `features` [n, hidden] as bf16 bits (uint16),
    other hidden states behind them where they were asked for, or [0, ..] where they are not kept."""

    index: int
    ids: np.ndarray
    features: np.ndarray
    n_prompt: int
    greedy: bool


def is_looping(ids: list[int], window: int = 48, gram: int = 6) -> bool:
    """Whether the tail repeats itself: training on it would teach a drafter nothing but the loop."""
    tail = ids[-window:]
    if len(tail) < window:
        return False
    grams = [tuple(tail[i : i + gram]) for i in range(len(tail) - gram + 1)]
    return len(set(grams)) <= len(grams) // 2


class Sampler:
    """Next tokens of many conversations: the argmax, or a draw at T = 1 by Gumbel-max with noise from a recycled table."""

    def __init__(self, generator: torch.Generator, vocab: int, n_slots: int, device: torch.device):
        """generator: of the CPU; device: where logits will be."""
        self.generator, self.size = generator, 4 * vocab * n_slots
        noise = torch.rand(self.size + 1, generator=generator).clamp_(1e-9, 1 - 1e-7)
        self.gumbel = noise.log_().neg_().log_().neg_().to(device)

    def __call__(self, logits: torch.Tensor, greedy: list[bool]) -> list[int]:
        """logits [n, vocab] -> n tokens."""
        tokens = logits.max(-1).indices
        rows = torch.tensor([i for i, g in enumerate(greedy) if not g], device=logits.device)
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

    def is_done(self, stop_ids: set[int], max_new_tokens: int, stop_loops: bool) -> bool:
        n = len(self.ids) - self.n_prompt
        looks = stop_loops and n % LOOP_CHECK == 0 and is_looping(self.ids[-n:])
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
    stop_loops: bool = True,
    progress: Callable[[int], None] = lambda n: None,
    keep_features: bool = True,
    aux_layers: Sequence[int] = (),
) -> Iterator[Answer]:
    """Answers to `prompts` (token ids, template included), in order of completion.

    They are the same for the same seed and number of slots. greedy_share: of the prompts, at random, that are answered at T = 0;
    the others at T = 1. stop_loops: an answer ends where it repeats itself; a picture's plain areas do, and must not. progress:
    called with the number of tokens made. aux_layers: other hidden states of the target that stand behind each feature.

    The longest prompts come first. Buffers are as wide as the longest conversation open, so conversations of one length should
    be open together; and the last ones, when slots stay empty, should be short.
    """
    generator = torch.Generator().manual_seed(seed)
    n_slots = min(n_slots, len(prompts))
    prefix = list(commonprefix(prompts))[: min(map(len, prompts)) - 1]  # of each prompt at least one token is to be run
    hidden = model.config.hidden_size
    llama = BatchedLlama(model, n_slots, prefix, aux_layers)
    sampler = Sampler(generator, model.config.vocab_size, n_slots, llama.device)
    is_greedy = (torch.rand(len(prompts), generator=generator) < greedy_share).tolist()
    waiting = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), -i))  # taken from the end
    active: list[Open] = []  # the conversation in slot 0, 1, ...

    def fill() -> None:
        first = len(active)
        while waiting and len(active) < n_slots and sum(c.n_prompt for c in active[first:]) < PREFILL_ROWS:
            ids = prompts[i := waiting.pop()]
            room = np.zeros(((len(ids) + max_new_tokens) * keep_features, (1 + len(aux_layers)) * hidden), dtype=np.uint16)
            active.append(Open(i, [*ids], room, len(ids), is_greedy[i]))
        fresh = active[first:]
        made = llama.prefill(list(range(first, len(active))), [c.ids for c in fresh])
        tokens = sampler(llama.lm_head(torch.stack([features[-1, :hidden] for features in made])), [c.greedy for c in fresh])
        for c, features, token in zip(fresh, made, tokens, strict=True):
            if keep_features:
                c.features[: c.n_prompt] = bits_of(features)
            c.ids.append(token)

    while waiting or active:
        while waiting and len(active) <= n_slots - min(REFILL, n_slots):
            fill()
        features = llama.step([c.ids[-1] for c in active], [len(c.ids) - 1 for c in active])
        tokens = sampler(llama.lm_head(features[:, :hidden].contiguous()), [c.greedy for c in active])
        bits = bits_of(features) if keep_features else None
        progress(len(active))
        for slot in reversed(range(len(active))):  # the last one first: what is moved into a hole has been looked at
            c = active[slot]
            if bits is not None:
                c.features[len(c.ids) - 1] = bits[slot]
            if not c.is_done(stop_ids, max_new_tokens, stop_loops):
                c.ids.append(tokens[slot])
                continue
            yield c.answer()
            last = active.pop()
            if last is not c:
                llama.move(len(active), slot, len(last.ids))
                active[slot] = last


def bits_of(features: torch.Tensor) -> np.ndarray:
    """bf16 bits of numbers, as uint16."""
    return features.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)


FORWARD_ROWS = 4096  # tokens of whole texts in one forward
FeaturesOf = Callable[[Sequence[np.ndarray]], list[torch.Tensor]]
"""ids [n] of several texts -> the target's features [n, hidden] of each, bf16, on its device."""


def features_of(model: LlamaForCausalLM, aux_layers: Sequence[int] = ()) -> FeaturesOf:
    """What computes the features of texts with the target's forward, in its dtype, without a gradient; behind each feature those
    other hidden states of the target."""
    llama = BatchedLlama(model, 0, [], aux_layers)

    @torch.no_grad()
    def compute(texts: Sequence[np.ndarray]) -> list[torch.Tensor]:
        made: list[torch.Tensor] = []
        group: list[list[int]] = []
        for i, ids in enumerate(texts):
            group.append(ids.tolist())
            if i + 1 == len(texts) or sum(map(len, group)) + len(texts[i + 1]) > FORWARD_ROWS:
                made += [features.to(torch.bfloat16) for features in llama.features(group)]
                group = []
        return made

    return compute


def text_features(
    model: LlamaForCausalLM, texts: list[tuple[list[int], int]], at_once: int = 16, aux_layers: Sequence[int] = ()
) -> Iterator[Answer]:
    """Given texts `(ids, n_prompt)` with their features: off-policy data, several times as fast to make as answers."""
    compute = features_of(model, aux_layers)
    for first in range(0, len(texts), at_once):
        ids = [np.array(tokens, dtype=np.int32) for tokens, _ in texts[first : first + at_once]]
        for i, features in enumerate(compute(ids)):
            yield Answer(first + i, ids[i], bits_of(features).copy(), texts[first + i][1], False)
