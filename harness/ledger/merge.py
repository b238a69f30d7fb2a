"""Several ledgers as one: the union of their records, environments, drafted trees and tuned presets.

Records of one key are one where they are equal. Measured ones that differ are refused before anything is written, and so are
trees and presets. What failed or was skipped gives way to the same key measured; else all of it is kept, as warm-ups are, whose
key is of the run. Two passes over each input: the first notes a digest a record, the second copies lines as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.common.errors import UserError, say
from harness.common.write_lock import holder_of
from harness.ledger import planned, trees, tuned_presets
from harness.ledger.ledger import (
    MOST_TOLD,
    RECORDS,
    BadLine,
    Envs,
    Lines,
    RecordsFile,
    check_is_no_file,
    each_record,
    has_records,
    holds_import,
    lock_path,
    machine_label,
    path_of,
    read_env,
    tell_bad,
    write_env,
)
from harness.ledger.record import SCHEMA

_BATCH = 1 << 22  # bytes that are written together


@dataclass(frozen=True, slots=True)
class Merged:
    """Records that were copied, that were there already or stood in several inputs, that gave way; and trees that were copied."""

    n_copied: int
    n_equal: int
    n_gave_way: int
    n_trees: int


@dataclass(slots=True)
class _Found:
    """What the inputs hold. `measured`: key -> (digest, input); `lines`: of each input what may be copied, by line: the digest,
    and the key where it was not measured; `envs`: name -> where it can be read; `conflicts`: key -> the two inputs, of the first.
    """

    measured: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    lines: list[dict[int, tuple[bytes, str | None]]] = field(default_factory=list)
    keys: list[set[str]] = field(default_factory=list)  # of each input, of what it measured
    envs: dict[str, Path] = field(default_factory=dict)
    conflicts: dict[str, tuple[int, int]] = field(default_factory=dict)
    n_conflicts: int = 0
    n_equal: int = 0


def is_new(out: Path) -> bool:
    """Whether a merge would begin a ledger there.

    Raises:
        UserError: something else is there.
    """
    check_is_no_file(out)
    if has_records(out) or (out / RECORDS).exists():
        return False
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} is no ledger, and is not empty: name a new folder, or a ledger to add to")
    return True


def check_inputs(folders: Sequence[Path]) -> None:
    """
    Raises:
        UserError: a folder without records, or with those of answer files.
    """
    for folder in folders:
        check_is_no_file(folder)
        if not has_records(folder) and not (folder / RECORDS).exists():  # a shard may have measured nothing
            raise UserError(f"no records in {folder}")
        if holds_import(folder):
            raise UserError(
                f"{folder} holds records of answer files: they are not merged; `harness import` reads the files again"
            )


def merge(folders: Sequence[Path], out: Path) -> Merged:
    """Add what `out` lacks of the ledgers, which may be packed. It can be stopped and started again at any point.

    Raises:
        UserError: inputs that differ in a record, a tree or a preset (names up to five; nothing is written), that are imports or
            of schema 2; an `out` that is something else or that another process writes to; a file that cannot be read or written.
    """
    folders = list({folder.resolve(): folder for folder in map(Path, folders) if folder.resolve() != out.resolve()}.values())
    check_inputs(folders)
    for folder in folders:
        if (holder := holder_of(lock_path(folder))) is not None and not holder.is_gone:
            say(f"note: {folder} is being written to by {holder}; what it holds now is merged")
    found = _agreeing(folders) if is_new(out) else None  # before there is a folder
    file = RecordsFile(out)
    try:
        if found is not None and not has_records(out) and not trees.has_trees(out):
            found.lines.insert(0, {})
            found.keys.insert(0, set())
        else:  # it was there, or somebody began it meanwhile
            found = _agreeing([out, *folders], file)
        planned.add_from(folders, out)
        for name, folder in sorted(found.envs.items()):
            if folder != out and (env := read_env(folder, name)) is not None:
                write_env(out, env)
        n_trees = trees.add_from(list(zip(folders, found.keys[1:], strict=True)), out)  # before their records, as in a run
        n_copied, n_gave_way = _copied(found, [out, *folders], file)
        for folder in folders:
            for entry in tuned_presets.stored(folder / tuned_presets.FILE):
                if entry not in tuned_presets.stored(out / tuned_presets.FILE):
                    tuned_presets.save(entry, out / tuned_presets.FILE)
    finally:
        file.close()
    return Merged(n_copied, found.n_equal, n_gave_way, n_trees)


def _agreeing(folders: Sequence[Path], out: RecordsFile | None = None) -> _Found:
    """What the ledgers hold, if they can be merged. out: the first one's records, to be mended as opening a ledger does."""
    found = _found(folders, out)
    keys = list(found.keys)
    if out is not None:  # its trees stand, those too of a record that a kill prevented and that another folder has
        keys[0] = set(found.measured)
    drafted = trees.unlike(list(zip(folders, keys, strict=True)))
    _check_presets(folders)
    _refuse(found, drafted, folders)
    return found


