"""One writer a folder: a lock file that says who holds it, on one machine and on file systems that several share.

The file is made whole under another name and linked to its own, which only one process can do, on NFS too. Its holder also keeps
it locked with `flock`, which the kernel gives back when a process dies, however it dies. So:

- the file is locked: its holder lives, here or, where the file system passes such locks on, on another machine;
- it is not locked and names a process of this machine that is gone: it is stale, and the next process takes it over. Of two that
  try at once the kernel lets one lock it; the other finds that the file is another one by then, and looks again;
- it is not locked and names another machine: nothing tells here whether that process lives, so it is refused;
- it cannot be read, as a crash of the machine or a full disk may leave it, or an earlier version of this: it is stale where
  nobody locks it.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from harness.common.errors import UserError, say

LEFT_BEHIND_S = 60.0  # a file that was to become a lock and is older than this is of a process that was killed
_LONGEST = 200  # characters of a command
_MOST_PID = 2**31 - 1  # a C int
# EBADF: NFS, of a file that this process may only read (flock(2))
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lock, as its file says. `started`, `boot`: when it started, in ticks since the boot of that id; None
    where the system does not tell."""

    pid: int
    host: str
    since: str
    command: str
    started: int | None = None
    boot: str | None = None

    @classmethod
    def here(cls) -> Holder:
        command = shlex.join([sys.argv[0].rpartition("/")[2], *sys.argv[1:]])
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(os.getpid(), socket.gethostname(), since, command[:_LONGEST], _started(os.getpid()), _boot())

    @classmethod
    def read(cls, text: bytes) -> Holder | None:
        """None where the text is none of a lock file."""
        try:
            found = cls(**json.loads(text))
            texts, number = (found.host, found.since, found.command, found.boot or ""), found.started
            is_right = all(type(x) is str for x in texts) and type(found.pid) is int and type(number) in (int, type(None))
        except (ValueError, TypeError, RecursionError):
            return None
        return found if is_right and 0 < found.pid <= _MOST_PID else None

    @property
    def is_elsewhere(self) -> bool:
        return self.host != socket.gethostname()

    @property
    def is_gone(self) -> bool:
        """Whether this machine has that process no more, or only until its parent asks how it ended. A later one with its number
        started at another time."""
        if self.is_elsewhere:
            return False
        if self.boot is not None and _boot() not in (None, self.boot):
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # another user's
            pass
        if _stat(self.pid)[:1] == ["Z"]:
            return True
        return self.started is not None and _started(self.pid) not in (None, self.started)

    def __str__(self) -> str:
        """`process 17 on node3 since 2026-12-01T13:20:00+00:00 (harness run --method eagle2)`."""
        text = f"process {self.pid} on {self.host} since {self.since} ({self.command[:_LONGEST]})"
        return "".join(c if c.isprintable() else " " for c in text)  # whatever somebody wrote into the file


