"""The held-out prompts that trees are tuned on, and the target's answers to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import methods
from harness.load.model import Loaded
from harness.watch.run import names_of, watched
from methods.base import SamplerParams
from methods.engine.sampling import stream_key
from tasks import sharegpt
from tasks.overlap import without_overlap

LONGEST = 1100  # tokens of a prompt: articles are among the tasks' prompts, so among these too


def held_out_prompts(loaded: Loaded, n: int, longest: int, evaluation: Iterable[str], seed: int = 0) -> list[list[int]]:
    """At most `n` prompts, as token ids, that no training has seen and that overlap none of `evaluation`.

    They are of held dialogues (`sharegpt.split`), and reserved by their words (`sharegpt.is_reserved`), which was the rule before
    dialogues were split. longest: tokens of a prompt.
    """
    held = sharegpt.split(sharegpt.conversations()).held
    reserved = [text for text in sharegpt.prompts(held, seed) if sharegpt.is_reserved(text)]
    texts, _ = without_overlap(reserved[: 6 * n], evaluation)
    encoded = (loaded.encode(loaded.render([("user", text)])) for text in texts)
    return list(itertools.islice((ids for ids in encoded if len(ids) <= longest), n))


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt's token ids, and those that vanilla answered."""

    prompt: list[int]
    ids: list[int]


def params(loaded: Loaded, i: int, temperature: float, max_new_tokens: int) -> SamplerParams:
    """How the i-th prompt is decoded: whatever the method, with the same random stream."""
    stop = frozenset(loaded.config.stop_ids)
    return SamplerParams(max_new_tokens, stop, temperature=temperature, key=stream_key(0, f"tune/{i}", 1, 0))


def vanilla_answers(loaded: Loaded, prompts: Sequence[list[int]], temperature: float, max_new_tokens: int) -> list[Answer]:
    """What vanilla answers to prompts (token ids), those left out whose answer is one token: no step follows it."""
    decode = methods.get("vanilla").build()
    found = []
    for i, prompt in enumerate(prompts):
        how = params(loaded, i, temperature, max_new_tokens)
        ids = watched(decode, prompt, loaded.target, None, how, names_of(loaded, None)).generation.token_ids
        if len(ids) > 1:
            found.append(Answer(prompt, ids))
    return found
