"""The texts of a training: which prompts the target answers, which are held out, which exchanges are read as they stand."""

from __future__ import annotations

from collections.abc import Sequence

from harness.load.model import Loaded
from harness.train.request import HELD_OUT
from tasks import sharegpt
from tasks.overlap import Overlap, without_overlap

MAX_PROMPT = 1100  # tokens of a prompt to be answered
N_TEXTS, MAX_TEXT_PROMPT, MAX_TEXT = 4000, 700, 400  # exchanges looked at; tokens of their prompts; of their answers


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


def prompt_ids(loaded: Loaded, texts: Sequence[str]) -> list[list[int]]:
    """Each text as the target is given it, those left out that are longer than `MAX_PROMPT`."""
    return [ids for ids in (loaded.encode(loaded.render([("user", text)])) for text in texts) if len(ids) <= MAX_PROMPT]


def exchange_ids(
    loaded: Loaded, dialogues: sharegpt.Split, seed: int, evaluation: Sequence[str]
) -> list[tuple[list[int], int]]:  # fmt: skip
    """First exchanges of training dialogues as (ids, prompt length); neither side overlaps a prompt of `judged_on`."""
    stop = str(loaded.tokenizer.decode([loaded.tokenizer.eos_token_id]))
    overlaps = Overlap(judged_on(dialogues, seed, evaluation))
    out = []
    for user, answer in sharegpt.exchanges(dialogues.training, seed)[:N_TEXTS]:
        if overlaps(user) or overlaps(answer) or sharegpt.is_reserved(user):
            continue
        prompt = loaded.encode(loaded.render([("user", user)]))
        if len(prompt) <= MAX_TEXT_PROMPT:
            ids = prompt + loaded.encode_text(answer + stop)
            out.append((ids[: min(len(prompt) + MAX_TEXT, MAX_PROMPT)], len(prompt)))
    return out
