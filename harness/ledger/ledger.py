"""The ledger: one JSON line a prompt and turn in `records.jsonl`, the environment beside it in `env-<hash>.json`.

Every published number is recomputed from these two, so a line is written whole or not at all, is never rewritten, and
is never skipped silently when it cannot be read.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import sys
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast

import filelock

from harness.common.errors import UserError
from harness.common.files import whole_file
from harness.ledger.record import SCHEMA, Record, StoredRecord, canonical_hash

RECORDS = "records.jsonl"
PACKED = f"{RECORDS}.gz"  # a finished ledger may be kept packed; it is read like the other, and unpacked before it is added to


def machine_keys(env: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree for two timings to be compared, by the names they have in an env file."""
    return {"cpu": env.get("cpu"), "gpu": env.get("gpu"), "n_cores": env.get("n_cores"),
            "torch": env.get("packages", {}).get("torch")}  # fmt: skip


def machine_label(env: Mapping[str, Any]) -> str:
    """`Some CPU, no GPU, 2 cores, torch 2.13.0`: one line that is equal exactly when all machine keys are."""
    keys = machine_keys(env)
    return f"{keys['cpu']}, {keys['gpu'] or 'no GPU'}, {keys['n_cores']} cores, torch {keys['torch']}"


class Ledger:
    """The records of one folder, open for appending; any number of cells, one process at a time.

    Opening creates the folder, takes its lock and repairs a torn last line. A context manager; or call `close`.
    `imported`: for records of answer files, which never stand beside records measured here.

    Raises:
        UserError: the folder cannot be created or written, another process holds it, a line cannot be read, or it holds
            records of the other kind or packed ones.
    """

    def __init__(self, folder: Path, *, lock_timeout_s: float = 2.0, imported: bool = False) -> None:
        self.folder = Path(folder)
        self._path = self.folder / RECORDS
        if not self._path.exists() and (self.folder / PACKED).exists():
            raise UserError(f"{self.folder} is packed: `gunzip {self.folder / PACKED}` to add to it, or choose another --out")
        self._lock = filelock.FileLock(self.folder / f".{RECORDS}.lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # O_APPEND: a line lands at the end whatever else happened to the file since
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        try:
            self._lock.acquire(timeout=lock_timeout_s)
            self._keys: set[str] = set()
            self._skipped: set[str] = set()
            self._cell_envs: dict[str, set[str]] = {}
            for record in _parse(self._path, self._repaired(), imported):
                self._remember(record)
        except filelock.Timeout:
            self.close()
            raise UserError(f"another process writes to {self.folder}; wait for it or choose another --out") from None
        except OSError as error:
            self.close()
            raise _cannot_write(self.folder, error) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._lock.release()

    def keys(self, *, with_skipped: bool = True) -> set[str]:
        """Sample keys that need no measuring again: status ok or skipped. Errors are retried, warm-ups do not count."""
        return self._keys | self._skipped if with_skipped else set(self._keys)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record: in the file as a whole line, on the disk when this returns.

        Raises:
            UserError: the line could not be written; what was there of it is taken away again.
        """
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, line)
            if written < len(line):  # a disk that fills up takes part of the line and reports nothing yet
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
        except OSError as error:
            with suppress(OSError):  # the next opening repairs what stays
                os.ftruncate(self._fd, size)
            raise _cannot_write(self.folder, error) from error
        self._remember(cast(Record, record))

    def write_env(self, env: Mapping[str, Any]) -> str:
        """Store the environment once and return its hash, which leaves out `created`: equal runs share a file."""
        name = canonical_hash({key: value for key, value in env.items() if key not in ("created", "hash")})
        path = _env_path(self.folder, name)
        try:
            if not path.exists():
                with whole_file(path) as tmp:
                    tmp.write_text(json.dumps({**env, "hash": name}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        return name

    def check_machine(self, cell: str, env: Mapping[str, Any]) -> None:
        """Refuse to add to a cell that was measured on another machine.

        Raises:
            UserError: names the cell, the machine key and both values.
        """
        here = machine_keys(env)
        for name in sorted(self._cell_envs.get(cell, ())):
            stored = read_env(self.folder, name)
            if stored is None:
                path = _env_path(self.folder, name)
                raise UserError(f"{path} is missing: cannot tell what machine measured cell {cell}; choose another --out")
            for key, there in machine_keys(stored).items():
                if there != here[key]:
                    raise UserError(f"{self.folder} holds cell {cell} from another machine: {key} was {there!r}, "
                                    f"here it is {here[key]!r}; choose another --out")  # fmt: skip

    def _remember(self, record: Record) -> None:
        if record["status"] == "ok":
            self._cell_envs.setdefault(record["cell"], set()).add(record["env"])
        if record["status"] in ("ok", "skipped") and not record["is_warmup"]:
            (self._keys if record["status"] == "ok" else self._skipped).add(record["key"])

    def _repaired(self) -> bytes:
        """The file's whole lines, after a last line that a kill cut short is taken away or given its newline."""
        data = self._path.read_bytes()
        whole, torn = _split_torn(data)
        if torn:
            os.ftruncate(self._fd, len(whole))
            print(f"{self._path}: dropped a torn last line of {len(torn)} bytes", file=sys.stderr)
        elif whole and not whole.endswith(b"\n"):
            os.write(self._fd, b"\n")
        return whole


def has_records(folder: Path) -> bool:
    return any((file := Path(folder) / name).exists() and file.stat().st_size for name in (RECORDS, PACKED))


def check_is_no_file(folder: Path) -> None:
    """Raises UserError where a file, perhaps the records themselves, stands for the folder of a ledger."""
    if Path(folder).is_file():
        raise UserError(f"{folder} is a file; a ledger is named by its folder, {Path(folder).parent}")


def read(folder: Path, *, imported: bool = False) -> list[Record]:
    """All records of a folder in the order written, each with the `machine` and `system` that its env file tells of.

    A last line that is still being written, or that a kill cut short, is left out and named on stderr. `imported`: the
    folder holds answer files of others; such records lack most fields and are in no table of measured ones.

    Raises:
        UserError: no such folder, no records in it, records of the other kind, or a line that is no record (path and
            line number).
    """
    check_is_no_file(folder)
    path = Path(folder) / RECORDS
    try:
        if not path.exists() and (packed := Path(folder) / PACKED).exists():
            path = packed
        data = path.read_bytes()
        whole, torn = _split_torn(gzip.decompress(data) if path.name == PACKED else data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is no whole gzip file ({error})") from error
    except OSError as error:
        raise UserError(f"no records in {folder}: {path} cannot be read ({error.strerror})") from error
    if torn:
        print(f"{path}: left out a torn last line of {len(torn)} bytes", file=sys.stderr)
    records = _parse(path, whole, imported)
    if not records:
        raise UserError(f"no records in {folder}: {path} is empty")
    if imported:
        return records
    envs = {name: read_env(Path(folder), name) for name in {record["env"] for record in records}}
    for record in records:
        env = envs[record["env"]]
        record["machine"] = machine_label(env) if env else f"unknown machine (env-{record['env']}.json is missing)"
        record["system"] = (env or {}).get("system", "paper")
    return records


def read_env(folder: Path, name: str) -> dict[str, Any] | None:
    """The environment of that hash, or None where its file is missing."""
    path = _env_path(folder, name)
    try:
        env = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(env, dict):
        raise UserError(f"{path} holds no environment: expected a JSON object")
    return env


def _env_path(folder: Path, name: str) -> Path:
    return Path(folder) / f"env-{name}.json"


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {folder}: {error.strerror or error}")


def _split_torn(data: bytes) -> tuple[bytes, bytes]:
    """(whole lines, torn rest). A last line that lacks only its newline is whole: a JSON object ends with its brace."""
    end = data.rfind(b"\n") + 1
    try:
        json.loads(data[end:])
    except ValueError:
        return data[:end], data[end:]
    return data, b""


def _parse(path: Path, data: bytes, imported: bool = False) -> list[Record]:
    if not data:
        return []
    records = []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON ({error}); mend or remove the line") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: not a JSON object; mend or remove the line")
        if lacking := StoredRecord.__required_keys__ - record.keys():
            raise UserError(
                f"{path}:{number}: not a record (no {', '.join(sorted(lacking))}); mend or remove the line: "
                "the run that wrote it, started again, records it anew"
            )
        if record["schema"] != SCHEMA:
            raise UserError(f"{path}:{number}: record schema {record['schema']!r}; this version reads schema {SCHEMA}")
        if ("foreign" in record) != imported:
            raise UserError(f"{path}:{number}: {_OTHER_KIND[imported]}")
        records.append(cast(Record, record))
    return records


_OTHER_KIND = {
    False: "an imported answer file; only `harness table --results` reads those, and they stand in a folder of their own",
    True: "a record measured here; imported answer files stand in a folder of their own",
}
