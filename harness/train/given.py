"""Conversations out of a file in SpecForge's form, to be trained on as they stand; and our own answers written as such.

A row is `{"id", "conversations": [{"role", "content"}, ..]}` or `{"input_ids", "loss_mask"}` (SpecForge 0.2.0). A file is JSON
lines or one array. Rows that overlap what drafters are judged on are left out, as all over a training (`harness.train.texts`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.common.errors import UserError
from harness.common.files import read_text, whole_file
from harness.load.model import Loaded
from harness.train.data import Conversation
from harness.train.texts import Lengths
from harness.train.turns import turns_of
from tasks import sharegpt
from tasks.overlap import Overlap

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Text:
    """ids [n] of a text; asked [n]: which tokens are an assistant's, to be predicted. The first of them is at `n_prompt`."""

    ids: list[int]
    asked: list[bool]

    @property
    def n_prompt(self) -> int:
        return self.asked.index(True)


@dataclass(slots=True)
class Found:
    """The texts of a file, and how many rows were left out: for overlap with a prompt that drafters are judged on, or as a prompt
    that `harness tune` keeps; and for a first prompt over the lengths, or nothing within them that is to be predicted. n_odd:
    rows of token ids that the target's template did not write, in which a prompt is less well found."""

    texts: list[Text] = field(default_factory=list)
    n_rows: int = 0
    n_overlap: int = 0
    n_empty: int = 0
    n_odd: int = 0


