"""A run's two sides over a cluster, without Ray: the bench in a worker, and the driver's desk."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import counted, isolate, run
from places import TINY

from harness.cluster.host import Message
from harness.cluster.pool import NOT_HERE
from harness.cluster.request import ClusterRequest
from harness.common.errors import UserError
from harness.ledger.ledger import Ledger
from harness.load.config import model_config
from harness.run.bench import RECORD, TREES, WHOLE, Job, RunBench
from harness.run.plan import Talk
from harness.run.request import RunRequest
from harness.run.session import run_spec
from harness.run.spread import Item, RunDesk


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def test_a_conversation_that_a_machine_began_is_for_no_other_and_what_it_did_not_begin_is_for_any(tmp_path: Path) -> None:
    """One temperature was begun here. A worker of another machine is given the other one, a worker of this machine the rest."""
    out = tmp_path / "out"
    assert run(out, "--method vanilla --task gsm8k --temperature 0").code == 0
    (there,) = counted(out)
    config = model_config(str(TINY))
    greedy = RunRequest(methods=("vanilla", "pld"), tasks=("gsm8k",), model=str(TINY), source="bundled", limit=1,
                        max_new_tokens=8, dtype="float32", threads=1, out=out)  # fmt: skip
    requests = [greedy, replace(greedy, temperature=1.0)]
    item = Item(Talk("gsm8k", there["sample_id"], 0), (0, 1))
    with Ledger(out, several_machines=True) as ledger, ExitStack() as work:
        specs = [run_spec(config, request) for request in requests]
        desk = RunDesk(config, greedy, specs, ClusterRequest(address="local"), ledger, work)
        bench = RunBench(desk.setup())
        here, other = bench.opened, bench.opened._replace(machine="another")
        assert desk.opened(here) is None
        job = desk.given(item, other)
        assert isinstance(job, Job) and job.specs == (1,)
        bench.do(job, lambda kind, body: desk.took(item, Message(kind, body)))
        left = desk.ended(item)
        assert left == Item(item.talk, (0,))
        assert desk.given(left, other) is NOT_HERE and desk.n_elsewhere == 0
        job = desk.given(left, here)
        assert isinstance(job, Job) and job.specs == (0,)
        bench.do(job, lambda kind, body: desk.took(left, Message(kind, body)))
        assert desk.ended(left) is None and desk.given(item, here) is None
    assert sorted((r["method"], r["temperature"]) for r in counted(out)) == [
        (method, t) for method in ("pld", "vanilla") for t in (0.0, 1.0)
    ]


@pytest.mark.parametrize("first", [True, False])
def test_trees_that_two_specs_ask_for_are_made_once(first: bool, tmp_path: Path) -> None:
    """The same cell in two specs of a run, of which the first may keep no trees: a worker measures it once."""
    config = model_config(str(TINY))
    request = RunRequest(methods=("eagle2",), tasks=("gsm8k",), model=str(TINY), source="bundled", limit=1, max_new_tokens=8,
                         dtype="float32", threads=1, trees=True, out=tmp_path / "out")  # fmt: skip
    with Ledger(request.out, several_machines=True) as ledger, ExitStack() as work:
        specs = [replace(run_spec(config, request), trees=first), run_spec(config, request)]
        desk = RunDesk(config, request, specs, ClusterRequest(address="local"), ledger, work)
        bench = RunBench(desk.setup())
        desk.opened(bench.opened)
        item = Item(Talk("gsm8k", specs[0].prompt_sets[0].prompts[0].id, 0), (0, 1))
        job, sent = desk.given(item, bench.opened), list[str]()
        assert isinstance(job, Job)

        def send(kind: str, body: object) -> None:
            sent.append(kind)
            desk.took(item, Message(kind, body))

        bench.do(job, send)
    assert (sent.count(RECORD), sent.count(TREES), sent.count(WHOLE)) == (2, 1, 2)


def test_a_first_worker_that_may_not_measure_ends_the_run_before_a_cell_is_planned(tmp_path: Path) -> None:
    config = model_config(str(TINY))
    request = RunRequest(methods=("eagle2",), tasks=("gsm8k",), model=str(TINY), source="bundled", limit=1, max_new_tokens=8,
                         dtype="float32", threads=1, out=tmp_path / "out")  # fmt: skip

    def check(shown: Mapping[str | None, Mapping[str, Any]]) -> None:
        raise UserError(f"another head: {sorted(shown['eagle'])}, {shown[None]['dtype']}")

    with Ledger(request.out, several_machines=True) as ledger, ExitStack() as work:
        over = ClusterRequest(address="local")
        desk = RunDesk(config, request, [run_spec(config, request)], over, ledger, work, check)
        with pytest.raises(UserError, match=r"another head: \['head_id', 'head_sha'\], float32"):
            desk.opened(RunBench(desk.setup()).opened)
    assert not (request.out / "plan.json").exists()
