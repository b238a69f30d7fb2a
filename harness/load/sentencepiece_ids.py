"""A `tokenizer.model` read by sentencepiece itself, as the authors' tokenizer did: the slow LlamaTokenizer of transformers 4.

transformers 5 makes merges of such a file without its scores, and puts no space before a text that begins with one. LLaMA's runs
of spaces have the first ids and the lowest scores, so every prompt with two spaces in a row gets other ids from it.

What the slow tokenizer does:
- special tokens split a text, and sentencepiece encodes what is between them, part by part;
- sentencepiece puts a space before a text. A `legacy` tokenizer has it before every part, also after `</s>`; the others have it
  before the first part alone, and not there if a special token begins the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import LlamaTokenizer, SentencePieceBackend

from harness.common.errors import UserError, in_one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "tokenizer.model"
SPACE = "\u2581"  # how sentencepiece writes one


class SentencePieceTokenizer(SentencePieceBackend):
    """A folder's `tokenizer.model` behind transformers' interface, its defaults those of the slow tokenizer."""

    def __init__(
        self, legacy: bool | None = True, add_bos_token: bool = True, add_eos_token: bool = False, **kwargs: Any
    ) -> None:  # fmt: skip
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        super().__init__(legacy=legacy is None or legacy, **(names | kwargs))
        self.add_bos_token, self.add_eos_token = add_bos_token, add_eos_token

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:  # type: ignore[override]
        if self.legacy or not text:
            return super().tokenize(text, **kwargs)
        pieces = super().tokenize(SPACE + text, **kwargs)
        return pieces[1:] if pieces[0] == SPACE and set(pieces[1:2]) & set(self.all_special_tokens) else pieces

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        before = [self.bos_token_id] if self.add_bos_token else []
        after = [self.eos_token_id] if self.add_eos_token else []
        return [part for ids in (token_ids_0, token_ids_1) if ids is not None for part in (*before, *ids, *after)]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """sentencepiece's own text, bytes that are no character as U+FFFD; it knows no special tokens."""
        if not self.legacy and tokens and tokens[0].startswith(SPACE):
            tokens = [tokens[0].removeprefix(SPACE), *tokens[1:]]
        text, part = "", []
        for token in (*tokens, None):
            if token is not None and token not in self._added_tokens_encoder:
                part.append(token)
                continue
            text, part = text + self.sp_model.decode(part) + (token or ""), []
        return text


def model_file(folder: Path) -> Path | None:
    """The `tokenizer.model` that alone says what a folder's tokenizer is; None where there is none, or it is tiktoken's.

    Raises:
        UserError: sentencepiece is not installed, or cannot read it.
    """
    file = folder / FILE
    if not file.is_file() or (folder / "tokenizer.json").exists():
        return None
    try:
        _processor(file)
    except ImportError:
        raise UserError(f"{file} is read by sentencepiece: `pip install sentencepiece protobuf`") from None
    except RuntimeError as e:
        if re.match(rb"[A-Za-z0-9+/]+=* \d+\s", file.read_bytes()):  # tiktoken's lines: a token in base64, its id
            return None
        raise UserError(f"{file} is truncated or altered: {in_one_line(e)}") from None
    return file


def reference(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]] | None:
    """What gives sentencepiece's own ids of a text, nothing put before it, by a folder's `tokenizer.model`.

    None where there is nothing to compare: no such file of sentencepiece's, sentencepiece not installed, no tokenizer of LLaMA's
    kind, or special tokens that take the spaces beside them.
    """
    if not (folder / FILE).is_file() or not isinstance(tokenizer, LlamaTokenizer | SentencePieceTokenizer):
        return None
    try:
        first = _processor(folder / FILE)
        later = first if tokenizer.legacy else _processor(folder / FILE, dummy_prefix=False)
    except (ImportError, RuntimeError):
        return None
    marks = tokenizer.added_tokens_decoder
    if any(mark.lstrip or mark.rstrip or mark.single_word for mark in marks.values()):
        return None
    by_text = {str(mark): id for id, mark in marks.items()}
    split = re.compile(f"({'|'.join(map(re.escape, sorted(by_text, key=len, reverse=True))) or '$^'})")

    def ids(text: str) -> list[int]:
        parts = [part for part in split.split(text) if part]
        found: list[int] = []
        for i, part in enumerate(parts):
            found += [by_text[part]] if part in by_text else (later if i else first).encode(part)
        return found

    return ids


def _processor(file: Path, dummy_prefix: bool = True) -> Any:
    """sentencepiece's processor of a file; without a dummy prefix it puts no space before a text.

    Raises:
        ImportError: sentencepiece is not installed.
        RuntimeError: the file is no model of sentencepiece's.
    """
    import sentencepiece

    data = file.read_bytes()
    if not dummy_prefix:
        from sentencepiece import sentencepiece_model_pb2

        messages: Any = sentencepiece_model_pb2
        model = messages.ModelProto.FromString(data)
        model.normalizer_spec.add_dummy_prefix = False
        data = model.SerializeToString()
    processor = sentencepiece.SentencePieceProcessor()
    processor.load_from_serialized_proto(data)  # given to the constructor, an empty file is no error
    return processor
