"""The figures of an imported answer file, each with the formula it is under."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from harness.ledger.record import Record
from harness.metrics.definitions import Estimate, estimated
from harness.metrics.reference_formula import per_question, text_tokens

Questions = Mapping[str, Sequence[Record]]
"""Question id -> its turns in order."""

Row = tuple[str, Estimate, str]
"""What it is, its value, and the formula, or why there is no value."""


def figures(own: Questions, base: Questions | None) -> list[Row]:
    """All figures of a file's questions, and those beside a baseline's, which has the same questions."""
    n = len(own)
    tokens, counted = _tokens(own)
    rows: list[Row] = []

    def none(figure: str, why: str) -> None:
        rows.append((figure, Estimate(None, None, n), why))

    def ratio(figure: str, above: Sequence[float], below: Sequence[float], formula: str) -> None:
        rows.append((figure, _estimate(above, below), formula))

    turns = [r for q in own for r in own[q]]
    lengths = [told(r, "accept_lengths") for r in turns]
    if not is_counted(own):
        none("τ", "its new_tokens are all 0: the file of a baseline")
    elif any(told(r, "steps") is None for r in turns):
        none("τ", "accept_lengths has another number of steps than the file names")
    else:
        steps = _sums(own, lambda r: told(r, "steps"))
        ratio("τ, pooled", tokens, steps, "new_tokens / forwards (idxs + 1)")
        each = _sums(own, lambda r: told(r, "new_tokens") / max(told(r, "steps"), 1))
        ratio("τ, mean of turns", each, [len(own[q]) for q in own], "the same, a turn at a time")
        index = _sums(own, lambda r: max(told(r, "steps") - 1, 0))
        ratio("τ, index from 0", tokens, index, "new_tokens / idxs, as users of the files divide them")
        if all(length is not None for length in lengths):
            sums = _sums(own, lambda r: sum(told(r, "accept_lengths")))
            ratio("mean accept length", sums, steps, "mean of accept_lengths, as Spec-Bench prints it")
    seconds = _sums(own, _seconds)
    speeds = _speeds(own, tokens)
    one = [1.0] * n
    ratio("tokens/s, mean of questions", speeds, one, counted)
    if base is None:
        for figure in ("speed ratio, mean of questions", "speed ratio, totals", "official formula"):
            none(figure, "no --baseline")
        return rows
    base_tokens, base_counted = _tokens(base)
    base_speeds, base_seconds = _speeds(base, base_tokens), _sums(base, _seconds)
    ratio("tokens/s, baseline's", base_speeds, one, base_counted)
    ratio("speed ratio, mean of questions", speeds, base_speeds, f"mean of per-question speeds; baseline: {base_counted}")
    totals = np.array([tokens, seconds, base_tokens, base_seconds])
    rows.append(("speed ratio, totals", estimated([totals], lambda s: s[0] / s[1] / (s[2] / s[3]), 0.0),
                 f"all tokens / all seconds; baseline: {base_counted}"))  # fmt: skip
    if any(r["n_text_tokens"] is None for q in base for r in base[q]):
        none("official formula", "counts the baseline's text tokenised again, minus one: needs --tokenizer")
    elif not any(again := _sums(base, text_tokens)):
        none("official formula", "the baseline's text is empty")
    else:
        formula = "mean of per-question speeds; baseline: its text tokenised again, minus one"
        ratio("official formula", speeds, _speeds(base, again), formula)
    return rows


def is_counted(questions: Questions) -> bool:
    """Whether the file counts tokens at all: a baseline's may not."""
    return any(told(r, "new_tokens") for turns in questions.values() for r in turns)


def _tokens(questions: Questions) -> tuple[list[float], str]:
    """(tokens of each question, where they are from): the reference's plain loops never count `new_tokens`."""
    if is_counted(questions):
        return _sums(questions, lambda r: told(r, "new_tokens")), "tokens = new_tokens"
    return _sums(questions, _steps), "tokens = idxs + 1, because its new_tokens are 0"


def told(record: Record, field: str) -> Any:
    """What the file says of a turn: `new_tokens`, `steps`, `accept_lengths`."""
    said: Mapping[str, Any] = record["foreign"]
    return said[field]


def _steps(record: Record) -> float:
    """Target forwards of a turn. nan where the file contradicts itself: what rests on it has no value then."""
    steps = told(record, "steps")
    return np.nan if steps is None else steps


def _seconds(record: Record) -> float:
    return record["wall_s"] or 0.0


def _sums(questions: Questions, value: Callable[[Record], float]) -> list[float]:
    """[n_questions]: a value of each question, summed over its turns."""
    return [sum(map(value, turns)) for turns in questions.values()]


def _speeds(questions: Questions, tokens: Sequence[float]) -> list[float]:
    seconds = _sums(questions, _seconds)
    return list(per_question(zip(questions, tokens, seconds, strict=True)).values())


def _estimate(above: Sequence[float], below: Sequence[float]) -> Estimate:
    return estimated([np.array([above, below], dtype=float)], lambda s: s[0] / s[1], 0.0)
