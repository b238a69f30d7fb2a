"""A conversation as the text and token ids that a model gets."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, tzinfo
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from harness.common.errors import UserError, in_one_line
from harness.load import chat
from harness.load.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


DAYS = (datetime(1999, 12, 31), datetime(2026, 2, 3), datetime(2041, 7, 15))


class CannotEncode(UserError):
    """A tokenizer has no token for something in a text, as one that knows pixels alone."""


RENDER_S = 5.0  # a template that takes longer over three short turns never ends


def render(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, turns: chat.Turns) -> str:
    """The prompt that a dialogue gives, template and system prompt included."""
    system = chat.system_text(config.template, config.system)
    if config.template in chat.PAPER_SYSTEM:
        turns = chat.without_marks(turns, [str(mark) for mark in tokenizer.special_tokens_map.values()])
    if config.template == "plain":
        return "".join(text for _, text in turns)
    if config.template in chat.RENDERED_WITHOUT_BOS:
        return chat.RENDERED_WITHOUT_BOS[config.template](system, turns)
    said = ([("system", system)] if system else []) + list(turns)
    messages = [{"role": role, "content": text} for role, text in said]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def ids_of(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, text: str, name: str) -> list[int]:
    """Token ids of a text, to which nothing is added. name: the text's, for the error.

    Raises:
        CannotEncode: the tokenizer does not take it.
    """
    try:
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    except Exception as e:  # tokenizers raise plain ones
        why = f"its {len(tokenizer)} tokens do not spell it ({in_one_line(e).removeprefix('Exception: ')})"
        raise CannotEncode(f"{name} is not for model {config.name}: {why}") from None
    return ids


def beginning(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    """What a tokenizer itself puts before a plain text, BOS as a rule. ids: the text's, without it."""
    whole: list[int] = tokenizer(text).input_ids
    return next((whole[:at] for at in range(len(whole) - len(ids) + 1) if whole[at : at + len(ids)] == ids), [])


def check_ids(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, prompt: str, ids: Sequence[int], theirs: Sequence[int]
) -> None:  # fmt: skip
    """Check a prompt's ids, BOS left out, against sentencepiece's.

    Raises:
        UserError: they differ. It names the prompt, the first place, and both ids there.
    """
    if ids == theirs:
        return
    at = next((i for i, (a, b) in enumerate(zip(ids, theirs, strict=False)) if a != b), min(len(ids), len(theirs)))
    here, there = (
        f"{some[at]} ({str(tokenizer.convert_ids_to_tokens(some[at]))!r})" if at < len(some) else "no token"
        for some in (ids, theirs)
    )  # fmt: skip
    raise UserError(
        f"model {config.name}: {prompt} has other token ids than sentencepiece gives by tokenizer.model: at place {at} {here} in "
        f"place of {there}; with the tokenizer.json beside that file moved away, sentencepiece's are taken"
    )


def check_template(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Check that the tokenizer renders what the YAML's template promises, before anything is measured. folder: the tokenizer's.

    Raises:
        UserError: no chat template, another one than LLaMA-3's, or no BOS token to put in front.
    """
    if config.template in ("tokenizer", "llama-3") and not tokenizer.chat_template:
        raise UserError(f"model {config.name}: the tokenizer in {folder} has no chat template; its YAML may say template: plain")
    if config.template in chat.RENDERED_WITHOUT_BOS and tokenizer.bos_token_id is None:
        raise UserError(
            f"model {config.name}: the tokenizer in {folder} has no BOS token, which template {config.template} needs"
        )
    turns = [("user", " One?\n"), ("assistant", "Two."), ("user", "Three?")]
    try:
        with _within(RENDER_S):
            for some in (turns[:1], turns):
                found, *others = [_on(day, partial(render, config, tokenizer, some)) for day in DAYS]
                if set(others) != {found}:
                    raise UserError(
                        f"model {config.name}: the chat template in {folder} prints the date or is drawn at random: "
                        "prompts would differ from day to day"
                    )
    except TimeoutError:
        raise UserError(f"model {config.name}: the chat template in {folder} takes over {RENDER_S:g} s: it loops") from None
    except UserError:
        raise
    except Exception as e:  # a template runs whatever it likes; some have no place for a system prompt, and say so
        said = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"model {config.name}: the chat template in {folder} cannot render a dialogue: {said}") from None
    wanted = chat.llama3(chat.system_text(config.template, config.system), turns)
    if config.template == "llama-3" and found != wanted:
        at = len(os.path.commonprefix([found, wanted]))
        shown = f"{found[at : at + 40]!r} where LLaMA-3's has {wanted[at : at + 40]!r}"
        raise UserError(f"model {config.name}: the chat template in {folder} renders {shown}")


def _on(day: datetime, rendered: Callable[[], str]) -> str:
    """What is rendered on a day. transformers gives templates the date by `strftime_now`."""
    from transformers.utils import chat_template_utils

    class That(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls(day.year, day.month, day.day, tzinfo=tz)

    before: Any = vars(chat_template_utils)["datetime"]
    vars(chat_template_utils)["datetime"] = That
    try:
        return rendered()
    finally:
        vars(chat_template_utils)["datetime"] = before


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in Python code that runs longer, in any thread."""
    end, before = time.monotonic() + seconds, sys.gettrace()

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, as it was when it was published.

    - A `tokenizer.model` alone is read by sentencepiece itself.
    - Where a LLaMA tokenizer's settings do not say, transformers until version 5 took it to be `legacy`: a word begins after
      `</s>`, too, and before a space.
    - Texts are cleaned up (` .` becomes `.`) where the settings ask for it. transformers does so for no BPE since version 5, as
      it alters what the model said; but the authors' answers went through it into the next turn.

    Raises:
        UserError: sentencepiece is needed and not installed.
    """
    from tokenizers import normalizers
    from transformers import AutoTokenizer, LlamaTokenizer

    from harness.load.sentencepiece_ids import SPACE, SentencePieceTokenizer, model_file

    if model_file(folder):
        return SentencePieceTokenizer.from_pretrained(folder)
    try:
        said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        old = str(said.get("tokenizer_class")).startswith("LlamaTokenizer") and said.get("legacy") in (None, True)
    except (OSError, ValueError, AttributeError):
        old = False
    how: dict[str, Any] = {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **(how | {"legacy": True} if old else how))
    if old and isinstance(tokenizer, LlamaTokenizer) and said.get("add_prefix_space") is not False:
        backend = tokenizer.backend_tokenizer
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
        backend.pre_tokenizer = None  # transformers' own puts no space before a space
        tokenizer.begins_every_part = True
    return tokenizer


def how_read(tokenizer: PreTrainedTokenizerBase) -> str:
    """What `load_tokenizer` does beyond transformers, as part of a target's identity: records made otherwise are others."""
    from harness.load.sentencepiece_ids import SentencePieceTokenizer

    ways = {
        "sentencepiece": isinstance(tokenizer, SentencePieceTokenizer),
        "begins every part": getattr(tokenizer, "begins_every_part", False),
        "cleans up": tokenizer.clean_up_tokenization_spaces,
    }
    return ", ".join(way for way, is_so in ways.items() if is_so)
