"""How far the work in a folder is: by cell and machine what is measured, what failed, what was asked for; and who is at it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common.errors import UserError, duration
from harness.common.names import label, method_order, preset_order, task_order
from harness.common.write_lock import holder_of
from harness.forms.table import NOTHING, Section, Table
from harness.ledger.ledger import Records, check_is_no_file, has_records, lock_path, path_of, read
from harness.ledger.planned import STATES, Part, PlannedCell, asked_of, read_plan
from harness.ledger.record import Record

DONE, RUNNING, STOPPED, FAILED, UNKNOWN = "done", "running", "stopped", "failed", NOTHING
MOST_NAMED = 5  # parts of a cluster's work that failed


Unit = tuple[str, int, int]
"""Which generation of a cell: prompt, turn, repeat."""


@dataclass(slots=True)
class _Counts:
    """Generations by how they ended."""

    ok: set[Unit] = field(default_factory=set)
    failed: set[Unit] = field(default_factory=set)
    skipped: set[Unit] = field(default_factory=set)

    def add(self, r: Record) -> None:
        if r["status"] == "skipped":  # after that turn there is nothing to build the next one from
            self.skipped |= {(r["sample_id"], turn, r["repeat"]) for turn in range(r["turn"], r["n_turns"] + 1)}
        else:
            (self.ok if r["status"] == "ok" else self.failed).add((r["sample_id"], r["turn"], r["repeat"]))


def status_table(folder: Path) -> Table:
    """A row a cell and machine: generations measured, failed and skipped, and how many were asked for, if a run said so.

    Raises:
        UserError: neither records nor a plan; or a file that cannot be read.
    """
    folder = Path(folder)
    check_is_no_file(folder)
    plan = read_plan(folder)
    records = read(folder, reduced=True, quiet=True) if has_records(folder) else Records()
    if not records and not plan.cells and not plan.parts:
        raise UserError(f"no records in {folder}{'' if folder.is_dir() else ': there is no such folder'}")
    named: dict[str, PlannedCell | Record] = {}
    counts: dict[str, dict[str, _Counts]] = defaultdict(lambda: defaultdict(_Counts))
    for r in records:
        if not r["is_warmup"]:
            named.setdefault(r["cell"], r)
            counts[r["cell"]][r["machine"]].add(r)
    asked = asked_of(plan.cells)
    for planned in plan.cells:
        named.setdefault(planned.cell, planned)
    who, is_held = _who(folder)
    machines = sorted({machine for of_cell in counts.values() for machine in of_cell})
    rows = []
    for cell, about in named.items():
        of_cell = counts[cell] or {"": _Counts()}
        ended = {unit for own in of_cell.values() for unit in own.ok | own.skipped}
        for machine, own in sorted(of_cell.items()):
            failed = len(own.failed - ended)
            rows.append({
                **_named(about), "cell": cell, "machine": machine or None, "ok": len(own.ok), "failed": failed,
                "skipped": len(own.skipped - own.ok), "asked": asked.get(cell),
                "state": _state(asked.get(cell), len(ended), failed, is_held),
            })  # fmt: skip
    rows.sort(key=lambda row: (row["model"], row["temperature"], method_order(row["method"]), preset_order(row["preset"]),
                               task_order(row["task"]), row["source"], row["cell"], row["machine"] or ""))  # fmt: skip
    facts = [*_total(rows, asked), who, *_age(folder), *_parts(plan.parts)]
    facts += [f"Machine {i}: {machine}" for i, machine in enumerate(machines, start=1)] if len(machines) > 1 else []
    alike = Counter(tuple(_names(row).values()) for row in {row["cell"]: row for row in rows}.values())
    with_cell = any(n > 1 for n in alike.values())  # of other budgets, dtypes, weights or codes
    shown = pd.DataFrame([_shown(row, machines, with_cell) for row in rows])
    return Table("status", (Section(str(folder), tuple(facts), shown),), records.footnotes, pd.DataFrame(rows))


def _named(about: Any) -> dict[str, Any]:
    names = ("model", "method", "preset", "task", "source", "temperature")
    return {name: getattr(about, name) if isinstance(about, PlannedCell) else about[name] for name in names}


def _state(asked: int | None, n_ended: int, n_failed: int, is_held: bool) -> str:
    if asked is not None and n_ended >= asked:
        return DONE
    if is_held:
        return RUNNING
    return FAILED if n_failed else STOPPED if asked is not None else UNKNOWN


def _names(row: dict[str, Any]) -> dict[str, str]:
    return {"model": row["model"], "method": label(row["method"], row["preset"]), "task": f"{row['task']} ({row['source']})",
            "T": f"{row['temperature']:g}"}  # fmt: skip


def _shown(row: dict[str, Any], machines: list[str], with_cell: bool) -> dict[str, str]:
    """with_cell: the cell's key too, where names do not tell one from another."""
    several = {"machine": str(1 + machines.index(row["machine"])) if row["machine"] else NOTHING} if len(machines) > 1 else {}
    return {
        **_names(row), **({"cell": row["cell"]} if with_cell else {}), **several, "ok": str(row["ok"]),
        "failed": str(row["failed"]), "skipped": str(row["skipped"]),
        "asked": NOTHING if row["asked"] is None else str(row["asked"]), "state": row["state"],
    }  # fmt: skip


def _total(rows: list[dict[str, Any]], asked: dict[str, int]) -> list[str]:
    n = {name: sum(row[name] for row in rows) for name in ("ok", "failed", "skipped")}
    of = f" of {sum(asked.values())} asked for" if asked and asked.keys() >= {row["cell"] for row in rows} else ""
    return [f"{n['ok']} generations measured{of}, {n['failed']} failed, {n['skipped']} skipped"]


def _who(folder: Path) -> tuple[str, bool]:
    """A line on who writes, and whether somebody may be at it."""
    holder = holder_of(lock_path(folder))
    if holder is None:
        return "Nobody writes to it.", False
    if holder.is_gone:
        return f"Nobody writes to it: {holder} is gone, and the next command goes on.", False
    return f"Written to by {holder}{'; whether it lives shows there only' if holder.is_elsewhere else ''}.", True


def _age(folder: Path) -> list[str]:
    path = path_of(folder)
    return [f"Last written {duration(max(0.0, time.time() - path.stat().st_mtime))} ago."] if path.exists() else []


def _parts(parts: tuple[Part, ...]) -> list[str]:
    """Of a cluster's work how many parts are in each state, which run, and which failed and why."""
    if not parts:
        return []
    by_state = {state: [part for part in parts if part.state == state] for state in STATES}
    lines = ["Parts: " + ", ".join(f"{len(own)} {state}" for state, own in by_state.items() if own)]
    for part in (*by_state["running"], *by_state["failed"][:MOST_NAMED]):
        where, since = (f" on {part.machine}" if part.machine else ""), (f" since {part.since}" if part.since else "")
        lines.append(f"{part.state}: {part.name}{where}{since}{f': {part.said}' if part.said else ''}")
    if len(by_state["failed"]) > MOST_NAMED:
        lines.append(f"failed: {len(by_state['failed']) - MOST_NAMED} more")
    return lines