class WriteLock:
    """The right to write to a folder, held by one process of all machines that see it. A context manager.

    path: the lock file. what: what is written, for messages. otherwise: what to do where somebody else holds it.
    """

    def __init__(self, path: Path, what: str = "", otherwise: str = "choose another --out") -> None:
        self.path = Path(path)
        self._what, self._otherwise = f"writes {what} to" if what else "writes to", otherwise
        self._fd = -1

    def acquire(self, timeout_s: float) -> Self:
        """Take it, at once or as soon as it is given back.

        Raises:
            UserError: somebody holds it after `timeout_s`; says who, and what to do.
            OSError: the lock file cannot be written.
        """
        end = time.monotonic() + timeout_s
        while (why := self._refused()) is not None:
            if time.monotonic() >= end:
                raise UserError(why)
            time.sleep(0.05)
        return self

    def release(self) -> None:
        """Give it back, if it is held. A file that was deleted and made anew by another process stays, and a forked child gives
        back nothing of its parent's."""
        if self._fd < 0:
            return
        with suppress(OSError):
            if self._is_at_its_path(self._fd) and (holder := holder_of(self.path)) and holder.pid == os.getpid():
                self.path.unlink()
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _refused(self) -> str | None:
        """Take the lock: None. Or why that is not to be had."""
        if not self.path.exists() and self._make():
            return None
        try:
            fd = self._opened()
        except FileNotFoundError:  # given back meanwhile
            return self._held_by(None)
        try:
            return self._refused_with(fd)
        finally:
            os.close(fd)

    def _refused_with(self, fd: int) -> str | None:
        """The same where there is a lock file, open as `fd`."""
        is_locked, holder = _flock(fd), Holder.read(text := os.pread(fd, 1 << 16, 0))
        if is_locked is False or (holder and not holder.is_elsewhere and not holder.is_gone):
            return self._held_by(holder)
        if not self._is_at_its_path(fd):  # given back or taken over meanwhile
            return self._held_by(None)
        if holder and holder.is_elsewhere:
            return (f"{holder} {self._what} {self.path.parent}, or did until it was killed: {socket.gethostname()} cannot tell; "
                    f"wait for it or {self._otherwise}; once it is known to be dead, delete {self.path}")  # fmt: skip
        whose = f"{holder} is gone" if holder else "it says of no process that it holds it"
        if is_locked is None:  # two could take it over at once
            return (
                f"{self.path} is left behind ({whose}), and this file system has no locks to take it over with: delete that file"
            )
        with self._made() as (new, name):
            os.replace(name, self.path)
            self._fd = new
        if text:  # an empty one is what earlier versions leave
            say(f"{self.path} is taken over: {whose}")
        return None

    def _held_by(self, holder: Holder | None) -> str:
        who = f": {holder}" if holder else ""
        if holder and holder.is_gone:
            who = f", started by one that is gone: {holder}"
        return f"another process {self._what} {self.path.parent}{who}; wait for it or {self._otherwise}"

    def _opened(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:  # another user's
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def _make(self) -> bool:
        """Make the lock file; False where somebody else did meanwhile."""
        with self._made() as (fd, name):
            try:
                os.link(name, self.path)
            except FileNotFoundError:
                return False
            except FileExistsError:
                if os.fstat(fd).st_nlink < 2:  # over NFS a link may be made and its answer be lost
                    return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._make_in_place()
            self._fd = fd
        return True

    def _make_in_place(self) -> bool:
        """The same where a file cannot have two names. Until it is locked another process may take it over."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        try:
            if _flock(fd) is not False and self._is_at_its_path(fd):
                _write(fd)
                self._fd = fd
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            if self._fd != fd:
                os.close(fd)
        return self._fd == fd

    @contextmanager
    def _made(self) -> Iterator[tuple[int, str]]:
        """A whole lock file of this process, open and locked, under another name, which is taken away again."""
        for left in self.path.parent.glob(f"{glob.escape(self.path.name)}.*"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > LEFT_BEHIND_S:
                    left.unlink()
        fd, name = tempfile.mkstemp(prefix=f"{self.path.name}.", dir=self.path.parent)
        try:
            _flock(fd)
            os.fchmod(fd, 0o644)
            _write(fd)
            yield fd, name
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)
            if fd != self._fd:
                os.close(fd)

    def _is_at_its_path(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(fd))
        except FileNotFoundError:
            return False


def holder_of(path: Path) -> Holder | None:
    """Who holds a lock, as its file says; None where nobody does, or the file cannot be read. It takes nothing, and waits for
    nobody: `Holder.is_gone` and `is_elsewhere` tell what that is worth."""
    try:
        return Holder.read(Path(path).read_bytes())
    except OSError:
        return None


def _flock(fd: int) -> bool | None:
    """Lock an open file, at once; False where another process has, None where the file system cannot."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def _write(fd: int) -> None:
    """Write this process into a file, whole and on the disk."""
    text = json.dumps(asdict(Holder.here())).encode() + b"\n"
    if os.write(fd, text) < len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(fd)


def _started(pid: int) -> int | None:
    """When a process started, in ticks since boot; None where /proc does not tell."""
    try:
        return int(_stat(pid)[19])
    except (ValueError, IndexError):
        return None


def _stat(pid: int) -> list[str]:
    """What /proc tells of a process from its state on (proc_pid_stat(5)); empty where it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None
