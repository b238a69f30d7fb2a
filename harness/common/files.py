"""Files: the cache's folder, hashes, writing whole files, reading JSON and YAML that somebody else wrote."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
