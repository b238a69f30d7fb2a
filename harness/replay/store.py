"""Drafted rows on the disk: a file a text, in a folder a drafter. Never tracked: one command makes them again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from harness.common.errors import UserError
from harness.common.files import whole_file
from harness.common.plain_names import made_plain, place
from harness.ledger.record import ids_sha
from harness.replay.known import KnownText
from harness.replay.rows import Rows

FOLDER = "pools"
N_PASS = "n_pass"
COLUMNS = ("position", "parent", "token", "children", "logs")


@dataclass(frozen=True, slots=True)
class Drawn:
    """What rows hang on: who drafted them, over which columns, on whose features. Hashes, and counts as text."""

    model: str
    target_id: str
    head_id: str
    dtype: str
    frequent: str

    @property
    def folder(self) -> str:
        over = f"-{self.frequent}" if self.frequent else ""
        return made_plain(f"{self.model}-{self.dtype}-{self.target_id[:8]}-{self.head_id[:8]}{over}")


class Store:
    """The rows of one drafter in a folder.

    Raises:
        UserError: a file that is of another drafter, or cannot be read or written.
    """

    def __init__(self, folder: Path, drawn: Drawn):
        self._folder, self.drawn = place(folder / FOLDER, "pool", drawn.folder), drawn

    def _path(self, key: str) -> Path:
        return place(self._folder, "record", key, suffix=".safetensors")

    def read(self, key: str) -> tuple[KnownText, Rows] | None:
        """A text's rows, and the text; None where they were not drafted yet, or before files said which rows are of the drafting
        pass. key: of vanilla's record."""
        path = self._path(key)
        if not path.is_file():
            return None
        told = _told(path)
        for name, value in asdict(self.drawn).items():
            if told.get(name) != value:
                raise UserError(f"{path} was drafted with another {name.removesuffix('_id')} ({told.get(name)!r}; here it is "
                                f"{value!r}): delete the folder, and they are drafted anew")  # fmt: skip
        return read_pool(path) if N_PASS in told else None

    def write(self, key: str, text: KnownText, rows: Rows) -> None:
        columns = dict(zip(COLUMNS, rows.columns(), strict=True))
        parts = {"prompt": text.prompt, "answer": text.answer, "beyond": text.beyond}
        arrays = {**columns, **{name: np.array(ids, np.int32) for name, ids in parts.items()}}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self._path(key)) as fresh:
                save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, fresh,
                          {**asdict(self.drawn), "text": ids_sha(text.ids), N_PASS: str(rows.n_pass)})  # fmt: skip
        except (OSError, SafetensorError) as e:
            raise UserError(f"cannot write {self._path(key)}: {e}") from None


def kept_texts(folder: Path) -> Iterator[tuple[Drawn, str, Path]]:
    """Every text whose rows are kept in a folder: who drafted them, the key of vanilla's record, and the file.

    Raises:
        UserError: a file that cannot be read.
    """
    for path in sorted((folder / FOLDER).glob("*/*.safetensors")):
        told = _told(path)
        yield Drawn(**{f.name: told.get(f.name, "") for f in fields(Drawn)}), path.stem, path


def read_pool(path: Path) -> tuple[KnownText, Rows]:
    """
    Raises:
        UserError: it cannot be read, or is altered.
    """
    with _opened(path) as file:
        told = file.metadata() or {}
        texts = [file.get_tensor(name).tolist() for name in ("prompt", "answer", "beyond")]
        rows = Rows([file.get_tensor(name) for name in COLUMNS], int(told.get(N_PASS, 0)))
    text = KnownText(*texts)
    if told.get("text") != ids_sha(text.ids):
        raise UserError(f"{path} is altered: delete it, and it is drafted anew")
    return text, rows


def _told(path: Path) -> dict[str, str]:
    """What a file says of itself."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read ({e}): delete it, and it is drafted anew") from None
