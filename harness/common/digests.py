"""Hashes of large files, computed once: a file of the same path, size and time of change is not read again."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import filelock

from harness.common.files import cache_dir, whole_file

SHA256, GIT = "sha256", "git"  # of the bytes; or sha1 as git names a file by it, over a header and the bytes


def hasher(kind: str, size: int) -> Any:
    """An object of hashlib for a file of `size` bytes."""
    return hashlib.sha256() if kind == SHA256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def digest_of(file: Path, kind: str = SHA256, *, anew: bool = False) -> str:
    """The hash of a file, in hex. anew: it is read, whatever is remembered.

    What is remembered says that the file was not written since. It does not see a disk that loses bits by itself.
    """
    stands = _stands(file)
    known = _remembered().get(str(file), {})
    if not anew and known.get("stands") == stands and kind in known:
        return str(known[kind])
    digest = hasher(kind, file.stat().st_size)
    with file.open("rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    remember(file, kind, digest.hexdigest(), stands)
    return str(digest.hexdigest())


def remember(file: Path, kind: str, digest: str, stands: list[int] | None = None) -> None:
    """Keep a hash; where the cache cannot be written it is computed again next time."""
    memory = _memory()
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{memory}.lock"):
            known = {path: entry for path, entry in _remembered().items() if Path(path).exists()}
            known[str(file)] = {"stands": stands or _stands(file), kind: digest}
            with whole_file(memory) as tmp:
                tmp.write_text(json.dumps(known, indent=0) + "\n", encoding="utf-8")


def _stands(file: Path) -> list[int]:
    """What changes when a file is written: size, time of change, inode."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _memory() -> Path:
    return cache_dir() / "digests.json"


def _remembered() -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {path: entry for path, entry in known.items() if isinstance(entry, dict)} if isinstance(known, dict) else {}
