"""`scripts/reliability.py` and `scripts/load_cluster.py`: what they count and compare, on little data and without Ray."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_line import counted
from made_up_ledger import write_ledger
from made_up_records import measured
from places import ROOT

from harness.ledger import ledger as ledgers
from harness.ledger.ledger import RECORDS, Ledger


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def faults() -> Any:
    return script("reliability")


def trial_of(faults: Any, out: Path, told: str) -> Any:
    trial = faults.Trial(out.parent, out.parent / "slow.py")
    trial.out, trial.told, trial.ends = out, told, ["137", "0"]
    return trial


def test_a_ledger_is_compared_record_by_record_with_the_plain_runs(faults: Any, tmp_path: Path) -> None:
    own = [measured("eagle2", i, [1, 2]) for i in range(4)]
    plain = faults.Held.by(write_ledger(tmp_path / "plain", own))
    one = faults.Fault("worker-killed", "what is done", (r"is given again",), lambda trial: None)
    told = "shard 1/2 is given again: gone\n"
    good = faults.judged(one, trial_of(faults, tmp_path / "plain", told), plain, 3.0)
    assert good.survived and (good.lost, good.repeated, good.differ) == (0, 0, 0) and good.said == [told.strip()]

    out = write_ledger(tmp_path / "out", own[:3])
    lines = (out / RECORDS).read_text().splitlines()
    altered = json.loads(lines[1])
    altered["token_ids"][-1] += 1
    (out / RECORDS).write_text("\n".join([lines[0], lines[0], json.dumps(altered), lines[2], lines[2][:40]]))
    bad = faults.judged(one, trial_of(faults, out, told), plain, 3.0)
    assert (bad.lost, bad.repeated, bad.differ) == (1, 1, 1) and not bad.survived and not bad.problems
    silent = faults.judged(one, trial_of(faults, tmp_path / "plain", "all is well\n"), plain, 3.0)
    assert not silent.survived and silent.problems == ["no line holds 'is given again'"]
    more = faults.judged(one, trial_of(faults, tmp_path / "plain", told), faults.Held({}, 0), 3.0)
    assert more.problems == ["4 records that the plain run has not"]

    faults.write_table([good, bad, silent], tmp_path)
    rows = (tmp_path / "faults.md").read_text().splitlines()
    assert rows[4].startswith("| worker-killed | what is done | yes | 0 | 0 | 0 |") and "| 137, then 0 | 3 |" in rows[4]
    assert "| no: see the counts | 1 | 1 | 1 |" in rows[5] and "| no: no line holds" in rows[6]
    assert len((tmp_path / "faults.csv").read_text().splitlines()) == 4


def test_a_driver_that_ends_otherwise_or_with_a_traceback_is_a_problem(faults: Any, tmp_path: Path) -> None:
    trial = faults.Trial(tmp_path, tmp_path / "none.py")  # which is not there to be included
    trial.run(expect=0)
    assert trial.problems == ["a driver ended with 2, not with 0"] and trial.ends == ["2"]
    assert trial.told.splitlines()[-1].startswith("error: ")


def test_faults_are_named_in_the_document(faults: Any) -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    assert [name for name in faults.FAULTS if f"| {name} |" not in page and f"`{name}`" not in page] == []


# ---- load ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def load() -> Any:
    return script("load_cluster")


def calls_of(work: Callable[[], object]) -> int:
    """How often functions of the harness were called."""
    n = 0

    def count(frame: Any, event: str, _: object) -> None:
        nonlocal n
        n += event == "call" and frame.f_code.co_filename.startswith(str(ROOT / "harness"))

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return n


def test_a_driver_of_four_times_the_records_does_four_times_the_work_and_parses_each_line_once(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def drive(out: Path, prompts: int) -> int:
        return calls_of(lambda: load.driven(out, load.Asks("toy-0", prompts, tokens=12), load.Inline(4)))

    few, many = drive(tmp_path / "few", 1), drive(tmp_path / "many", 4)
    assert many < 4.2 * few
    records = counted(tmp_path / "many")
    assert len({r["key"] for r in records}) == len(records) == 4 * load.A_PROMPT
    greedy = {(r["task"], r["sample_id"], r["turn"]): set() for r in records if not r["temperature"]}  # type: ignore[var-annotated]
    for r in records:
        if not r["temperature"]:
            greedy[r["task"], r["sample_id"], r["turn"]].add(tuple(r["token_ids"]))
    assert all(len(ids) == 1 for ids in greedy.values()), "methods differ at T = 0"

    parsed: list[bytes] = []
    real = ledgers.record_of
    monkeypatch.setattr(ledgers, "record_of", lambda line, imported: parsed.append(line) or real(line, imported))
    kept = (tmp_path / "many" / RECORDS).read_bytes().splitlines()
    (tmp_path / "many" / RECORDS).write_bytes(b"\n".join(kept[:-30]) + b"\n")
    drive(tmp_path / "many", 4)
    assert len(parsed) == len(kept) - 30, "a line is parsed once when a driver begins again"
    with Ledger(tmp_path / "many", several_machines=True) as ledger:
        assert len(ledger.keys()) == 4 * load.A_PROMPT == len(ledger.records)


@pytest.mark.slow
def test_drivers_are_killed_and_begun_again_and_the_table_says_what_was_missed(load: Any, tmp_path: Path) -> None:
    asked = Namespace(out=tmp_path, records=load.A_PROMPT, workers=3, models=1, tokens=24, rest=0.01, kill_at=0.5, over_ray=False)
    found = load.measured(asked)
    assert found["records"] == load.A_PROMPT and (found["lost"], found["repeated"]) == (0, 0)
    assert found["records"] > found["killed_at"] >= 0.5 * found["records"] and 0 < found["opened_s"] < found["resumed_s"]
    assert found["table"]["status"] == found["claims"]["status"] == 0
    load.write_table("Load", load.rows_of(found | {"lost": 3, "resumed_s": 31.0}), tmp_path / "load")
    rows = {row[0]: row[-1] for row in csv.reader((tmp_path / "load.csv").open())}
    assert rows["records lost, repeated"] == "no" and rows["driver's most memory"] == "yes"
    assert [met for what, met in rows.items() if what.startswith("after `kill -9`")] == ["no"]


def test_a_cost_a_record_is_of_the_records_between(load: Any) -> None:
    one = [{"what": "opened", "n": 0, "cpu_s": 9.0}, *({"what": "", "n": n, "cpu_s": 10 + n * 0.002} for n in range(0, 51, 10))]
    two = [{"what": "opened", "n": 50, "cpu_s": 7.0}, *({"what": "", "n": n, "cpu_s": n * 0.004} for n in range(51, 102, 10))]
    assert load.within([one, two], 0, 50, "cpu_s") == pytest.approx(0.002)
    assert load.within([one, two], 50, 101, "cpu_s") == pytest.approx(0.004)
    assert load.within([one, two], 0, 5, "cpu_s") == 0
