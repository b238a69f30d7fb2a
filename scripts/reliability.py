"""Plants one fault after another in a real Ray on loopback, and compares what the ledger holds at the end with a plain run.

    python scripts/reliability.py --out DIR                        # all faults, each on a cluster of its own; about 15 minutes
    python scripts/reliability.py --out DIR --only worker-killed   # one, again
    python scripts/reliability.py --list

A driver is a process of its own, `harness run ... --ray ADDRESS`, on the tiny model of the tests: a few conversations, of one and
of two turns, at two temperatures, by three methods. One of them sleeps before it decodes, so that there is time for a fault.
While it works the script kills, stops or fills something; where that ends the driver, the same command is started again. Then
every record of the plain run must be in the ledger once, with its token ids, and the driver must have said what happened.

A fault whose result is in DIR already is not tried again, unless `--only` names it: what was stopped goes on. `faults.md` and
`faults.csv` are the table that docs/reliability.md shows. The exit status is 1 where a fault was not survived.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDS = "records.jsonl"
LONGEST = 90.0  # seconds that a fault may take, the starts of its clusters included
MIDWAY = 8  # records after which a fault is planted
STORE = 80 << 20  # bytes of a node's object store, about the least that Ray takes
CODE = ("harness", "methods", "tasks", "models")
SLOW = """
import time

from methods import get, method


@method("slow", line="vanilla after a rest, so that there is time for a fault")
def slow():
    plain = get("vanilla").build()

    def decode(prompt_ids, target, drafter, params):
        if params.max_new_tokens == 12:  # none of the warm-up
            time.sleep(0.4)
        return plain(prompt_ids, target, drafter, params)

    return decode
"""
WORK = (
    "--method vanilla --method eagle2 --method slow --task gsm8k --task mt_bench --limit 3 --temperature 0 --temperature 1 "
    "--source bundled --max-new-tokens 12 --dtype float32 --threads 1"
).split()


# ---- what a ledger holds, read here by nothing of the harness --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """The good records of a ledger: token ids by key, and how often a key stands there a second time."""

    ids: dict[str, list[int]]
    repeated: int

    @classmethod
    def by(cls, folder: Path) -> Held:
        ids: dict[str, list[int]] = {}
        times: Counter[str] = Counter()
        for line in lines_of(folder):
            try:
                record = json.loads(line)
            except ValueError:  # the last line of a driver that was killed while it wrote
                continue
            if record["status"] == "ok" and not record["is_warmup"]:
                times[record["key"]] += 1
                ids[record["key"]] = record["token_ids"]
        return cls(ids, sum(n - 1 for n in times.values()))


def lines_of(folder: Path) -> list[bytes]:
    file = folder / RECORDS
    return file.read_bytes().splitlines() if file.exists() else []


def n_counted(folder: Path) -> int:
    """Records that are no warm-up."""
    return sum(b'"is_warmup": false' in line for line in lines_of(folder))


@dataclass(slots=True)
class Result:
    """What became of one fault. `lost`: of the plain run's records; `differ`: in their token ids; `ends`: exit statuses."""

    fault: str
    tried: str
    lost: int
    repeated: int
    differ: int
    said: list[str]
    ends: list[str]
    seconds: float
    problems: list[str] = field(default_factory=list)

    @property
    def survived(self) -> bool:
        return not (self.lost or self.repeated or self.differ or self.problems)


# ---- drivers, and what they run on -----------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    """Of drivers and nodes: this checkout's code, Ray on loopback alone."""
    return {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", **more,
    }  # fmt: skip


