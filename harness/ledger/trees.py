"""Drafted trees of a ledger, kept where a run was asked for them: `trees/<cell>.jsonl.gz`, one line a generation.

A line is a gzip member of its own (`zcat` reads the file), written before the record it belongs to: what a kill cuts short is
dropped and made again. A ledger that is finished may be packed (`scripts/pack.py`): `trees/<cell>.jsonl.xz` holds the same lines.
A line holds columns over all draft nodes of the generation, one forward after another:

- `key`: the record's key; `sampled`: drafts were drawn at random and verified by rejection, not picked and walked;
- `sizes` [forwards]: draft nodes of each tree, the root left out; `accepted` [forwards]: how many of them were accepted;
- `tokens`, `parents` [nodes]: a forward's nodes are 1 to its size, 0 is its root, parents come before children;
- `confidence` [nodes]: the draft's own probability of the node given its parent, untempered, to four digits; null where the
  draft has none (prompt lookup). Under FR-Spec it is over the frequent tokens only;
- `path`: the nodes accepted, from the top, [sum(accepted)];
- `pieces`: text of the token ids, drafted or emitted, that no earlier line of the file has.

A method that keeps no trees of its own drafts has a line with empty columns.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from harness.common.errors import UserError
from harness.common.plain_names import place
from harness.ledger.checked import MOST_ID, are_counts, shown

if TYPE_CHECKING:
    from methods.base import DraftedTree

FOLDER = "trees"
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Drafts:
    """The drafted trees of one generation, as in the file; `confidence` is None where the draft has none."""

    key: str
    sampled: bool
    sizes: Ints
    accepted: Ints
    tokens: Ints
    parents: Ints
    confidence: NDArray[np.float64] | None
    path: Ints

    @property
    def is_chain(self) -> bool:
        """No tree branches."""
        _, number = self.numbered()
        return bool(np.all(self.parents == number - 1))

    @property
    def is_whole(self) -> bool:
        """Parents come before children, and each path leads down from its root."""
        _, number = self.numbered()
        if np.any(self.parents >= number):
            return False
        forward = np.repeat(np.arange(len(self.sizes)), self.accepted)
        if np.any((self.path < 1) | (self.path > self.sizes[forward])):
            return False
        above = np.concatenate([np.zeros(1, dtype=np.int64), self.path])[: len(self.path)]
        above[(np.cumsum(self.accepted) - self.accepted)[self.accepted > 0]] = 0  # the first of each path hangs on the root
        return bool(np.all(self.parents[(np.cumsum(self.sizes) - self.sizes)[forward] + self.path - 1] == above))

    def numbered(self) -> tuple[Ints, Ints]:
        """Of every node [nodes] its forward, from 0, and its number in its tree, from 1."""
        forward = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return forward, np.arange(len(forward)) - np.repeat(np.cumsum(self.sizes) - self.sizes, self.sizes) + 1


class TreeStore:
    """The trees of one ledger, open for adding; whoever writes holds the ledger's lock. `keys`: what is there.

    piece: token id -> its text.

    Raises:
        UserError: a file that is there and cannot be read or mended.
    """

    def __init__(self, folder: Path, piece: Callable[[int], str]):
        self.folder = Path(folder) / FOLDER
        self.keys: set[str] = set()
        self._piece = piece
        self._known: dict[str, set[str]] = {}
        for path in _files(self.folder):
            known = self._known[path.name] = set()
            for line in _lines(path, mend=True):
                self.keys.add(line["key"])
                known.update(line["pieces"])

    def add(self, cell: str, key: str, token_ids: Sequence[int], trees: Sequence[DraftedTree]) -> None:
        """Write a generation's trees; on the disk when this returns. The first trees of a key stand.

        Raises:
            UserError: the file cannot be written; what was there of the line is taken away again.
        """
        ids = dict.fromkeys(str(t) for tokens in (token_ids, *(tree.tokens for tree in trees)) for t in tokens)
        known = self._known.get(self._path(cell).name, ())
        has_confidence = any(tree.confidence is not None for tree in trees)
        self.copy(cell, {
            "key": key,
            "sampled": any(tree.sampled for tree in trees),
            "sizes": [len(tree.tokens) for tree in trees],
            "accepted": [len(tree.path) for tree in trees],
            "tokens": [t for tree in trees for t in tree.tokens],
            "parents": [p for tree in trees for p in tree.parents],
            "confidence": [float(f"{c:.4g}") for tree in trees for c in tree.confidence or ()] if has_confidence else None,
            "path": [i for tree in trees for i in tree.path],
            "pieces": {i: self._piece(int(i)) for i in ids if i not in known},
        })  # fmt: skip

    def copy(self, cell: str, line: Mapping[str, Any]) -> None:
        """Write a line of another file of trees; of its pieces those that the file lacks.

        Raises:
            UserError: as `add`.
        """
        path = self._path(cell)
        known = self._known.setdefault(path.name, set())
        own = {i: piece for i, piece in line["pieces"].items() if i not in known}
        member = gzip.compress(json.dumps({**line, "pieces": own}, separators=(",", ":")).encode() + b"\n", mtime=0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                size = file.tell()
                try:
                    file.write(member)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror or error}") from None
        self.keys.add(line["key"])
        known.update(own)

    def _path(self, cell: str) -> Path:
        return place(self.folder, "cell", cell, suffix=".jsonl.gz")


def has_trees(folder: Path) -> bool:
    return bool(_files(Path(folder) / FOLDER))


def each_drafts(
    folder: Path, keys: Collection[str] | None = None, cells: Collection[str] | None = None
) -> Iterator[Drafts]:  # fmt: skip
    """The trees of a folder's records, one generation after another, as they are read; of a key the first.

    keys: only these. cells: read no other's file.

    Raises:
        UserError: a file that is no such file.
    """
    seen: set[str] = set()
    for path in _files(Path(folder) / FOLDER, cells):
        for line in _lines(path):
            if line["key"] not in seen and (keys is None or line["key"] in keys):
                seen.add(line["key"])
                yield _drafts(line, path)


def read_drafts(folder: Path, keys: Collection[str] | None = None, cells: Collection[str] | None = None) -> dict[str, Drafts]:
    """The same by the record's key, all of them in memory; empty where none were kept."""
    return {d.key: d for d in each_drafts(folder, keys, cells)}


