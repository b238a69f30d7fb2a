"""An audit shared out over a cluster, without Ray."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from places import TINY

from harness.audit import bench as benches
from harness.audit.bench import DONE, FINDING, AuditBench, Came, Given, Opened, Piece, Setup
from harness.audit.request import AuditRequest
from harness.audit.spread import AuditDesk
from harness.audit.store import Store
from harness.audit.verdicts.verdict import Verdict
from harness.cluster.host import Message
from harness.cluster.request import ClusterRequest


def test_a_first_piece_without_findings_tells_no_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    piece, other = Piece("float32", 0, 0), Piece("float32", 1, 0)
    now = time.monotonic()
    with Store(tmp_path) as store:
        desk = AuditDesk(Setup(AuditRequest(), ()), ClusterRequest(address="local"), store, told.append)
        desk.opened(Opened(((piece, "rows alone", 0), (other, "a law", 4)), (), {}, {}, "sha"))
        monkeypatch.setattr(time, "monotonic", lambda: now + 100)
        desk.took(piece, Message(DONE, Came((), ())))
        assert len(told) == 1, "how many there are"
        monkeypatch.setattr(time, "monotonic", lambda: now + 200)
        desk.took(other, Message(DONE, Came((), ())))
    assert told[1].startswith("4/4 findings")


def test_a_law_needs_no_model_and_is_found_by_a_worker_that_could_not_load_its_last(monkeypatch: pytest.MonkeyPatch) -> None:
    request = AuditRequest(model=str(TINY), methods=("vanilla",), dtypes=("float64", "float32"), threads=1)
    bench, sent = AuditBench(Setup(request, ())), list[tuple[str, Any]]()

    def lacking(*given: Any) -> None:
        given[4].append(Verdict.missing("all of float32", "all", "no room"))

    monkeypatch.setattr(benches, "loaded_or_row", lacking)
    (law, _, n), *_ = bench.opened.pieces
    other = next(piece for piece, _, _ in bench.opened.pieces if piece.dtype == "float32")
    bench.do(Given(other, ()), lambda kind, body: sent.append((kind, body)))
    assert [(kind, body.touched, [row.why for row in body.rows]) for kind, body in sent] == [(DONE, (), ["no room"])]
    bench.do(Given(law, ()), lambda kind, body: sent.append((kind, body)))
    assert law.dtype == "" and len(sent[-1][1].touched) == n == sum(kind == FINDING for kind, _ in sent)


def test_a_worker_is_given_paths_that_hold_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = AuditRequest(model="mine.yaml", ledgers=(Path("runs"),), prompts_dir=Path("prompts"), head=Path("head"))
    with Store(tmp_path) as store:
        desk = AuditDesk(Setup(given, ()), ClusterRequest(address="local"), store, lambda text: None)
    request = desk.setup().request
    assert [Path(request.model), *request.ledgers, request.prompts_dir, request.head] == [
        tmp_path / name for name in ("mine.yaml", "runs", "prompts", "head")
    ]
