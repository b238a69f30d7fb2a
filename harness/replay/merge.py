"""Replays and pools of several folders as those of one, beside the ledgers that `harness.ledger.merge` makes one.

A line or a file of one key is one where it is equal in both; where it is not, nothing is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.common.errors import UserError
from harness.common.files import sha256_file, whole_file
from harness.common.plain_names import place
from harness.replay import record, store
from harness.replay.record import Key, Replay


def lacking(folders: Sequence[Path], out: Path) -> tuple[list[Replay], Mapping[Path, Path]]:
    """What `out` lacks of the folders: replays, and the files of pools with their places in it.

    Raises:
        UserError: two folders have another replay, or another file, of one key; a file cannot be read; or `out` holds packed
            replays, to which none can be added.
    """
    known: dict[Key, tuple[Replay, Path]] = {}
    missing: dict[Key, Replay] = {}
    pools: dict[tuple[str, str], Path] = {}
    files: dict[Path, Path] = {}
    for folder in (out, *folders):
        for replay in record.read(folder):
            first, where = known.setdefault(replay.key, (replay, folder))
            if first != replay:
                raise UserError(f"nothing is merged: {where} and {folder} have another replay of {replay.method} "
                                f"({replay.preset}) on {replay.task} {replay.sample_id}, answer {replay.answer}")  # fmt: skip
            if folder != out and known[replay.key][1] != out:
                missing[replay.key] = replay
        for file in sorted((folder / store.FOLDER).glob("*/*.safetensors")):
            name = file.parent.name, file.name
            first_file = pools.setdefault(name, file)
            if first_file is not file and sha256_file(first_file) != sha256_file(file):
                raise UserError(f"nothing is merged: {first_file} and {file} differ: delete one of them, and it is drafted anew")
            if first_file is file and folder != out:
                files[file] = place(out / store.FOLDER, "pool", file.parent.name, file.stem, suffix=".safetensors")
    if missing or files:
        record.check_not_packed(out)
    return list(missing.values()), files


def add(replays: Sequence[Replay], files: Mapping[Path, Path], out: Path) -> None:
    """Write what `lacking` found. The pools come first: a replay tells what was made of them.

    Raises:
        UserError: another process writes replays there, or a file cannot be written.
    """
    if not (replays or files):
        return
    with record.only_writer(out):
        for file, to in files.items():
            try:
                with whole_file(to) as tmp:
                    shutil.copyfile(file, tmp)
            except OSError as error:
                raise UserError(f"cannot write {to}: {error.strerror or error}") from None
        if replays:
            record.append(out, replays)
