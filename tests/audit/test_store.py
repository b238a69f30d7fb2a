"""The audit's own ledger: a finding that was altered is not judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.audit.store import FILE, Store
from harness.common.errors import UserError


def filled(folder: Path) -> list[str]:
    with Store(folder) as store:
        for i in range(3):
            store.add({"kind": "greedy", "method": "eagle2", "prompt": i}, {"same": True, "gap": float("inf"), "worst": 0.1})
    return (folder / FILE).read_text().splitlines()


def test_findings_come_back_as_they_were_and_those_of_earlier_versions_count(tmp_path: Path) -> None:
    lines = filled(tmp_path)
    earlier = json.loads(lines[0])
    del earlier["line_sha"]
    (tmp_path / FILE).write_text("\n".join([json.dumps(earlier), *lines[1:]]) + "\n")
    with Store(tmp_path) as store:
        about = {"kind": "greedy", "method": "eagle2", "prompt": 0}
        assert store.get(about) == {"key": store.key_of(about), **about, "same": True, "gap": float("inf"), "worst": 0.1}
        assert len(list(store)) == 3


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("rubbish", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not a finding"),
        ('{"key": 5}', "not a finding"),
        ('{"key": "k", "method": 5}', "not a finding"),
        ("worst", "this finding was altered"),
        ("gone", "this finding was altered"),
    ],
)
def test_a_line_that_is_no_finding_or_was_altered_is_named(tmp_path: Path, line: str, why: str) -> None:
    lines = filled(tmp_path)
    spoilt = {"worst": lines[1].replace("0.1", "0.0"), "gone": lines[1].replace('"same": true, ', "")}.get(line, line)
    (tmp_path / FILE).write_text("\n".join([lines[0], spoilt, lines[2]]) + "\n")
    with pytest.raises(UserError, match=f"{FILE}:2: {why}.*remove the line: it is made again"):
        Store(tmp_path)


def test_an_opening_that_fails_gives_the_lock_back(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{\n")
    with pytest.raises(UserError, match=f"{FILE}:1: not JSON"):
        Store(tmp_path)
    (tmp_path / FILE).unlink()
    with Store(tmp_path), pytest.raises(UserError, match=f"another process writes to {tmp_path}: process "):
        Store(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [FILE]
