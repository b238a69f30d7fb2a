"""The hub client's cache on disk: what a repository holds at a commit, and whether what lies here is that.

`blobs/HASH` are the files: a large one is named by its sha256, a small one by git's sha1. `snapshots/COMMIT/PATH` are links to
them. `trees/COMMIT.json` lists path, size and hash of every file. A cache that was copied may lack the links, an old one the
list.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from harness.common.digests import GIT, SHA256, digest_of
from harness.common.errors import UserError
from harness.common.files import write_file
from harness.common.plain_names import place, plain_parts
from harness.load.layout import why_not_whole

SMALL = ("*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt", "*.tiktoken")  # config and tokenizer
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
    """A file in the cache that is not what the repository holds. real: the file that a link leads to, which is to be deleted.

    is_whole: the file is what its own name says; the link to it or the list is wrong.
    """

    file: Path
    real: Path
    why: str
    is_whole: bool = False


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
            if not _is_sound(file):
                raise ValueError
            if _has_place(file.path):
                found.append(file)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError("an answer that is no list of a repository's files") from None
    return commit, found


def _is_sound(file: HubFile) -> bool:
    return bool(_HASH.fullmatch(file.hash)) and type(file.size) is int and file.size >= 0


def _has_place(path: str) -> bool:
    try:
        return bool(plain_parts("file of a repository", path))
    except UserError:
        return False


def write_listing(root: Path, commit: str, files: Iterable[HubFile]) -> None:
    """Keep the hub's list where its client keeps its own, and in its form. It takes the place of one that is there."""
    file = list_file(place(root / "snapshots", "commit", commit))
    rows = {
        f.path: {"size": f.size, "blob_id": f.hash} | ({"lfs_sha256": f.hash, "lfs_size": f.size} if f.kind == SHA256 else {})
        for f in files
    }
    write_file(file, json.dumps({"format_version": 1, "files": rows}, indent=1) + "\n")


def list_file(folder: Path) -> Path:
    """Where the list of a snapshot's repository is, or would be."""
    return place(repository_folder(folder) / "trees", "commit", folder.name, suffix=".json")


def listing(folder: Path) -> dict[str, HubFile]:
    """The files of a snapshot's repository by path; empty where no list was kept, or it cannot be read. Odd entries are none."""
    try:
        rows = json.loads(list_file(folder).read_text(encoding="utf-8"))["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError):
        return {}
    found = {}
    for path, row in rows:
        with suppress(KeyError, TypeError, AttributeError):
            size = row["size"] if row.get("lfs_size") is None else row["lfs_size"]
            one = HubFile(path, row.get("lfs_sha256") or row["blob_id"], size)
            if _is_sound(one) and _has_place(path):
                found[path] = one
    return found


def expected(folder: Path, file: Path) -> HubFile | None:
    """What a file of a snapshot should be: by the blob that it links to, and by the list, which has its size.

    Where they contradict each other, that is the blob: it can be held against its name. None: nobody here knows.
    """
    path, named = file.relative_to(folder).as_posix(), _by_its_link(folder, file)
    listed = listing(folder).get(path)
    return named if listed is None or (named is not None and named.hash != listed.hash) else listed


def _by_its_link(folder: Path, file: Path) -> HubFile | None:
    name = Path(os.readlink(file)).name if file.is_symlink() else ""
    return HubFile(file.relative_to(folder).as_posix(), name, None) if _HASH.fullmatch(name) else None


def files_in(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """A snapshot's files that are here, by name."""
    return sorted(f for f in folder.rglob("*") if f.is_file() and any(fnmatch(f.name, pattern) for pattern in patterns))


def fault_of(folder: Path, file: Path, *, anew: bool = False) -> Fault | None:
    """What is wrong with a file of a snapshot; None where nothing is, or nothing can be told. anew: as `digest_of` has it."""
    wanted, real = expected(folder, file), file.resolve()
    short, named = cut_short(folder, file), _by_its_link(folder, file)
    if wanted is None or (short is not None and named is None):
        return short
    got = digest_of(real, wanted.kind, anew=anew)
    if named is not None and got == named.hash:
        listed = listing(folder).get(wanted.path)
        if listed is None or (listed.hash == got and listed.size == real.stat().st_size):
            return None
        why = f"is what its name says, but {listed.path} has {listed.size} bytes and hash {listed.hash} by the list of files"
        return Fault(file, real, why, is_whole=True)
    if short is not None or got == wanted.hash:
        return short
    called = "sha256" if wanted.kind == SHA256 else "git sha1"
    return Fault(file, real, f"has {called} {got}, expected {wanted.hash}")


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


def remove(folder: Path, fault: Fault) -> bool:
    """Take a faulty file of a snapshot out of the cache with the links to it; -> whether the file itself was deleted.

    What lies outside the cache is the user's and stays: only the link to it goes. So does only the link to a file that is whole.

    Raises:
        UserError: the file can neither be deleted nor unlinked.
    """
    own = [repository_folder(folder).resolve(), _cache().resolve()]
    path, removed = fault.file, False
    try:
        while any(path.parent.resolve().is_relative_to(one) for one in own):
            leads = path.parent / os.readlink(path) if path.is_symlink() else None
            path.unlink(missing_ok=True)
            removed = True
            if leads is None:
                return True
            if fault.is_whole:
                return False
            path = leads
    except OSError as e:
        raise UserError(f"{path} {fault.why}, and it cannot be deleted ({e.strerror or e}); delete it yourself") from None
    if not removed:
        raise UserError(f"{fault.real} {fault.why}; it lies outside the cache, where nothing is deleted: delete it yourself")
    return False


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
