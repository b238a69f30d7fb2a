"""Whether a user's files slow plain decoding: its speed in two fresh processes, one with the files and one without.

Up to three tries, both in turn, on one short prompt. This process takes the time, the others decode when they are told to.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import cpu_count, getloadavg
from pathlib import Path
from time import perf_counter, process_time

from harness.common.errors import UserError

# Of two equal processes on a machine that others use, one is now and then far slower. The least of several decodes of each is
# seldom, in every one of three tries: the shorter a decode, the likelier it is that one of them had a core to itself.
LIMIT = 1.3
TRIES, TRY_S = 3, 0.4  # of a try, the seconds that either process decodes, if that is neither too few nor too many decodes
FEWEST, MOST = 3, 50
TOKENS = 8
QUESTION = "Why is the sky blue?"
DONE = "\0done "  # no line that a file of a user's prints


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that plain decoding took with a user's files over those without, a try each; no more after one that is not slow.

    cpu_ratio: the same of seconds on a core. load, n_cores: the machine's average load in the minute before, and its cores.
    """

    ratios: tuple[float, ...]
    cpu_ratio: float = 1.0
    load: float = 0.0
    n_cores: int = 1

    @property
    def is_slowed(self) -> bool:
        return min(self.ratios) > LIMIT

    @property
    def is_unclear(self) -> bool:
        """Whether it was slow only by waiting, on a machine where others may be why."""
        return self.is_slowed and self.cpu_ratio <= LIMIT and self.load > self.n_cores


class _Process:
    """A process that decodes by vanilla once whenever it is told to."""

    def __init__(self, model: str, dtype: str, threads: int, includes: Sequence[Path]):
        command = [sys.executable, "-m", __name__, model, dtype, str(threads), *map(str, includes)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                         text=True)  # fmt: skip

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait(self) -> float:
        """Seconds on a core, of what it was told to do. Raises UserError where it ended instead of answering."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(DONE):
                return float(line.removeprefix(DONE))
        raise UserError(f"a fresh process could not decode (exit status {self._process.wait()})")

    def seconds(self) -> tuple[float, float]:
        """Of one decode: by the clock, and on a core."""
        assert self._process.stdin is not None
        started = perf_counter()
        print(file=self._process.stdin, flush=True)
        on_core = self.wait()
        return perf_counter() - started, on_core


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
        once, _ = plain.seconds()
        theirs.seconds()
        times = min(max(round(TRY_S / max(once, 1e-6)), FEWEST), MOST)
        ratios, cpu_ratios = list[float](), list[float]()
        while len(ratios) < TRIES and min(ratios, default=LIMIT + 1) > LIMIT:
            each = [(*theirs.seconds(), *plain.seconds()) for _ in range(times)]
            slowed, slowed_cpu, without, without_cpu = map(min, zip(*each, strict=True))
            ratios.append(slowed / without)
            cpu_ratios.append(slowed_cpu / max(without_cpu, 1e-6))
    return Pace(tuple(ratios), min(cpu_ratios), getloadavg()[0], cpu_count() or 1)


def _decode_when_told(model: str, dtype: str, threads: int, includes: Sequence[Path]) -> None:
    """What such a process does: a line in, a decode, a line out."""
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
    own = tasks.own(loaded.config.name)
    question = tasks.load(own[0], limit=1).prompts[0].turns[0] if own else QUESTION  # a model of pixels cannot read it
    ids = loaded.encode(loaded.render([("user", question)]))
    decode = methods.get("vanilla").build()
    print(f"{DONE}0", flush=True)
    for _ in sys.stdin:
        started = process_time()
        with loaded.target.decoding():
            decode(list(ids), loaded.target, None, SamplerParams(TOKENS))
        print(f"{DONE}{process_time() - started}", flush=True)


if __name__ == "__main__":
    _decode_when_told(sys.argv[1], sys.argv[2], int(sys.argv[3]), [Path(word) for word in sys.argv[4:]])
