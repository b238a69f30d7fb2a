"""Work grows with the ledger: a command parses each line once, and looks at records as often as there are more of them."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import harness
from made_up_ledger import write_ledger
from make_ledger import make_ledger, simulated_records

from harness.ledger import ledger, trees
from harness.metrics import pairing
from harness.show.plots import all as all_plots
from harness.show.tables.all import write_tables


@pytest.mark.parametrize("command", ["table", "claims", "report", "report --all"])
def test_a_command_parses_each_line_once(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_ledger(tmp_path)
    n_lines = len((tmp_path / ledger.RECORDS).read_bytes().splitlines())
    parsed: list[bytes] = []
    real = ledger.record_of
    monkeypatch.setattr(ledger, "record_of", lambda line, imported: parsed.append(line) or real(line, imported))
    monkeypatch.setattr(all_plots, "PLOTS", all_plots.PLOTS[:1])  # drawing takes seconds
    assert harness(command, "--results", tmp_path).code == 0
    assert len(parsed) == len(set(parsed)) == n_lines


def looks(work: Callable[[], object]) -> int:
    """How often a record is looked at to see where it belongs."""
    counted = 0

    def count(frame: Any, event: str, _: object) -> None:
        nonlocal counted
        counted += event == "call" and frame.f_code.co_filename == pairing.__file__

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


def test_tables_of_four_times_the_models_look_four_times_as_often_at_records(tmp_path: Path) -> None:
    own = [r for r in simulated_records() if r["method"] in ("vanilla", "eagle1", "eagle2") and r["sample_id"] in "01"]
    few, many = (write_ledger(tmp_path / str(n), [r | {"model": f"m{i}"} for i in range(n) for r in own]) for n in (2, 8))
    assert looks(lambda: write_tables(many)) < 4.2 * looks(lambda: write_tables(few))


def test_trees_are_inflated_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"sampled": False, "sizes": [2], "accepted": [1], "tokens": [1, 2], "parents": [0, 0], "path": [1], "pieces": {},
            "confidence": [0.5, 0.4]}  # fmt: skip
    (tmp_path / trees.FOLDER).mkdir()
    members = [gzip.compress(json.dumps(line | {"key": str(i)}).encode()) for i in range(400)]
    (tmp_path / trees.FOLDER / "c.jsonl.gz").write_bytes(b"".join(members))
    given: list[int] = []
    real = zlib.decompressobj

    class Counting:
        def __init__(self, wbits: int) -> None:
            self._real = real(wbits=wbits)

        def decompress(self, data: bytes) -> bytes:
            inflated = self._real.decompress(data)
            given.append(len(data))
            return inflated

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    monkeypatch.setattr(trees, "_CHUNK", 256, raising=False)
    monkeypatch.setattr(zlib, "decompressobj", Counting)
    assert len(trees.read_drafts(tmp_path)) == 400
    assert sum(given) < 5 * sum(map(len, members))