class Nodes:
    """A Ray cluster on loopback: `raylets` are its processes, of which the first one is the driver's, too."""

    def __init__(self, *cores: int, **head: Any) -> None:
        from ray.cluster_utils import Cluster

        own = {"num_cpus": cores[0], "include_dashboard": False, "object_store_memory": STORE, **head}
        self._cluster = Cluster(initialize_head=True, head_node_args=own)
        self.raylets = [self._pid(self._cluster.head_node)]
        for n in cores[1:]:
            self.add(n)

    def add(self, cores: int, **more: str) -> None:
        node = self._cluster.add_node(num_cpus=cores, object_store_memory=STORE, env_vars=more)
        self.raylets.append(self._pid(node))

    @staticmethod
    def _pid(node: Any) -> int:
        return int(node.all_processes["raylet"][0].process.pid)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def gcs(self) -> int:
        return int(self._cluster.head_node.all_processes["gcs_server"][0].process.pid)

    def at_work(self, *of: int) -> list[int]:
        """Workers that are doing something; of: those of these nodes, counted from 0."""
        raylets = {self.raylets[i] for i in of} if of else set(self.raylets)
        return [pid for pid, parent, title in processes() if parent in raylets and title.startswith("ray::Host.do")]

    def close(self) -> None:
        for pid, parent, title in processes():
            if parent in self.raylets and title.startswith("ray::Host"):  # one that is stopped hears no request
                end(pid, signal.SIGKILL)
        self._cluster.shutdown()


@contextmanager
def cluster(*cores: int, **head: Any) -> Iterator[Nodes]:
    nodes = Nodes(*cores, **head)
    try:
        yield nodes
    finally:
        nodes.close()


