"""A run on a real Ray of two nodes on loopback: whatever the sharding, deaths and restarts, the records of a plain run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, Outcome, counted, harness, isolate, refused, run
from places import ROOT, TINY

from harness.ledger.ledger import read
from harness.ledger.record import Record
from harness.ledger.trees import read_drafts
from harness.replay.store import read_pool

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'draft-tree-harness[ray]'")

TASKS = (
    "--method vanilla --method eagle2 --method sps --task mt_bench --task gsm8k --limit 2 --temperature 0 --temperature 1 --trees"
)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two nodes with a core each, on loopback."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"], os.environ["RAY_USAGE_STATS_ENABLED"] = "0", "0"
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_worker_niceness"] = "disabled", "0"
    from ray.cluster_utils import Cluster

    has = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=has)
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process measures."""
    out = tmp_path_factory.mktemp("plain")
    outcome = run(out, TASKS)
    assert outcome.code == 0, outcome.err
    return out


def results(records: list[Record]) -> dict[str, Any]:
    """What must be equal however the work was shared out, by the record's key."""
    found = {}
    for r in records:
        trace = r["trace"] or {}
        found[r["key"]] = (
            r["method"], r["temperature"], r["sample_id"], r["turn"], r["status"], list(r["token_ids"]), r["text"],
            trace.get("tree_size"), trace.get("accepted"), r["cell"], r["turn1_sha"],
        )  # fmt: skip
    assert len(found) == len(records), "a generation was recorded twice"
    return found


def trees(out: Path) -> dict[str, list[list[float]]]:
    return {key: [list(column) for column in (d.sizes, d.accepted, d.tokens, d.parents, d.path)]
            for key, d in read_drafts(out).items()}  # fmt: skip


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_however_many_shards_the_records_are_a_plain_runs(
    nodes: Any, plain: Path, tmp_path: Path, shards: int
) -> None:  # fmt: skip
    outcome = run(tmp_path, TASKS, "--ray", nodes.address, "--shards", str(shards))
    assert outcome.code == 0, outcome.err
    assert results(counted(tmp_path)) == results(counted(plain))
    one_process(counted(tmp_path))
    assert trees(tmp_path) == trees(plain)
    envs = {r["env"] for r in counted(tmp_path)}
    assert len(envs) == 1, "two workers of one machine tell two environments"


# ---- what may happen on the way -------------------------------------------------------------------------------------

METHOD = """
import os, signal, time
from pathlib import Path

from methods import get, method

HERE = Path({here!r})


@method("odd", line="vanilla, but for what it does on the way")
def odd():
    plain = get("vanilla").build()

    def decode(prompt_ids, target, drafter, params):
        if params.max_new_tokens == 8:  # none of the warm-up
            mark = HERE / "done"
            {does}
        return plain(prompt_ids, target, drafter, params)

    return decode
"""


def odd(folder: Path, does: str) -> Path:
    """A file with a method that does something besides decoding."""
    file = folder / "odd.py"
    file.write_text(METHOD.format(here=str(folder), does=does))
    return file


ODD = "--method odd --method vanilla --task gsm8k --task mt_bench --limit 2"


@pytest.mark.slow
def test_what_a_worker_that_hangs_was_at_is_given_to_another(nodes: Any, tmp_path: Path) -> None:
    file, out = odd(tmp_path, "if not mark.exists(): mark.touch(); time.sleep(600)"), tmp_path / "out"
    outcome = run(out, ODD, "--include", file, "--ray", nodes.address, "--worker-timeout 4")
    assert outcome.code == 0, outcome.err
    assert "is given again" in outcome.err and "no message in 4 s (--worker-timeout)" in outcome.err
    again = run(out, ODD, "--include", file, "--ray", nodes.address)
    assert again.code == 0 and "nothing to measure" in again.err
    records = counted(out)
    assert len(records) == 2 * (2 + 4) == len(results(records)) and all(r["status"] == "ok" for r in records)
    one_process(records)


def one_process(records: list[Record]) -> None:
    """The methods of a conversation at a temperature were timed in one process, whoever was lost on the way."""
    runs: dict[tuple[Any, ...], set[str]] = {}
    for r in records:
        runs.setdefault((r["task"], r["sample_id"], r["temperature"], r["repeat"]), set()).add(r["run"])
    assert all(len(found) == 1 for found in runs.values()), runs


@pytest.mark.slow
def test_what_kills_three_workers_is_given_up_and_the_rest_is_measured(nodes: Any, tmp_path: Path) -> None:
    does = "if params.temperature == 0 and len(prompt_ids) % 2: os.kill(os.getpid(), signal.SIGKILL)"
    file, out = odd(tmp_path, does), tmp_path / "out"
    outcome = run(out, "--method odd --method vanilla --task gsm8k --limit 3 --temperature 0 --temperature 1",
                  "--include", file, "--ray", nodes.address)  # fmt: skip
    records = counted(out)
    failed = [r for r in records if r["status"] == "error"]
    odd_lengths = {r["sample_id"] for r in records if r["n_prompt"] % 2}
    assert failed and {r["sample_id"] for r in failed} == odd_lengths and all(r["temperature"] == 0 for r in failed)
    assert all("3 workers died at it" in str(r["error"]) for r in failed)
    refused(outcome, f"{len(failed)} generations failed")
    assert len(results(records)) == 3 * 2 * 2, "all else is measured"


