"""The texts of a training: which prompts the target answers, which are held out, which exchanges are read as they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.common.errors import UserError
from harness.load.config import ModelConfig
from harness.load.model import Loaded
from harness.train.request import HELD_OUT
from tasks import sharegpt
from tasks.overlap import Overlap, without_overlap

LEAST_ANSWER = 256  # tokens that an answer may have, where the model's evaluation gives it fewer
MAX_PROMPT = 1536  # tokens of a prompt: nearly all of ShareGPT's, and an evaluation's 512 tokens more make 2,048
N_TEXTS = 4000  # exchanges looked at


@dataclass(frozen=True, slots=True)
class Lengths:
    """The most tokens of a prompt, and of its answer."""

    prompt: int
    answer: int


def lengths_of(config: ModelConfig, max_new_tokens: int | None = None) -> Lengths:
    """How long the texts of a training may be: answers as long as the model's evaluation has them, prompts as they come.

    Raises:
        UserError: such answers leave no room for a prompt in the model's context.
    """
    context = config.context_length
    answer = max_new_tokens or min(max(config.max_new_tokens, LEAST_ANSWER), context // 2)
    room = context - answer
    if room < 1:
        raise UserError(f"--max-new-tokens {answer} leaves no room for a prompt: {config.name} has a context of {context} tokens")
    return Lengths(min(MAX_PROMPT, room), answer)


def judged_on(dialogues: sharegpt.Split, seed: int, evaluation: Sequence[str]) -> list[str]:
    """Every prompt that a training's drafter may be judged on, so none that it may see, nor come near: those of tasks and of held
    dialogues. `sharegpt.split` drops whole copies; here prompts go that share a run of words, such as a template filled twice."""
    return [*evaluation, *sharegpt.prompts(dialogues.held, seed)]


def training_texts(dialogues: sharegpt.Split, seed: int, evaluation: Sequence[str]) -> tuple[list[str], int]:
    """(the prompts that the target answers to train on, how many were dropped because they overlap one of `judged_on`)."""
    kept, n_dropped = without_overlap(sharegpt.prompts(dialogues.training, seed), judged_on(dialogues, seed, evaluation))
    return [text for text in kept if not sharegpt.is_reserved(text)], n_dropped


def held_out_texts(dialogues: sharegpt.Split, seed: int, evaluation: Sequence[str]) -> list[str]:
    """The prompts whose answers every drafter is judged on: of held dialogues, none a task's, none kept for `harness tune`."""
    texts = [text for text in sharegpt.prompts(dialogues.held, seed) if not sharegpt.is_reserved(text)]
    return without_overlap(texts[: 2 * HELD_OUT], evaluation)[0][:HELD_OUT]


def prompt_ids(loaded: Loaded, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Each text as the target is given it, those left out that are of more than `longest` tokens."""
    return [ids for ids in (loaded.encode(loaded.render([("user", text)])) for text in texts) if len(ids) <= longest]


def exchange_ids(
    loaded: Loaded, dialogues: sharegpt.Split, seed: int, evaluation: Sequence[str], lengths: Lengths
) -> list[tuple[list[int], int]]:
    """First exchanges of training dialogues as (ids, prompt length); neither side overlaps a prompt of `judged_on`."""
    stop = str(loaded.tokenizer.decode([loaded.tokenizer.eos_token_id]))
    overlaps = Overlap(judged_on(dialogues, seed, evaluation))
    out = []
    for user, answer in sharegpt.exchanges(dialogues.training, seed)[:N_TEXTS]:
        if overlaps(user) or overlaps(answer) or sharegpt.is_reserved(user):
            continue
        prompt = loaded.encode(loaded.render([("user", user)]))
        if len(prompt) <= lengths.prompt:
            out.append((prompt + loaded.encode_text(answer + stop)[: lengths.answer], len(prompt)))
    return out