def processes() -> Iterator[tuple[int, int, str]]:
    """(pid, parent, what it is called) of every process."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        pid, parent, title = line.split(None, 2)
        yield int(pid), int(parent), title


def end(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


class Trial:
    """One fault being tried: drivers one after another on one ledger."""

    def __init__(self, folder: Path, work: Path, longest: float = LONGEST) -> None:
        self.folder, self.out, self._longest = folder, folder / "ledger", longest
        self.problems: list[str] = []
        self.ends: list[str] = []
        self.told = ""  # all that the drivers wrote to stderr
        self.tried = ""  # what differs from the fault's own words
        self.begun = time.monotonic()
        self._work, self._n = work, 0

    def driver(self, *words: object, **how: Any) -> Driver:
        self._n += 1
        return Driver(self, self.folder / f"driver-{self._n}", self._work, [str(word) for word in words], how)

    def run(self, *words: object, expect: int = 0, **how: Any) -> None:
        """A driver to its end."""
        driver = self.driver(*words, **how)
        driver.finish(expect)

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        """
        Raises:
            TooLong: it does not come to hold.
        """
        while not (found := holds()):
            self.check_time(what)
            time.sleep(0.05)
        return found

    def check_time(self, what: str) -> None:
        if time.monotonic() - self.begun > self._longest:
            raise TooLong(f"{self._longest:.0f} s were over while waiting for {what}")


class TooLong(Exception):
    """A fault is not done with in its time."""


class Driver:
    """A `harness run` in a process of its own."""

    def __init__(self, trial: Trial, log: Path, work: Path, words: Sequence[str], how: dict[str, Any]) -> None:
        self._trial, self._err = trial, log.with_suffix(".err")
        command = [sys.executable, "-m", "harness", "run", "--model", ROOT / "tests/tiny/tiny.yaml", *WORK, "--include", work,
                   "--out", trial.out, *words]  # fmt: skip
        with self._err.open("wb") as err, log.with_suffix(".out").open("wb") as out:
            # not in ROOT: Ray would have every worker import from there first, whatever its node has
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdout=out,
                stderr=err,
                cwd=trial.folder,
                env=environment(**how.pop("env", {})),
                **how,
            )

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    def midway(self, n: int = MIDWAY) -> None:
        """Wait until it has written so many records."""
        self._trial.until(lambda: n_counted(self._trial.out) >= n or self.process.poll() is not None, f"{n} records")
        if self.process.poll() is not None:
            raise TooLong(f"the driver ended before anything was planted, with {self.process.returncode}")

    def says(self, words: str) -> None:
        self._trial.until(lambda: words in self.err or self.process.poll() is not None, f"{words!r}")

    def finish(self, expect: int) -> None:
        """Wait until it ends, and look at how."""
        trial = self._trial
        try:
            trial.until(lambda: self.process.poll() is not None, "the driver's end")
        finally:
            self.process.kill()
            status = self.process.wait()
            status = 128 - status if status < 0 else status
            trial.ends.append(str(status))
            trial.told += self.err
        if status != expect:
            trial.problems.append(f"a driver ended with {status}, not with {expect}")
        if "Traceback" in self.err:
            trial.problems.append("a driver told a traceback")


# ---- the faults ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """`says`: of each pattern some line of the drivers must hold a match. With none, nothing has to be said."""

    name: str
    what: str
    says: tuple[str, ...]
    plant: Callable[[Trial], None]


FAULTS: dict[str, Fault] = {}


HAPPENED = r"is given again|is left out|could not begin|given up"
GIVEN_AGAIN = r"^shard \S+ is given again: its worker on node .* is lost"
CANNOT_WRITE = r"^error: cannot write to .*: (No space left on device|File too large|Read-only file system|Permission denied)"
DRAINS, KEPT = r"^stopping: conversations under way are finished", r"^interrupted: the records written are whole"


def fault(name: str, what: str, *says: str) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    def add(plant: Callable[[Trial], None]) -> Callable[[Trial], None]:
        FAULTS[name] = Fault(name, what, says, plant)
        return plant

    return add


@fault("worker-killed", "`kill -9` of a worker at work", GIVEN_AGAIN)
def worker_killed(trial: Trial) -> None:
    with cluster(1, 1) as nodes:
        driver = trial.driver("--ray", nodes.address)
        driver.midway()
        end(trial.until(nodes.at_work, "a worker at work")[0], signal.SIGKILL)
        driver.finish(0)


@fault("raylet-killed", "`kill -9` of a node's raylet alone, whose worker is amid a shard")
def raylet_killed(trial: Trial) -> None:
    with cluster(1, 2) as nodes:
        driver = trial.driver("--ray", nodes.address)
        driver.midway()
        trial.until(lambda: nodes.at_work(1), "a worker at work on the second node")
        end(nodes.raylets[1], signal.SIGKILL)
        driver.finish(0)


@fault("node-killed", "`kill -9` of a node's raylet and, at once, of its workers, amid a shard", GIVEN_AGAIN)
def node_killed(trial: Trial) -> None:
    with cluster(1, 2) as nodes:
        driver = trial.driver("--ray", nodes.address)
        driver.midway()
        workers = trial.until(lambda: nodes.at_work(1), "a worker at work on the second node")
        for pid in (nodes.raylets[1], *workers):
            end(pid, signal.SIGKILL)
        driver.finish(0)


@fault("driver-killed", "`kill -9` of the driver; the same command again", r"is taken over: process \d+ .* is gone")
def driver_killed(trial: Trial) -> None:
    with cluster(1, 1) as nodes:
        driver = trial.driver("--ray", nodes.address)
        driver.midway()
        driver.process.kill()
        driver.finish(137)
        trial.run("--ray", nodes.address)


@fault("worker-hangs", "SIGSTOP of a worker at work (`--worker-timeout 5`)", r"no message in 5 s")
def worker_hangs(trial: Trial) -> None:
    with cluster(1, 1) as nodes:
        driver = trial.driver("--ray", nodes.address, "--worker-timeout", 5)
        driver.midway()
        end(trial.until(nodes.at_work, "a worker at work")[0], signal.SIGSTOP)
        driver.finish(0)


@fault("only-worker-hangs", "the same where its node is the only one", r"no message in 5 s")
def only_worker_hangs(trial: Trial) -> None:
    with cluster(1) as nodes:
        driver = trial.driver("--ray", nodes.address, "--worker-timeout", 5)
        driver.midway()
        end(trial.until(nodes.at_work, "a worker at work")[0], signal.SIGSTOP)
        driver.finish(0)


@fault("head-killed", "`kill -9` of the driver's own raylet and of the server of Ray (GCS), which Ray waits 30 s for; the "
       "same command on a new cluster", r"error: Ray's server \(GCS\) at \S+ is gone")  # fmt: skip
def head_killed(trial: Trial) -> None:
    with cluster(1, 1) as nodes:
        driver = trial.driver("--ray", nodes.address, env={"RAY_gcs_rpc_server_reconnect_timeout_s": "30"})
        driver.midway()
        end(nodes.gcs, signal.SIGKILL)
        end(nodes.raylets[0], signal.SIGKILL)
        driver.finish(2)  # its own end, before Ray ends the process
    with cluster(1) as nodes:
        trial.run("--ray", nodes.address)


@fault("other-code", "a node whose checkout differs in a line of `methods/engine/tree.py`",
       r"is left out: its code of this harness is \w+, the driver's \w+")  # fmt: skip
def other_code(trial: Trial) -> None:
    copy = trial.folder / "other-code"
    for name in CODE:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    with (copy / "methods/engine/tree.py").open("a") as file:
        file.write("# another line\n")
    with cluster(1) as nodes:
        nodes.add(1, PYTHONPATH=str(copy))
        trial.run("--ray", nodes.address)


@fault("other-transformers", "a node whose Python tells of transformers 9.9.9 (a made-up `dist-info` on its path)",
       r"is left out: it has transformers 9\.9\.9, the driver \d")  # fmt: skip
def other_transformers(trial: Trial) -> None:
    with cluster(1) as nodes:
        nodes.add(1, PYTHONPATH=f"{made_up_transformers(trial.folder)}:{ROOT}")
        trial.run("--ray", nodes.address)


def made_up_transformers(folder: Path) -> Path:
    """A folder for a node's path that tells of another version."""
    info = folder / "other" / "transformers-9.9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 9.9.9\n")
    return info.parent


