"""The held-out conversations that options are tuned on, in three parts, and the target's answers to them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import methods
from harness.common.errors import UserError
from harness.load.model import Loaded
from harness.metrics.intervals import MIN_UNITS
from harness.watch.run import names_of, watched
from methods.base import SamplerParams
from methods.engine.sampling import stream_key
from tasks import sharegpt
from tasks.overlap import without_overlap

LONGEST = 1100  # tokens of a prompt: articles are among the tasks' prompts, so among these too
LEAST = (2, 2, MIN_UNITS)  # conversations of each part


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
class Prompt:
    """A held-out prompt: token ids, and its number among the held-out ones, which its random stream depends on."""

    number: int
    ids: list[int]


def held_out_key(number: int, temperature: float, budget: int) -> str:
    """What the pool of a held-out prompt is kept under. budget: of new tokens."""
    return f"held-out-{number}-{temperature:g}-{budget}"


def of_held_out(key: str) -> tuple[int, float] | None:
    """(number, temperature) of such a key; None of any other."""
    found = re.fullmatch(r"held-out-(\d+)-(\d+(?:\.\d+)?)-\d+", key)
    return (int(found[1]), float(found[2])) if found else None


@dataclass(frozen=True, slots=True)
class Parts:
    """Held-out prompts in three parts that have none in common.

    rank: settings are ranked on these. choose: the best five are raced on these, and the fastest is chosen. measure: the chosen
    one is raced on these, which no choice has used: what is measured here is what is stored.
    """

    rank: list[Prompt]
    choose: list[Prompt]
    measure: list[Prompt]


def parts_of(prompts: Sequence[list[int]]) -> Parts:
    """A quarter, a quarter, and the rest, in the order given.

    The last part has half of them: its figure is the result, and there vanilla and one setting alone decode.

    Raises:
        UserError: there are too few.
    """
    n = len(prompts)
    if n < sum(LEAST):
        raise UserError(
            f"{n} held-out conversations are too few to tune on: at least {sum(LEAST)} are needed, {LEAST[0]} to rank options "
            f"on, {LEAST[1]} others to choose on, {LEAST[2]} others to measure what was chosen"
        )
    quarter = n // 4
    numbered = [Prompt(i, ids) for i, ids in enumerate(prompts)]
    return Parts(numbered[:quarter], numbered[quarter : 2 * quarter], numbered[2 * quarter :])


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt, and the token ids that vanilla answered."""

    prompt: Prompt
    ids: list[int]


def params(loaded: Loaded, prompt: Prompt, temperature: float, max_new_tokens: int) -> SamplerParams:
    """How a prompt is decoded: whatever the method, with the same random stream."""
    stop = frozenset(loaded.config.stop_ids)
    return SamplerParams(max_new_tokens, stop, temperature=temperature, key=stream_key(0, f"tune/{prompt.number}", 1, 0))


def vanilla_answers(loaded: Loaded, prompts: Sequence[Prompt], temperature: float, max_new_tokens: int) -> list[Answer]:
    """What vanilla answers to prompts, those left out whose answer is one token: no step follows it."""
    decode = methods.get("vanilla").build()
    found = []
    for prompt in prompts:
        how = params(loaded, prompt, temperature, max_new_tokens)
        ids = watched(decode, prompt.ids, loaded.target, None, how, names_of(loaded, None)).generation.token_ids
        if len(ids) > 1:
            found.append(Answer(prompt, ids))
    return found
