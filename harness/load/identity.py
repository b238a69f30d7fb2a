"""What decides a target's or a drafter's tokens, in parts and as one id. Records of another id are never pooled with these.

Weights alone do not decide them: an edited config.json, tokenizer or chat template gives other tokens from the same weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.common.files import sha256_file
from harness.load.prompt_text import CannotEncode

# keys of a config.json that say how it was made or stored, not what is computed
_SAYS_NOTHING = frozenset({
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "target_sha256",
    "weights_sha256", "license", "tags",
})  # fmt: skip
# what transformers reads a tokenizer from: its `VOCAB_FILES_NAMES`, and what is beside them. All else (licences, notes, other
# configs) is there or not by who fetched the folder.
_TOKENIZER = (
    "tokenizer*.json", "*.model", "*.tiktoken", "tekken.json", "special_tokens_map.json", "added_tokens.json", "chat_template.*",
    "vocab.*", "vocab-*.json", "*_vocab.json", "merges.txt", "*.spm", "bpe.codes", "byte_maps.json", "dict.txt", "emoji.json",
    "normalizer.json", "*.tokenizer", "word_shape.json", "word_pronunciation.json",
)  # fmt: skip
_TEMPLATES = "additional_chat_templates"  # the one folder that it looks into
# what the chat template is asked to render: one turn, and several
PROBES: Sequence[Sequence[tuple[str, str]]] = (
    (("user", " One?\n"),),
    (("user", "One  1?"), ("assistant", " Two.\n"), ("user", "Three\u00e9?")),
)


@dataclass(frozen=True, slots=True)
class TargetIdentity:
    """The parts of a target's identity: each a hash, but for `weights` (a sha256, or repository@commit) and `engine` (words).

    `template`: of what the prompt format, system prompt included, makes of `PROBES`. `engine`: whose forward runs.
    """

    weights: str
    config: str
    tokenizer: str
    template: str
    stop_ids: str
    engine: str

    @property
    def id(self) -> str:
        """16 hex digits over all parts."""
        return _sha(json.dumps(self.parts, sort_keys=True))

    @property
    def parts(self) -> dict[str, str]:
        return asdict(self)


def config_sha(folder: Path) -> str:
    """16 hex digits over what a folder's config.json says of the computation; the same where there is none."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        values = None
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key not in _SAYS_NOTHING}
    return _sha(json.dumps(values, sort_keys=True))


def tokenizer_sha(folder: Path, how_read: str = "") -> str:
    """16 hex digits over those files of a folder that a tokenizer may be read from, chat templates among them.

    how_read: what is done to them here beyond what transformers does; empty where that is nothing.
    """
    found = {path for name in _TOKENIZER for path in folder.glob(name)} | {*folder.glob(f"{_TEMPLATES}/*.jinja")}
    files = sorted(path for path in found if path.is_file())
    return _sha("".join(f"{path.relative_to(folder)} {sha256_file(path)}\n" for path in files) + how_read)


def template_sha(rendered: Callable[[list[tuple[str, str]]], str], encode: Callable[[str], list[int]]) -> str:
    """16 hex digits over the texts and token ids of `PROBES`. A dialogue that the format has no place for counts as such, and so
    do words that the tokenizer lacks."""
    shown: list[Any] = []
    for turns in PROBES:
        try:
            text = rendered(list(turns))
        except Exception as e:  # a template may raise anything on a dialogue that it does not know
            shown.append(type(e).__name__)
            continue
        try:
            shown.append([text, encode(text)])
        except CannotEncode:
            shown.append([text, None])
    return _sha(json.dumps(shown))


def drafter_id(weights: str, folder: Path) -> str:
    """16 hex digits over a drafter's weights and what its config.json says of the computation."""
    return _sha(f"{weights} {config_sha(folder)}")


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
