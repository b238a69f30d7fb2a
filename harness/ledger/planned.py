"""`plan.json` of a ledger: what was asked for, and how far the parts of a cluster's work are. `harness status` reads it.

For who writes records, which holds the ledger's lock meanwhile:

- `add_cells(folder, cells)`: at the start of a run, how many generations of each cell it was asked for. The entries of earlier
  runs stay. Of one cell and part the larger number counts.
- `set_parts(folder, parts)`: what a driver knows of the parts of its work (`Part`); those of the same name are replaced, and all
  others stay. The file is written whole each time, so call it when a state changes, not once a record. `drop_parts(folder)`: when
  it begins.

For who reads: `read_plan(folder)`, which is empty where there is no such file, and `asked_of(cells)`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.common.errors import UserError, say
from harness.common.files import read_json, write_file

FILE = "plan.json"
SCHEMA = 1
STATES = ("waiting", "running", "done", "failed")


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """How many generations of a cell a run, or its part `shard` (`I/N`), was asked for: every turn and repeat is one."""

    cell: str
    model: str
    method: str
    preset: str
    task: str
    source: str
    temperature: float
    generations: int
    shard: str = "1/1"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a cluster's work. `since`: when it came into that state, as ISO 8601; `said`: why it failed, or whatever is to be
    told of it in a line."""

    name: str
    state: str  # one of STATES
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
        UserError: the file is something else.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return Plan()
    found = read_json(path)
    try:
        cells = tuple(PlannedCell(**one) for one in found["cells"])
        parts = tuple(Part(**one) for one in found["parts"])
        told = (*map(asdict, cells), *map(asdict, parts))
        texts = [value for one in told for name, value in one.items() if name not in _NUMBERS]
        numbers = [(c.temperature, c.generations) for c in cells]
        is_right = found["schema"] == SCHEMA and all(type(text) is str for text in texts)
        is_right &= all(type(t) in (int, float) and type(n) is int and n >= 0 for t, n in numbers)
        is_right &= all(part.state in STATES for part in parts)
    except (KeyError, TypeError, AttributeError):
        is_right = False
    if not is_right:
        raise UserError(f"{path} is not what a run writes; remove it, and the next run makes it anew")
    return Plan(cells, parts)


_NUMBERS = ("temperature", "generations")


def add_cells(folder: Path, cells: Iterable[PlannedCell]) -> None:
    """
    Raises:
        UserError: it cannot be written.
    """
    plan = _there(folder)
    known = {(c.cell, c.shard): c for c in plan.cells}
    for one in cells:
        old = known.get((one.cell, one.shard))
        if old is None or old.generations < one.generations:
            known[one.cell, one.shard] = one
    _write(folder, plan, Plan(tuple(known[key] for key in sorted(known)), plan.parts))


def add_from(folders: Iterable[Path], out: Path) -> None:
    """Add what other folders were asked for; the parts of a cluster's work are of its own folder.

    Raises:
        UserError: it cannot be written.
    """
    if cells := [cell for folder in folders for cell in _there(folder).cells]:
        add_cells(out, cells)


def set_parts(folder: Path, parts: Iterable[Part]) -> None:
    """
    Raises:
        UserError: it cannot be written.
    """
    plan = _there(folder)
    _write(folder, plan, Plan(plan.cells, tuple(({p.name: p for p in plan.parts} | {p.name: p for p in parts}).values())))


def drop_parts(folder: Path) -> None:
    """A driver begins: what an earlier one knew of the parts of its work is of no use.

    Raises:
        UserError: it cannot be written.
    """
    plan = _there(folder)
    if plan.parts:
        _write(folder, plan, Plan(plan.cells))


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


def _there(folder: Path) -> Plan:
    """What is there; nothing where the file cannot be read: a run does not end for it."""
    try:
        return read_plan(folder)
    except UserError as error:
        say(f"note: {error}")
        return Plan()


def _write(folder: Path, old: Plan, new: Plan) -> None:
    if new != old or not (Path(folder) / FILE).exists():
        write_file(Path(folder) / FILE, json.dumps({"schema": SCHEMA, **asdict(new)}, indent=1) + "\n")
