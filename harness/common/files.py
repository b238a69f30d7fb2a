"""Files: the cache's folder, hashes, writing whole files, reading JSON and YAML that somebody else wrote."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from harness.common.errors import UserError, in_one_line
from harness.common.plain_names import place, plain_parts


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

    parts = plain_parts("revision", revision)
    root = place(Path(constants.HF_HUB_CACHE), "repository", repo_folder_name(repo_id=repo, repo_type="model"))
    try:
        commit = place(root / "refs", "revision", *parts).read_text(encoding="utf-8").strip()
        return place(root / "snapshots", "commit", commit)
    except OSError:
        return place(root / "snapshots", "revision", *parts)


def check_packed_by_xz(file: Path) -> None:
    """
    Raises:
        UserError: what earlier versions packed by gzip is there, which is not read any more.
    """
    old = file.with_suffix(f"{file.suffix}.gz")
    if old.exists():
        raise UserError(f"{old} was packed by an earlier version: `gunzip {old}`, and it is read (scripts/pack.py packs it anew)")


def sha256_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


_BEING_WRITTEN = ".being-written"


def seal(file: Path, kept: Path) -> None:
    """Keep the size and sha256 of `file`, which is about to become `kept`, beside the latter: `unaltered` compares with them."""
    with whole_file(_seal_of(kept)) as tmp:
        tmp.write_text(json.dumps({"size": file.stat().st_size, "sha256": sha256_file(file)}) + "\n", encoding="utf-8")


def unaltered(kept: Path) -> Path:
    """A file of the cache, if it is as it was when it was sealed.

    Raises:
        UserError: altered, or never sealed; says what to delete.
    """
    mark = _seal_of(kept)
    try:
        said = json.loads(mark.read_bytes())
        is_same = kept.stat().st_size == said["size"] and sha256_file(kept) == said["sha256"]
        why = "is not as it was when it was kept: truncated or altered"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        is_same, why = False, f"cannot be checked, as there is no {mark.name} to compare with"
    if not is_same:
        raise UserError(f"{kept} {why}; delete {kept} and it is made again")
    return kept


def is_sealed(kept: Path) -> bool:
    """Whether there is something to compare a file of the cache with: those that older versions kept have no seal."""
    return _seal_of(kept).is_file()


def _seal_of(kept: Path) -> Path:
    return kept.with_name(f"{kept.name}.sha256")


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


def save_whole(path: Path, save: Callable[[Path], object]) -> None:
    """Put in place whole what a library writes to a path: torch's and safetensors' have errors of their own for a full disk.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError

    with whole_file(path) as tmp:
        try:
            save(tmp)
        except (RuntimeError, SafetensorError) as e:
            raise OSError(errno.EIO, in_one_line(e), str(path)) from e


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


def read_text(path: Path, most_bytes: int = 1 << 28) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: it cannot be read, is no UTF-8, or is over `most_bytes` long.
    """
    try:
        if path.is_file() and path.stat().st_size > most_bytes:
            raise UserError(f"{path} has {path.stat().st_size} bytes; at most {most_bytes} are read")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 text: {e.reason} at byte {e.start}") from None
    except ValueError as e:  # a path with a null byte
        raise UserError(f"cannot read {str(path)!r}: {e}") from None


def read_json(path: Path) -> Any:
    """A JSON file that somebody else wrote. NaN and Infinity stay what Python makes of them: who reads a number checks it.

    Raises:
        UserError: it cannot be read, is no JSON, is nested too deeply, or has a number of thousands of digits.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise UserError(f"{path}:{e.lineno}: not JSON: {e.msg} at column {e.colno}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except ValueError as e:  # Python's limit on the digits of an integer
        raise UserError(f"{path}: {str(e).split(';')[0]}") from None
