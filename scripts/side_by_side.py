"""What `llama_cpp.py` and `authors_speed.py` share: engines as child processes that answer in turn, and records of comparisons.

A child is a Python interpreter of its own, perhaps of another environment. It reads a request and writes an answer, one JSON
value a line. So two engines are timed alternately, in one run, with one of them at a time at work. Only the standard library is
imported at the top, as the other environment need not have more.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REST = 0.1  # seconds before each request, so that the threads of the child that answered last are asleep

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def serve(start: Callable[[], tuple[dict[str, Any], Answer]]) -> None:
    """A child's main loop. start() -> what the child tells of itself, and what answers a request.

    What libraries print goes to stderr. Any error is written as the answer `{"error": one line}` and ends the child.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def write(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        facts, answer = start()
        write({**facts, "python": platform.python_version()})
        for line in sys.stdin:
            write({**answer(json.loads(line)), "memory": memory()})
    except BrokenPipeError:  # nobody asks any more
        os._exit(1)
    except (Exception, SystemExit) as e:
        write({"error": f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"})
        sys.exit(1)


def memory() -> dict[str, int]:
    """MB that this process holds (`resident`), and MB of that in 2 MB pages (`huge`); empty where there is no /proc."""
    try:
        words = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    except OSError:
        return {}
    kb = {name.rstrip(":"): int(size) for name, size, *_ in words}
    return {"resident": kb["Rss"] // 1024, "huge": (kb["AnonHugePages"] + kb.get("FilePmdMapped", 0)) // 1024}


class Child:
    """A running engine. `facts`: what it tells of itself; `memory`: as of its last answer."""

    def __init__(self, name: str, command: Sequence[str | Path], threads: int, engine: str | None = None):
        """command: ends with what this script's `main` takes to become the child. engine: `HARNESS_ENGINE` of it."""
        env = dict(os.environ, OMP_NUM_THREADS=str(threads), PYTHONPATH=str(ROOT))
        if engine is not None:
            env["HARNESS_ENGINE"] = engine
        self.name = name
        self.memory: dict[str, int] = {}
        try:
            self._process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT
            )
        except OSError as e:
            sys.exit(f"cannot start {name}: {command[0]}: {e.strerror}")
        self.facts = self._read()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer. The program ends with one line where the child has ended or tells of an error."""
        time.sleep(REST)
        assert self._process.stdin is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            sys.exit(f"{self.name} has ended before it was asked")
        found = self._read()
        self.memory = found.pop("memory")
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with exit status {self._process.wait()} and without an answer")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            sys.exit(f"{self.name}: {found['error']}")
        return found


def prompts_of(model: str, n: int, shortest: int, longest: int) -> list[list[int]]:
    """Token ids of `n` prompts of the bundled tasks, one of each task in turn, that have so many tokens."""
    import tasks
    from harness.load.config import model_config
    from harness.load.model import encode
    from harness.load.prompt_text import load_tokenizer, render
    from harness.load.weights import tokenizer_folder

    config = model_config(model)
    tokenizer = load_tokenizer(tokenizer_folder(config))
    by_task: list[list[list[int]]] = []
    for task in tasks.names():
        texts = [(prompt.id, prompt.turns[0]) for prompt in tasks.load(task, source="bundled").prompts]
        ids = (encode(config, tokenizer, render(config, tokenizer, [("user", text)]), None, name) for name, text in texts)
        by_task.append([found for found in ids if shortest <= len(found) <= longest])
    in_turn = [ids for one_each in zip_longest(*by_task) for ids in one_each if ids is not None]
    if len(in_turn) < n:
        sys.exit(f"only {len(in_turn)} of the bundled prompts have {shortest} to {longest} tokens; {n} are needed")
    return in_turn[:n]


def rounds(children: Sequence[Child], prompts: Sequence[list[int]], n_rounds: int, **request: Any) -> list[list[list[Any]]]:
    """answers[round][prompt][child]: every child decodes each prompt, in an order that rotates."""
    kept = []
    for i in range(n_rounds):
        answers = []
        for j, prompt in enumerate(prompts):
            in_turn: dict[int, Any] = {}
            for k in range(len(children)):
                at = (i + j + k) % len(children)
                in_turn[at] = children[at].ask({**request, "prompt": prompt})
            answers.append([in_turn[at] for at in range(len(children))])
        kept.append(answers)
    return kept


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Minimum, median and maximum, and all values in their order."""
    return {"min": min(values), "median": median(values), "max": max(values), "all": list(values)}


def in_words(found: Mapping[str, Any], digits: int = 1) -> str:
    return f"{found['median']:.{digits}f} ({found['min']:.{digits}f} to {found['max']:.{digits}f})"


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two outputs begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def environment(threads: int) -> dict[str, Any]:
    from harness.common.cores import usable_cores
    from harness.common.machine import cpu_name

    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "-C", str(ROOT), "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "n_cores": usable_cores(),
        "threads": threads,
        "platform": platform.platform(),
        "load_average": os.getloadavg()[0],
        "git_commit": commit or None,
        "git_dirty": bool(changed),
    }


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    try:
        out.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as e:
        sys.exit(f"cannot write {out}: {e.strerror}")
    print(f"written: {out}")


def positive(text: str) -> int:
    """For argparse: a whole number over 0."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value
