"""Answer files of EAGLE and of Spec-Bench: one JSON line a question, the counts and times of its turns in lists.

Formats: github SafeAILab/EAGLE `eagle/evaluation/gen_ea_answer_*.py` @ cb7e084, github hemingkx/Spec-Bench
`evaluation/eval.py`, both after FastChat's. Spec-Bench adds the question's category and the accept lengths of all its turns
in one list; its scripts name the steps of a turn `decoding_steps`, those taken from EAGLE `idxs`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from harness.common.errors import UserError, unknown
from harness.common.files import sha256_file
from harness.common.plain_names import made_plain

EAGLE, SPEC_BENCH = "eagle", "spec-bench"
FORMATS = (EAGLE, SPEC_BENCH)
_REQUIRED = {EAGLE: ("question_id", "model_id", "choices"), SPEC_BENCH: ("question_id", "category", "model_id", "choices")}
_OPTIONAL = ("answer_id", "tstamp")
_STEPS = {EAGLE: ("idxs",), SPEC_BENCH: ("decoding_steps", "idxs")}
_LISTS = ("turns", "new_tokens", "wall_time")
FAILED = "ERROR"  # what Spec-Bench and EAGLE's first release write in place of a text, beside the counts of the turn before


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn as an answer file tells it."""

    question_id: str
    category: str | None
    choice: int  # place in the list; both projects' speeds are over place 0
    turn: int  # from 1
    n_turns: int
    text: str
    new_tokens: int
    steps: int | None  # target forwards after prefill: idxs + 1; None where the file contradicts itself
    accept_lengths: list[int] | None  # accepted + 1 a forward
    wall_s: float
    line: int

    @property
    def failed(self) -> bool:
        """Whether its own harness failed on it."""
        return self.text == FAILED


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """A whole file. `format`: one of `FORMATS`. `n_repeated`: questions that stand in it more than once; of these the last
    counts, as in both projects' own tidying."""

    name: str
    sha256: str
    format: str
    model_id: str
    answers: tuple[Answer, ...]
    n_repeated: int

    def questions(self) -> dict[str, int]:
        """question_id -> number of turns."""
        return {a.question_id: a.n_turns for a in self.answers}


def read_answers(path: Path) -> AnswerFile:
    """An answer file of either format, checked field by field.

    Raises:
        UserError: no such file, or a line that is cut off, of another format, or has fields unknown, missing or of the wrong
            kind: names file, line, field and the choices.
    """
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from e
    by_question: dict[str, list[Answer]] = {}
    n_rows, format_, model_id = 0, "", ""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = _object(line, where)
        found = _format_of(row, where)
        if n_rows and found != format_:
            raise UserError(f"{where}: format {found}, but the lines before are {format_}; one file has one format")
        if n_rows and row["model_id"] != model_id:
            raise UserError(f"{where}: field 'model_id' is {row['model_id']!r}, but {model_id!r} before; one file has one model")
        n_rows, format_, model_id = n_rows + 1, found, row["model_id"]
        answers = _answers(row, format_, number, where)
        by_question.pop(answers[0].question_id, None)
        by_question[answers[0].question_id] = answers
    if not n_rows:
        raise UserError(f"{path} is empty; expected the answers of {' or '.join(FORMATS)}")
    every = tuple(answer for answers in by_question.values() for answer in answers)
    return AnswerFile(made_plain(path.name), sha256_file(path), format_, model_id, every, n_rows - len(by_question))


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except RecursionError:
        raise UserError(f"{where}: nested too deeply; expected one answer of {' or '.join(FORMATS)} a line") from None
    except ValueError as e:  # bytes that are no UTF-8 included
        raise UserError(f"{where}: cut off, or not JSON ({e}); expected one answer of {' or '.join(FORMATS)} a line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: another format, a JSON {type(row).__name__}; known: {', '.join(FORMATS)} (an object a line)")
    return row


def _format_of(row: Mapping[str, Any], where: str) -> str:
    if not {"question_id", "choices"} & row.keys():
        own = "; this is a record of our own: `harness export` writes answer files" if "schema" in row else ""
        raise UserError(
            f"{where}: another format, without the fields 'question_id' and 'choices'; known: {', '.join(FORMATS)}{own}"
        )
    choices = row.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    is_spec_bench = "category" in row or {"decoding_steps", "accept_lengths"} & first.keys()
    format_ = SPEC_BENCH if is_spec_bench else EAGLE
    _check_fields(row, _REQUIRED[format_], _OPTIONAL, format_, where, "")
    if not _is_name(row["model_id"]):
        raise _wrong(where, "model_id", row["model_id"], f"a name {_NAMED}")
    if not (_is_count(row["question_id"], -MOST) or _is_name(row["question_id"])):
        raise _wrong(where, "question_id", row["question_id"], f"a number or a name {_NAMED}")
    if row.get("category", "") != "" and not _is_name(row["category"]):
        raise _wrong(where, "category", row["category"], f"a name {_NAMED}")
    if not isinstance(choices, list) or not choices or not all(isinstance(c, dict) for c in choices):
        raise _wrong(where, "choices", choices, "a list of at least one object")
    return format_


