"""Replays as lines of `replays.jsonl`, a line a method and turn, beside the ledger whose answers were replayed."""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pydantic

import methods
from harness.common.errors import UserError, in_one_line
from harness.common.files import check_packed_by_xz
from harness.common.write_lock import WriteLock
from harness.ledger.record import canonical_hash

FILE = "replays.jsonl"
PACKED = f"{FILE}.xz"  # as `xz` leaves it: finished replays may be kept so, and are read like the others
_Counts = list[Annotated[int, pydantic.Field(ge=0)]]
Key = tuple[str, str, str, str, str | None]
"""Of an answer, method, hash of options, hash of code, and what decides what the drafter drafts."""


class Replay(pydantic.BaseModel, extra="forbid", frozen=True):
    """One turn, decoded again by one method.

    `answer`: the key of vanilla's record. `drafter`: its kind; None: there is none, or it was not told yet. `tokens`: of the
    answer. `accepted`, `sizes`, `calls`: as `Replayed` has them. `asked`, `lacking`: rows that the trees asked for, and those
    that are not of the drafting pass.
    """

    schema_version: int = 1
    answer: str
    model: str
    target_id: str
    head_id: str | None
    drafter: str | None = None
    dtype: str
    method: str
    preset: str
    options: dict[str, Any]
    code_sha: str
    task: str
    source: str
    sample_id: str
    turn: int
    repeat: int
    temperature: float
    top_p: float
    max_new_tokens: int
    n_prompt: int
    tokens: int
    accepted: _Counts
    sizes: _Counts
    calls: list[_Counts]
    asked: int
    lacking: int

    @property
    def head_kind(self) -> str:
        """The kind of EAGLE head that its calls are of."""
        return self.drafter or methods.drafter_of(self.method) or methods.EAGLE

    @property
    def key(self) -> Key:
        """What is replayed once."""
        return self.answer, self.method, canonical_hash(self.options), self.code_sha, self.head_id

    @pydantic.model_validator(mode="after")
    def _columns_agree(self) -> Replay:
        n = len(self.accepted)
        if len(self.sizes) != n or len(self.calls) != n or any(a > s for a, s in zip(self.accepted, self.sizes, strict=True)):
            raise ValueError("columns of other lengths, or more accepted than drafted")
        if not 1 + sum(self.accepted) + n >= self.tokens >= 1:
            raise ValueError("its steps do not make up its tokens")
        return self


def check_not_packed(folder: Path) -> None:
    """Raises UserError where nothing can be added to a folder's replays, because they are packed."""
    check_packed_by_xz(folder / FILE)
    if (folder / PACKED).exists():
        raise UserError(f"the replays of {folder} are packed: `unxz {folder / PACKED}` to add to them, or choose another --out")


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Nobody else adds replays to a folder meanwhile.

    Raises:
        UserError: somebody does, or the folder cannot be written; or its replays are packed.
    """
    check_not_packed(folder)
    lock = WriteLock(folder / f".{FILE}.lock", "replays")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(1)
    except OSError as e:
        raise UserError(f"cannot write to {folder}: {e.strerror}") from None
    with lock:
        yield


def read(folder: Path) -> list[Replay]:
    """The replays of a folder, each once, packed or not; a torn last line is left out.

    Raises:
        UserError: a line that is none.
    """
    path = folder / FILE
    packed = folder / PACKED
    check_packed_by_xz(path)
    found: dict[Key, Replay] = {}
    try:
        text = path.read_bytes() if path.is_file() else lzma.decompress(packed.read_bytes()) if packed.is_file() else b""
    except (OSError, EOFError, lzma.LZMAError) as e:
        raise UserError(f"{packed} cannot be read: {in_one_line(e)}") from None
    lines = text.split(b"\n")
    for i, line in enumerate(lines[:-1], start=1):
        try:
            replay = Replay.model_validate_json(line)
        except ValueError as e:
            raise UserError(f"{path}, line {i}, is no replay: {in_one_line(e)}; delete the file, and it is made again") from None
        found.setdefault(replay.key, replay)
    return list(found.values())


def append(folder: Path, replays: Iterable[Replay]) -> None:
    """Add lines; what a kill tore is cut off first.

    Raises:
        UserError: the file cannot be written.
    """
    path = folder / FILE
    text = "".join(replay.model_dump_json() + "\n" for replay in replays)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if size := file.tell():
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(text.encode())
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}") from None


def of_methods(replays: Iterable[Replay]) -> Iterator[tuple[tuple[float, str, str, str], list[Replay]]]:
    """Replays of one temperature and method with its options together: (temperature, method, preset, hash of the options).

    A preset is a name for options: of replays under several names the first one counts.
    """
    found: dict[tuple[float, str, str], list[Replay]] = {}
    for r in replays:
        found.setdefault((r.temperature, r.method, canonical_hash(r.options)), []).append(r)
    for (t, method, sha), own in found.items():
        yield (t, method, own[0].preset, sha), own
