"""A conversation as the text and token ids that a model gets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from harness.common.errors import UserError
from harness.load import chat
from harness.load.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, turns: chat.Turns) -> str:
    """The prompt that a dialogue gives, template and system prompt included."""
    system = chat.system_text(config.template, config.system)
    if config.template == "plain":
        return "".join(text for _, text in turns)
    if config.template in chat.RENDERED_WITHOUT_BOS:
        return chat.RENDERED_WITHOUT_BOS[config.template](system, turns)
    said = ([("system", system)] if system else []) + list(turns)
    messages = [{"role": role, "content": text} for role, text in said]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


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
        found = render(config, tokenizer, turns if config.template == "llama-3" else turns[:1])
    except jinja2.TemplateError as e:  # some have no place for a system prompt, and say so
        raise UserError(f"model {config.name}: the chat template in {folder} cannot render a dialogue: {e}") from None
    wanted = chat.llama3(chat.system_text(config.template, config.system), turns)
    if config.template == "llama-3" and found != wanted:
        at = len(os.path.commonprefix([found, wanted]))
        shown = f"{found[at : at + 40]!r} where LLaMA-3's has {wanted[at : at + 40]!r}"
        raise UserError(f"model {config.name}: the chat template in {folder} renders {shown}")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, as it was when it was published.

    Where a LLaMA tokenizer's settings do not say, transformers until version 5 took it to be `legacy`: a word begins after
    `</s>`, too.
    """
    from transformers import AutoTokenizer

    try:
        said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        old = str(said.get("tokenizer_class")).startswith("LlamaTokenizer") and said.get("legacy") is None
    except (OSError, ValueError, AttributeError):
        old = False
    return AutoTokenizer.from_pretrained(folder, **({"legacy": True} if old else {}))