@fault(
    "no-node",
    "a head without cores, and beside it only such a node; then one that is like the driver",
    r"^error: no node of the cluster can do this: .*transformers 9\.9\.9",
)
def no_node(trial: Trial) -> None:
    with cluster(0) as nodes:
        nodes.add(1, PYTHONPATH=f"{made_up_transformers(trial.folder)}:{ROOT}")
        trial.run("--ray", nodes.address, expect=2)
        nodes.add(1)
        trial.run("--ray", nodes.address)


@fault("full-disk", "a disk that fills up under the ledger (a tmpfs of 96 kB); the same command after it has grown", CANNOT_WRITE)
def full_disk(trial: Trial) -> None:
    disk = trial.folder / "disk"
    disk.mkdir()
    trial.out = disk / "ledger"
    is_mounted = mount("-t", "tmpfs", "-o", "size=96k", "tmpfs", disk)
    if not is_mounted:
        trial.tried = "a limit of 64 kB on files of the driver (RLIMIT_FSIZE), as nothing may be mounted here; again without it"
    how = {} if is_mounted else {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))}
    try:
        with cluster(1, 1) as nodes:
            trial.run("--ray", nodes.address, expect=2, **how)
            before = Held.by(trial.out).ids
            if not 0 < len(before) < len(Held.by(trial.folder.parent / "plain" / "ledger").ids):
                trial.problems.append(f"{len(before)} records were written before the disk was full")
            if is_mounted:
                mount("-o", "remount,size=16m", disk)
            trial.run("--ray", nodes.address)
        shutil.copytree(trial.out, trial.folder / "ledger")
        trial.out = trial.folder / "ledger"
    finally:
        if is_mounted:
            subprocess.run(["umount", str(disk)], check=True)


