"""Several ledgers as one: each record once, what differs is refused before anything is written, in any order, killed or not."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from command_line import harness, isolate
from made_up_replays import replay
from make_ledger import ENV, keyed, simulated_records
from places import ROOT

from harness.common.errors import UserError
from harness.ledger import merge as merging
from harness.ledger.ledger import PACKED, RECORDS, Ledger, machine_label, read
from harness.ledger.merge import Merged, merge
from harness.ledger.trees import FOLDER as TREES
from harness.ledger.trees import TreeStore, packed, read_drafts, read_pieces
from harness.ledger.tuned_presets import FILE as TUNED
from harness.ledger.tuned_presets import Entry, Key, save, stored
from harness.metrics.cells import summarise
from harness.replay import record as replay_record
from harness.replay.store import FOLDER as POOLS
from methods.base import DraftedTree

ELSEWHERE = ENV | {"cpu": "Other CPU"}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


SIMULATED = list(simulated_records())


def ledger(folder: Path, records: Sequence[dict[str, Any]], env: dict[str, Any] = ENV, **changes: Any) -> Path:
    with Ledger(folder) as opened:
        name = opened.write_env(env)
        for r in records:
            opened.append({**r, "env": name, **changes})
    return folder


def part(i: int, n: int) -> list[dict[str, Any]]:
    return SIMULATED[i::n]


def content(folder: Path) -> set[str]:
    return {line for line in (folder / RECORDS).read_text().splitlines() if line}


def refused(*folders: Path, out: Path) -> str:
    before = sorted(out.rglob("*")) if out.exists() else None
    with pytest.raises(UserError) as error:
        merge(folders, out)
    assert (sorted(out.rglob("*")) if out.exists() else None) == before, "nothing is written"
    return str(error.value)


def test_the_parts_of_a_ledger_are_the_ledger_in_any_order(tmp_path: Path) -> None:
    whole = ledger(tmp_path / "whole", SIMULATED)
    parts = [ledger(tmp_path / f"part {i}", part(i, 3)) for i in range(3)]
    for i, order in enumerate(permutations(parts)):
        out = tmp_path / f"out {i}"
        assert merge([*order, order[0]], out) == Merged(len(SIMULATED), 0, 0, 0)
        assert content(out) == content(whole)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert {(s.method, s.task, s.speedup, s.tau) for s in summarise(read(out))} == {
        (s.method, s.task, s.speedup, s.tau) for s in summarise(read(whole))
    }


def test_what_stands_in_two_is_one_and_packed_ledgers_are_read(tmp_path: Path) -> None:
    a, b = ledger(tmp_path / "a", SIMULATED[:60]), ledger(tmp_path / "b", SIMULATED[40:])
    (b / PACKED).write_bytes(lzma.compress((b / RECORDS).read_bytes()))
    (b / RECORDS).unlink()
    done = merge([a, b], tmp_path / "out")
    assert done == Merged(len(SIMULATED), 20, 0, 0) and len(read(tmp_path / "out")) == len(SIMULATED)


def test_into_a_ledger_that_is_there_only_what_it_lacks_is_added(tmp_path: Path) -> None:
    out, more = ledger(tmp_path / "out", SIMULATED[:50]), ledger(tmp_path / "more", SIMULATED[30:])
    before = (out / RECORDS).read_bytes()
    assert merge([more, out], out) == Merged(len(SIMULATED) - 50, 20, 0, 0)
    assert (out / RECORDS).read_bytes().startswith(before) and content(out) == content(ledger(tmp_path / "w", SIMULATED))
    after = (out / RECORDS).read_bytes()
    assert merge([more], out).n_copied == 0 and (out / RECORDS).read_bytes() == after


@pytest.mark.parametrize(
    ("change", "named"),
    [({"token_ids": [7] * 9, "trace": None}, "token_ids"), ({"wall_s": 99.0}, "wall_s"), ({"run": "another"}, "run")],
)
def test_two_measurements_of_one_key_are_refused_and_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    measured = [r for r in SIMULATED if r["method"] == "hf-generate"]  # which has no trace
    a = ledger(tmp_path / "a", SIMULATED)
    b = ledger(tmp_path / "b", [measured[0] | change | ({"n_text_tokens": 8} if "token_ids" in change else {}), *measured[1:]])
    said = refused(a, b, out=tmp_path / "out")
    assert said.startswith("nothing is merged: of these records there are two that differ: hf-generate (paper) on gsm8k 0, key ")
    assert measured[0]["key"] in said and f": {named}" in said and f"in {a} and {b}. Leave" in said and " more" not in said


def test_another_machines_measurements_of_the_same_are_refused_up_to_five_named(tmp_path: Path) -> None:
    measured = [r for r in SIMULATED if r["method"] == "eagle1"]
    a, b = ledger(tmp_path / "a", measured), ledger(tmp_path / "b", measured, ELSEWHERE)
    said = refused(a, b, out=tmp_path / "out")
    assert (
        said.count("key ") == 5
        and f"; and {len(measured) - 5} more. Leave one of the folders out" in said
        and ": machine in" in said
    )
    said = refused(b, out=a)
    assert said.count("key ") == 5


def test_what_failed_gives_way_to_what_was_measured(tmp_path: Path) -> None:
    (failed,) = [r for r in SIMULATED if r["status"] == "error"]
    (vanilla,) = [r for r in SIMULATED if r["method"] == "vanilla" and (r["task"], r["sample_id"]) == ("alpaca", "5")]
    like = next(r for r in SIMULATED if r["method"] == "eagle2" and r["status"] == "ok" and r["task"] == "alpaca")
    again = keyed(like | {name: failed[name] for name in ("sample_id", "prompt_sha", "turn", "repeat")})
    assert again["key"] == failed["key"]
    other = failed | {"run": "another", "error": "OSError: made up"}
    a, b, c = (ledger(tmp_path / n, rs) for n, rs in (("a", [vanilla, failed]), ("b", [again]), ("c", [failed, other])))
    for i, order in enumerate(permutations([a, b, c])):
        out = tmp_path / f"out {i}"
        assert merge(order, out) == Merged(2, 0, 3, 0) and {r["status"] for r in read(out)} == {"ok"}
    merge([a, c], tmp_path / "failed")  # both that failed are kept: they are in no number
    assert sorted(r["status"] for r in read(tmp_path / "failed")) == ["error", "error", "ok"]


def test_warm_ups_are_kept(tmp_path: Path) -> None:
    warm = next(r for r in SIMULATED if r["is_warmup"])
    other = keyed(warm | {"run": "another"})
    hotter = keyed(warm | {"temperature": 1.0})  # of the same run: the same key
    assert hotter["key"] == warm["key"] and other["key"] != warm["key"]
    a, b = ledger(tmp_path / "a", [warm, SIMULATED[0]]), ledger(tmp_path / "b", [warm, other, hotter, SIMULATED[0]])
    merge([a, b], tmp_path / "out")
    assert sum(r["is_warmup"] for r in read(tmp_path / "out")) == 3


def test_bad_lines_are_named_and_not_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = ledger(tmp_path / "a", SIMULATED[:5]), ledger(tmp_path / "b", SIMULATED[5:])
    with (a / RECORDS).open("a") as file:
        file.write('{"schema": 3}\n' + json.dumps(SIMULATED[0] | {"env": "e" * 16}) + "\n" + '{"schema": 3, "torn')
    merge([a, b], tmp_path / "out")
    err = capsys.readouterr().err
    assert f"{a / RECORDS}:6: not merged: " in err and f"{a / RECORDS}:7: not merged: measured already in line 1" in err
    assert f"{a / RECORDS}:8: not merged: a torn last line" in err
    assert len(err.splitlines()) == 4  # each once, and the env file that is missing
    assert content(tmp_path / "out") == content(ledger(tmp_path / "w", SIMULATED))


def test_inputs_of_a_new_ledger_are_read_once_and_a_writer_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = ledger(tmp_path / "a", part(0, 2)), ledger(tmp_path / "b", part(1, 2))
    monkeypatch.setattr(merging, "each_record", read := Mock(side_effect=merging.each_record))
    with Ledger(a):
        done = harness("merge", a, b, "--out", tmp_path / "out")
    assert done.code == 0 and done.err.count("is being written to by") == 1, done.err
    assert read.call_count == 2
    merge([a], tmp_path / "out")
    assert read.call_count == 4  # what is there, and what is added


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    a = ledger(tmp_path / "a", SIMULATED[:5])
    assert refused(a, tmp_path / "none", out=tmp_path / "out") == f"no records in {tmp_path / 'none'}"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    assert "is no ledger, and is not empty" in refused(a, out=tmp_path / "full")
    assert "is a file" in refused(a, out=tmp_path / "full" / "thesis.tex")
    old = tmp_path / "old"
    old.mkdir()
    (old / RECORDS).write_text('{"foreign": {}}\n')
    assert "holds records of answer files" in refused(a, old, out=tmp_path / "out")
    with Ledger(tmp_path / "busy"):
        assert "another process writes to" in refused(a, out=tmp_path / "busy")


def test_a_file_without_any_record_is_no_ledger_to_add_to_or_to_take_from(tmp_path: Path) -> None:
    a, other = ledger(tmp_path / "a", SIMULATED[:5]), tmp_path / "other"
    other.mkdir()
    (other / RECORDS).write_text("hello\n{}\n")
    assert f"no line of {other / RECORDS} can be read, line 1: not JSON" in refused(a, other, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert f"no line of {other / RECORDS} can be read" in refused(a, out=other)
    assert (other / RECORDS).read_text() == "hello\n{}\n"


def test_ledgers_of_two_machines_are_one_with_two_machines(tmp_path: Path) -> None:
    """A conversation on one machine, however many there are; of one that both have half of, no ratio is made."""
    ok = [r for r in SIMULATED if r["status"] == "ok" and not r["is_warmup"] and r["method"] in ("vanilla", "eagle2")
          and r["task"] == "gsm8k" and r["temperature"] == 0]  # fmt: skip
    here = [r for r in ok if r["sample_id"] in ("0", "1") or (r["sample_id"] == "4" and r["method"] == "vanilla")]
    there = [r for r in ok if r["sample_id"] in ("2", "3") or (r["sample_id"] == "4" and r["method"] == "eagle2")]
    out = tmp_path / "out"
    merge([ledger(tmp_path / "a", here), ledger(tmp_path / "b", there, ELSEWHERE)], out)
    cells = {(s.machine, s.method): s for s in summarise(read(out))}
    mine, theirs = machine_label(ENV), machine_label(ELSEWHERE)
    assert cells.keys() == {(m, name) for m in (mine, theirs) for name in ("vanilla", "eagle2")}
    alone = {s.method: s for s in summarise([r for r in read(tmp_path / "a") if r["sample_id"] != "4"])}
    assert cells[mine, "eagle2"].speedup == alone["eagle2"].speedup and cells[mine, "eagle2"].prompts == 2
    assert cells[theirs, "eagle2"].prompts == 2 and cells[theirs, "eagle2"].n_unpaired == 1  # named below every table
    assert cells[mine, "vanilla"].prompts == 3


def tree(tokens: list[int]) -> DraftedTree:
    return DraftedTree(tokens, [0] * len(tokens), None, [1], False)


def test_trees_are_copied_with_the_texts_of_their_tokens(tmp_path: Path) -> None:
    x, y, z = [r for r in SIMULATED if (r["method"], r["task"]) == ("pld", "gsm8k")][:3]
    assert x["cell"] == y["cell"] == z["cell"]
    a, b = ledger(tmp_path / "a", [x, y]), ledger(tmp_path / "b", [y, z])
    for folder, own in ((a, (x, y)), (b, (y, z))):
        store = TreeStore(folder, lambda i: f"<{i}>")
        for r in own:
            store.add(r["cell"], r["key"], [1, 2, 3], [tree([4, 5, int(r["sample_id"]) + 6])])
    TreeStore(a, str).add(x["cell"], z["key"], [1], [tree([9])])  # of a record that a kill prevented
    (b / TREES / f"{x['cell']}.jsonl.xz").write_bytes(packed(b / TREES / f"{x['cell']}.jsonl.gz"))
    (b / TREES / f"{x['cell']}.jsonl.gz").unlink()
    for i, order in enumerate(((a, b), (b, a))):
        out = tmp_path / f"out {i}"
        assert merge(order, out).n_trees == 3
        drafts = read_drafts(out)
        assert {k: d.tokens.tolist() for k, d in drafts.items()} == {r["key"]: [4, 5, int(r["sample_id"]) + 6] for r in (x, y, z)}
        assert read_pieces(out) == {x["cell"]: {i: f"<{i}>" for i in range(1, 9)}}
        assert merge(order, out).n_trees == 0
    assert refused(b, out=a).startswith(f"nothing is merged: of these drafted trees there are two that differ: {z['key']} in {a}")
    c = ledger(tmp_path / "c", [x])
    TreeStore(c, str).add(x["cell"], x["key"], [1], [tree([5, 4, 6])])
    said = refused(a, c, out=tmp_path / "new")
    differ = f"nothing is merged: of these drafted trees there are two that differ: {x['key']} in {a} and {c}. "
    assert said == differ + "Remove their cell's file in trees of one of them: `--trees` makes it again"


def test_presets_replays_and_pools_are_merged_and_compared(tmp_path: Path) -> None:
    a, b = ledger(tmp_path / "a", SIMULATED[:5]), ledger(tmp_path / "b", SIMULATED[5:])
    keys = [Key("toy", "t", "h", method, 0.0, "float32", 2, "A CPU", "lean") for method in ("eagle2", "eagle1")]
    figures: dict[str, Any] = {"tau": 2.0, "speedup": 1.0}
    for folder, own in ((a, keys), (b, keys[1:])):
        for key in own:
            save(Entry(key, {"total": 9}, figures, figures), folder / TUNED)
    rs = [replay("eagle2", i, [1, 2], [[1], [1]], [3, 3]) for i in range(3)]
    replay_record.append(a, rs[:2])
    replay_record.append(b, rs[1:])
    for folder, names in ((a, "xy"), (b, "yz")):
        for name in names:
            (folder / POOLS / "tiny-h").mkdir(parents=True, exist_ok=True)
            (folder / POOLS / "tiny-h" / f"{name}.safetensors").write_text(name)
    out = tmp_path / "out"
    done = harness("merge", a, b, "--out", out)
    assert done.code == 0 and f"{len(SIMULATED)} records are added to {out}, 3 replays, 3 pools" in done.err, done.err
    assert {e.key.method for e in stored(out / TUNED)} == {"eagle1", "eagle2"}
    assert {r.sample_id for r in replay_record.read(out)} == {"0", "1", "2"}
    assert sorted(p.read_text() for p in (out / POOLS).rglob("*.safetensors")) == ["x", "y", "z"]
    again = harness("merge", b, a, "--out", out)
    assert again.code == 0 and f"0 records are added to {out}, {len(SIMULATED)} were there already" in again.err
    there = ledger(tmp_path / "there", [])
    (there / replay_record.PACKED).write_bytes(lzma.compress((a / replay_record.FILE).read_bytes()))
    said = harness("merge", b, "--out", there)
    assert said.code == 2 and "replays.jsonl.xz` to add to them" in said.err and not content(there)  # before any record
    (b / POOLS / "tiny-h" / "y.safetensors").write_text("other")
    new = tmp_path / "new"
    assert "y.safetensors differ: delete one of them" in harness("merge", a, b, "--out", new).err and not new.exists()
    (b / POOLS / "tiny-h" / "y.safetensors").write_text("y")
    replay_record.append(a, [replay("eagle2", 2, [2, 1], [[1], [1]], [3, 3])])
    assert "have another replay of eagle2" in harness("merge", a, b, "--out", new).err and not new.exists()
    shutil.rmtree(a / POOLS)
    (a / replay_record.FILE).unlink()
    save(Entry(keys[1], {"total": 10}, figures, figures), a / TUNED)
    said = harness("merge", a, b, "--out", new)
    assert said.code == 2 and "have other options or figures for eagle1" in said.err and not new.exists()


_KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}]
from pathlib import Path
from harness.ledger import merge
merge._BATCH = 1
write, n = os.write, [0]
def torn(fd, data):
    n[0] += 1
    if n[0] == {at}:
        write(fd, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(fd, data)
os.write = torn
merge.merge([Path({a!r}), Path({b!r})], Path({out!r}))
"""


@pytest.mark.parametrize("at", [2, 40])
def test_killed_and_started_again_it_ends_the_same(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = ledger(tmp_path / "a", part(0, 2)), ledger(tmp_path / "b", part(1, 2))
    out, whole = tmp_path / "out", tmp_path / "whole"
    code = _KILLED.format(root=str(ROOT), a=str(a), b=str(b), out=str(out), at=at)
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE).returncode == -signal.SIGKILL
    monkeypatch.setattr(merging, "_BATCH", 1)
    merge([a, b], out)
    merge([a, b], whole)
    assert (out / RECORDS).read_bytes() == (whole / RECORDS).read_bytes()
    assert {n for n in os.listdir(out) if not n.startswith(".")} == set(os.listdir(whole))