def read_given(path: Path, loaded: Loaded, judged: Iterable[str], lengths: Lengths) -> Found:
    """The texts of a file in SpecForge's form, for a target. judged: prompts that drafters are judged on.

    Raises:
        UserError: it cannot be read, or a row is of another form: names the file, the line and the field.
    """
    found, overlaps, turns_in = Found(), Overlap(judged), turns_of(loaded)
    is_tokens: bool | None = None
    for where, row in _rows(path):
        found.n_rows += 1
        has = {name for name in ("conversations", "input_ids", "loss_mask") if name in row}
        if has not in ({"conversations"}, {"input_ids", "loss_mask"}):
            raise UserError(f"{where}: a row has 'conversations', or 'input_ids' and 'loss_mask'; this one has {sorted(row)[:6]}")
        if is_tokens not in (None, "input_ids" in has):
            raise UserError(f"{where}: a row of another form than those before it")
        is_tokens = "input_ids" in has
        if is_tokens:
            text = _of_ids(row, where, loaded.target.vocab_size)
            turns, is_known = turns_in(text.ids, text.asked)
            found.n_odd += not is_known
        else:
            turns = _turns(row["conversations"], where)
        leaks = any(overlaps(said) or (role == "user" and sharegpt.is_reserved(said)) for role, said in turns)
        if leaks:
            made = []
        else:
            made = [text] if is_tokens else list(_of_turns(turns, loaded, lengths, where))
        fits = [cut for text in made if (cut := _cut(text, lengths)) is not None]
        found.n_overlap += leaks
        found.n_empty += not leaks and not fits
        found.texts += fits
    if not found.n_rows:
        raise UserError(f"{path} is empty: expected conversations, or token ids with a mask, a JSON object a line")
    return found


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it stands, row) of a file of JSON lines, or of one JSON array."""
    text = read_text(path, most_bytes=1 << 33)
    at_once = _parsed(text, str(path)) if text.lstrip().startswith("[") else None
    lines: Iterator[tuple[str, Any]]
    if isinstance(at_once, list):
        lines = ((f"{path}, row {i}", row) for i, row in enumerate(at_once, 1))
    else:
        lines = ((f"{path}:{i}", _parsed(line, f"{path}:{i}")) for i, line in enumerate(text.split("\n"), 1) if line.strip())
    for where, row in lines:
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object, not {type(row).__name__}")
        yield where, row


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    except ValueError as e:
        raise UserError(f"{where}: cut off, or not JSON ({e})") from None


def _turns(turns: object, where: str) -> list[tuple[str, str]]:
    """(role, text) of each turn: a system's at most first, then user and assistant in turn, the last of them an assistant's."""
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: conversations is {str(turns)[:60]!r}; it must be a list of turns")
    out = []
    for i, turn in enumerate(turns):
        role, said = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if role not in ROLES or not isinstance(said, str):
            shown = f"role {str(role)[:40]!r} and {type(said).__name__} content"
            raise UserError(f"{where}: turn {i + 1} has {shown}; it must have a role of {', '.join(ROLES)} and a text")
        out.append((str(role), said))
    roles = [role for role, _ in out if role != "system"]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2) or "system" in [r for r, _ in out[1:]]:
        raise UserError(f"{where}: the turns are of {', '.join(role for role, _ in out)[:80]}; user and assistant must alternate")
    return out


def _of_turns(turns: Sequence[tuple[str, str]], loaded: Loaded, lengths: Lengths, where: str) -> Iterator[Text]:
    """A conversation as the target is given it, turn by turn. Where a template writes earlier turns otherwise than they were
    answered, a new text begins."""
    if turns[0][0] == "system" and loaded.config.template != "tokenizer":
        raise UserError(f"{where}: a system turn; template {loaded.config.template} has a system prompt of its own")
    stop = str(loaded.tokenizer.decode([loaded.tokenizer.eos_token_id]))
    ids: list[int] = []
    asked: list[bool] = []
    for i, (role, said) in enumerate(turns):
        if role != "assistant":
            continue
        prompt = loaded.encode(loaded.render(list(turns[:i])), where)
        if prompt[: len(ids)] != ids:
            yield Text(ids, asked)
            ids, asked = [], []
        answer = loaded.encode_text(said + stop)
        asked += [False] * (len(prompt) - len(ids)) + [True] * len(answer)
        ids = prompt + answer
        if len(ids) > lengths.prompt + lengths.answer:
            break
    if ids:
        yield Text(ids, asked)


def _of_ids(row: Mapping[str, Any], where: str, vocab: int) -> Text:
    columns = []
    for name, most, what in (("input_ids", vocab - 1, f"token ids under {vocab}"), ("loss_mask", 1, "zeros and ones")):
        values = row[name]
        if isinstance(values, list) and len(values) == 1 and isinstance(values[0], list):
            values = values[0]  # a batch of one
        if not isinstance(values, list) or not values or not all(type(x) is int and 0 <= x <= most for x in values):
            odd = (
                next((x for x in values if type(x) is not int or not 0 <= x <= most), values)
                if isinstance(values, list)
                else values
            )
            raise UserError(f"{where}: {name} holds {str(odd)[:40]}; it must be a list of {what}")
        columns.append(values)
    if len(columns[0]) != len(columns[1]):
        raise UserError(f"{where}: input_ids has {len(columns[0])} entries and loss_mask {len(columns[1])}")
    return Text(columns[0], [False, *(x == 1 for x in columns[1][1:])])  # nothing is before the first token to predict it from


def _cut(text: Text, lengths: Lengths) -> Text | None:
    """A text within the lengths; None where its first prompt is longer than prompts may be, or nothing is left to predict."""
    n = lengths.prompt + lengths.answer
    cut = Text(text.ids[:n], text.asked[:n])
    return cut if any(cut.asked) and cut.n_prompt <= lengths.prompt else None


def write_answers(file: Path, conversations: Iterable[Conversation], model: str) -> int:
    """Write the target's answers as rows of token ids with a mask over the answer -> how many.

    Ids, not texts: an answer may end at its length, in a loop, or in the middle of a character. model: for the rows' ids.

    Raises:
        UserError: the file cannot be written.
    """
    n = 0
    try:
        with whole_file(file) as tmp, tmp.open("w", encoding="utf-8") as out:
            for n, c in enumerate(conversations, 1):
                mask = (np.arange(len(c.ids)) >= c.n_prompt).astype(int).tolist()
                out.write(json.dumps({"id": f"{model}-{n}", "input_ids": c.ids.tolist(), "loss_mask": mask}) + "\n")
    except OSError as e:
        raise UserError(f"cannot write {file}: {e.strerror or e}") from e
    return n
