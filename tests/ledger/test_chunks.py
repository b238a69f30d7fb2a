"""A file of records that several processes read: the same records, the same bad lines, whatever happens to a process."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from make_ledger import ENV, METHODS, base_record, output_of

from harness.common.errors import UserError
from harness.ledger import chunks
from harness.ledger.ledger import RECORDS, Ledger, Lines, read, write_env

N = 40
NAMED = [METHODS["vanilla"], METHODS["eagle2"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger with lines of many kinds: a second measurement far from the first, warm-ups, no record, and a torn last one."""
    env = write_env(tmp_path, ENV)
    lines = [json.dumps(record(i) | {"env": env}) for i in range(N)]
    lines[5] = json.dumps(record(5) | {"env": env, "is_warmup": True})  # whose key is no warm-up's
    lines[20], lines[N - 3] = "{}", lines[1]
    (tmp_path / RECORDS).write_text("\n".join(lines) + '\n{"schema": 3, "ke')
    return tmp_path


def record(i: int, **changes: Any) -> dict[str, Any]:
    base = base_record(NAMED[i % 2], "gsm8k", 0.0, sample_id=str(i), **changes)
    return output_of(NAMED[i % 2], base, list(range(3 + i % 5)))


def in_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LEAST_BYTES", 100)
    monkeypatch.setattr(chunks, "usable_cores", lambda: 4)


@pytest.mark.parametrize("with_text", [False, True])
def test_parts_hold_what_the_whole_holds(
    folder: Path, with_text: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found() -> tuple[Any, ...]:
        if with_text:
            (folder / RECORDS).write_bytes(before)
            with Ledger(folder) as ledger:
                return ledger.records, ledger.keys(), (folder / RECORDS).read_bytes(), capsys.readouterr().err
        records = read(folder, reduced=True)
        return list(records), records.footnotes, capsys.readouterr().err

    before = (folder / RECORDS).read_bytes()
    whole = found()
    in_four(monkeypatch)
    parts = chunks.chunks_of(folder / RECORDS, False, with_text)
    assert [part.end for part in parts] == [*(part.begin for part in parts[1:]), None] and len(parts) == 4
    assert found() == whole
    assert len(whole[0]) == N - 3 and "measured already in line 2" in whole[-1] and "torn last line" in whole[-1]


def test_a_part_whose_process_dies_is_read_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(folder, reduced=True, quiet=True)
    in_four(monkeypatch)
    started = []

    class Killed(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            started.append(self)
            os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr(chunks.subprocess, "Popen", Killed)
    found = read(folder, reduced=True, quiet=True)
    assert (list(found), found.footnotes) == (list(whole), whole.footnotes)
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 4


def test_a_file_is_read_where_no_process_can_be_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(folder, reduced=True, quiet=True)
    in_four(monkeypatch)

    def refused(*_: Any, **__: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(chunks.subprocess, "Popen", refused)
    found = read(folder, reduced=True, quiet=True)
    assert (list(found), found.footnotes) == (list(whole), whole.footnotes)


@pytest.mark.parametrize("printed", ["", "cos", "hello", "I", "N.", "]."])
def test_what_a_process_prints_is_not_taken_for_an_answer(
    folder: Path, printed: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(folder, reduced=True, quiet=True)
    in_four(monkeypatch)
    python = tmp_path_factory.mktemp("python") / "python"
    python.write_text(f"#!/bin/sh\necho '{printed}'; echo 'Warning'\n")
    python.chmod(0o755)
    monkeypatch.setattr(chunks.sys, "executable", str(python))
    found = read(folder, reduced=True, quiet=True)
    assert (list(found), found.footnotes) == (list(whole), whole.footnotes)


def test_a_large_file_that_cannot_be_read_is_told_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_four(monkeypatch)

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match="records.jsonl cannot be read .Permission denied."):
        read(folder, reduced=True)


def test_a_part_ends_where_it_should_though_the_lines_have_changed(tmp_path: Path) -> None:
    (tmp_path / RECORDS).write_bytes(b"aaa\nbbbbb\nccc\n")
    part = Lines(tmp_path / RECORDS, 0, 8)  # the second line was shorter
    assert list(part) == [(1, b"aaa"), (2, b"bbbbb")]


def test_a_process_takes_no_other_harness_for_this_one(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")  # another checkout, in which the command is given
    (elsewhere / "harness" / "ledger").mkdir(parents=True)
    for name in ("harness/__init__.py", "harness/ledger/__init__.py"):
        (elsewhere / name).touch()
    for name in ("harness/ledger/chunks.py", "pickle.py"):
        (elsewhere / name).write_text(f"open({str(elsewhere / 'was_run')!r}, 'w')")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    monkeypatch.setattr(chunks, "found_in", None)  # the processes have it all
    in_four(monkeypatch)
    assert len(read(folder, reduced=True, quiet=True)) == N - 3
    assert not (elsewhere / "was_run").exists()


def test_a_reading_that_is_broken_off_leaves_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_four(monkeypatch)
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(chunks.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chunks, "_told", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(folder, reduced=True, quiet=True)
    assert len(started) == 4 and all(process.poll() is not None for process in started)


def test_where_every_line_is_bad_it_is_no_ledger_in_parts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / RECORDS).write_text("{}\n" * 300)
    in_four(monkeypatch)
    with pytest.raises(UserError, match="none of its 300 lines can be read"):
        read(tmp_path, reduced=True)


@pytest.mark.parametrize("size", [0, 1, 99, 150])
def test_a_small_file_is_one_part(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / RECORDS).write_bytes(b"x" * size)
    in_four(monkeypatch)
    (part,) = chunks.chunks_of(tmp_path / RECORDS, False, False)
    assert (part.begin, part.end) == (0, None)
