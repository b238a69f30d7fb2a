"""A record of the task `digits` as a picture: what `scripts/digits_mosaic.py` makes, read back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

import tasks
from harness.common.errors import UserError
from harness.ledger.record import Record

SIDE, CELL = 32, 8  # pixels of a picture and of a cell
LEVELS = 17
FIRST_LEVEL = 3  # the token id of level 0; <pad>, <bos> and <eos> come before it
UNKNOWN = -1  # where no pixel was made
MOSTLY = 0.9  # of a cell's pixels
LEAST_ZEROS = 14  # of 64: a digit of the set has 22 to 48, noise 4 on average and under 14 in 99,999 of 100,000 cells


def picture(record: Record) -> np.ndarray:
    """[32, 32]: the levels of the prompt and then of the output, in raster order; `UNKNOWN` where there is none.

    Raises:
        UserError: the record is of another task, or its prompt is not among those at hand.
    """
    if record["task"] != "digits":
        raise UserError(f"record {record['key']} is of task {record['task']}: it holds no picture; task digits does")
    sha256, prompts = _prompts(record["source"])
    if record["prompts_sha"] != sha256 or record["sample_id"] not in prompts:
        raise UserError(f"record {record['key']}: its prompt {record['sample_id']} is of another set of prompts than is here")
    return painted(prompts[record["sample_id"]], record["token_ids"])


@cache
def _prompts(source: str) -> tuple[str, dict[str, str]]:
    found = tasks.load("digits", source=source)
    return found.sha256, {p.id: p.turns[0] for p in found.prompts}


def painted(prompt: str, token_ids: Sequence[int]) -> np.ndarray:
    """The same of a prompt's text and an output. A token that is no level leaves its pixel `UNKNOWN`, and what is beyond the last
    pixel is left out."""
    given = np.array([int(word) for word in prompt.split()], dtype=np.int64)
    made = np.asarray(token_ids, dtype=np.int64) - FIRST_LEVEL
    levels = np.concatenate([given, np.where((made >= 0) & (made < LEVELS), made, UNKNOWN)])[: SIDE * SIDE]
    found = np.full(SIDE * SIDE, UNKNOWN, dtype=np.int64)
    found[: len(levels)] = levels
    return found.reshape(SIDE, SIDE)


def cell_kinds(levels: np.ndarray) -> list[list[str | None]]:
    """What each cell of a picture [32, 32] shows, a list a row of cells: `digit`, `blank`, `plain` or `noisy` by its pixels; None
    where it is not whole. Greedy noise may look like anything."""
    return [[_kind(levels[y : y + CELL, x : x + CELL]) for x in range(0, SIDE, CELL)] for y in range(0, SIDE, CELL)]


def _kind(cell: np.ndarray) -> str | None:
    if (cell == UNKNOWN).any():
        return None
    counts = np.bincount(cell.flatten(), minlength=LEVELS)
    if counts.max() >= MOSTLY * cell.size:
        return "plain" if counts.argmax() else "blank"
    return "digit" if counts[0] >= LEAST_ZEROS else "noisy"
