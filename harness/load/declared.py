"""What a model's YAML declares, held against the files of the model: stop ids, context length, and the tokenizer's ids."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.errors import UserError
from harness.common.files import read_json
from harness.load.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_declared(config: ModelConfig, folder: Path, sizes: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """folder: of the model. sizes: its config of transformers. Stop ids that end nothing are said on stderr.

    Raises:
        UserError: another architecture than the YAML's; a stop id or token outside the vocabulary; an end of text that the YAML
            leaves out; a context that is too long.
    """
    if (differs := other_architecture(config, folder)) is not None:
        raise UserError(differs)
    name, vocab, stop = f"model {config.name}", sizes.vocab_size, set(config.stop_ids)
    if outside := sorted(i for i in stop if not 0 <= i < vocab):
        raise UserError(f"{name}: stop_ids {outside} are outside its vocabulary of {vocab} tokens")
    if max([len(tokenizer) - 1, *tokenizer.get_added_vocab().values()]) >= vocab:
        token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
        raise UserError(
            f"{name}: the tokenizer in {folder} has token {token!r} with id {last}, the model only {vocab} embeddings"
        )
    file = folder / "generation_config.json"
    if lacking := sorted(_ends(_read(file), file) - stop):
        raise UserError(f"{name}: stop_ids {sorted(stop)} lack {lacking}, with which {file} ends a text; add them")
    if not stop:
        print(f"{name}: its YAML has no stop_ids: every answer runs to its budget", file=sys.stderr)
    elif lacking := sorted(_ends({"eos_token_id": getattr(sizes, "eos_token_id", None)}, folder / "config.json") - stop):
        print(f"{name}: its config.json calls {lacking} end of text, which is not among stop_ids {sorted(stop)}", file=sys.stderr)
    most = longest_context(sizes)
    if most is not None and config.context_length > most:
        raise UserError(
            f"{name}: context_length {config.context_length} is over the {most} positions of {folder / 'config.json'}"
        )


def other_architecture(config: ModelConfig, folder: Path) -> str | None:
    """How the config.json of a model's folder differs from the YAML's `architecture`; None where it does not, or there is none.

    Raises:
        UserError: config.json cannot be read.
    """
    file = folder / "config.json"
    if config.architecture is None or not file.is_file():
        return None
    values = _read(file)
    usual = {"num_key_value_heads": values.get("num_attention_heads"), "tie_word_embeddings": False}
    values = usual | {key: value for key, value in values.items() if value is not None}
    differ = [f"{key} {values.get(key)} (not {said})" for key, said in config.architecture.model_dump().items()
              if type(values.get(key)) is not type(said) or values[key] != said]  # fmt: skip
    if not differ:
        return None
    return f"model {config.name}: {file} is of another model than its YAML's `architecture` says: it has {', '.join(differ)}"


def longest_context(sizes: Any) -> int | None:
    """Positions that a model of transformers has, stretched ones included; None where its config does not say."""
    most: int | None = getattr(sizes, "max_position_embeddings", None)
    rope = getattr(sizes, "rope_parameters", None) or {}
    if most is None or not isinstance(factor := rope.get("factor"), int | float):
        return most
    return max(most, int(factor * rope.get("original_max_position_embeddings", most)))


def _read(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where there is none."""
    values = read_json(file) if file.is_file() else {}
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected an object, not {type(values).__name__}")
    return values


def _ends(values: dict[str, Any], file: Path) -> set[int]:
    """The ids that a config's `eos_token_id` names: one, several or none."""
    found = values.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(i) is int for i in ids):
        raise UserError(f"{file}: eos_token_id is {found!r}; it must be a token id or a list of them")
    return set(ids)