def read_pieces(folder: Path, cells: Collection[str] | None = None) -> dict[str, dict[int, str]]:
    """By cell, the text of every token id drafted or emitted in it. cells: only these."""
    pieces: dict[str, dict[int, str]] = {}
    for path in _files(Path(folder) / FOLDER, cells):
        of_cell = pieces.setdefault(_cell_of(path), {})
        for line in _lines(path):
            of_cell |= {int(i): text for i, text in line["pieces"].items()}
    return pieces


def _drafts(line: dict[str, Any], path: Path) -> Drafts:
    try:
        for name in ("sizes", "accepted", "tokens", "parents", "path"):
            if not are_counts(line[name], MOST_ID):
                raise ValueError(f"{name} is {shown(line[name])}")
        sizes, accepted, tokens, parents, nodes = (
            np.array(line[name], dtype=np.int64) for name in ("sizes", "accepted", "tokens", "parents", "path")
        )
        given = line["confidence"]
        confidence = None if given is None else np.array(given, dtype=np.float64)
        if confidence is not None and not (
            set(map(type, given)) <= {int, float} and np.all((confidence >= 0) & (confidence <= 1))
        ):
            raise ValueError(f"confidence is {shown(given)}")
        lengths = {len(tokens), len(parents), int(sizes.sum())} | (set() if confidence is None else {len(confidence)})
        if len(sizes) != len(accepted) or len(lengths) > 1 or len(nodes) != accepted.sum():
            raise ValueError("columns differ in length")
        drafts = Drafts(line["key"], bool(line["sampled"]), sizes, accepted, tokens, parents, confidence, nodes)
        if not drafts.is_whole:
            raise ValueError("its parents or its path are no tree's")
        return drafts
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: a line holds no drafted trees ({error}); remove the file: `--trees` makes it again") from None


