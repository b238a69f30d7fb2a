"""The ledger: what is written stays whole and readable whatever happens to the process, the disk or the file."""

from __future__ import annotations

import contextlib
import errno
import json
import lzma
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_ledger import ENV, FOLDER, METHODS, base_record, output_of
from places import ROOT

from harness.common import write_lock
from harness.common.errors import UserError
from harness.ledger.ledger import RECORDS, Ledger, has_records, lock_path, machine_label, read, read_env
from harness.ledger.record import (
    CELL_FIELDS,
    NEW_IN_3,
    READ_BESIDE,
    Record,
    StoredRecord,
    _validator,
    canonical_hash,
    cell_key,
    is_looped,
    sample_key,
    validate,
)
from harness.metrics.pairing import one_environment


def record(sample: int | str = 0, **changes: Any) -> dict[str, Any]:
    method = METHODS["eagle2"]
    made = output_of(method, base_record(method, "gsm8k", 0.0, sample_id=str(sample)), list(range(20)))
    return made | changes


def failed(sample: int, status: str) -> dict[str, Any]:
    return base_record(METHODS["eagle2"], "gsm8k", 0.0, sample_id=str(sample), status=status, error="RuntimeError: x")


# ---- writing and reading --------------------------------------------------------------------------------------------


def test_a_reopened_ledger_knows_what_is_done_and_retries_errors_and_warmups(tmp_path: Path) -> None:
    ok, skipped, error, warmup = record(0), failed(1, "skipped"), failed(2, "error"), record(3, is_warmup=True)
    with Ledger(tmp_path / "new" / "folder") as ledger:
        for r in (ok, skipped, error, warmup):
            ledger.append(r)
        assert ledger.keys() == {ok["key"], skipped["key"]}
    with Ledger(tmp_path / "new" / "folder") as ledger:
        assert ledger.keys() == {ok["key"], skipped["key"]}
        ledger.append(record(2))
        assert error["key"] in ledger.keys()


def test_what_is_read_is_what_was_appended_with_the_machine_added(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        env = ledger.write_env(ENV)
        ledger.append(record(0, env=env, text="line\nbreak\u2028 and \ud800 half a pair"))
    (stored,) = read(tmp_path)
    assert stored.pop("machine") == "Example CPU 3000, no GPU, 2 cores, torch 2.13.0, transformers 5.23.0, engine " + "e9" * 8
    assert stored.pop("system") == "paper" and stored.pop("target_parts") is None
    assert stored.pop("row_invariant") is False  # as the environment does not say
    assert stored == record(0, env=env, text="line\nbreak\u2028 and \ud800 half a pair")


def test_a_packed_ledger_is_read_and_not_added_to(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append(record(0, env=ledger.write_env(ENV)))
    before, plain = read(tmp_path), tmp_path / RECORDS
    packed = tmp_path / f"{RECORDS}.xz"
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    plain.unlink()
    assert read(tmp_path) == before and has_records(tmp_path) and not has_records(tmp_path / "none")
    with pytest.raises(UserError, match="unxz"):
        Ledger(tmp_path)
    assert not plain.exists()
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(UserError, match="no whole xz file"):
        read(tmp_path)


def test_two_ledgers_cannot_hold_one_folder(tmp_path: Path) -> None:
    with Ledger(tmp_path), pytest.raises(UserError, match=f"{tmp_path}: process {os.getpid()} on "):
        Ledger(tmp_path, lock_timeout_s=0.1)
    Ledger(tmp_path, lock_timeout_s=0.1).close()  # given back on leaving
    assert not lock_path(tmp_path).exists()


def test_a_share_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(write_lock.tempfile, "mkstemp", read_only)
    with pytest.raises(UserError, match=f"^cannot write to {tmp_path}: Read-only file system$"):
        Ledger(tmp_path)


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=f"cannot write to .*{folder}"):
        Ledger(tmp_path / folder)


def test_a_number_that_is_none_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger, pytest.raises(ValueError):
        ledger.append(record(0, wall_s=float("nan")))
    assert (tmp_path / RECORDS).read_bytes() == b""


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: Ledger(p).close()])
def test_reading_a_folder_without_records_says_so(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "results")
    with pytest.raises(UserError, match="no records in .*results"):
        read(tmp_path / "results")