@fault("read-only-share", "a driver killed, then the ledger's share read-only (a bind mount), then writable again", CANNOT_WRITE)
def read_only_share(trial: Trial) -> None:
    share = trial.folder / "ledger"
    with cluster(1, 1) as nodes:
        driver = trial.driver("--ray", nodes.address)
        driver.midway()
        driver.process.kill()
        driver.finish(137)
        before = {file.name: file.read_bytes() for file in share.iterdir()}
        is_mounted = mount("--bind", share, share) and mount("-o", "remount,bind,ro", share)
        if not is_mounted:
            trial.tried = "a driver killed, then the ledger in a folder that may not be written, then writable again"
            os.chmod(share, 0o555)
        try:
            trial.run("--ray", nodes.address, expect=2)
            if before != {file.name: file.read_bytes() for file in share.iterdir()}:
                trial.problems.append("a read-only ledger was changed")
        finally:
            if is_mounted:
                subprocess.run(["umount", str(share)], check=True)
            else:
                os.chmod(share, 0o755)
        trial.run("--ray", nodes.address)


def mount(*words: object) -> bool:
    """Whether it could be."""
    return not subprocess.run(["mount", *map(str, words)], capture_output=True).returncode


FILL = """
import sys, time
import numpy as np
import ray
ray.init(sys.argv[1], log_to_driver=False)
held = []
while True:
    held = [*held[-19:], ray.put(np.zeros(4 << 20, np.uint8))]
    print(len(held), flush=True)
    time.sleep(0.02)
"""


@fault("object-store", "an object store of 80 MB that another client keeps full, and every message through it, however small")
def object_store(trial: Trial) -> None:
    small = {"max_direct_call_object_size": 64}  # by default Ray sends messages of under 100 kB past the store
    with cluster(1, 1, _system_config=small) as nodes:
        log = trial.folder / "filler.out"
        with log.open("wb") as out:
            filler = subprocess.Popen([sys.executable, "-c", FILL, nodes.address], stdout=out, stderr=out, env=environment(),
                                      cwd=trial.folder)  # fmt: skip
        try:
            trial.until(lambda: log.read_text().count("\n20") > 1 or filler.poll() is not None, "a full store")
            trial.run("--ray", nodes.address)
            if filler.poll() is not None:
                trial.problems.append("the client that fills the store ended")
        finally:
            filler.kill()
            filler.wait()
    trial.tried = f"{FAULTS['object-store'].what}: {4 * log.read_text().count('20'):,} MB were put there meanwhile"


@fault("ctrl-c", "Ctrl-C once: what is under way is finished; the same command again", DRAINS, KEPT)
def ctrl_c(trial: Trial) -> None:
    with cluster(1, 1) as nodes:
        driver = trial.driver("--ray", nodes.address)
        driver.midway()
        driver.process.send_signal(signal.SIGINT)
        driver.finish(130)
        trial.run("--ray", nodes.address)


@fault("ctrl-c-twice", "Ctrl-C twice: what is under way is dropped; the same command again", DRAINS, KEPT)
def ctrl_c_twice(trial: Trial) -> None:
    with cluster(1, 1) as nodes:
        driver = trial.driver("--ray", nodes.address)
        driver.midway()
        for _ in range(2):
            driver.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        driver.finish(130)
        trial.run("--ray", nodes.address)


# ---- trying them, and the table --------------------------------------------------------------------------------------


def plain_run(out: Path, work: Path, longest: float) -> Held:
    """What one process measures, made once."""
    folder = out / "plain"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        trial = Trial(folder, work, longest)
        trial.run()
        if trial.problems:
            raise SystemExit(f"the plain run: {'; '.join(trial.problems)}\n{trial.told}")
        (folder / "done").touch()
    return Held.by(folder / "ledger")


def tried(one: Fault, out: Path, work: Path, plain: Held, longest: float) -> Result:
    """Try a fault from the beginning."""
    folder = out / one.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trial = Trial(folder, work, longest)
    try:
        one.plant(trial)
    except TooLong as error:
        trial.problems.append(str(error))
    seconds = time.monotonic() - trial.begun
    return judged(one, trial, plain, seconds)


