"""The held-out prompts that trees are tuned on, and the target's answers to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import methods
from harness.load.model import Loaded
from methods.base import SamplerParams
from methods.engine.sampling import stream_key
from tasks import sharegpt
from tasks.overlap import without_overlap


def held_out_prompts(loaded: Loaded, n: int, longest: int, evaluation: Iterable[str], seed: int = 0) -> list[list[int]]:
    """`n` prompts (token ids) that no training has seen: of held dialogues (`sharegpt.split`), reserved by their words
    (`sharegpt.is_reserved`: the rule of heads trained before dialogues were split); none is a task's."""
    held = sharegpt.split(sharegpt.conversations()).held
    reserved = [text for text in sharegpt.prompts(held, seed) if sharegpt.is_reserved(text)]
    texts, _ = without_overlap(reserved[: 6 * n], evaluation)
    encoded = (loaded.encode(loaded.render([("user", text)])) for text in texts)
    return list(itertools.islice((ids for ids in encoded if len(ids) <= longest), n))


@dataclass(frozen=True, slots=True)
class Answer:
    prompt: list[int]
    ids: list[int]  # what vanilla answered


def params(loaded: Loaded, i: int, temperature: float, max_new_tokens: int) -> SamplerParams:
    stop = frozenset(loaded.config.stop_ids)
    return SamplerParams(max_new_tokens, stop, temperature=temperature, key=stream_key(0, f"tune/{i}", 1, 0))


def vanilla_answers(loaded: Loaded, prompts: Sequence[list[int]], temperature: float, max_new_tokens: int) -> list[Answer]:
    decode = methods.get("vanilla").build()
    found = []
    for i, prompt in enumerate(prompts):
        ids = decode(prompt, loaded.target, None, params(loaded, i, temperature, max_new_tokens)).token_ids
        if len(ids) > 1:
            found.append(Answer(prompt, ids))
    return found