# ---- torn, broken, full ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [1, 2, 100, -2])
def test_a_torn_last_line_is_taken_away_and_reported(tmp_path: Path, n_bytes: int, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append(record(0))
    whole = (tmp_path / RECORDS).read_bytes()
    torn = json.dumps(record(1)).encode()[:n_bytes]
    (tmp_path / RECORDS).write_bytes(whole + torn)
    assert [r["sample_id"] for r in read(tmp_path)] == ["0"]  # readable while it is being written
    assert "torn last line" in capsys.readouterr().err
    with Ledger(tmp_path) as ledger:
        assert ledger.keys() == {record(0)["key"]}
        assert "torn last line" in capsys.readouterr().err
        ledger.append(record(1))
    assert [r["sample_id"] for r in read(tmp_path)] == ["0", "1"]


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    (tmp_path / RECORDS).write_text(json.dumps(record(0)))
    assert [r["sample_id"] for r in read(tmp_path)] == ["0"]
    with Ledger(tmp_path) as ledger:
        assert ledger.keys() == {record(0)["key"]}
        ledger.append(record(1))
    assert [r["sample_id"] for r in read(tmp_path)] == ["0", "1"]


def test_a_failed_opening_leaves_no_lock_behind(tmp_path: Path) -> None:
    (tmp_path / RECORDS).write_text("[1, 2]\n")
    with pytest.raises(UserError, match=f"{RECORDS}:1: not a JSON object"):
        Ledger(tmp_path)
    (tmp_path / RECORDS).write_text(json.dumps(record(0)) + "\n")
    Ledger(tmp_path).close()


def _half_then_full(fd: int, data: bytes) -> int:
    _WRITE(fd, data[: len(data) // 2])
    raise OSError(errno.ENOSPC, "No space left on device")


def _half(fd: int, data: bytes) -> int:
    return _WRITE(fd, data[: len(data) // 2])


_WRITE = os.write


@pytest.mark.parametrize("write", [_half_then_full, _half])
def test_a_full_disk_is_reported_and_leaves_the_ledger_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append(record(0))
        before = (tmp_path / RECORDS).read_bytes()
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(UserError, match=f"cannot write to {tmp_path}: No space left"):
            ledger.append(record(1))
        assert (tmp_path / RECORDS).read_bytes() == before
        assert ledger.keys() == {record(0)["key"]}
        monkeypatch.undo()
        ledger.append(record(1))
    assert [r["sample_id"] for r in read(tmp_path)] == ["0", "1"]


def test_records_that_belong_together_are_written_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(tmp_path) as ledger:
        monkeypatch.setattr(os, "write", lambda fd, data: _WRITE(fd, data[: len(data) * 3 // 4]))  # the first line is whole
        with pytest.raises(UserError, match="No space left"):
            ledger.extend([record(0), record(1)])
        assert (tmp_path / RECORDS).read_bytes() == b"" and not ledger.keys() and not ledger.records
        monkeypatch.undo()
        ledger.extend([record(0), record(1)])
    assert [r["sample_id"] for r in read(tmp_path)] == ["0", "1"]


def test_a_line_that_cannot_reach_the_disk_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Ledger(tmp_path) as ledger:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(UserError, match="Input/output error"):
            ledger.append(record(0))
    assert (tmp_path / RECORDS).read_bytes() == b""


# ---- killed ---------------------------------------------------------------------------------------------------------

_APPENDING = """
import os, signal, sys
sys.path[:0] = [{root!r}, {root!r} + '/tests', {tests!r}]
from pathlib import Path
from harness.ledger.ledger import Ledger
from test_records import record
write = os.write
def torn(fd, data):
    write(fd, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
with Ledger(Path({folder!r})) as ledger:
    for i in range({n}):
        if record(i)["key"] in ledger.keys():
            continue
        if i == {torn_at}:
            os.write = torn
        ledger.append(record(i))
        print(i, flush=True)
"""


def _append(folder: Path, n: int, torn_at: int = -1) -> subprocess.Popen[str]:
    code = _APPENDING.format(root=str(ROOT), tests=str(ROOT / "tests" / "ledger"), folder=str(folder), n=n, torn_at=torn_at)
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)


def test_no_record_is_lost_or_doubled_when_the_process_is_killed_over_and_over(tmp_path: Path) -> None:
    n, rng, acknowledged = 200, random.Random(0), 0
    for attempt in range(3):
        with _append(tmp_path, n, torn_at=40 if attempt == 0 else -1) as child:
            assert child.stdout is not None
            if attempt < 2:
                for _ in range(rng.randrange(5, 30)):
                    child.stdout.readline()
                if attempt:
                    time.sleep(rng.random() / 100)  # somewhere within an append
                    child.send_signal(signal.SIGKILL)
            child.communicate(timeout=60)
            assert child.returncode == (-signal.SIGKILL if attempt < 2 else 0)
        with Ledger(tmp_path) as ledger:  # the lock went with the process
            assert len(ledger.keys()) >= acknowledged
            acknowledged = len(ledger.keys())
    stored = [r["key"] for r in read(tmp_path)]
    assert stored == [record(i)["key"] for i in range(n)]


# ---- keys, environment, machine -------------------------------------------------------------------------------------

FIELDS: dict[str, Any] = dict.fromkeys(CELL_FIELDS, "x") | {"temperature": 0, "options": {"depth": 6}}


def test_a_cell_key_covers_exactly_its_fields() -> None:
    assert len({cell_key(**FIELDS | {name: "other"}) for name in CELL_FIELDS} | {cell_key(**FIELDS)}) == 17
    with pytest.raises(TypeError, match="seed"):
        cell_key(**{name: value for name, value in FIELDS.items() if name != "seed"})
    with pytest.raises(TypeError, match="repeat"):
        cell_key(**FIELDS, repeat=0)


def test_equal_numbers_and_orders_give_equal_keys() -> None:
    assert cell_key(**FIELDS) == cell_key(**dict(reversed(FIELDS.items())) | {"temperature": 0.0})
    assert canonical_hash({"a": [1, 2.0]}) == canonical_hash({"a": (1.0, 2)})
    assert canonical_hash({"a": True}) != canonical_hash({"a": 1})
    assert len(canonical_hash({})) == 16


def test_a_sample_key_tells_samples_turns_repeats_and_prompts_apart() -> None:
    base = ("cell", "1", 1, 0, "sha")
    others = [("cell2", "1", 1, 0, "sha"), ("cell", "2", 1, 0, "sha"), ("cell", "1", 2, 0, "sha"),
              ("cell", "1", 1, 1, "sha"), ("cell", "1", 1, 0, "sha2")]  # fmt: skip
    assert len({sample_key(*key) for key in [base, *others]}) == 6


def test_an_environment_is_stored_once_whenever_it_was_made(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        name = ledger.write_env(ENV)
        assert ledger.write_env(ENV | {"created": "later"}) == name
        assert ledger.write_env(ENV | {"cpu": "another"}) != name
    assert read_env(tmp_path, name) == ENV | {"hash": name}
    assert len(list(tmp_path.glob("env-*.json"))) == 2
    assert read_env(tmp_path, "f" * 16) is None


@pytest.mark.parametrize(
    ("change", "key", "there", "here"),
    [
        ({"cpu": "Other CPU"}, "cpu", "Example CPU 3000", "Other CPU"),
        ({"gpu": "H100"}, "gpu", "None", "H100"),
        ({"n_cores": 64}, "n_cores", "2", "64"),
        ({"packages": {"torch": "2.14.0"}}, "torch", "2.13.0", "2.14.0"),
        ({"pages": "2 MB"}, "pages", "None", "2 MB"),
        ({"native": {"path": "avx2", "flags": "-O3"}}, "native", "None", "avx2 -O3"),
    ],
)
def test_a_cell_from_another_machine_is_refused_with_the_key_and_both_values(
    tmp_path: Path, change: dict[str, Any], key: str, there: str, here: str
) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append(record(0, env=ledger.write_env(ENV)))
    with Ledger(tmp_path) as ledger:
        cell = record(0)["cell"]
        ledger.check_machine(cell, ENV | {"git_commit": "another commit is the same machine"})
        ledger.check_machine("another cell", ENV | change)
        with pytest.raises(UserError, match=f"{cell}.*{key} was .*{there}.*here it is .*{here}"):
            ledger.check_machine(cell, ENV | change)


def test_records_of_other_pages_or_other_compiled_code_are_of_another_machine(tmp_path: Path) -> None:
    native = {"path": "avx512", "flags": "-O3 -mavx512f", "compiler": "gcc 12", "passed_over": {}}
    first = ENV | {"pages": "2 MB", "native": native}
    others = [
        first | {"pages": "4 KB"},
        first | {"native": native | {"path": "avx2"}},
        first | {"native": native | {"flags": "-O2"}},
    ]
    with Ledger(tmp_path) as ledger:
        for i, env in enumerate([first, first, *others]):
            ledger.append(record(i, env=ledger.write_env(env)))
    found = read(tmp_path)
    assert found[0]["machine"] == found[1]["machine"]
    assert re.fullmatch(re.escape(machine_label(ENV)) + ", native avx512, flags [0-9a-f]{8}, pages of 2 MB", found[0]["machine"])
    assert len({r["machine"] for r in found}) == 4 == len(list(tmp_path.glob("env-*.json")))
    with pytest.raises(UserError, match="mixed environments: machine of the records"):
        one_environment(found, tmp_path)
    with Ledger(tmp_path) as ledger, pytest.raises(UserError, match="pages was '2 MB', here it is '4 KB'"):
        ledger.check_machine(found[0]["cell"], first | {"pages": "4 KB"})


def test_a_cell_whose_environment_is_gone_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append(record(0, env=ledger.write_env(ENV)))
        next(tmp_path.glob("env-*.json")).unlink()
        with pytest.raises(UserError, match="env-.* is missing"):
            ledger.check_machine(record(0)["cell"], ENV)
    assert "unknown machine" in read(tmp_path)[0]["machine"]


# ---- the schema -----------------------------------------------------------------------------------------------------


def test_the_schema_and_the_type_name_the_same_fields() -> None:
    schema = _validator().schema
    jsonschema.Draft202012Validator.check_schema(schema)
    assert set(schema["required"]) == set(StoredRecord.__annotations__) - NEW_IN_3
    assert set(schema["properties"]) | READ_BESIDE == set(Record.__required_keys__ | Record.__optional_keys__)


def test_every_stored_record_is_valid() -> None:
    for r in read(FOLDER):
        validate(dict(r))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"n_cut": 99}, "token_ids: 1 \\+ sum"),
        ({"temperature": -1}, "temperature"),
        ({"source": "made up"}, "source"),
        ({"status": "error", "error": "x"}, "token_ids"),
        ({"error": "x"}, "error"),
        ({"wall_s": None}, "wall_s"),
        ({"env": "../../etc"}, "env"),
        ({"trace": {"tree_size": [1]}}, "trace"),
    ],
)
def test_what_breaks_the_schema_or_the_arithmetic_is_named(change: dict[str, Any], what: str) -> None:
    validate(record(0, env="0" * 16))
    with pytest.raises(ValueError, match=what):
        validate(record(0, env="0" * 16) | change)


def test_columns_of_unequal_length_are_named() -> None:
    uneven = record(0)
    uneven["trace"] = uneven["trace"] | {"draft_s": []}
    with pytest.raises(ValueError, match="columns differ"):
        validate(uneven)


# ---- loops ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=130))
def test_an_output_loops_when_its_last_64_ids_hold_at_most_half_distinct_8_grams(ids: list[int]) -> None:
    last = ids[-64:]
    grams = {tuple(last[i : i + 8]) for i in range(57)}
    assert is_looped(ids) == (len(ids) >= 64 and len(grams) <= 28)


def test_a_repeated_sentence_loops_and_a_count_does_not() -> None:
    assert is_looped([*range(500), *[7, 8, 9] * 30])
    assert is_looped([*range(100), *[9] * 37])  # 28 distinct 8-grams of 57
    assert not is_looped([*range(100), *[9] * 36])
    assert not is_looped(list(range(100)))
    assert not is_looped([1] * 63)


def test_nothing_right_of_the_records_imports_torch() -> None:
    code = "import sys, harness.show.plots.all, harness.show.tables.all, harness.paper.claims; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_what_an_earlier_version_packed_by_gzip_is_refused_and_not_taken_for_nothing(tmp_path: Path) -> None:
    from harness.audit.store import Store
    from harness.replay import record as replays

    for name, use in (
        ("records.jsonl", read), ("records.jsonl", Ledger), ("records.jsonl", has_records), ("replays.jsonl", replays.read),
        ("audit.jsonl", Store),
    ):  # fmt: skip
        folder = tmp_path / f"{name}-{use.__name__}"
        folder.mkdir()
        (folder / f"{name}.gz").write_bytes(b"packed")
        with pytest.raises(UserError, match=f"`gunzip .*{name}.gz`"):
            use(folder)
        (folder / f"{name}.gz").unlink()
        with contextlib.suppress(UserError):  # `read`: there are no records
            use(folder)
