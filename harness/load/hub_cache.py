"""The hub client's cache on disk: what a repository holds at a commit, and whether what lies here is that.

`blobs/HASH` are the files: a large one is named by its sha256, a small one by git's sha1. `snapshots/COMMIT/PATH` are links to
them. `trees/COMMIT.json` lists path, size and hash of every file. A cache that was copied may lack the links, an old one the
list.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from harness.common.digests import GIT, SHA256, digest_of
from harness.common.errors import UserError
from harness.common.files import write_file
from harness.common.plain_names import place, plain_parts, why_not_plain
from harness.load.layout import why_not_whole

SMALL = ("*.json", "*.model", "*.jinja")  # config and tokenizer
WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository. hash: its sha256 (64 hex digits), or git's sha1 (40). size: None where only the hash is known."""

    path: str
    hash: str
    size: int | None

    @property
    def kind(self) -> str:
        """What `hash` is, as `digest_of` calls it."""
        return SHA256 if len(self.hash) == 64 else GIT


@dataclass(frozen=True, slots=True)
class Fault:
    """A file in the cache that is not what the repository holds. real: the file that a link leads to, which is to be deleted."""

    file: Path
    real: Path
    why: str


def repository_folder(folder: Path) -> Path:
    """The folder of the whole repository, by that of a snapshot."""
    return next((parent.parent for parent in folder.parents if parent.name == "snapshots"), folder.parent)


def read_answer(values: Any) -> tuple[str, list[HubFile]]:
    """(commit, files) of the hub's JSON about a repository. Files whose names could lead elsewhere are left out.

    Raises:
        ValueError: it is something else.
    """
    try:
        commit, found = values["sha"], []
        if not _COMMIT.fullmatch(commit):
            raise ValueError
        for row in values["siblings"]:
            lfs = row.get("lfs") or {}
            file = HubFile(row["rfilename"], lfs.get("sha256") or row["blobId"], lfs.get("size", row["size"]))
            if not _HASH.fullmatch(file.hash) or type(file.size) is not int:
                raise ValueError
            if all(why_not_plain(part) is None for part in file.path.split("/")):
                found.append(file)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError("an answer that is no list of a repository's files") from None
    return commit, found


def write_listing(root: Path, commit: str, files: Iterable[HubFile]) -> None:
    """Keep the list where the hub's client keeps its own, and in its form. One that is there stays."""
    file = place(root / "trees", "commit", commit, suffix=".json")
    rows = {
        f.path: {"size": f.size, "blob_id": f.hash} | ({"lfs_sha256": f.hash, "lfs_size": f.size} if f.kind == SHA256 else {})
        for f in files
    }
    if not file.exists():
        write_file(file, json.dumps({"format_version": 1, "files": rows}, indent=1) + "\n")


def listing(folder: Path) -> dict[str, HubFile]:
    """The files of a snapshot's repository by path; empty where no list was kept, or it cannot be read."""
    try:
        file = place(repository_folder(folder) / "trees", "commit", folder.name, suffix=".json")
        rows = json.loads(file.read_text(encoding="utf-8"))["files"]
        return {
            path: HubFile(path, row.get("lfs_sha256") or row["blob_id"], row.get("lfs_size", row["size"]))
            for path, row in rows.items()
            if all(why_not_plain(part) is None for part in path.split("/"))
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        return {}


def expected(folder: Path, file: Path) -> HubFile | None:
    """What a file of a snapshot should be: by the list, else by the blob that it links to; None: nobody here knows."""
    path = file.relative_to(folder).as_posix()
    if (listed := listing(folder).get(path)) is not None:
        return listed
    name = Path(os.readlink(file)).name if file.is_symlink() else ""
    return HubFile(path, name, None) if _HASH.fullmatch(name) else None


def files_in(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """A snapshot's files that are here, by name."""
    return sorted(f for f in folder.rglob("*") if f.is_file() and any(fnmatch(f.name, pattern) for pattern in patterns))


def fault_of(folder: Path, file: Path, *, anew: bool = False) -> Fault | None:
    """What is wrong with a file of a snapshot; None where nothing is, or nothing can be told. anew: as `digest_of` has it."""
    wanted, real = expected(folder, file), file.resolve()
    if (short := cut_short(folder, file)) is not None or wanted is None:
        return short
    got = digest_of(real, wanted.kind, anew=anew)
    named = "sha256" if wanted.kind == SHA256 else "git sha1"
    return None if got == wanted.hash else Fault(file, real, f"has {named} {got}, expected {wanted.hash}")


def cut_short(folder: Path, file: Path) -> Fault | None:
    """What is wrong with a file of a snapshot by its size alone; nothing of it is read but a header."""
    wanted, real = expected(folder, file), file.resolve()
    if wanted is None or wanted.size is None:
        why = why_not_whole(real)
    else:
        has = real.stat().st_size
        why = None if has == wanted.size else f"has {has} bytes, expected {wanted.size}"
    return None if why is None else Fault(file, real, why)


def unchecked(folder: Path, files: Iterable[Path]) -> list[Path]:
    """Those of a snapshot's files of which nobody here knows what they should be."""
    return [file for file in files if expected(folder, file) is None]


def put(root: Path, commit: str, file: HubFile, blob: Path) -> None:
    """Show a blob under its path in a snapshot: by a link, or in place of it where the file system has no links."""
    shown = place(root / "snapshots", "file of a repository", commit, *plain_parts("file of a repository", file.path))
    shown.parent.mkdir(parents=True, exist_ok=True)
    shown.unlink(missing_ok=True)
    try:
        shown.symlink_to(os.path.relpath(blob, shown.parent))
    except OSError:
        os.replace(blob, shown)


def remove(fault: Fault) -> None:
    """Take a faulty file out of the cache, with the links to it."""
    for path in {*_links(fault.file), fault.real}:
        path.unlink(missing_ok=True)


def _links(path: Path) -> Iterator[Path]:
    while path.is_symlink():
        yield path
        path = path.parent / os.readlink(path)