def test_a_killed_worker_a_killed_raylet_and_a_node_of_other_versions_change_no_record(
    nodes: Any, plain: Path, tmp_path: Path
) -> None:  # fmt: skip
    head = nodes.head_node.all_processes["raylet"][0].process.pid
    # the first worker kills itself; then the head's wait until another node's has killed its raylet, the process' parent
    does = f"""
            raylet = HERE / "raylet killed"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            while os.getppid() == {head} and not raylet.exists():
                time.sleep(0.05)
            if not raylet.exists():
                raylet.touch()
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(600)"""
    file, out = odd(tmp_path, does), tmp_path / "out"
    versions = tmp_path / "versions" / "transformers-9.9.9.dist-info"
    versions.mkdir(parents=True)
    (versions / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 9.9.9\n")
    other = nodes.add_node(num_cpus=1, object_store_memory=80 << 20, env_vars={"PYTHONPATH": str(versions.parent)})
    outcome = run(out, ODD, "--include", file, "--ray", nodes.address, "--shards 6")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "raylet killed").exists() and outcome.err.count("is given again") == 2, outcome.err
    assert "is lost (its worker process has died)" in outcome.err
    assert not {line for line in outcome.out.splitlines() if "Worker ID" in line}, "Ray's own words are on stdout"
    assert "is left out: it has transformers 9.9.9, the driver" in outcome.err
    records = counted(out)
    assert len(records) == 2 * (2 + 4) == len(results(records)) and all(r["status"] == "ok" for r in records)
    one_process(records)
    ours, theirs = ({(r["task"], r["sample_id"], r["turn"]): list(r["token_ids"]) for r in found
                     if r["method"] == "vanilla" and r["temperature"] == 0} for found in (records, counted(plain)))  # fmt: skip
    assert ours.items() <= theirs.items()
    nodes.remove_node(other)


def started(nodes: Any, out: Path, file: Path, *words: str) -> subprocess.Popen[str]:
    """A run in a process of its own, once two conversations are written."""
    command = [sys.executable, "-m", "harness", "run", *SMALL, *ODD.split(), "--include", str(file), "--out", str(out), *words]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until(lambda: n_counted(out) >= 4 or process.poll() is not None)
    except BaseException:
        process.kill()
        raise
    return process


def until(holds: Callable[[], bool], seconds: float = 90.0) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it took too long"
        time.sleep(0.05)


def n_counted(out: Path) -> int:
    file = out / "records.jsonl"
    return file.read_text().count('"is_warmup": false') if file.exists() else 0


def test_a_driver_that_is_killed_goes_on_from_the_ledger(nodes: Any, tmp_path: Path) -> None:
    file, out = odd(tmp_path, "time.sleep(0.5)"), tmp_path / "out"
    process = started(nodes, out, file, "--ray", nodes.address)
    process.kill()
    process.communicate()
    there = results(counted(out))
    assert 4 <= len(there) < 12
    outcome = run(out, ODD, "--include", file, "--ray", nodes.address)
    assert outcome.code == 0, outcome.err
    records = results(counted(out))
    assert len(records) == 12 and {k: records[k] for k in there} == there


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2], ids=["drains", "drops"])
def test_ctrl_c_ends_well(tmp_path: Path, times: int) -> None:
    file, out = odd(tmp_path, "time.sleep(0.5)"), tmp_path / "out"
    process = started(None, out, file, "--ray", "local", "--limit", "4")
    family = below(process.pid)
    assert len(family) > 3, "Ray's processes are the driver's"
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "conversations under way are finished" in err and "the records written are whole" in err.splitlines()[-1]
    assert "Traceback" not in err
    records = counted(out)
    assert 4 <= len(records) < 24
    one_process(records)
    if times == 1:  # whole conversations, with all their turns
        turns = {(r["sample_id"], r["method"]): r["n_turns"] for r in records}
        assert len(records) == sum(turns.values())
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 30)