def unlike(folders: Sequence[tuple[Path, Collection[str]]]) -> list[str]:
    """Generations whose trees two folders have, and not the same: `KEY in A and B`, in the order found.

    folders: each with the keys that count. A run that was killed may have left trees of a record that it never wrote.

    Raises:
        UserError: a file that is no such file.
    """
    known: dict[str, tuple[bytes, Path]] = {}
    found = []
    for folder, keys in folders:
        own: set[str] = set()
        for path in _files(folder / FOLDER):
            for line in _lines(path):
                if (key := line["key"]) not in keys or key in own:  # of a key in one folder the first stands
                    continue
                digest = _digest(line)
                first, where = known.setdefault(key, (digest, folder))
                if first != digest:
                    found.append(f"{key} in {where} and {folder}")
                own.add(key)
    return found


def add_from(folders: Sequence[tuple[Path, Collection[str]]], out: Path) -> int:
    """Add the trees that a folder lacks, as the others have them, each in its cell's file; -> how many. Whoever writes holds the
    ledger's lock. folders: each with the keys that count.

    Raises:
        UserError: a file that cannot be read, mended or written.
    """
    if not any(has_trees(folder) for folder, _ in folders):
        return 0
    store, n = TreeStore(out, str), 0
    for folder, keys in folders:
        for path in _files(folder / FOLDER):
            pieces: dict[str, str] = {}  # of a line, those that earlier ones have, too
            for line in _lines(path):
                pieces |= line["pieces"]
                if line["key"] in keys and line["key"] not in store.keys:
                    store.copy(_cell_of(path), line | {"pieces": pieces})
                    n += 1
    return n


def _digest(line: Mapping[str, Any]) -> bytes:
    """Of all but the texts of tokens, which stand in the file's first line that needs them."""
    told = json.dumps([line[name] for name in sorted(line.keys() - {"pieces"})], separators=(",", ":"))
    return hashlib.sha256(told.encode()).digest()[:16]


PACKED = ".xz"


def _files(folder: Path, cells: Collection[str] | None = None) -> list[Path]:
    found = sorted([*folder.glob("*.jsonl.gz"), *folder.glob(f"*.jsonl{PACKED}")])
    return [path for path in found if cells is None or _cell_of(path) in cells]


def _cell_of(path: Path) -> str:
    return path.name.split(".")[0]


def _lines(path: Path, mend: bool = False) -> Iterator[dict[str, Any]]:
    """Every whole line; a torn last one is left out and, to mend the file, cut off.

    Raises:
        UserError: the file cannot be read, or a line holds no trees.
    """
    whole = size = 0
    try:
        if path.suffix == PACKED:
            with lzma.open(path) as file:
                yield from map(_checked, file)
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for text, end in _members(file):
                yield _checked(text)
                whole = end
    except (zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise UserError(f"{path}: not drafted trees ({error}); remove the file: `--trees` makes it again") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if whole < size:
        print(f"{path}: left out a torn last line of {size - whole} bytes", file=sys.stderr)
        if mend:
            os.truncate(path, whole)


_CHUNK = 1 << 16  # what follows a member is copied once a member: little beside inflating it


def _members(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Each whole gzip member, inflated, and where it ends in the file."""
    rest, end = b"", 0
    while rest or (rest := file.read(_CHUNK)):
        member, parts = zlib.decompressobj(wbits=31), []
        while not member.eof:
            if not rest and not (rest := file.read(_CHUNK)):
                return  # torn
            parts.append(member.decompress(rest))
            end, rest = end + len(rest) - len(member.unused_data), member.unused_data
        yield b"".join(parts), end


def _checked(text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(line, dict) or type(line.get("key")) is not str or type(line.get("pieces")) is not dict:
        raise ValueError("a line lacks key or pieces")
    for i, piece in line["pieces"].items():
        if not (i.isascii() and i.isdecimal() and len(i) < 12 and type(piece) is str):
            raise ValueError(f"pieces has {shown(i)}: {shown(piece)}")
    return line


def packed(path: Path) -> bytes:
    """A file's whole lines, as they are kept in a packed ledger."""
    return lzma.compress(b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in _lines(path)), preset=9)
