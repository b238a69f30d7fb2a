"""A large file of records read by several processes: each checks and reduces the lines of a chunk of it.

On their standard input they are given where this process finds its modules, and a `Chunk`, both pickled. What they found they
write to their standard output: lists of records, then `Checked` without them. This process reads a chunk only where its own
cannot be started or dies: whole records leave its memory in holes, and all that it does later would be slower.
"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from harness.common.cores import usable_cores
from harness.ledger.ledger import PACKED, BadLine, Envs, Lines, checked_lines
from harness.ledger.record import Record
from harness.ledger.reduced import Reducer

LEAST_BYTES, MOST_CHUNKS = 32 << 20, 8  # below that a process costs more than it saves
AT_ONCE = 1000  # records in one pickle, which holds all of its bytes until it is read
# What a process runs, with `-I`: without it another `harness` in the working directory would be taken for this one.
PROGRAM = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from harness.ledger.chunks import main
main()
"""


class Chunk(NamedTuple):
    """The lines of a file from byte `begin` to byte `end`, None for all that follow. with_text: as `Reducer` takes it."""

    path: Path
    begin: int
    end: int | None
    imported: bool
    with_text: bool


class Checked(NamedTuple):
    """What is in a chunk; the first of its lines has number 1. The last three: of its `Lines`, at their end."""

    records: list[tuple[int, Record]]
    bad: list[BadLine]
    number: int
    n_whole: int
    n_torn: int
    lacks_newline: bool


def chunks_of(path: Path, imported: bool, with_text: bool) -> list[Chunk]:
    """The chunks in which a file is to be read: one, where it is small or packed, or this process may use one core."""
    size = path.stat().st_size if path.name != PACKED and path.exists() else 0
    n = min(size // LEAST_BYTES, MOST_CHUNKS, usable_cores()) if sys.executable else 1
    begins = [0]
    if n > 1:
        with suppress(OSError), path.open("rb") as file:  # who reads the chunk says why it cannot be read
            for i in range(1, n):
                file.seek(size * i // n)
                file.readline()
                begins.append(file.tell())
    begins = [begin for begin in dict.fromkeys(begins) if begin < size] or [0]
    return [Chunk(path, begin, end, imported, with_text) for begin, end in zip(begins, [*begins[1:], None], strict=True)]


def records_in(
    chunks: Sequence[Chunk], lines: Lines, envs: Envs, reduced: Reducer, bad: list[BadLine]
) -> Iterator[tuple[int, Record]]:
    """The reduced records of a whole file with their lines' numbers; bad lines go into `bad`, chunk by chunk.

    lines: of the file, not read yet; at the end it tells what it tells of a file that was read from it.
    """
    with ExitStack() as stack:
        processes = [_started(chunk, stack) for chunk in chunks]
        for chunk, process in zip(chunks, processes, strict=True):
            found = (process and _told(process)) or found_in(chunk, envs, reduced)
            before, lines.number = lines.number, lines.number + found.number
            lines.n_whole += found.n_whole
            lines.n_torn, lines.lacks_newline = found.n_torn, found.lacks_newline
            bad += [BadLine(before + number, why) for number, why in found.bad]
            yield from ((before + number, record) for number, record in found.records)


def found_in(chunk: Chunk, envs: Envs, reduced: Reducer) -> Checked:
    """Read a chunk in this process."""
    lines, bad = Lines(chunk.path, chunk.begin, chunk.end), list[BadLine]()
    records = [(number, reduced(record)) for number, record in checked_lines(lines, chunk.imported, envs, bad)]
    return Checked(records, bad, lines.number, lines.n_whole, lines.n_torn, lines.lacks_newline)


def _started(chunk: Chunk, stack: ExitStack) -> subprocess.Popen[bytes] | None:
    """A process that reads a chunk and ends with the stack; None where the system has none to give."""
    words = [sys.executable, "-I", "-c", PROGRAM]
    try:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return None
    stack.enter_context(process)
    stack.callback(process.kill)
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pickle.dump(sys.path, pipe)
            pickle.dump(chunk, pipe)
    except OSError:  # it is dead: `_told` finds nothing
        pass
    return process


def _told(process: subprocess.Popen[bytes]) -> Checked | None:
    """What it found; None where it died, or told something else."""
    assert process.stdout is not None
    records: list[tuple[int, Record]] = []
    try:
        while type(found := pickle.load(process.stdout)) is list:
            records += found
    except Exception:  # whatever pickle makes of half an answer, or of what was printed before it
        return None
    return found._replace(records=records) if type(found) is Checked else None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the process that started this one, which ends it
    chunk = pickle.load(sys.stdin.buffer)
    found = found_in(chunk, Envs(chunk.path.parent), Reducer(with_text=chunk.with_text))
    for first in range(0, len(found.records), AT_ONCE):
        pickle.dump(found.records[first : first + AT_ONCE], sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
    pickle.dump(found._replace(records=[]), sys.stdout.buffer)
