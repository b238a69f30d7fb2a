"""Whether a user's files slow plain decoding: its speed in two fresh processes, one with the files and one without.

Two tries, both in turn, on one short prompt. This process takes the time, the others decode when they are told to.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from harness.common.errors import UserError

# Of two equal processes on a machine that others use, one is now and then a third slower. The best of three of each is not, in
# both of two tries.
LIMIT = 1.3
TRIES, BEST_OF = 2, 3
ONCE_S, MOST_TIMES = 0.1, 50  # seconds that one of the three takes at least, and decodes in it at most
TOKENS = 8
QUESTION = "Why is the sky blue?"
START_S = 300  # seconds until a process has loaded the model


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that plain decoding took with a user's files over those without, a try each."""

    ratios: tuple[float, ...]

    @property
    def is_slowed(self) -> bool:
        return min(self.ratios) > LIMIT


class _Process:
    """A process that decodes by vanilla whenever it is told how often."""

    def __init__(self, model: str, dtype: str, threads: int, includes: Sequence[Path]):
        command = [sys.executable, "-m", __name__, model, dtype, str(threads), *map(str, includes)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                         text=True)  # fmt: skip

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait(self) -> None:
        """Raises UserError where it ended instead of answering."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == "done\n":
                return
        raise UserError(f"a fresh process could not decode (exit status {self._process.wait()})")

    def seconds(self, times: int) -> float:
        assert self._process.stdin is not None
        started = perf_counter()
        print(times, file=self._process.stdin, flush=True)
        self.wait()
        return perf_counter() - started


def pace(model: str, dtype: str, threads: int, includes: Sequence[Path]) -> Pace:
    """Decode in both processes, in turn.

    model: a name or a YAML. includes: the user's files.

    Raises:
        UserError: a process ended early.
    """
    with ExitStack() as stack:
        plain, theirs = (stack.enter_context(_Process(model, dtype, threads, files)) for files in ((), includes))
        plain.wait()
        theirs.wait()
        times = min(max(round(ONCE_S / max(plain.seconds(1), 1e-6)), 1), MOST_TIMES)
        theirs.seconds(1)
        ratios = []
        for _ in range(TRIES):
            pairs = [(theirs.seconds(times), plain.seconds(times)) for _ in range(BEST_OF)]
            slowed, without = (min(column) for column in zip(*pairs, strict=True))
            ratios.append(slowed / without)
    return Pace(tuple(ratios))


def _decode_when_told(model: str, dtype: str, threads: int, includes: Sequence[Path]) -> None:
    """What such a process does: a line in, so many decodes, a line out."""
    import torch

    import methods
    import tasks
    from harness.load import config as model_configs
    from harness.load.model import load
    from methods.base import SamplerParams

    torch.set_num_threads(threads)
    for path in includes:
        if path.is_dir() or path.suffix == ".py":
            tasks.include(path)
            methods.include(path)
        if path.is_dir() or path.suffix in model_configs.SUFFIXES:
            model_configs.include(path)
    loaded = load(model_configs.model_config(model), dtype, drafters=())
    ids = loaded.encode(loaded.render([("user", QUESTION)]))
    decode = methods.get("vanilla").build()
    print("done", flush=True)
    for line in sys.stdin:
        for _ in range(int(line)):
            decode(list(ids), loaded.target, None, SamplerParams(TOKENS))
        print("done", flush=True)


if __name__ == "__main__":
    _decode_when_told(sys.argv[1], sys.argv[2], int(sys.argv[3]), [Path(word) for word in sys.argv[4:]])
