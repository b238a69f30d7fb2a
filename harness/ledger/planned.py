"""`plan.json` of a ledger: what was asked for. `parts.json`: how far the parts of a cluster's work are. For `harness status`.

For who writes records, which holds the ledger's lock meanwhile:

- `add_cells(folder, cells)`: at the start of a run, how many generations of each cell it was asked for. The entries of earlier
  runs stay. Of one cell and part the larger number counts.
- `set_parts(folder, parts)`: the parts of a driver's work (`Part`), all of them, in place of those that are there. The file is
  written whole each time, so call it when a state changes, not once a record.

For who reads: `read_plan(folder)`, which is empty where there is no such file, and `asked_of(cells)`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.common.errors import UserError, say
from harness.common.files import read_json, write_file

FILE, PARTS = "plan.json", "parts.json"
SCHEMA = 1
STATES = ("waiting", "running", "done", "failed")


class PlannedCell(NamedTuple):
    """How many generations of a cell a run, or its part `shard` (`I/N`), was asked for: every turn and repeat is one."""

    cell: str = ""
    model: str = ""
    method: str = ""
    preset: str = ""
    task: str = ""
    source: str = ""
    temperature: float = 0.0
    generations: int = 0
    shard: str = "1/1"


class Part(NamedTuple):
    """A part of a cluster's work. `since`: when it came into that state, as ISO 8601; `said`: why it failed, or whatever is to be
    told of it in a line."""

    name: str = ""
    state: str = "waiting"  # one of STATES
    machine: str = ""
    since: str = ""
    said: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    cells: tuple[PlannedCell, ...] = ()
    parts: tuple[Part, ...] = ()


def read_plan(folder: Path) -> Plan:
    """
    Raises:
        UserError: a file of the two is something else.
    """
    return Plan(_cells(folder), tuple(Part(**one) for one in _entries(Path(folder) / PARTS, "parts", Part())))


def _cells(folder: Path) -> tuple[PlannedCell, ...]:
    return tuple(PlannedCell(**one) for one in _entries(Path(folder) / FILE, "cells", PlannedCell()))


def _entries(path: Path, what: str, like: PlannedCell | Part) -> Sequence[Mapping[str, Any]]:
    """What a file holds under a name, each entry checked against one of that kind."""
    if not path.exists():
        return ()
    found = read_json(path)
    is_right = type(found) is dict and found.get("schema") == SCHEMA and type(found.get(what)) is list
    if not is_right or not all(_is_like(one, like._asdict()) for one in found[what]):
        raise UserError(f"{path} is not what a run writes; remove it, and the next run makes it anew")
    entries: Sequence[Mapping[str, Any]] = found[what]
    return entries


def _is_like(entry: object, like: Mapping[str, Any]) -> bool:
    if type(entry) is not dict or entry.keys() != like.keys():
        return False
    kinds = all(type(value) is type(like[name]) or (type(like[name]), type(value)) == (float, int)
                for name, value in entry.items())  # fmt: skip
    return kinds and entry.get("generations", 0) >= 0 and entry.get("state", "done") in STATES


def add_cells(folder: Path, cells: Iterable[PlannedCell]) -> None:
    """
    Raises:
        UserError: it cannot be written.
    """
    there = _cells_if_any(folder)
    known = {(c.cell, c.shard): c for c in there}
    for one in cells:
        old = known.get((one.cell, one.shard))
        if old is None or old.generations < one.generations:
            known[one.cell, one.shard] = one
    new = tuple(known[key] for key in sorted(known))
    if new != there or not (Path(folder) / FILE).exists():
        _write(Path(folder) / FILE, "cells", new)


def add_from(folders: Iterable[Path], out: Path) -> None:
    """Add what other folders were asked for; the parts of a cluster's work are of its own folder.

    Raises:
        UserError: it cannot be written.
    """
    if cells := [cell for folder in folders for cell in _cells_if_any(folder)]:
        add_cells(out, cells)


def set_parts(folder: Path, parts: Iterable[Part]) -> None:
    """
    Raises:
        UserError: it cannot be written.
    """
    path = Path(folder) / PARTS
    if (told := list(parts)) or path.exists():
        _write(path, "parts", told)


def asked_of(cells: Iterable[PlannedCell]) -> dict[str, int]:
    """By cell, how many generations were asked for: by a whole run, or by the parts of one together."""
    by_run: dict[tuple[str, str], int] = {}
    for one in cells:
        run = one.cell, one.shard.partition("/")[2]
        by_run[run] = by_run.get(run, 0) + one.generations
    asked: dict[str, int] = {}
    for (cell, _), n in by_run.items():
        asked[cell] = max(asked.get(cell, 0), n)
    return asked


def _cells_if_any(folder: Path) -> tuple[PlannedCell, ...]:
    """What is there; nothing where the file cannot be read: a run does not end for it."""
    try:
        return _cells(folder)
    except UserError as error:
        say(f"note: {error}")
        return ()


def _write(path: Path, what: str, entries: Iterable[PlannedCell | Part]) -> None:
    write_file(path, json.dumps({"schema": SCHEMA, what: [one._asdict() for one in entries]}, indent=1) + "\n")
