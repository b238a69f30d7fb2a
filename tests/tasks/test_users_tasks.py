"""A user's task file with a published set of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import isolate

import tasks
from harness.common.errors import UserError
from tasks import sources

TASK = """
import sys
from harness.common.pypi import WheelMember
from tasks import Prompt, Task

ROWS = WheelMember("a==1", "ab" * 32, "rows.jsonl")
TASK = Task(name="mine", title="Mine", line="mine", pypi=ROWS, to_prompt=lambda row, i: {})
"""


@pytest.mark.parametrize(
    ("to_prompt", "why"),
    [
        ("sys.exit(0)", "mine.py. fails on row 0: .*SystemExit: 0"),
        ("row['question']", "mine.py. fails on row 0: .*KeyError: 'question'"),
        ("row", "gives no Prompt of texts"),
        ("Prompt(str(i), (3,))", "gives no Prompt of texts"),
        ("Prompt(i, ('a',))", "gives no Prompt of texts"),
        ("Prompt(str(i), ('a', 'b'))", "has 2 turns"),
    ],
)
def test_to_prompt_that_fails_is_one_line_with_task_file_and_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to_prompt: str, why: str
) -> None:
    isolate(monkeypatch, tmp_path)
    (tmp_path / "mine.py").write_text(TASK.format(to_prompt))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "Why?"}) + "\n")
    monkeypatch.setattr(sources, "wheel_member", lambda member: tmp_path / member.member)
    tasks.include(tmp_path / "mine.py")
    with pytest.raises(UserError, match=why):
        tasks.load("mine", source="pypi")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_rows_that_are_no_json_lines_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    isolate(monkeypatch, tmp_path)
    (tmp_path / "mine.py").write_text(TASK.format("row"))
    for file in ("rows.jsonl", "rows.jsonl.gz"):
        (tmp_path / file).write_bytes(content)
        monkeypatch.setattr(sources, "wheel_member", lambda member, path=tmp_path / file: path)
        tasks.include(tmp_path / "mine.py")
        with pytest.raises(UserError, match="rows.jsonl of a==1 holds no JSON lines"):
            tasks.load("mine", source="pypi")
