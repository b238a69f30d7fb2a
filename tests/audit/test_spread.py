"""An audit shared out over a cluster, without Ray."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from harness.audit.bench import DONE, Came, Opened, Piece, Setup
from harness.audit.request import AuditRequest
from harness.audit.spread import AuditDesk
from harness.audit.store import Store
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
