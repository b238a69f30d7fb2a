"""Reading JSON that somebody else wrote, and writing files whole."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from make_ledger import FOLDER
from places import ROOT
from safetensors.torch import save_file

from harness.common.errors import UserError
from harness.common.files import read_json, save_whole, whole_file, write_file


def written(folder: Path, content: bytes) -> Path:
    file = folder / "config.json"
    file.write_bytes(content)
    return file


def test_a_byte_order_mark_is_no_fault_of_a_json_file(tmp_path: Path) -> None:
    assert read_json(written(tmp_path, b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 20_000, "nested too deeply"),
        (b"9" * 5000, "digits"),
        (b"", "not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_that_names_the_file(tmp_path: Path, content: bytes, why: str) -> None:
    file = written(tmp_path, content)
    with pytest.raises(UserError, match=why) as refused:
        read_json(file)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*gone.json"):
        read_json(tmp_path / "gone.json")


# ---- writing --------------------------------------------------------------------------------------------------------

_TABLE = """
import os, signal, sys
sys.argv = ["harness", "table", "--results", {ledger!r}, "--out", {out!r}]
replace = os.replace
def killed(old, new):
    if str(new).endswith("main.csv"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(old, new)
os.replace = killed
from harness.cli import main
main()
"""


def test_what_a_killed_table_left_behind_goes_with_the_next_one(tmp_path: Path) -> None:
    (tmp_path / ".main.csv.notes").write_text("somebody's own")
    code = _TABLE.format(ledger=str(FOLDER), out=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    left = {p.name for p in tmp_path.iterdir() if p.name.startswith(".")}
    assert len(left) == 2 and (tmp_path / "main.md").exists() and not (tmp_path / "main.csv").exists()
    write_file(tmp_path / "main.csv", "whole")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [".main.csv.notes"]
    assert (tmp_path / "main.csv").read_text() == "whole"


def test_a_file_that_another_process_is_writing_is_left_to_it(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a[1].txt") as mine:
        mine.write_text("mine")
        write_file(tmp_path / "a[1].txt", "theirs")
    assert (tmp_path / "a[1].txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_what_a_library_cannot_write_is_an_error_of_the_system(save: Callable[..., None], tmp_path: Path) -> None:
    """As on a full disk: torch and safetensors have errors of their own for it, which would end in a traceback."""
    file, weights = tmp_path / "weights", {"x": torch.zeros(1 << 20)}

    def saved(path: Path) -> Any:
        save(weights, path)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError) as error:
            save_whole(file, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.filename == str(file) and not list(tmp_path.iterdir())
    save_whole(file, saved)
    assert file.stat().st_size > 1 << 20
