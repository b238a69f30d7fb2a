"""Puts a full reproduction's records through the driver of `--ray`, from workers that sleep in place of decoding.

    python scripts/load_cluster.py --records 78000 --workers 32 --out DIR     # about 10 minutes

Seven models, one `harness run --ray` after another on one ledger: six tasks, ten methods, T = 0 and 1, answers of up to 512
tokens with their traces. The driver is the real one: `measure_over`, the pool, the desk and a ledger that is on the disk after
each record. What stands in is the cluster (`Pipes`): a few processes with a thread for each worker, which sleeps and sends
made-up records through a pipe. Ray is not there, nor is its part of the driver's time. `--over-ray` measures that on fewer
records: one driver on a real `--ray local`, a worker a core.

The last driver is killed when 98 % of the records are there, and started again; then `harness table` and `harness claims` read
the result. `load.md` and `load.csv` are the table that docs/reliability.md shows. The exit status is 1 where a goal was missed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

import synthetic_ledger  # noqa: E402
from make_ledger import ENV, Simulated, base_record, output_of  # noqa: E402

import methods  # noqa: E402
from harness.cluster.facts import Asked, facts_here  # noqa: E402
from harness.cluster.host import FACTS, OPENED, Message, Send  # noqa: E402
from harness.cluster.pool import Needs  # noqa: E402
from harness.cluster.rays import End, Node  # noqa: E402
from harness.cluster.request import ClusterRequest  # noqa: E402
from harness.common.names import SIX_TASKS  # noqa: E402
from harness.ledger import ledger as ledgers  # noqa: E402
from harness.ledger.ledger import RECORDS, Ledger, machine_label  # noqa: E402
from harness.load.config import model_config  # noqa: E402
from harness.run import spread  # noqa: E402
from harness.run.bench import BEGINS, RATES, RECORD, WHOLE, Job, Opened, Setup, WarmUp, Whole  # noqa: E402
from harness.run.bench import ENV as ENVIRONMENT  # noqa: E402
from harness.run.plan import RunSpec  # noqa: E402
from harness.run.request import RunRequest  # noqa: E402
from tasks import Prompt, PromptSet  # noqa: E402

NAMES = ("vanilla", "pld", "lookahead", "sps", "medusa", "hydra", "eagle1", "eagle2-no-value", "eagle2-no-rerank", "eagle2")
METHODS = {m.name: m for m in synthetic_ledger.METHODS if m.name in NAMES and m.preset == "paper"}
MODELS, TEMPERATURES, TOKENS, VOCABULARY = 7, (0.0, 1.0), 512, 32_000
A_PROMPT = len(METHODS) * len(TEMPERATURES) * (len(SIX_TASKS) + 1)  # records of one prompt a task: MT-bench has two turns
ANSWERS = 16  # different lengths and traces of a method
BOOK = "".join(random.Random(0).choices("etaoin shrdlu", k=1 << 16))
NODES, PROCESSES = 4, 4
MACHINE = {**ENV, "threads": 1}
PROMPTS_SHA = "p" * 16


# ---- what workers make -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asks:
    """A run that is simulated: one model. `rest`: seconds that a worker sleeps for each record."""

    model: str
    prompts: int
    tokens: int = TOKENS
    rest: float = 0.0


@cache
def made(method: str, n: int, tokens: int) -> dict[str, Any]:
    """The fields that a generation fills, of a method's n-th trace."""
    rng = random.Random(n)
    ids = rng.choices(range(VOCABULARY), k=tokens if rng.random() < 0.6 else rng.randrange(tokens // 3, tokens))
    record = base_record(METHODS[method], "gsm8k", 0.0, max_new_tokens=tokens, sample_id=str(n))
    whole = output_of(METHODS[method], record, ids)
    filled = {name: whole[name] for name in whole if whole[name] != record[name] and name != "key"}
    return filled | {"cpu_s": whole["wall_s"], "load": 1.0, "n_special": 1}


def record_of(asks: Asks, method: Simulated, task: str, temperature: float, sample: str, turn: int) -> dict[str, Any]:
    """A whole record of a simulated worker."""
    n_turns = turns_of(task)
    record = base_record(
        method, task, temperature, model=asks.model, run="simulated", sample_id=sample, turn=turn, n_turns=n_turns,
        turn1_sha="1" * 16 if turn > 1 else None, max_new_tokens=asks.tokens, threads=1, prompts_sha=PROMPTS_SHA,
        source="bundled",
    )  # fmt: skip
    rng = random.Random(f"{asks.model} {task} {sample} {turn} {temperature and method.name}")  # one answer for all at T = 0
    filled = made(method.name, rng.randrange(ANSWERS), asks.tokens)
    n, at = len(filled["token_ids"]), rng.randrange(len(BOOK) - 5 * asks.tokens)
    return record | filled | {"token_ids": rng.choices(range(VOCABULARY), k=n), "text": BOOK[at : at + 4 * n]}


def turns_of(task: str) -> int:
    return 2 if task == "mt_bench" else 1


def cell_of(asks: Asks, method: str, task: str, temperature: float) -> str:
    return str(record_of(asks, METHODS[method], task, temperature, "0", 1)["cell"])


class SleepingBench:
    """In place of `harness.run.bench.RunBench`: it sleeps for each generation, and sends what the real one sends."""

    def __init__(self, asks: Asks) -> None:
        self._asks = asks
        keys = tuple(
            (tuple(cell_of(asks, method, task, t) for task in SIX_TASKS for method in METHODS),
             {task: cell_of(asks, "vanilla", task, 0.0) for task in SIX_TASKS})
            for t in TEMPERATURES
        )  # fmt: skip
        self.opened = Opened(keys, "float32", machine_label(MACHINE))

    def do(self, job: Job | WarmUp, send: Send) -> None:
        asks, env = self._asks, ledgers.env_name(MACHINE)
        if isinstance(job, WarmUp):
            send(ENVIRONMENT, MACHINE)
            send(RATES, {i: dict.fromkeys(METHODS, asks.rest / asks.tokens) for i in job.specs})
            return
        there = {r["key"] for r in job.records if r["status"] == "ok"}
        for i in job.specs:
            measured = []
            for turn in range(1, turns_of(job.talk.task) + 1):
                records = [record_of(asks, m, job.talk.task, TEMPERATURES[i], job.talk.sample_id, turn) for m in METHODS.values()]
                records = [r | {"env": env} for r in records if r["key"] not in there]
                send(BEGINS, [r | {"token_ids": [], "text": "", "trace": None} for r in records])
                for record in records:
                    time.sleep(asks.rest)
                    send(RECORD, record)
                    measured.append(record["method"])
            send(WHOLE, Whole(i, tuple(measured), 0))


def bench_of(setup: Setup) -> SleepingBench:
    """What a worker makes of a driver's setup."""
    return SleepingBench(pickle.loads(setup.work)[1][0].asks)


# ---- clusters that stand in for Ray ----------------------------------------------------------------------------------

Event = tuple[int, Message | End]


class Numbered:
    """Nodes that are all there from the beginning, and workers that are numbers from 1."""

    def __init__(self, workers: int) -> None:
        self._nodes, self._n = nodes(workers), 0

    def nodes(self) -> list[Node]:
        return self._nodes

    def start(self, node: Node, **_: int) -> int:
        self._n += 1
        return self._n


class Inline(Numbered):
    """A cluster in the driver's own process, where work is done when its messages are asked for: for counting, not for clocks."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._calls: dict[int, Iterator[Message | End]] = {}
        self._benches: dict[int, SleepingBench] = {}

    def call(self, worker: int, function: str, *given: Any) -> None:
        self._calls[worker] = iter([*carried_out(self._benches, worker, function, given), End()])

    def events(self, timeout: float) -> list[Event]:
        found = [(worker, next(messages)) for worker, messages in list(self._calls.items())]
        for worker, event in found:
            if isinstance(event, End):
                del self._calls[worker]
        return found

    def kill(self, worker: int) -> None:
        self._calls.pop(worker, None)


class Pipes(Numbered):
    """Workers as threads of a few processes: each of their messages comes through a pipe. One whose driver is gone ends."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._dropped = set[int]()
        self._pipes: list[Any] = []
        forked = get_context("fork")  # nothing is imported again
        for _ in range(min(PROCESSES, workers)):
            here, there = forked.Pipe()
            self._pipes.append(here)
            forked.Process(target=serve, args=(there, self._pipes), daemon=True).start()
            there.close()

    def call(self, worker: int, function: str, *given: Any) -> None:
        self._pipes[worker % len(self._pipes)].send((worker, function, given))

    def events(self, timeout: float) -> list[Event]:
        """At most one message of each pipe, as of Ray one of each call."""
        received = (pipe.recv() for pipe in wait(self._pipes, timeout))
        return [(worker, event) for worker, event in received if worker not in self._dropped]

    def kill(self, worker: int) -> None:
        self._dropped.add(worker)


def nodes(workers: int) -> list[Node]:
    n = min(NODES, workers)
    return [Node(f"node-{i}", f"node-{i}", (workers + n - 1 - i) // n, 0, 1 << 40) for i in range(n)]


def carried_out(benches: dict[int, SleepingBench], worker: int, function: str, given: Sequence[Any]) -> Iterator[Message]:
    """What a worker sends for a call of `harness.cluster.host.Host`."""
    if function == "hello":
        yield Message(FACTS, facts_here(given[0]))
    elif function == "open":
        benches[worker] = bench_of(given[1])
        yield Message(OPENED, benches[worker].opened)
    else:
        sent: list[Message] = []
        benches[worker].do(given[0], lambda kind, body: sent.append(Message(kind, body)))
        yield from sent


def serve(pipe: Connection, drivers: Sequence[Connection]) -> None:
    """A process of `Pipes`. drivers: the other ends of pipes, which must close when the driver is gone."""
    for end in drivers:
        end.close()
    benches: dict[int, SleepingBench] = {}
    lock = threading.Lock()

    def send(worker: int, event: Message | End) -> None:
        data = pickle.dumps((worker, event), pickle.HIGHEST_PROTOCOL)
        with lock:
            pipe.send_bytes(data)

    def work(worker: int, function: str, given: Sequence[Any]) -> None:
        if function == "do":  # message by message, each after its sleep
            benches[worker].do(given[0], lambda kind, body: send(worker, Message(kind, body)))
        else:
            for message in carried_out(benches, worker, function, given):
                send(worker, message)
        send(worker, End())

    try:
        while True:
            threading.Thread(target=work, args=pipe.recv(), daemon=True).start()
    except (EOFError, OSError):
        os._exit(0)


# ---- the driver ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spec(RunSpec):
    """A run's spec that carries what its simulated workers need."""

    asks: Asks = Asks("toy-0", 1)


def specs_of(asks: Asks) -> list[Spec]:
    """As a command's: T = 0 and 1."""
    arms = tuple(methods.Arm(methods.get(name), "paper", {}) for name in METHODS)
    sets = tuple(
        PromptSet(task, "bundled", [Prompt(str(i), ("?",) * turns_of(task)) for i in range(asks.prompts)], PROMPTS_SHA)
        for task in SIX_TASKS
    )
    return [
        Spec(arms=arms, prompt_sets=sets, temperature=t, top_p=1.0, max_new_tokens=asks.tokens, seed=0, repeats=1, threads=1,
             baseline=True, on_overflow="error", asks=asks)
        for t in TEMPERATURES
    ]  # fmt: skip


def driven(out: Path, asks: Asks, cluster: Any = None) -> int:
    """One command's driver on a cluster that stands in for Ray, or on Ray; -> generations that failed."""
    maker = f"{bench_of.__module__}:{bench_of.__name__}"
    needs = Needs(maker, threads=1, memory=0, gpus=0, gpus_of=lambda free: None, asked=Asked(), env={})
    with ExitStack() as stack:
        if cluster is not None:
            stack.enter_context(patch.object(spread, "connected", lambda address: nullcontext(cluster)))
        stack.enter_context(patch.object(spread, "needs_of", lambda *_, **__: needs))
        ledger = stack.enter_context(Ledger(out, several_machines=True))
        config = model_config(str(ROOT / "tests/tiny/tiny.yaml")).model_copy(update={"name": asks.model})
        request = RunRequest(methods=tuple(METHODS), tasks=SIX_TASKS, model=config.given, dtype="float32", threads=1, out=out)
        return spread.measure_over(config, request, specs_of(asks), ClusterRequest(address="local"), ledger)[1]


class Samples:
    """What the driver has used whenever another so many records are written, a line each in a file."""

    def __init__(self, file: Path, began: float, every: int) -> None:
        self._file, self._began, self._every = file.open("a", encoding="utf-8"), began, every
        self._n = self._n_there = 0
        self._fsync_s = 0.0
        self._extend, self._fsync, self._open = Ledger.extend, os.fsync, Ledger.__init__
        samples = self

        def opened(ledger: Ledger, *given: Any, **named: Any) -> None:
            samples._open(ledger, *given, **named)
            samples._n_there = len(ledger.records)
            samples._write("opened")

        def extend(ledger: Ledger, records: Any) -> None:
            samples._extend(ledger, records)
            before, samples._n = samples._n, samples._n + len(records)
            if not before or samples._n // samples._every > before // samples._every:
                samples._write("" if before else "first")

        def fsync(fd: int) -> None:
            at = time.perf_counter()
            samples._fsync(fd)
            samples._fsync_s += time.perf_counter() - at

        self._patches = [patch.object(Ledger, "__init__", opened), patch.object(Ledger, "extend", extend),
                         patch.object(ledgers, "os", SimpleNamespace(**vars(os) | {"fsync": fsync}))]  # fmt: skip

    def __enter__(self) -> Samples:
        for one in self._patches:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._patches:
            one.stop()
        self._write("end")

    def _write(self, what: str) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        line = {
            "what": what, "n": self._n_there + self._n, "cpu_s": used.ru_utime + used.ru_stime,
            "after_s": time.time() - self._began, "fsync_s": self._fsync_s, "most_bytes": used.ru_maxrss << 10,
        }  # fmt: skip
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


# ---- all of it, and the table ----------------------------------------------------------------------------------------


def command(asked: argparse.Namespace, model: int, samples: Path) -> subprocess.Popen[bytes]:
    """The driver of a model as a process of its own."""
    given = {"--out": asked.out, "--records": asked.records, "--workers": asked.workers, "--models": asked.models,
             "--tokens": asked.tokens, "--rest": asked.rest, "--model": model, "--samples": samples,
             "--began": time.time()}  # fmt: skip
    words = [sys.executable, __file__, *(word for pair in given.items() for word in pair), *["--over-ray"] * asked.over_ray]
    with (asked.out / "drivers.err").open("ab") as err:
        return subprocess.Popen([str(word) for word in words], stderr=err)


def samples_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def killed(driver: subprocess.Popen[bytes], samples: Path, at: float) -> None:
    """`kill -9` when so many records are there."""
    while driver.poll() is None and max((s["n"] for s in samples_of(samples)), default=0) < at:
        time.sleep(0.1)
    driver.kill()
    if driver.wait() != -signal.SIGKILL:
        raise SystemExit(f"the last driver had ended before it was killed: see {samples.parent / 'drivers.err'}")


def read_by(words: Sequence[str], out: Path) -> dict[str, Any]:
    """A command that reads the ledger: its clocks, and the most memory it had."""
    began, log = time.perf_counter(), out / f"{words[0]}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness", *words, "--results", str(out / "ledger")], stdout=file, stderr=file, cwd=ROOT
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return {"status": process.returncode, "wall_s": time.perf_counter() - began, "cpu_s": used.ru_utime + used.ru_stime,
            "most_bytes": used.ru_maxrss << 10}  # fmt: skip


def counted(out: Path) -> tuple[int, int]:
    """(different keys, lines with a key that was there before) of what is no warm-up; read here, by nothing of the harness."""
    keys: set[bytes] = set()
    n = 0
    with (out / RECORDS).open("rb") as file:
        for line in file:
            found = re.search(rb'"key": "(\w+)"', line)
            if found and b'"is_warmup": false' in line:
                n += 1
                keys.add(found[1])
    return len(keys), n - len(keys)


def within(drivers: Sequence[Sequence[dict[str, Any]]], low: float, high: float, what: str) -> float:
    """`what` a record, over those from the low-th to the high-th, while drivers were at work."""
    used = n = 0.0
    for samples in drivers:
        at_work = [s for s in samples if s["what"] in ("", "first")]
        for a, b in zip(at_work, at_work[1:], strict=False):
            if low <= a["n"] and b["n"] <= high:
                used, n = used + b[what] - a[what], n + b["n"] - a["n"]
    return used / n if n else 0.0


def measured(asked: argparse.Namespace) -> dict[str, Any]:
    """All drivers, the kill, and the commands that read."""
    out: Path = asked.out
    shutil.rmtree(out / "ledger", ignore_errors=True)
    for old in out.glob("samples-*.jsonl"):
        old.unlink()
    prompts = prompts_of(asked)
    total = A_PROMPT * prompts * asked.models
    began = time.perf_counter()
    for model in range(asked.models):
        samples = out / f"samples-{model}.jsonl"
        driver = command(asked, model, samples)
        if model == asked.models - 1:
            killed(driver, samples, asked.kill_at * total)
            driver = command(asked, model, out / f"samples-{model}-again.jsonl")
        if driver.wait():
            raise SystemExit(f"the driver of model {model} ended with {driver.returncode}: see {out / 'drivers.err'}")
        print(f"model {model}: {samples_of(samples)[-1]}", flush=True)
    wall_s = time.perf_counter() - began
    n_keys, repeated = counted(out / "ledger")
    drivers = [samples_of(out / f"samples-{model}.jsonl") for model in (*range(asked.models), f"{asked.models - 1}-again")]
    again = {s["what"]: s for s in drivers[-1]}
    return {
        "records": n_keys, "lost": total - n_keys, "repeated": repeated, "workers": asked.workers, "models": asked.models,
        "bytes": (out / "ledger" / RECORDS).stat().st_size, "wall_s": wall_s,
        "most_bytes": max(s["most_bytes"] for samples in drivers for s in samples),
        "cpu_first_s": within(drivers, 0, total / 10, "cpu_s"), "cpu_last_s": within(drivers, 0.9 * total, total, "cpu_s"),
        "cpu_s": within(drivers, 0, total, "cpu_s"), "fsync_s": within(drivers, 0, total, "fsync_s"),
        "after_s": within(drivers, 0, total, "after_s"),
        "killed_at": again["opened"]["n"], "opened_s": again["opened"]["after_s"], "resumed_s": again["first"]["after_s"],
        "table": read_by(["table"], out), "claims": read_by(["claims"], out),
    }  # fmt: skip


def measured_over_ray(asked: argparse.Namespace) -> dict[str, Any]:
    """One driver on Ray."""
    shutil.rmtree(asked.out / "ledger", ignore_errors=True)
    samples = asked.out / "samples-ray.jsonl"
    samples.unlink(missing_ok=True)
    if command(asked, 0, samples).wait():
        raise SystemExit(f"the driver ended badly: see {asked.out / 'drivers.err'}")
    found, total, n = [samples_of(samples)], A_PROMPT * prompts_of(asked), counted(asked.out / "ledger")
    return {"lost": total - n[0], "repeated": n[1], "records": n[0], "most_bytes": max(s["most_bytes"] for s in found[0]),
            **{name: within(found, 0, total, name) for name in ("cpu_s", "after_s", "fsync_s")}}  # fmt: skip


def prompts_of(asked: argparse.Namespace) -> int:
    return max(1, round(asked.records / asked.models / A_PROMPT))


Row = tuple[str, str, str, str]


def gb(n: float) -> str:
    return f"{n / 1e9:.2f} GB"


def rows_over_ray(found: dict[str, Any]) -> list[Row]:
    """The table of a driver on Ray."""
    rows = (
        ("records", "", f"{found['records']:,}", ""),
        ("records lost, repeated", "0, 0", f"{found['lost']}, {found['repeated']}", not found["lost"] and not found["repeated"]),
        ("driver's most memory", "", gb(found["most_bytes"]), ""),
        ("driver's CPU a record, Ray's part with it", "at most 5 ms", f"{1000 * found['cpu_s']:.2f} ms", found["cpu_s"] <= 0.005),
        ("wall a record; fsync's part of it", "", f"{1000 * found['after_s']:.2f} ms; {1000 * found['fsync_s']:.2f} ms", ""),
    )
    return [(what, goal, value, met if isinstance(met, str) else "yes" if met else "no") for what, goal, value, met in rows]


def rows_of(found: dict[str, Any]) -> list[Row]:
    """(what, goal, found, met) of the table."""
    first, last = found["cpu_first_s"], found["cpu_last_s"]
    rows: list[tuple[str, str, str, bool | None]] = [
        ("records; file", "", f"{found['records']:,}; {gb(found['bytes'])}", None),
        ("records lost, repeated", "0, 0", f"{found['lost']}, {found['repeated']}", not found["lost"] and not found["repeated"]),
        ("driver's most memory", "under 1 GB", gb(found["most_bytes"]), found["most_bytes"] < 1e9),
        ("driver's CPU a record", "at most 5 ms", f"{1000 * found['cpu_s']:.2f} ms", found["cpu_s"] <= 0.005),
        ("the same in the first and in the last tenth", "no slower", f"{1000 * first:.2f} ms, {1000 * last:.2f} ms",
         last <= 1.1 * first),
        ("wall a record; fsync's part of it", "", f"{1000 * found['after_s']:.2f} ms; {1000 * found['fsync_s']:.2f} ms", None),
        (f"after `kill -9` at {found['killed_at']:,} records: ledger open; first new record", "under 30 s",
         f"{found['opened_s']:.1f} s; {found['resumed_s']:.1f} s", found["resumed_s"] < 30),
        *((f"`harness {name}`: wall, CPU, memory", f"{bound_s} s, {bound} GB",
           f"{found[name]['wall_s']:.0f} s, {found[name]['cpu_s']:.0f} s, {gb(found[name]['most_bytes'])}",
           found[name]["cpu_s"] <= bound_s and found[name]["most_bytes"] <= bound * 1e9)
          for name, bound_s, bound in (("table", 46, 0.48), ("claims", 40, 0.44))),
        ("all of it", "", f"{found['wall_s'] / 60:.1f} min", None),
    ]  # fmt: skip
    return [(what, goal, value, "" if met is None else "yes" if met else "no") for what, goal, value, met in rows]


def write_table(title: str, found: Sequence[Row], file: Path) -> None:
    """As .csv and .md."""
    rows = [("measured", "goal", "found", "met"), *found]
    with file.with_suffix(".csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, lineterminator="\n").writerows(rows)
    lines = [rows[0], (":--", ":--", "--:", ":--"), *rows[1:]]
    text = "".join(f"| {' | '.join(row)} |\n" for row in lines)
    file.with_suffix(".md").write_text(f"# {title}\n\n{text}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder; what an earlier start left in it is removed")
    parser.add_argument("--records", type=int, default=78_000, help="about how many")
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--models", type=int, default=MODELS, help="commands one after another on one ledger")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="the budget of an answer")
    parser.add_argument("--rest", type=float, default=0.05, help="seconds that a worker sleeps for each record")
    parser.add_argument("--over-ray", action="store_true", help="one model, on a real Ray of this machine")
    parser.add_argument("--kill-at", type=float, default=0.98, help="part of the records after which the last driver is killed")
    for internal, kind in (("--model", int), ("--samples", Path), ("--began", float)):
        parser.add_argument(internal, type=kind, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.model is not None:
        asks = Asks(f"toy-{asked.model}", prompts_of(asked), asked.tokens, asked.rest)
        every = max(1, A_PROMPT * asks.prompts * asked.models // 200)
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:3])  # Ray's workers find this script there
        with Samples(asked.samples, asked.began, every):
            return driven(asked.out / "ledger", asks, None if asked.over_ray else Pipes(asked.workers))
    if asked.over_ray:
        rows, title, name = rows_over_ray(measured_over_ray(asked)), "Load over Ray: a worker a core, one model", "load-ray"
    else:
        found = measured(asked)
        (asked.out / "load.json").write_text(json.dumps(found, indent=1) + "\n")
        rows, title, name = rows_of(found), f"Load: {asked.workers} simulated workers, {asked.models} models", "load"
    write_table(title, rows, asked.out / name)
    print("\n".join(": ".join(part for part in row if part) for row in rows))
    return int(any(row[3] == "no" for row in rows))


if __name__ == "__main__":
    import load_cluster  # under its own name, by which Ray's workers know what is sent to them

    sys.exit(load_cluster.main())
