"""Part I of N of a run: the parts, merged, are the ledger of one run."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import SMALL, counted, harness, isolate, refused, run
from places import TINY

from harness.common.errors import UserError
from harness.ledger.ledger import read
from harness.ledger.record import Record
from harness.ledger.trees import read_drafts
from harness.run.request import RunRequest, Shard

COMMAND = ("--method eagle2 --method pld --task mt_bench --task gsm8k --limit 3 --temperature 0 --temperature 1", "--trees")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("whole")
        isolate(patch, folder)
        assert run(folder / "out", *COMMAND).code == 0
        return counted(folder / "out")


def outputs(records: list[Record]) -> dict[str, tuple[object, ...]]:
    return {r["key"]: (r["cell"], r["sample_id"], r["turn"], r["turn1_sha"], r["status"], list(r["token_ids"])) for r in records}


def orders(records: list[Record]) -> dict[tuple[object, ...], list[str]]:
    """In which order the methods saw each prompt and turn."""
    found: dict[tuple[object, ...], list[str]] = {}
    for r in records:
        found.setdefault((r["task"], r["sample_id"], r["turn"], r["temperature"]), []).append(r["method"])
    return found


@pytest.mark.parametrize("n", [1, 2, 5])
def test_all_parts_merged_are_the_ledger_of_one_run(n: int, whole: list[Record], tmp_path: Path) -> None:
    parts = [tmp_path / f"part {i}" for i in range(1, n + 1)]
    for i, folder in enumerate(parts, start=1):
        done = run(folder, *COMMAND, f"--shard {i}/{n}")
        assert done.code == 0, done.err
        assert (f"shard {i}/{n} has no conversation of these tasks" in done.err) is (i > 3)  # of three prompts
    assert harness("merge", *parts[::-1], "--out", tmp_path / "merged").code == 0
    merged = counted(tmp_path / "merged")
    assert outputs(merged) == outputs(whole)
    drafted = {r["key"] for r in merged if r["trace"] and any(r["trace"]["tree_size"])}
    assert drafted and read_drafts(tmp_path / "merged").keys() == drafted
    chunks = [orders(counted(folder)) for folder in parts[:3] if n > 1 or folder == parts[0]]
    assert {key: order for part in chunks for key, order in part.items()} == orders(whole)
    assert sum(len(part) for part in chunks) == len(orders(whole)), "no conversation is in two parts"


def test_a_parts_conversations_are_every_nth_of_each_task(tmp_path: Path, whole: list[Record]) -> None:
    run(tmp_path, "--method pld --task mt_bench --task gsm8k --limit 3 --shard 2/2")
    ids = {task: list(dict.fromkeys(r["sample_id"] for r in whole if r["task"] == task)) for task in ("mt_bench", "gsm8k")}
    assert {(r["task"], r["sample_id"]) for r in read(tmp_path)} == {(task, own[1]) for task, own in ids.items()}
    assert "shard" not in (tmp_path / "records.jsonl").read_text()  # a cell's key is that of the whole prompt set


@pytest.mark.parametrize("shard", ["0/4", "5/4", "x", "1/0", "1", "1/", "/2", "-1/2", "1/2/3", "1.0/2", "²/3", "1/99999999"])
@pytest.mark.parametrize("command", ["run --method pld --task gsm8k", "matrix --tier quick"])
def test_a_part_that_is_none_is_refused(command: str, shard: str, tmp_path: Path) -> None:
    refused(harness(command, "--model", TINY, "--out", tmp_path / "out", "--shard", shard), "--shard is ", "part I of N")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_the_part(tmp_path: Path) -> None:
    done = harness("run", *SMALL, "--out", tmp_path, "--method pld --task mt_bench --limit 5 --shard 1/2 --dry-run")
    assert "mt_bench (bundled, 3 of 5 prompts, 6 turns)" in done.out and "generations: 12 of" in done.out, done.out
    other = harness("run", *SMALL, "--out", tmp_path, "--method pld --task mt_bench --limit 5 --shard 2/2 --dry-run")
    assert "2 of 5 prompts" in other.out and "generations: 8 of" in other.out


def test_a_tier_takes_a_part_of_each_of_its_runs(tmp_path: Path) -> None:
    done = harness(
        "matrix --tier quick --source bundled --dtype float32 --threads 1 --shard 2/2 --model", TINY, "--out", tmp_path
    )
    assert done.code == 0 and "shard 2/2 has no conversation of these tasks: nothing to measure" in done.err, done.err


def test_in_python_a_part_is_checked_too() -> None:
    assert RunRequest().shard == Shard(1, 1) and str(Shard.parsed("2/4")) == "2/4"
    assert Shard(2, 3).of_all("abcdefgh") == "beh"
    with pytest.raises(UserError, match="--shard is 3/2"):
        Shard(3, 2)
