"""One writer a folder: who holds it is named, a dead process's lock is taken over by one, another machine's is left alone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from harness.common import write_lock
from harness.common.errors import UserError
from harness.common.write_lock import Holder, WriteLock, holder_of

HERE = Holder.here()
DEAD = replace(HERE, pid=2**22 + 1, command="harness run --method eagle2")  # beyond any number that Linux gives


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".records.jsonl.lock"


def left_behind(path: Path, holder: Holder) -> None:
    path.write_text(json.dumps(asdict(holder)))


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        WriteLock(path).acquire(0)
    return str(error.value)


def process(path: Path, then: str) -> subprocess.Popen[str]:
    """A process that takes the lock, says so, and then does something."""
    code = f"""
import sys, os, time, signal
from pathlib import Path
from harness.common.write_lock import WriteLock
try:
    WriteLock(Path({str(path)!r})).acquire(0)
except Exception as error:
    print("refused", error, flush=True)
    raise SystemExit
print("held", os.getpid(), flush=True)
{then}
"""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_who_holds_it_is_named_and_it_is_given_back(path: Path) -> None:
    with WriteLock(path).acquire(0):
        assert holder_of(path) == replace(HERE, since=holder_of(path).since)  # type: ignore[union-attr]
        said = refused(path)
        for part in (f"another process writes to {path.parent}: process {os.getpid()} on {socket.gethostname()} since 20",
                     "wait for it or choose another --out", sys.argv[0].rpartition("/")[2]):  # fmt: skip
            assert part in said
        assert "\n" not in said and os.listdir(path.parent) == [path.name]
    assert not path.exists() and holder_of(path) is None
    WriteLock(path).acquire(0).release()


def test_a_lock_of_a_killed_process_is_named_and_taken_over(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with process(path, "time.sleep(60)") as child:
        assert child.stdout is not None and child.stdout.readline().startswith("held")
        assert f"process {child.pid} on" in refused(path)
        child.send_signal(signal.SIGKILL)
        child.wait()
    found = holder_of(path)
    assert found is not None and found.pid == child.pid and found.is_gone
    with WriteLock(path).acquire(0):
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"{path} is taken over: process {child.pid} on" in said and "is gone" in said
        assert holder_of(path).pid == os.getpid()  # type: ignore[union-attr]


def test_a_killed_process_whose_parent_did_not_notice_is_gone(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with process(path, "time.sleep(60)") as child:
        assert child.stdout is not None and child.stdout.readline().startswith("held")
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not reaped
        WriteLock(path).acquire(0).release()
        assert f"process {child.pid} on" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["raise KeyboardInterrupt", "os.kill(os.getpid(), signal.SIGTERM)", "os._exit(1)"])
def test_however_a_process_ends_the_next_one_gets_it(path: Path, how: str) -> None:
    with process(path, how) as child:
        assert child.communicate(timeout=60)[0].startswith("held")
    WriteLock(path).acquire(0).release()
    assert not path.exists()


def test_a_block_that_is_left_by_an_error_gives_it_back(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), WriteLock(path).acquire(0):
        raise KeyboardInterrupt
    assert not path.exists()


def test_a_number_that_another_process_has_by_now_is_no_holder(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert HERE.started is not None and HERE.boot is not None  # Linux tells
    for stale in (replace(HERE, started=HERE.started - 1), replace(HERE, boot="another boot"), DEAD):
        left_behind(path, stale)
        assert stale.is_gone
        WriteLock(path).acquire(0).release()
        assert "is taken over" in capsys.readouterr().err
    left_behind(path, HERE)  # that process lives, so it is not taken from it, locked or not
    assert not HERE.is_gone and f"process {os.getpid()}" in refused(path)


def test_another_machines_lock_is_refused_and_says_what_to_delete(path: Path) -> None:
    left_behind(path, replace(DEAD, host="node7"))
    said = refused(path)
    assert f"process {DEAD.pid} on node7" in said and f"once it is known to be dead, delete {path}" in said
    assert f"{socket.gethostname()} cannot tell" in said and path.exists()
    path.unlink()
    WriteLock(path).acquire(0).release()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", json.dumps(asdict(HERE)).encode()[:40], b"\xff" * 9,
                                  json.dumps(asdict(HERE) | {"pid": "1"}).encode(), b'{"pid": 1}', b"[" * 9999,
                                  json.dumps(asdict(HERE) | {"pid": 2**31}).encode()], ids=range(10))  # fmt: skip
def test_a_lock_file_that_cannot_be_read_is_nobodys_unless_it_is_locked(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    assert holder_of(path) is None
    with path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refused(path) == f"another process writes to {path.parent}; wait for it or choose another --out"
    WriteLock(path).acquire(0).release()
    assert not path.exists()


def test_a_full_disk_leaves_no_lock_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_lock.os, "write", lambda fd, data: 1)
    with pytest.raises(OSError, match="No space left"):
        WriteLock(path).acquire(0)
    assert os.listdir(path.parent) == []


def test_what_a_kill_left_of_a_lock_being_made_is_taken_away(path: Path) -> None:
    left, new = (path.with_name(f"{path.name}.{name}") for name in ("abc", "def"))
    left.write_text("{")
    new.write_text("{")
    os.utime(left, (0, 0))
    WriteLock(path).acquire(0).release()
    assert not left.exists() and new.exists()  # a young one may be another process's


def _no(number: int) -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_file_systems_without_links_or_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_lock.os, "link", _no(errno.EPERM))
    with WriteLock(path).acquire(0):
        assert f"process {os.getpid()}" in refused(path)
    left_behind(path, DEAD)
    WriteLock(path).acquire(0).release()
    monkeypatch.setattr(write_lock.fcntl, "flock", _no(errno.EBADF))
    left_behind(path, replace(DEAD, host="node7"))
    assert f"process {DEAD.pid} on node7" in refused(path)
    path.unlink()
    monkeypatch.setattr(write_lock.fcntl, "flock", _no(errno.ENOLCK))
    with WriteLock(path).acquire(0):
        assert f"process {os.getpid()}" in refused(path)
    left_behind(path, DEAD)
    said = refused(path)  # two could take it over at once
    assert "is left behind" in said and "delete that file" in said and str(path) in said


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_lock.tempfile, "mkstemp", _no(errno.EROFS))
    with pytest.raises(OSError, match="Read-only file system"):
        WriteLock(tmp_path / "lock").acquire(0)


def test_a_lock_that_was_deleted_and_made_anew_is_left_to_its_new_holder(path: Path) -> None:
    first = WriteLock(path).acquire(0)
    path.unlink()
    with WriteLock(path).acquire(0):
        first.release()
        assert path.exists()


def test_a_forked_child_does_not_give_its_parents_lock_back(path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from harness.common.write_lock import WriteLock
with WriteLock(Path({str(path)!r})).acquire(0) as lock:
    if not (child := os.fork()):
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    print(lock.path.exists())
print(lock.path.exists())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_of_many_that_take_over_a_stale_lock_at_once_one_wins(path: Path) -> None:
    """Real processes, started together, over and over; each that wins notes when it held the lock."""
    start, n = time.time() + 1.5, 5
    code = f"""
