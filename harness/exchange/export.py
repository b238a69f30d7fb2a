"""`harness export`: a ledger as answer files of EAGLE or Spec-Bench, with the counts that their loops would have booked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.common.errors import UserError, say, unknown
from harness.common.files import write_file
from harness.common.names import VANILLA
from harness.common.plain_names import made_plain, place, plain_name
from harness.exchange.answer_file import FORMATS, SPEC_BENCH
from harness.ledger.ledger import read, read_env
from harness.ledger.record import Record
from harness.metrics.pairing import Conversation, conversation_of, measured, setting_of, side_of, variant_of
from harness.metrics.reference_formula import booked

# What Spec-Bench calls the tasks. Of MT-bench the categories keep their names.
_CATEGORIES = {"gsm8k": "math_reasoning", "cnn_dm": "summarization", "natural_questions": "qa"}


def export(folder: Path, out: Path, format_: str, *, strict: bool = False) -> list[Path]:
    """Write a ledger as answer files, `out/<task>/<model>-<method>-..-temperature-T.jsonl` -> the files.

    Counts are those that the reference's own loop would have booked (`metrics.reference_formula.booked`). So an import of the
    files gives the figures of the column `official`. Conversations that lack a turn are left out, and methods without a trace.

    Raises:
        UserError: unknown format, no records, nothing to write, a task, model or method that is no plain name, a folder that
            cannot be written, or `strict` and a line that cannot be read.
    """
    if format_ not in FORMATS:
        raise unknown("format", format_, FORMATS)
    cells: dict[tuple[Any, ...], list[Record]] = {}
    for r in measured(read(folder, strict=strict)):
        cells.setdefault((setting_of(r), variant_of(r), r["task"], r["source"]), []).append(r)
    files: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells.values():
        first = cell[0]
        conversations, n_left_out = _whole(cell)
        what = f"{first['method']} ({first['preset']}) on {first['task']} at T = {first['temperature']:g}"
        if any(booked(r) is None for r in cell):
            say(f"left out: {what}: it has no trace to count steps from")
            continue
        if n_left_out:
            say(f"left out: {n_left_out} conversations of {what} that lack a turn")
        if not conversations:
            continue
        name = _model_id(first)
        if (first["task"], name) in files:  # another source, budget, machine ...: not the same cell
            name = made_plain(f"{name}-{first['cell'][:8]}")
        if (first["task"], name) in files:  # the same cell on another machine
            name = made_plain(f"{name}-{first['env'][:8]}")
        tstamp = _created(folder, first["env"])
        files[first["task"], name] = [_row(c, name, tstamp, format_) for c in conversations]
    if not files:
        raise UserError(f"nothing in {folder} can be exported: no whole conversation of a method with a trace")
    paths = [place(out, "task", task, name, suffix=".jsonl") for task, name in files]  # before anything is written
    texts = ("".join(json.dumps(row) + "\n" for row in rows) for rows in files.values())
    return [write_file(path, text) for path, text in zip(paths, texts, strict=True)]


def _whole(cell: Iterable[Record]) -> tuple[list[list[list[Record]]], int]:
    """(by conversation, its choices, each with all its turns in order; how many conversations lack a turn)."""
    by: dict[Conversation, dict[int, list[Record]]] = {}
    for r in side_of(cell).values():
        by.setdefault(conversation_of(r), {}).setdefault(r["repeat"], []).append(r)
    whole = []
    for repeats in by.values():
        choices = [sorted(turns, key=lambda r: r["turn"]) for _, turns in sorted(repeats.items())]
        complete = [turns for turns in choices if [r["turn"] for r in turns] == list(range(1, turns[0]["n_turns"] + 1))]
        if complete:
            whole.append(complete)
    return whole, len(by) - len(whole)


def _row(choices: Sequence[Sequence[Record]], model_id: str, tstamp: float | None, format_: str) -> dict[str, Any]:
    first = choices[0][0]
    number = first["sample_id"]
    row: dict[str, Any] = {
        "question_id": int(number) if str(number).isdecimal() and len(number) < 19 and str(int(number)) == number else number
    }
    if format_ == SPEC_BENCH:
        row["category"] = _CATEGORIES.get(first["task"], first["category"] if first["task"] == "mt_bench" else first["task"])
    row |= {"answer_id": first["key"], "model_id": model_id}
    row["choices"] = [_choice(i, turns, format_) for i, turns in enumerate(choices)]
    return row | ({"tstamp": tstamp} if tstamp is not None else {})


def _choice(index: int, turns: Sequence[Record], format_: str) -> dict[str, Any]:
    counts = [b for r in turns if (b := booked(r))]
    choice: dict[str, Any] = {"index": index, "turns": [r["text"] for r in turns]}
    if format_ == SPEC_BENCH:
        choice["decoding_steps"] = [b.steps for b in counts]
    else:
        choice["idxs"] = [b.steps - 1 for b in counts]
    choice |= {"new_tokens": [b.new_tokens for b in counts], "wall_time": [r["wall_s"] for r in turns]}
    if format_ == SPEC_BENCH:
        choice["accept_lengths"] = [n for r in turns for n in _accept_lengths(r)]
    return choice


def _accept_lengths(record: Record) -> list[int]:
    if record["method"] == VANILLA:
        return [1] * len(record["token_ids"])
    return [n + 1 for n in record["trace"]["accepted"]] if record["trace"] else []


def _model_id(record: Record) -> str:
    """`smollm2-135m-eagle2-bfloat16-temperature-0.0`, with the ending that the reference's scripts give it."""
    what = f"{plain_name('model', record['model'])}-{plain_name('method', record['method'])}"
    preset = "" if record["preset"] == "paper" else f"-{record['preset']}"
    return made_plain(f"{what}{preset}-{record['dtype']}-temperature-{float(record['temperature'])}")


def _created(folder: Path, env: str) -> float | None:
    try:
        return datetime.fromisoformat((read_env(folder, env) or {})["created"]).timestamp()
    except (UserError, KeyError, TypeError, ValueError, OverflowError):
        return None
