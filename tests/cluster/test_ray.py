"""A run on a real Ray of two nodes on loopback: whatever the sharding, deaths and restarts, the records of a plain run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, Outcome, counted, harness, isolate, refused, run
from places import TINY

from harness.ledger.ledger import read
from harness.ledger.record import Record

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'draft-tree-harness[ray]'")

TASKS = "--method vanilla --method eagle2 --method sps --task mt_bench --task gsm8k --limit 3 --temperature 0 --temperature 1"


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
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """What one process measures."""
    out = tmp_path_factory.mktemp("plain")
    outcome = run(out, TASKS)
    assert outcome.code == 0, outcome.err
    return counted(out)


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


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_however_many_shards_the_records_are_a_plain_runs(
    nodes: Any, plain: list[Record], tmp_path: Path, shards: int
) -> None:  # fmt: skip
    outcome = run(tmp_path, TASKS, "--ray", nodes.address, "--shards", str(shards))
    assert outcome.code == 0, outcome.err
    assert results(counted(tmp_path)) == results(plain)
    pairs = {}
    for r in counted(tmp_path):
        pairs.setdefault((r["task"], r["sample_id"], r["temperature"], r["turn"]), set()).add(r["run"])
    assert all(len(runs) == 1 for runs in pairs.values()), "methods of one conversation were timed in several processes"
    envs = {r["env"] for r in counted(tmp_path)}
    assert len(envs) == 1, "two workers of one machine tell two environments"
    again = run(tmp_path, TASKS, "--ray", nodes.address)
    assert again.code == 0 and "nothing to measure" in again.err
    assert results(counted(tmp_path)) == results(plain)