def below(pid: int) -> set[int]:
    """The processes that a process started, and those that they started."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout.splitlines()
    parents = {int(child): int(parent) for child, parent in map(str.split, listed)}
    found, new = set[int](), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


@pytest.mark.slow
def test_an_audit_has_the_findings_and_verdicts_of_one_process(nodes: Any, tmp_path: Path) -> None:
    def findings(out: Path, *words: object) -> tuple[dict[str, Any], str]:
        outcome = harness("verify", "--model", TINY, "--method eagle2 --method sps --dtype float64 --dtype float32 --threads 1",
                          "--out", out, *words)  # fmt: skip
        assert outcome.code == 0, outcome.err
        lines = map(json.loads, (out / "audit.jsonl").read_text().splitlines())
        made = {f["key"]: {k: v for k, v in f.items() if k not in ("seconds", "line_sha")} for f in lines}
        return made, (out / "audit.csv").read_text()

    assert findings(tmp_path / "shared", "--ray", nodes.address) == findings(tmp_path / "plain")


@pytest.mark.slow
def test_a_reproduction_has_the_records_and_taus_of_one_process(nodes: Any, tmp_path: Path) -> None:
    def made(out: Path, *words: object) -> tuple[list[Record], list[Any]]:
        outcome = harness("reproduce --table 3 --source bundled --limit 1 --max-new-tokens 6 --dtype float32 --threads 1 --json",
                          "--model", TINY, "--results", out, *words)  # fmt: skip
        assert outcome.code == 0, outcome.err
        return counted(out), [(row["task"], row["method"], row["temperature"], row["tau"]) for row in outcome.value]

    shared, taus = made(tmp_path / "shared", "--ray", nodes.address)
    alone, their_taus = made(tmp_path / "plain")
    assert results(shared) == results(alone) and taus == their_taus and taus
    one_process(shared)


@pytest.mark.slow
def test_a_replay_has_the_steps_and_rows_of_one_process(nodes: Any, plain: Path, tmp_path: Path) -> None:
    def replays(out: Path, *words: object) -> tuple[list[str], dict[str, list[list[float]]], str]:
        policies = "--policy eagle2 --policy eagle2+total=10+depth=3"
        outcome = harness("replay --threads 1", policies, "--model", TINY, "--results", plain, "--out", out, *words)
        assert outcome.code == 0, outcome.err
        pools = {}
        for file in sorted(out.glob("pools/*/*.safetensors")):
            text, rows = read_pool(file)
            pools[file.name] = [text.ids, *(column.tolist() for column in rows.columns())]
        return sorted((out / "replays.jsonl").read_text().splitlines()), pools, outcome.out

    assert replays(tmp_path / "shared", "--ray", nodes.address) == replays(tmp_path / "plain")


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_told_in_a_line(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(*words: object) -> Outcome:
        return run(tmp_path / "out", "--method vanilla --task gsm8k", *words)

    started_at = time.monotonic()
    refused(given("--ray 127.0.0.1:9"), "--ray 127.0.0.1:9", "nothing answers there")
    assert time.monotonic() - started_at < 20
    refused(given("--ray here"), "it takes local, auto or HOST:PORT")
    refused(given("--ray ray://127.0.0.1:10001"), "--num-cpus=0")
    refused(given("--ray local --shards 0"), "--shards is 0; it must be at least 1")
    refused(given("--shards 2"), "give --ray, too")
    refused(given("--ray local --dry-run"), "leave --ray out")
    refused(given("--ray", nodes.address, "--gpus 2"), "2 GPUs a worker, and it has 0")
    monkeypatch.setattr("harness.cluster.needs.PROCESS", 1 << 50)
    refused(given("--ray", nodes.address), "no node of the cluster can do this", "GB a worker, and Ray shares out")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refused(given(f"--ray 127.0.0.1:{silent.getsockname()[1]}"), "what listens there is no Ray cluster")
    served = "--method server --set url=http://127.0.0.1:9 --set baseline_url=http://127.0.0.1:8"
    refused(harness("run", "--model", TINY, "--source bundled --task gsm8k", served, "--out", tmp_path / "served", "--ray local"),
            "an engine over HTTP is one machine")  # fmt: skip


HEAD = """
from ray.cluster_utils import Cluster
has = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
print(Cluster(True, head_node_args=has).address, flush=True)
input()
"""


@pytest.mark.slow
def test_a_cluster_that_asks_for_this_users_token_is_given_it(tmp_path: Path) -> None:
    """As one that `ray start` begins where `--ray local` was used before, which leaves a token in the user's home."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("5" * 64)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    head = subprocess.Popen([sys.executable, "-c", HEAD], env=env | {"RAY_AUTH_MODE": "token"}, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)  # fmt: skip
    with head:
        assert head.stdout is not None
        measures = ["run", "--model", str(TINY), "--method", "eagle2", "--task", "gsm8k", "--source", "bundled", "--limit", "2",
                    "--threads", "1", "--max-new-tokens", "8", "--ray", head.stdout.readline().strip(),
                    "--out", str(tmp_path / "out")]  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "harness", *measures], env=env, capture_output=True, text=True, timeout=240)
        head.communicate("end\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(not r["is_warmup"] for r in read(tmp_path / "out", quiet=True)) == 4


def test_without_ray_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(run(tmp_path, "--method vanilla --task gsm8k --ray local"), "pip install 'draft-tree-harness[ray]'")
