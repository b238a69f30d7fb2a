"""`harness status`: what is done, failed, skipped and left of what was asked for, on which machine, and who is at it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from command_line import harness, isolate, refused, run
from made_up_ledger import write_ledger
from made_up_records import measured, unmeasured
from make_ledger import ENV, keyed

from harness.common.errors import UserError
from harness.common.write_lock import Holder, WriteLock
from harness.ledger.ledger import RECORDS, lock_path, machine_label
from harness.ledger.merge import merge
from harness.ledger.planned import FILE, PARTS, Part, PlannedCell, add_cells, asked_of, read_plan, set_parts
from harness.show.status import status_table


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def planned(record: Any, n: int, shard: str = "1/1") -> PlannedCell:
    r = keyed(record)
    return PlannedCell(r["cell"], r["model"], r["method"], r["preset"], r["task"], r["source"], r["temperature"], n, shard)


def rows(folder: Path) -> dict[Any, dict[str, Any]]:
    return {(r["method"], r["machine"]): r for r in status_table(folder).numbers.astype(object).to_dict("records")}


def told(folder: Path) -> str:
    (section,) = status_table(folder).sections
    return "\n".join(section.facts)


def test_what_is_measured_failed_and_skipped_of_what_was_asked_for(tmp_path: Path) -> None:
    vanilla = [measured("vanilla", i, [0]) for i in range(4)]
    eagle2 = [measured("eagle2", 0, [1]), unmeasured("eagle2", 1, "error"), measured("eagle2", 1, [1]),  # tried again
              unmeasured("eagle2", 2, "error"), unmeasured("eagle2", 2, "error"), unmeasured("eagle2", 3, "skipped")]  # fmt: skip
    write_ledger(tmp_path, [measured("pld", 0, [1], is_warmup=True), *vanilla, *eagle2])
    machine = machine_label(ENV)
    found = rows(tmp_path)
    assert {key: (r["ok"], r["failed"], r["skipped"], r["asked"], r["state"]) for key, r in found.items()} == {
        ("vanilla", machine): (4, 0, 0, None, "—"), ("eagle2", machine): (2, 1, 1, None, "failed"),
    }  # fmt: skip  # an old ledger: what is there
    assert "6 generations measured, 1 failed, 1 skipped" in told(tmp_path)
    add_cells(tmp_path, [planned(vanilla[0], 4), planned(eagle2[0], 4), planned(measured("eagle1", 0, [1]), 4)])
    found = rows(tmp_path)
    assert {key[0]: (r["ok"], r["asked"], r["state"]) for key, r in found.items()} == {
        "vanilla": (4, 4, "done"), "eagle2": (2, 4, "failed"), "eagle1": (0, 4, "stopped"),
    }  # fmt: skip
    assert "6 generations measured of 12 asked for, 1 failed, 1 skipped" in told(tmp_path)
    with WriteLock(lock_path(tmp_path)).acquire(0):
        assert {r["state"] for r in rows(tmp_path).values()} == {"done", "running"}
        assert f"Written to by process {os.getpid()} on " in told(tmp_path)


def test_a_skipped_turn_ends_its_conversation(tmp_path: Path) -> None:
    skipped = [unmeasured("eagle2", 0, "skipped") | {"n_turns": 2}]
    write_ledger(tmp_path, [*skipped, measured("eagle2", 1, [1], n_turns=2), measured("eagle2", 1, [1], n_turns=2, turn=2)])
    add_cells(tmp_path, [planned(skipped[0], 4)])
    (row,) = rows(tmp_path).values()
    assert (row["ok"], row["skipped"], row["asked"], row["state"]) == (2, 2, 4, "done")


def test_each_machine_has_a_row(tmp_path: Path) -> None:
    other = ENV | {"cpu": "Other CPU"}
    write_ledger(tmp_path, [measured("eagle2", i, [1]) for i in range(2)])
    write_ledger(tmp_path, [measured("eagle2", i, [1]) for i in range(2, 5)], other)
    add_cells(tmp_path, [planned(measured("eagle2", 0, [1]), 5)])
    found = rows(tmp_path)
    assert {key: (r["ok"], r["asked"], r["state"]) for key, r in found.items()} == {
        ("eagle2", machine_label(ENV)): (2, 5, "done"), ("eagle2", machine_label(other)): (3, 5, "done"),
    }  # fmt: skip
    assert f"Machine 1: {machine_label(ENV)}\nMachine 2: {machine_label(other)}" in told(tmp_path)


def test_cells_whose_names_are_alike_have_their_keys(tmp_path: Path) -> None:
    few = measured("eagle2", 0, [1])
    many = measured("eagle2", 0, [1], max_new_tokens=2 * few["max_new_tokens"])
    write_ledger(tmp_path, [few, measured("vanilla", 0, [0])])
    assert "cell" not in status_table(tmp_path).sections[0].shown
    write_ledger(tmp_path, [many])
    cells = status_table(tmp_path).sections[0].shown["cell"]
    assert len(cells) == 3 and {few["cell"], many["cell"]} < {*cells}


def test_who_wrote_last_and_when(tmp_path: Path) -> None:
    write_ledger(tmp_path, [measured("eagle2", 0, [1])])
    os.utime(tmp_path / RECORDS, (0, os.stat(tmp_path / RECORDS).st_mtime - 600))
    assert "Nobody writes to it.\nLast written 10 min ago." in told(tmp_path)
    here = Holder.here()
    lock_path(tmp_path).write_text(json.dumps(asdict(replace(here, pid=2**22 + 1))))
    assert "is gone, and the next command goes on." in told(tmp_path)
    lock_path(tmp_path).write_text(json.dumps(asdict(replace(here, host="node7"))))
    assert "on node7 since" in told(tmp_path) and "whether it lives shows there only" in told(tmp_path)


def test_a_run_writes_what_it_was_asked_for_and_its_parts_add_up(tmp_path: Path) -> None:
    command = "--method eagle2 --task mt_bench --limit 3 --temperature 0 --temperature 1"
    for i in (1, 2):
        assert run(tmp_path / str(i), command, f"--shard {i}/2").code == 0
    assert {(c.method, c.temperature, c.generations, c.shard) for c in read_plan(tmp_path / "1").cells} == {
        (name, t, 4, "1/2") for name in ("vanilla", "eagle2") for t in (0.0, 1.0)
    }
    before = (tmp_path / "1" / FILE).read_bytes()
    run(tmp_path / "1", command, "--shard 1/2")
    assert (tmp_path / "1" / FILE).read_bytes() == before
    assert {r["state"] for r in rows(tmp_path / "1").values()} == {"done"}
    merge([tmp_path / "1", tmp_path / "2"], tmp_path / "both")
    merge([tmp_path / "2", tmp_path / "1"], tmp_path / "other order")
    assert (tmp_path / "both" / FILE).read_bytes() == (tmp_path / "other order" / FILE).read_bytes()
    done = harness("status", tmp_path / "both", "--json")
    assert done.code == 0 and "24 generations measured of 24 asked for, 0 failed, 0 skipped" in done.out
    assert [(r["ok"], r["asked"], r["state"]) for r in done.value] == [(6, 6, "done")] * 4


def test_of_one_cell_the_larger_run_counts_and_parts_are_not_added_to_it() -> None:
    cell = planned(measured("eagle2", 0, [1]), 10)
    parts = [cell._replace(generations=n, shard=shard) for n, shard in ((3, "1/3"), (3, "2/3"), (2, "3/3"), (5, "1/2"))]
    assert asked_of([cell, *parts]) == {cell.cell: 10}
    assert asked_of(parts) == {cell.cell: 8}


def test_the_parts_of_a_clusters_work_are_told(tmp_path: Path) -> None:
    write_ledger(tmp_path, [measured("eagle2", 0, [1])])
    set_parts(tmp_path, [Part("of an earlier driver", "waiting")])
    set_parts(tmp_path, [Part("toy T=0 1/9", "running", "node1", "2026-12-01T13:00:00+00:00"), Part("toy T=0 2/9", "done"),
                         *(Part(f"toy T=0 {i}/9", "failed", "node2", said="out of memory") for i in range(3, 10))])  # fmt: skip
    said = told(tmp_path)
    assert "Parts: 1 running, 1 done, 7 failed" in said and "failed: 2 more" in said
    assert "running: toy T=0 1/9 on node1 since 2026-12-01T13:00:00+00:00" in said
    assert "failed: toy T=0 3/9 on node2: out of memory" in said
    add_cells(tmp_path, [planned(measured("eagle2", 0, [1]), 1)])
    assert len(read_plan(tmp_path).parts) == 9  # each stays when the other is written


@pytest.mark.parametrize("text", [
    "{", "[]", "{}", '{"schema": 2, "cells": []}', '{"schema": 1, "cells": [{}]}', '{"schema": 1, "cells": {}}',
])  # fmt: skip
def test_a_plan_that_is_none_is_named_and_a_run_makes_it_anew(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ledger(tmp_path, [measured("eagle2", 0, [1])])
    (tmp_path / FILE).write_text(text)
    refused(harness("status", tmp_path), str(tmp_path / FILE))
    add_cells(tmp_path, [planned(measured("eagle2", 0, [1]), 1)])
    assert str(tmp_path / FILE) in capsys.readouterr().err
    assert rows(tmp_path)["eagle2", machine_label(ENV)]["state"] == "done"


@pytest.mark.parametrize("one", [{"state": "lost"}, {"name": 1}, {"more": ""}])
def test_parts_that_are_none_are_named_and_the_next_driver_makes_them_anew(one: dict[str, object], tmp_path: Path) -> None:
    write_ledger(tmp_path, [measured("eagle2", 0, [1])])
    (tmp_path / PARTS).write_text(json.dumps({"schema": 1, "parts": [Part("a", "done")._asdict() | one]}))
    refused(harness("status", tmp_path), str(tmp_path / PARTS))
    set_parts(tmp_path, ())
    assert "Parts" not in told(tmp_path)


def test_a_folder_of_nothing_is_refused_and_lines_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records in"):
        status_table(tmp_path / "none")
    refused(harness("status", tmp_path / "none"), "no records in", "there is no such folder")
    write_ledger(tmp_path, [measured("eagle2", 0, [1])])
    refused(harness("status", tmp_path / RECORDS), "is a file; a ledger is named by its folder")
    with (tmp_path / RECORDS).open("a") as file:
        file.write("{}\n")
    assert "1 line of" in status_table(tmp_path).notes[0]