def _found(folders: Sequence[Path], out: RecordsFile | None) -> _Found:
    found = _Found()
    for i, folder in enumerate(folders):
        lines, envs, bad = Lines(path_of(folder)), Envs(folder), list[BadLine]()
        own: dict[int, tuple[bytes, str | None]] = {}
        found.lines.append(own)
        found.keys.append(measured := set())
        for number, record in each_record(lines, False, envs, bad):
            if record["schema"] != SCHEMA:
                raise UserError(f"{folder} holds records of schema {record['schema']}: they are read, and not merged")
            if envs.get(record["env"]) is not None:
                found.envs.setdefault(record["env"], folder)
            digest = _digest(record)
            if record["is_warmup"] or record["status"] != "ok":
                own[number] = digest, record["key"] if record["status"] != "ok" else None
                continue
            measured.add(record["key"])
            first, other = found.measured.setdefault(record["key"], (digest, i))
            if first == digest:
                own[number] = digest, None
            else:
                found.n_conflicts += 1
                if len(found.conflicts) < MOST_TOLD:
                    found.conflicts[record["key"]] = other, i
        if bad and not own and not measured:  # whatever it is, it is no ledger: nothing is added to it, or taken from it
            raise UserError(f"no line of {lines.path} can be read, line {bad[0].number}: {bad[0].why}")
        if out is not None and i == 0:
            out.repair(lines)
        elif lines.n_torn:
            bad.append(BadLine(lines.number, f"a torn last line of {lines.n_torn} bytes"))
        tell_bad(lines.path, bad, "not merged" if i or out is None else "does not count, and stays where it is")
        for why in envs.unknown.values():
            say(f"{why}: what measured its records is not known")
    return found


def _digest(record: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).digest()[:16]


def _refuse(found: _Found, drafted: Sequence[str], folders: Sequence[Path]) -> None:
    if found.conflicts:
        named = [_named(key, [folders[i] for i in pair]) for key, pair in found.conflicts.items()]
        more = f"; and {found.n_conflicts - len(named)} more" if found.n_conflicts > len(named) else ""
        raise UserError(f"nothing is merged: of these records there are two that differ: {'; '.join(named)}{more}. Leave "
                        "one of the folders out, or measure what it holds into the other (--out)")  # fmt: skip
    if drafted:
        more = f"; and {len(drafted) - MOST_TOLD} more" if len(drafted) > MOST_TOLD else ""
        raise UserError(
            f"nothing is merged: of these drafted trees there are two that differ: {'; '.join(drafted[:MOST_TOLD])}{more}. "
            f"Remove their cell's file in {trees.FOLDER} of one of them: `--trees` makes it again"
        )


def _named(key: str, pair: Sequence[Path]) -> str:
    """`eagle2 (paper) on gsm8k 3, turn 1 (key): token_ids and wall_s in A and B`."""
    a, b = (next(r for _, r in each_record(Lines(path_of(f)), False, Envs(f), []) if r["key"] == key and r["status"] == "ok"
                 and not r["is_warmup"]) for f in pair)  # fmt: skip
    differs = [name for name in a if a.get(name) != b.get(name) and name not in ("run", "env", "trace")]
    machines = [machine_label(env) if (env := read_env(f, r["env"])) else "unknown" for f, r in zip(pair, (a, b), strict=True)]
    differs += ["machine"] if machines[0] != machines[1] else []
    turn = f", turn {a['turn']}" if a["n_turns"] > 1 else ""
    what = f"{a['method']} ({a['preset']}) on {a['task']} {a['sample_id']}{turn}, key {key}"
    return f"{what}: {', '.join(differs) or 'run'} in {pair[0]} and {pair[1]}"


def _copied(found: _Found, folders: Sequence[Path], file: RecordsFile) -> tuple[int, int]:
    """Append what the first folder lacks; -> records copied, and those that gave way to a measured one."""
    there = {digest for digest, _ in found.lines[0].values()}
    n_copied = n_gave_way = 0
    for folder, own in zip(folders[1:], found.lines[1:], strict=True):
        batch = bytearray()
        for number, line in Lines(path_of(folder)):
            digest, unmeasured = own.get(number, (None, None))
            if digest is None:
                continue
            if unmeasured in found.measured:
                n_gave_way += 1
            elif digest in there:
                found.n_equal += 1
            else:
                there.add(digest)
                n_copied += 1
                batch += line + b"\n"
                if len(batch) > _BATCH:
                    file.append(bytes(batch))
                    batch.clear()
        if batch:
            file.append(bytes(batch))
    return n_copied, n_gave_way


def _check_presets(folders: Iterable[Path]) -> None:
    known: dict[tuned_presets.Key, tuple[tuned_presets.Entry, Path]] = {}
    for folder in folders:
        for entry in tuned_presets.stored(folder / tuned_presets.FILE):
            first, where = known.setdefault(entry.key, (entry, folder))
            if first != entry:
                raise UserError(f"nothing is merged: {tuned_presets.FILE} of {where} and {folder} have other options or figures "
                                f"for {entry.key.method} at T = {entry.key.temperature:g} on {entry.key.machine}")  # fmt: skip