def _check_fields(
    row: Mapping[str, Any], required: Sequence[str], optional: Sequence[str], format_: str, where: str, inside: str
) -> None:
    known = {*required, *optional}
    for name in row:
        if name not in known:
            raise UserError(f"{where}: {unknown('field', name, known)}{inside} (format {format_})")
    for name in required:
        if name not in row:
            raise UserError(f"{where}: field {name!r} is missing{inside}; format {format_} has {', '.join(required)}")


def _wrong(where: str, field: str, value: object, wanted: str) -> UserError:
    shown = json.dumps(value)
    return UserError(f"{where}: field {field!r} is {shown if len(shown) < 60 else shown[:57] + '...'}; it must be {wanted}")


def _answers(row: Mapping[str, Any], format_: str, line: int, where: str) -> list[Answer]:
    answers = []
    for place, choice in enumerate(row["choices"]):
        steps_name = next((name for name in _STEPS[format_] if name in choice), _STEPS[format_][0])
        extra = ("accept_lengths",) if format_ == SPEC_BENCH else ()
        _check_fields(choice, ("turns", steps_name, *_LISTS[1:], *extra), ("index",), format_, where, f" in choices[{place}]")
        n = len(choice["turns"]) if isinstance(choice["turns"], list) else 0
        _check_list(choice, "turns", n, _is_text, "texts in Unicode", where)
        _check_list(choice, "new_tokens", n, lambda x: _is_count(x, 0), "counts", where)
        # -1: ended with the prefill's own token; only our exports hold such a turn
        _check_list(choice, steps_name, n, lambda x: _is_count(x, -1), "counts", where)
        _check_list(choice, "wall_time", n, _is_time, "seconds over 0", where)
        lengths = choice.get("accept_lengths")
        if lengths is not None:
            _check_list(choice, "accept_lengths", None, lambda x: _is_count(x, 0), "counts", where)
        steps, by_turn = _by_turn(choice[steps_name], lengths)
        for i in range(n):
            answers.append(Answer(
                question_id=str(row["question_id"]), category=row.get("category"), choice=place, turn=i + 1, n_turns=n,
                text=choice["turns"][i], new_tokens=choice["new_tokens"][i], steps=steps[i], accept_lengths=by_turn[i],
                wall_s=float(choice["wall_time"][i]), line=line,
            ))  # fmt: skip
    return answers


def _check_list(
    choice: Mapping[str, Any], field: str, n: int | None, is_right: Callable[[Any], bool], wanted: str, where: str
) -> None:  # fmt: skip
    values = choice[field]
    if not isinstance(values, list) or not all(map(is_right, values)) or (field == "turns" and not values):
        raise _wrong(where, field, values, f"a list of {wanted}, one a {'turn' if n is not None else 'step'}")
    if n is not None and len(values) != n:
        raise UserError(f"{where}: field {field!r} has {len(values)} entries for {n} turns; it must have one a turn")


def _is_text(x: object) -> bool:
    """Whether it is a text that can be written and tokenised: JSON can hold half a character."""
    return isinstance(x, str) and not re.search("[\ud800-\udfff]", x)


def _is_name(x: object) -> bool:
    """Whether it can be written into tables as it is."""
    return isinstance(x, str) and 0 < len(x) <= 200 and x.isprintable() and not re.search(r"[|<>`]", x)


_NAMED = "in one line, of at most 200 characters and without | < > `"
MOST = 10**9  # tokens, steps, seconds: thirty years


def _is_count(x: object, least: int) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and least <= x <= MOST


def _is_time(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x <= MOST


def _by_turn(steps: Sequence[int], lengths: list[int] | None) -> tuple[list[int | None], list[list[int] | None]]:
    """(forwards of each turn, accept lengths of each turn). Spec-Bench has one list of accept lengths, cut into turns here.

    EAGLE's steps are the index of the last one, from 0. Spec-Bench's methods report either that or how many there were; only the
    length of the list can tell. Where it fits neither, both are None.
    """
    n = len(steps)
    if lengths is None:
        return [s + 1 for s in steps], [None] * n
    for counts in ([*steps], [s + 1 for s in steps]):
        if min(counts) >= 0 and sum(counts) == len(lengths):
            ends = list(accumulate(counts))
            return list(counts), [lengths[end - count : end] for end, count in zip(ends, counts, strict=True)]
    return [None] * n, [None] * n