def judged(one: Fault, trial: Trial, plain: Held, seconds: float) -> Result:
    """A ledger against the plain run's, and the drivers' words against those that a fault asks for."""
    found = Held.by(trial.out)
    told = trial.told.splitlines()
    said = [] if one.says else [line for line in told if re.search(HAPPENED, line)]
    for pattern in one.says:
        lines = [line for line in told if re.search(pattern, line)]
        if lines:
            said.append(lines[0])
        else:
            trial.problems.append(f"no line holds {pattern!r}")
    if more := found.ids.keys() - plain.ids.keys():
        trial.problems.append(f"{len(more)} records that the plain run has not")
    return Result(
        one.name, trial.tried or one.what, lost=len(plain.ids.keys() - found.ids.keys()), repeated=found.repeated,
        differ=sum(found.ids[key] != ids for key, ids in plain.ids.items() if key in found.ids), said=list(dict.fromkeys(said)),
        ends=trial.ends, seconds=round(seconds, 1), problems=trial.problems,
    )  # fmt: skip


COLUMNS = ("fault", "tried", "survived", "lost", "repeated", "other token ids", "what was said", "exit status", "s")


def rows_of(results: Sequence[Result], out: Path) -> list[list[str]]:
    """Of the table; paths below `out` and what differs from one start to the next are cut out of what was said."""

    def shown(line: str) -> str:
        line = line.replace(f"{out}/", "").replace("|", "/")
        return re.sub(r"since \S+ \(.*?\)(?= is gone)", "since ... (harness run ...)", line)[:400]

    def state(result: Result) -> str:
        return "yes" if result.survived else f"no: {'; '.join(result.problems) or 'see the counts'}"

    return [
        [r.fault, r.tried, state(r), str(r.lost), str(r.repeated), str(r.differ), " / ".join(map(shown, r.said)) or "nothing",
         ", then ".join(r.ends), f"{r.seconds:.0f}"]
        for r in results
    ]  # fmt: skip


def write_table(results: Sequence[Result], out: Path) -> None:
    """`faults.csv` and `faults.md`."""
    rows = rows_of(results, out)
    with (out / "faults.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    lines = [COLUMNS, ["--:" if name in ("lost", "repeated", "other token ids", "s") else ":--" for name in COLUMNS], *rows]
    text = "".join(f"| {' | '.join(row)} |\n" for row in lines)
    (out / "faults.md").write_text(f"# Faults planted\n\n{text}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="a folder; what it holds already is not tried again")
    parser.add_argument("--only", action="append", choices=FAULTS, metavar="NAME", help="this fault, anew; repeatable")
    parser.add_argument("--longest", type=float, default=LONGEST, metavar="SECONDS",
                        help="give up a fault then (default: %(default)g); more where other work has the cores")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="name the faults")
    asked = parser.parse_args()
    if asked.list:
        print("".join(f"{name}: {one.what}\n" for name, one in FAULTS.items()), end="")
        return 0
    if asked.out is None:
        parser.error("--out is missing")
    out: Path = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.update(environment())
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: drivers would ignore Ctrl-C as well
        signal.signal(signal.SIGINT, signal.default_int_handler)
    work = out / "slow.py"
    work.write_text(SLOW)
    plain = plain_run(out, work, asked.longest)
    print(f"plain run: {len(plain.ids)} records", flush=True)
    for name in asked.only or FAULTS:
        file = out / name / "result.json"
        if asked.only or not file.exists():
            result = tried(FAULTS[name], out, work, plain, asked.longest)
            file.write_text(json.dumps(asdict(result), indent=1) + "\n")
            print(f"{name}: {'survived' if result.survived else 'NOT survived: ' + '; '.join(result.problems)} "
                  f"({result.seconds:.0f} s)", flush=True)  # fmt: skip
    files = [file for name in FAULTS if (file := out / name / "result.json").exists()]
    results = [Result(**json.loads(file.read_text())) for file in files]
    write_table(results, out)
    print(f"{len(results)} faults, {sum(r.survived for r in results)} survived: {out / 'faults.md'}")
    return int(not all(r.survived for r in results))


if __name__ == "__main__":
    sys.exit(main())