import os, sys, time
from pathlib import Path
from harness.common.errors import UserError
from harness.common.write_lock import WriteLock
folder = Path({str(path.parent)!r})
for turn in range(40):
    time.sleep(max(0, {start} + turn * 0.02 - time.time()))
    lock = WriteLock(folder / "lock")
    try:
        lock.acquire(0)
    except UserError:
        continue
    try:
        os.close(os.open(folder / "alone", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        print("two hold it")
    print("won")
    time.sleep(0.003)
    os.unlink(folder / "alone")
    if turn % 3:  # as if killed: the kernel unlocks, and the file stays, of a process that is gone
        text = lock.path.read_text().replace(str(os.getpid()), "{DEAD.pid}", 1)
        fd, lock._fd = lock._fd, -1
        os.pwrite(fd, text.encode(), 0)
        os.close(fd)
    else:
        lock.release()
"""
    told_of: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen([sys.executable, "-c", code], **told_of) for _ in range(n)]
    told = [child.communicate(timeout=120) for child in children]
    out, err = "".join(o for o, _ in told), "".join(e for _, e in told)
    assert "two hold it" not in out and "Traceback" not in err, err
    assert out.count("won") >= 30 and err.count("is taken over") >= 5
    assert set(os.listdir(path.parent)) <= {"lock"}
