"""The ledger: one JSON line a prompt and turn in `records.jsonl`, the environment beside it in `env-<hash>.json`.

Every published number is recomputed from these two, so a line is written whole or not at all, and is never rewritten. A line
that is not what a run writes (`checked`) is left out, named, and counted below every table.
"""

from __future__ import annotations

import errno
import json
import lzma
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

from harness.common.errors import UserError
from harness.common.files import check_packed_by_xz, whole_file
from harness.common.plain_names import place
from harness.common.write_lock import WriteLock
from harness.ledger.checked import check_cell, env_of, record_of
from harness.ledger.record import SCHEMA, Record, canonical_hash, conversation_key
from harness.ledger.reduced import Reducer

if TYPE_CHECKING:
    from harness.ledger.trees import TreeStore

RECORDS = "records.jsonl"
MOST_TOLD = 5  # bad lines that are named one by one
PACKED = f"{RECORDS}.xz"  # a finished ledger may be kept packed; it is read like the other, and unpacked before it is added to


def machine_keys(env: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree for two timings to be compared, by the names that messages give them."""
    packages, gpu, native = env.get("packages", {}), env.get("gpu"), env.get("native") or {}
    return {
        "cpu": env.get("cpu"), "gpu": gpu, "n_cores": env.get("n_cores"), "torch": packages.get("torch"),
        "transformers": packages.get("transformers"), "cuda": env.get("cuda") if gpu else None,
        "driver": env.get("driver") if gpu else None, "engine": env.get("engine_sha"), "kernels": env.get("kernels") or None,
        "mode": env.get("mode"), "pages": env.get("pages"),
        "native": f"{native.get('path')} {native.get('flags')}" if native else None,
    }  # fmt: skip


def machine_label(env: Mapping[str, Any]) -> str:
    """`Some CPU, no GPU, 2 cores, torch 2.13.0, transformers 5.23.0, engine 1a2b3c4d`: equal when all machine keys are."""
    keys = machine_keys(env)
    on = f"{keys['gpu']}, CUDA {keys['cuda']}, driver {keys['driver'] or 'unknown'}" if keys["gpu"] else "no GPU"
    kernels = "".join(f", {name}={value}" for name, value in (keys["kernels"] or {}).items())
    path, _, flags = (keys["native"] or "").partition(" ")
    of_engine = f", native {path}, flags {canonical_hash({'flags': flags})[:8]}" if path else ""
    of_engine += f", pages of {keys['pages']}" if keys["pages"] else ""
    of_engine += f", {keys['mode']}" if keys["mode"] else ""
    return (
        f"{keys['cpu']}, {on}, {keys['n_cores']} cores, torch {keys['torch']}, transformers {keys['transformers'] or 'unknown'}, "
        f"engine {keys['engine'] or UNKNOWN_ENGINE}{of_engine}{kernels}"
    )


UNKNOWN_ENGINE = "unknown"
OLD_SCHEMA = (
    "engine unknown: records of schema 2, which do not say what engine code, configuration and prompt format they were made with."
)


class BadLine(NamedTuple):
    """A line, counted from 1, that is left out, and why."""

    number: int
    why: str


class Records(list[Record]):
    """The records of a folder. `footnotes`: what of it could not be read, a sentence each, for whatever is made of them."""

    def __init__(self, records: Iterable[Record] = (), footnotes: tuple[str, ...] = ()) -> None:
        super().__init__(records)
        self.footnotes = footnotes


class RecordsFile:
    """A folder's `records.jsonl`, locked and open for appending whole lines. Opening creates the folder.

    Raises:
        UserError: the folder cannot be created or written, another process holds it, or it holds packed records.
    """

    def __init__(self, folder: Path, lock_timeout_s: float = 2.0) -> None:
        self._folder = Path(folder)
        self.path = self._folder / RECORDS
        check_packed_by_xz(self.path)
        if not self.path.exists() and (self._folder / PACKED).exists():
            raise UserError(f"{self._folder} is packed: `unxz {self._folder / PACKED}` to add to it, or choose another --out")
        self._lock = WriteLock(lock_path(self._folder))
        self._fd = -1
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # O_APPEND: a line lands at the end whatever else happened to the file since
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            self._lock.acquire(lock_timeout_s)
        except OSError as error:
            self.close()
            raise _cannot_write(self._folder, error) from error
        except BaseException:
            self.close()
            raise

    def append(self, lines: bytes) -> None:
        """Add whole lines; on the disk when this returns.

        Raises:
            UserError: they could not be written; what was there of them is taken away again.
        """
        size = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, lines)
            if written < len(lines):  # a disk that fills up takes part of a line and reports nothing yet
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
        except OSError as error:
            with suppress(OSError):  # the next opening repairs what stays
                os.ftruncate(self._fd, size)
            raise _cannot_write(self._folder, error) from error

    def repair(self, lines: Lines) -> None:
        """Take away a last line that a kill cut short, or give it its newline. lines: read to their end."""
        try:
            if lines.n_torn:
                os.ftruncate(self._fd, lines.n_whole)
                print(f"{self.path}: dropped a torn last line of {lines.n_torn} bytes", file=sys.stderr)
            elif lines.lacks_newline:
                os.write(self._fd, b"\n")
        except OSError as error:
            raise _cannot_write(self._folder, error) from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._lock.release()


class Ledger:
    """The records of one folder, open for appending; any number of cells, one process at a time.

    Opening creates the folder, takes its lock and repairs a torn last line. A context manager; or call `close`. The file is read
    once, when it is opened: `records` are those measured here, reduced but for their text, and what is appended joins them.
    `imported`: for records of answer files, which never stand beside records measured here. A line that cannot be read is named
    and stays as it is; what it may have held is not in `keys`, and so is measured anew.

    several_machines: for who drives a cluster. A cell may then be measured on several machines, but each of its conversations on
    one: `machine_of` tells on which, and `append` refuses another's record. Without it a cell's second machine is refused.

    Raises:
        UserError: the folder cannot be created or written, another process holds it, no line of it can be read, or it holds
            packed records.
    """

    def __init__(
        self, folder: Path, *, lock_timeout_s: float = 2.0, imported: bool = False, several_machines: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.several_machines = several_machines
        self._file = RecordsFile(self.folder, lock_timeout_s)
        self._path = self._file.path
        try:
            self._keys: set[str] = set()
            self._skipped: set[str] = set()
            self._cell_envs: dict[str, set[str]] = {}
            self._machines: dict[tuple[Any, ...], str] = {}  # of conversations, where there may be several
            self._envs = Envs(self.folder)
            self._reduced = None if imported else Reducer(with_text=True)
            lines = Lines(self._path)
            found, bad = _parsed(lines, imported, self._envs, self._reduced)
            _check_any(self._path, found, bad)  # before anything is repaired
            self._file.repair(lines)
            tell_bad(self._path, bad, "does not count, and stays where it is")
            self.records: list[Record] = []
            for record in found:
                if record["schema"] != SCHEMA and not imported:
                    raise UserError(
                        f"{self.folder} holds records of schema {record['schema']}, which do not say what engine, configuration "
                        "and prompt format they were made with: they are read, but not added to; choose another --out"
                    )
                self._remember(record)
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
        self._file.close()

    def keys(self, *, with_skipped: bool = True) -> set[str]:
        """Sample keys that need no measuring again: status ok or skipped. Errors are retried, warm-ups do not count."""
        return self._keys | self._skipped if with_skipped else set(self._keys)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record: `extend` with it alone."""
        self.extend([record])

    def extend(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records: all of them in the file as whole lines, on the disk when this returns, or none.

        Raises:
            UserError: the lines could not be written; what was there of them is taken away again. With several machines, also: a
                record's conversation was measured on another one, or its env file is not there.
        """
        if self.several_machines:
            for record in records:
                self._check_conversation(record)
        self._file.append(b"".join(json.dumps(record, allow_nan=False).encode() + b"\n" for record in records))
        for record in records:
            added = cast(Record, record)
            self._remember(self._reduced(added) if self._reduced else added)

    def write_env(self, env: Mapping[str, Any]) -> str:
        """Store the environment once and return its hash, which leaves out `created`: equal runs share a file.

        Raises:
            UserError: it cannot be written, or what lies there under its name was altered.
        """
        name = write_env(self.folder, env)
        self._envs.forget(name)
        return name

    def machine_of(self, record: Mapping[str, Any]) -> str | None:
        """On which machine (a `machine_label`) a record's conversation was measured, in a ledger of several; None if on none yet.

        record: any record of the conversation, or a mapping with the fields of `record.GROUP_FIELDS`, `sample_id` and `repeat`.
        """
        return self._machines.get(conversation_key(record))

    def _check_conversation(self, record: Mapping[str, Any]) -> None:
        env = self._envs.get(record["env"])
        if env is None:
            raise UserError(f"{_env_path(self.folder, record['env'])} is not there: an environment is written before its records")
        here, there = machine_label(env), self.machine_of(record)
        if there not in (None, here) and record["status"] == "ok" and not record["is_warmup"]:
            raise UserError(f"{self.folder} holds conversation {record['sample_id']} of {record['task']} from another machine: "
                            f"{there}; this record is of {here}")  # fmt: skip

    def trees(self, piece: Callable[[int], str]) -> TreeStore:
        """The folder's drafted trees, open for adding. piece: token id -> its text."""
        from harness.ledger.trees import TreeStore  # which takes numpy

        return TreeStore(self.folder, piece)

    def whole(self, keys: Collection[str]) -> dict[str, Record]:
        """The records of these keys as they were written, with their traces; the file is read anew."""
        return {r["key"]: r for r in read(self.folder, quiet=True) if r["key"] in keys}

    def check_machine(self, cell: str, env: Mapping[str, Any]) -> None:
        """Refuse to add to a cell that was measured on another machine; with several machines, nothing is refused here.

        Raises:
            UserError: names the cell, the machine key and both values.
        """
        if self.several_machines:
            return
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
        if self._reduced:  # an import is read by others, and has no machine
            self.records.append(_placed(record, self._envs))
        if record["status"] == "ok":
            self._cell_envs.setdefault(record["cell"], set()).add(record["env"])
            if self.several_machines and not record["is_warmup"]:
                self._machines.setdefault(conversation_key(record), record["machine"])
        if record["status"] in ("ok", "skipped") and not record["is_warmup"]:
            (self._keys if record["status"] == "ok" else self._skipped).add(record["key"])


def write_env(folder: Path, env: Mapping[str, Any]) -> str:
    """Store an environment once and return its hash; see `Ledger.write_env`."""
    name = env_name(env)
    try:
        if read_env(folder, name) is None:
            with whole_file(_env_path(folder, name)) as tmp:
                tmp.write_text(json.dumps({**env, "hash": name}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return name


def lock_path(folder: Path) -> Path:
    """The file that says who writes to a ledger."""
    return Path(folder) / f".{RECORDS}.lock"


def env_name(env: Mapping[str, Any]) -> str:
    """The hash that names an environment; `created` is left out."""
    return canonical_hash({key: value for key, value in env.items() if key not in ("created", "hash")})


def has_records(folder: Path) -> bool:
    check_packed_by_xz(Path(folder) / RECORDS)
    return any((file := Path(folder) / name).exists() and file.stat().st_size for name in (RECORDS, PACKED))


def check_is_no_file(folder: Path) -> None:
    """Raises UserError where a file, perhaps the records themselves, stands for the folder of a ledger."""
    if Path(folder).is_file():
        raise UserError(f"{folder} is a file; a ledger is named by its folder, {Path(folder).parent}")


def read(
    folder: Path, *, imported: bool = False, strict: bool = False, quiet: bool = False, reduced: bool = False
) -> Records:  # fmt: skip
    """The records of a folder in the order written, each with the `machine` and `system` that its env file tells of.

    A line that is no record, or stands there twice, is left out: named on stderr, unless `quiet`, and counted in the `footnotes`.
    So is a last line that is still being written, or that a kill cut short. `imported`: the folder holds answer files of others;
    such records lack most fields and are in no table of measured ones. `strict`: nothing may be left out or unknown. `reduced`:
    with `steps` in place of traces, without texts, token ids as arrays; checked all the same, each line as it is read.

    Raises:
        UserError: no such folder, no records in it, or `strict` and a line or an env file that cannot be read.
    """
    check_is_no_file(folder)
    folder = Path(folder)
    lines, envs = Lines(path_of(folder)), Envs(folder)
    path = lines.path
    records, bad = _parsed(lines, imported, envs, Reducer() if reduced else None)
    if lines.n_torn:
        bad.append(BadLine(lines.number, f"a torn last line of {lines.n_torn} bytes"))
    if strict and bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(f"{path}:{bad[0].number}: {bad[0].why}{more}; without --strict it is left out")
    _check_any(path, records, bad)
    if not records:
        raise UserError(f"no records in {folder}: {path} is empty")
    footnotes = [_footnote(path, bad)] if bad else []
    if not imported:
        if any(record["schema"] == 2 for record in records):
            footnotes.append(OLD_SCHEMA)
        for record in records:
            _placed(record, envs)
        for why in envs.unknown.values():
            if strict:
                raise UserError(f"{why}; without --strict its records are those of an unknown machine")
            footnotes.append(f"The machine of some records is not known: {why}.")
    if not quiet:
        tell_bad(path, bad, "left out")
        for why in envs.unknown.values():
            print(why, file=sys.stderr)
    return Records(records, tuple(footnotes))


def holds_import(folder: Path) -> bool:
    """Whether a folder's records are of answer files of others: its first line that is JSON tells. False where nothing is."""
    with suppress(UserError):
        for _, line in Lines(path_of(Path(folder))):
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
                return isinstance(record, dict) and "foreign" in record
    return False


def read_env(folder: Path, name: str) -> dict[str, Any] | None:
    """The environment of that hash, or None where its file is missing.

    Raises:
        UserError: the file cannot be read, or does not hold what its name is the hash of.
    """
    path = _env_path(folder, name)
    try:
        return env_of(path.read_bytes(), name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


class Envs:
    """The env files of a folder, each read once. `unknown`: those that are missing or cannot be read, and why."""

    def __init__(self, folder: Path) -> None:
        self.unknown: dict[str, str] = {}
        self._folder = folder
        self._found: dict[str, dict[str, Any] | None] = {}

    def forget(self, name: str) -> None:
        """Read the file anew when it is asked for: it may be there now."""
        self._found.pop(name, None)
        self.unknown.pop(name, None)

    def get(self, name: str) -> dict[str, Any] | None:
        if name not in self._found:
            try:
                self._found[name] = read_env(self._folder, name)
                if self._found[name] is None:
                    self.unknown[name] = f"{_env_path(self._folder, name)} is missing"
            except UserError as error:
                self._found[name], self.unknown[name] = None, str(error)
        return self._found[name]


def _placed(record: Record, envs: Envs) -> Record:
    """The record, told what measured it."""
    env = envs.get(record["env"])
    record["machine"] = machine_label(env) if env else f"unknown machine (no env-{record['env']}.json that can be read)"
    record["system"] = (env or {}).get("system", "paper")
    record["target_parts"] = (env or {}).get("target_parts")
    record["row_invariant"] = (env or {}).get("row_invariant", False)
    return record


def path_of(folder: Path) -> Path:
    """The file of records, packed where only that is there."""
    path = folder / RECORDS
    check_packed_by_xz(path)
    return packed if not path.exists() and (packed := folder / PACKED).exists() else path


class Lines:
    """The whole lines of a file of records with their numbers, from 1, each without its newline, as they are read.

    A last line that lacks only its newline is whole: a JSON object ends with its brace. At the end `n_whole` bytes were of whole
    lines, `n_torn` of a last line cut short, which is line `number`; `lacks_newline`: the last line is whole without one.

    Raises:
        UserError: the file cannot be read.
    """

    def __init__(self, path: Path, begin: int = 0, end: int | None = None) -> None:
        """begin, end: bytes at which lines begin, where only those between them are to be read; their numbers are from 1, too."""
        self.path, self._begin, self._end = path, begin, end
        self.number = self.n_whole = self.n_torn = 0
        self.lacks_newline = False

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        try:
            with lzma.open(self.path) if self.path.name == PACKED else self.path.open("rb") as file:
                file.seek(self._begin)
                for self.number, line in enumerate(file, start=1):
                    whole = line.endswith(b"\n")
                    if not whole and _is_torn(line):
                        self.n_torn = len(line)
                        return
                    self.n_whole += len(line)
                    self.lacks_newline = not whole
                    yield self.number, line.removesuffix(b"\n")
                    if self._end is not None and self._begin + self.n_whole >= self._end:
                        return  # or past it, where the file was written anew meanwhile: what follows is in the next chunk
        except (EOFError, lzma.LZMAError) as error:
            raise UserError(f"{self.path} is no whole xz file ({error})") from error
        except OSError as error:
            raise UserError(f"no records in {self.path.parent}: {self.path} cannot be read ({error.strerror})") from error


def _env_path(folder: Path, name: str) -> Path:
    return place(Path(folder), "environment", f"env-{name}", suffix=".json")


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {folder}: {error.strerror or error}")


_BEGIN = b'{"schema": '  # of every line that a run writes


def _is_torn(line: bytes) -> bool:
    """Whether a last line without a newline was cut off by a kill."""
    try:
        json.loads(line)
    except RecursionError:
        return False
    except ValueError:
        return line.startswith(_BEGIN) or _BEGIN.startswith(line)
    return False


def each_record(
    lines: Iterable[tuple[int, bytes]], imported: bool, envs: Envs, bad: list[BadLine]
) -> Iterator[tuple[int, Record]]:  # fmt: skip
    """The records of whole lines with the lines' numbers, as they are read. Lines that hold none, or a second measurement of one
    generation, go into `bad`."""
    return _once(checked_lines(lines, imported, envs, bad), bad)


def checked_lines(
    lines: Iterable[tuple[int, bytes]], imported: bool, envs: Envs, bad: list[BadLine]
) -> Iterator[tuple[int, Record]]:  # fmt: skip
    """The same, each line checked by itself: a generation may be in it twice."""
    cells: dict[str, tuple[Any, ...]] = {}
    for number, line in lines:
        try:
            record = record_of(line, imported)
            if not imported and (env := envs.get(record["env"])) is not None:
                check_cell(record, env.get("system", "paper"), cells)
        except ValueError as error:
            bad.append(BadLine(number, str(error)))
        else:
            yield number, record


def _once(found: Iterable[tuple[int, Record]], bad: list[BadLine]) -> Iterator[tuple[int, Record]]:
    """Those of them that are no second measurement of one generation."""
    first_of: dict[str, int] = {}  # the line of what was measured, by key
    for number, record in found:
        is_measured = record["status"] == "ok" and not record["is_warmup"]
        if is_measured and (first := first_of.setdefault(record["key"], number)) != number:
            bad.append(BadLine(number, f"measured already in line {first}"))
        else:
            yield number, record


def _parsed(lines: Lines, imported: bool, envs: Envs, reduced: Reducer | None) -> tuple[list[Record], list[BadLine]]:
    """All of them, and the bad lines. Reduced ones of a large file are read by several processes."""
    bad: list[BadLine] = []
    if reduced is None:
        return [record for _, record in each_record(lines, imported, envs, bad)], bad
    from harness.ledger.chunks import chunks_of, records_in

    chunks = chunks_of(lines.path, imported, reduced.with_text)
    if len(chunks) == 1:
        return [reduced(record) for _, record in each_record(lines, imported, envs, bad)], bad
    records = [record for _, record in _once(records_in(chunks, lines, envs, reduced, bad), bad)]
    return records, sorted(bad)


def _check_any(path: Path, records: Sequence[Record], bad: Sequence[BadLine]) -> None:
    """Raises UserError where every line is bad: whatever the file is, it is no ledger."""
    if bad and not records:
        whole = "its only line" if len(bad) == 1 else f"none of its {len(bad)} lines"
        cannot = "cannot" if len(bad) == 1 else "can"
        raise UserError(f"no records in {path.parent}: {whole} {cannot} be read; {path}:{bad[0].number}: {bad[0].why}")


def tell_bad(path: Path, bad: Sequence[BadLine], what: str) -> None:
    """Name the first bad lines on stderr, and how many more there are."""
    for line in bad[:MOST_TOLD]:
        print(f"{path}:{line.number}: {what}: {line.why}", file=sys.stderr)
    if len(bad) > MOST_TOLD:
        print(f"{path}: {len(bad) - MOST_TOLD} more lines: {what}", file=sys.stderr)


def _footnote(path: Path, bad: Sequence[BadLine]) -> str:
    """`3 lines of records.jsonl could not be read and are left out: line 17 (wall_s is -3; ...), line 18 (...), and 1 more.`"""
    count = "1 line" if len(bad) == 1 else f"{len(bad)} lines"
    some = ", ".join(f"line {line.number} ({line.why})" for line in bad[:2])
    more = f", and {len(bad) - 2} more" if len(bad) > 2 else ""
    return f"{count} of {path} could not be read and {'is' if len(bad) == 1 else 'are'} left out: {some}{more}."
