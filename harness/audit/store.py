"""The audit's own ledger: `audit.jsonl`, a JSON line a finding. Lines are appended whole and never rewritten.

`line_sha` tells whether a line is as it was written; findings of earlier versions lack it.

What `scripts/pack.py` packed lies in `audit.jsonl.xz`. It is read first; new findings go to `audit.jsonl` beside it.
"""

from __future__ import annotations

import errno
import json
import lzma
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.common.errors import UserError
from harness.common.files import check_packed_by_xz
from harness.common.write_lock import WriteLock
from harness.ledger.record import canonical_hash, text_sha

FILE, PACKED, LOCK = "audit.jsonl", "audit.jsonl.xz", "audit.jsonl.lock"


def _sha_of(finding: Mapping[str, Any]) -> str:
    """Of a finding as it stands in the file: whoever reads it may rely on what was written."""
    return text_sha(json.dumps(finding))


class Store:
    """Findings by what they are about. It is a context manager, for one process at a time.

    Raises:
        UserError: the folder cannot be written, another process holds it, or a line before the last is no finding.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / FILE
        self._found: dict[str, dict[str, Any]] = {}
        self._lock = WriteLock(self.path.with_name(LOCK))
        self._fd = -1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(2)
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            self._read()
        except OSError as e:
            self.__exit__()
            raise UserError(f"cannot write to {folder}: {e.strerror}") from None
        except BaseException:
            self.__exit__()
            raise

    def _read(self) -> None:
        check_packed_by_xz(self.path)
        packed = self.path.with_name(PACKED)
        if packed.exists():
            try:
                self._take(packed, lzma.decompress(packed.read_bytes()).splitlines(keepends=True))
            except (OSError, EOFError, lzma.LZMAError) as e:
                raise UserError(f"{packed} is no whole xz file ({e})") from None
        lines = self.path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # torn by a kill: it is made again
            os.ftruncate(self._fd, sum(map(len, lines[:-1])))
            del lines[-1]
        self._take(self.path, lines)

    def _take(self, path: Path, lines: list[bytes]) -> None:
        """Take in the findings of a file."""
        for number, line in enumerate(lines, start=1):
            try:
                finding = json.loads(line)
            except (ValueError, RecursionError):
                raise UserError(f"{path}:{number}: not JSON; remove the line: it is made again") from None
            if not isinstance(finding, dict) or type(finding.get("key")) is not str or type(finding.get("method", "")) is not str:
                raise UserError(f"{path}:{number}: not a finding; remove the line: it is made again")
            written = finding.pop("line_sha", None)
            if written not in (None, _sha_of(finding)):
                raise UserError(f"{path}:{number}: this finding was altered; remove the line: it is made again")
            # if two stores were joined, the run that ended well counts
            if "error" not in finding or finding["key"] not in self._found:
                self._found[finding["key"]] = finding

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._lock.release()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(list(self._found.values()))

    @staticmethod
    def key_of(about: Mapping[str, Any]) -> str:
        """The key under which a finding lies here, or would."""
        return canonical_hash(about)

    def get(self, about: Mapping[str, Any]) -> dict[str, Any] | None:
        return self._found.get(self.key_of(about))

    def add(self, about: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Write a finding. It is on the disk when this returns."""
        finding = {"key": self.key_of(about), **about, **values}
        line = json.dumps(finding | {"line_sha": _sha_of(finding)}).encode() + b"\n"
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
        except OSError as e:
            raise UserError(f"cannot write to {self.path}: {e.strerror}") from None
        self._found[finding["key"]] = finding
        return finding
