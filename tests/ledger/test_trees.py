"""Drafted trees kept on request: what is kept, that no clock sees it, and the file beside the records."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import counted, files, isolate, lines, measured, refused, run
from growing import context, paths_of, rows_of
from made_up_ledger import write_ledger
from made_up_records import measured as made_up
from places import ROOT
from tiny_model import STOP_IDS, TinyModel

import methods
from harness.audit.probe.stand_ins import FakeDrafter
from harness.common.errors import UserError
from harness.ledger.ledger import RECORDS, read
from harness.ledger.trees import FOLDER, TreeStore, read_drafts, read_pieces
from harness.show.plots.all import write_plots
from methods.base import DraftedTree, SamplerParams, Trace
from methods.engine.grow import dynamic_tree, prompt_lookup, static_tree
from methods.engine.loop import Grow
from methods.engine.tree import Tree

DRAFTING = [n for n in methods.names() if not methods.get(n).external and n != "vanilla"]
COMMAND = "--method eagle1 --method eagle2 --method pld --task mt_bench --max-new-tokens 12"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


# ---- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", DRAFTING)
def test_every_drafting_methods_trees_are_those_it_verified(name: str, temperature: float, tiny: TinyModel) -> None:
    for prompt in tiny.prompts[:2]:
        spy = tiny.spy()
        plain = SamplerParams(32, STOP_IDS, temperature, key=7)
        kept = tiny.decode(name, prompt, SamplerParams(32, STOP_IDS, temperature, key=7, keep_trees=True), target=spy)
        without = tiny.decode(name, prompt, plain)
        assert kept.token_ids == without.token_ids
        assert kept.trace is not None and without.trace is not None and without.trace.trees == []
        trees = kept.trace.trees
        assert [len(t.tokens) for t in trees] == kept.trace.tree_size and [len(t.path) for t in trees] == kept.trace.accepted
        emitted = kept.token_ids[:1]
        for kept_tree, tree, path in zip(trees, spy.trees, spy.paths, strict=True):
            assert (kept_tree.tokens, kept_tree.parents, kept_tree.path) == (tree.tokens[1:], tree.parents[1:], path[1:])
            assert kept_tree.sampled == (temperature > 0 and methods.get(name).samples_drafts)
            if methods.get(name).drafter is None:
                assert kept_tree.confidence is None
                continue
            assert kept_tree.confidence is not None and len(kept_tree.confidence) == len(tree) - 1
            of_parent: dict[int, float] = {}
            for parent, c in zip(kept_tree.parents, kept_tree.confidence, strict=True):
                assert 0 <= c <= 1
                of_parent[parent] = of_parent.get(parent, 0.0) + c
            assert max(of_parent.values(), default=0) <= 1 + 1e-5, "siblings are parts of one distribution"
        for t, bonus_at in zip(trees, np.cumsum([n + 1 for n in kept.trace.accepted]), strict=True):
            emitted += [t.tokens[i - 1] for i in t.path]
            emitted += kept.token_ids[bonus_at : bonus_at + 1]
        assert emitted[: len(kept.token_ids)] == kept.token_ids


GROWERS = {
    "value": dynamic_tree(3, 3, 8), "confidence": dynamic_tree(3, 3, 8, "confidence"),
    "no rerank": dynamic_tree(3, 3, 8, rerank=False), "static": static_tree([(0,), (1,), (0, 0), (0, 1), (0, 0, 0), (1, 0)]),
    "frequent": dynamic_tree(3, 3, 8, frequent=4),
}  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("grow", GROWERS.values(), ids=GROWERS.keys())
def test_confidence_is_the_drafts_own_probability_given_the_parent_untempered(grow: Grow, temperature: float) -> None:
    rows = rows_of("distinct", 6, 3)
    here = context(SamplerParams(1, temperature=temperature, top_p=0.8 if temperature else 1.0, keep_trees=True))
    here.keeps_trees = True
    drafter = FakeDrafter(rows)
    drafter.start(1, grow.frequent)
    tree = grow.tree(drafter, here)
    assert tree.confidence is not None
    for path, confidence in zip(paths_of(tree), tree.confidence(), strict=True):
        among = drafter.names or range(6)
        logits = rows(path[:-1])
        assert confidence == pytest.approx(math.exp(logits[path[-1]]) / sum(math.exp(logits[t]) for t in among), rel=1e-5)


def test_a_copied_draft_has_no_confidence_and_a_static_tree_computes_none_unasked() -> None:
    here = context()
    here.tokens = [5, 6, 7, 5]
    assert prompt_lookup().tree(None, here).confidence is None
    assert static_tree([(0,)]).tree(FakeDrafter(rows_of("distinct", 6, 3)), context()).confidence is None


def test_no_clock_sees_the_keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: TinyModel) -> None:
    keep, long = Trace.keep, 0.2

    def slow(self: Trace, tree: Tree, path: list[int]) -> float:
        time.sleep(long)
        self.keeping_s += long
        return keep(self, tree, path) + long

    monkeypatch.setattr(Trace, "keep", slow)
    trace = tiny.decode("eagle2", tiny.prompts[0], SamplerParams(8, keep_trees=True)).trace
    n = len(trace.accepted) if trace else 0
    assert trace is not None and sum(trace.verify_s) + sum(trace.draft_s) < n * long < trace.keeping_s
    run(tmp_path, "--method eagle2 --task alpaca --no-baseline --trees")
    (record,) = (r for r in read(tmp_path) if not r["is_warmup"])
    assert record["trace"] is not None and 0 < (record["wall_s"] or 0) < len(record["trace"]["accepted"]) * long


# ---- the file -------------------------------------------------------------------------------------------------------


def kept_files(folder: Path) -> dict[str, bytes]:
    return files(folder / FOLDER)


def test_a_run_keeps_the_trees_of_every_drafting_record_and_none_unasked(tmp_path: Path) -> None:
    plain = measured(tmp_path / "plain", COMMAND)
    assert not (tmp_path / "plain" / FOLDER).exists()
    records = measured(tmp_path / "kept", COMMAND, "--trees")
    assert {r["key"]: r["token_ids"] for r in records} == {r["key"]: r["token_ids"] for r in plain}
    drafts, pieces = read_drafts(tmp_path / "kept"), read_pieces(tmp_path / "kept")
    drafting = {r["key"]: r for r in records if r["trace"] and any(r["trace"]["tree_size"])}
    assert drafts.keys() == drafting.keys() and {r["method"] for r in drafting.values()} >= {"eagle1", "eagle2"}
    for key, r in drafting.items():
        d, trace = drafts[key], r["trace"]
        assert trace is not None and (d.sizes.tolist(), d.accepted.tolist()) == (trace["tree_size"], trace["accepted"])
        assert {*r["token_ids"], *d.tokens.tolist()} <= pieces[r["cell"]].keys()
        assert "".join(pieces[r["cell"]][t] for t in r["token_ids"]).replace("\ufffd", "") != ""
    assert {p.name.split(".")[0] for p in (tmp_path / "kept" / FOLDER).iterdir()} == {r["cell"] for r in drafting.values()}


def test_the_same_command_again_and_a_torn_file_cost_only_what_is_missing(tmp_path: Path) -> None:
    measured(tmp_path, COMMAND, "--trees")
    before, records, kept = kept_files(tmp_path), lines(tmp_path), read_drafts(tmp_path)
    assert "nothing to measure" in run(tmp_path, COMMAND, "--trees").err and kept_files(tmp_path) == before
    torn = max((tmp_path / FOLDER).iterdir(), key=lambda p: p.stat().st_size)
    torn.write_bytes(torn.read_bytes()[:-9])
    assert len(read_drafts(tmp_path)) == len(kept) - 1
    outcome = run(tmp_path, COMMAND, "--trees")
    assert outcome.code == 0 and "1 generations to measure" in outcome.err
    again = read_drafts(tmp_path)
    assert again.keys() == kept.keys() and all(np.array_equal(again[k].tokens, kept[k].tokens) for k in kept)
    assert [line for line in lines(tmp_path) if not json.loads(line)["is_warmup"]] == [
        line for line in records if not json.loads(line)["is_warmup"]
    ], "what was measured is not measured again"


def test_trees_of_generations_measured_without_are_made_again_untimed(tmp_path: Path) -> None:
    first = measured(tmp_path, COMMAND)
    assert measured(tmp_path, COMMAND, "--trees") == first
    assert read_drafts(tmp_path).keys() == {r["key"] for r in first if r["trace"] and any(r["trace"]["tree_size"])}


def test_a_generation_that_comes_out_otherwise_keeps_no_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_ENGINE", "torch")  # on a row-invariant engine the difference is an error
    command = "--method eagle2 --task alpaca"
    measured(tmp_path, command)
    stored = [json.loads(line) for line in lines(tmp_path)]
    for r in stored:
        if r["method"] == "eagle2" and not r["is_warmup"]:
            r["token_ids"][0] += 1
    (tmp_path / RECORDS).write_text("".join(json.dumps(r) + "\n" for r in stored))
    outcome = run(tmp_path, command, "--trees")
    assert outcome.code == 0 and "eagle2 on" in outcome.err and "its trees are not kept" in outcome.err
    assert read_drafts(tmp_path) == {} and len(counted(tmp_path)) == 2


def test_a_file_that_holds_something_else_is_named(tmp_path: Path) -> None:
    measured(tmp_path, "--method eagle2 --task alpaca --trees")
    (path,) = (tmp_path / FOLDER).iterdir()
    path.write_bytes(b"not gzip")
    refused(run(tmp_path, "--method eagle2 --task alpaca --trees"), path.name, "--trees")


TWO_TREES: dict[str, Any] = {
    "key": "k", "sampled": False, "sizes": [4, 4], "accepted": [1, 2], "tokens": [1] * 8, "parents": [0, 0, 1, 1] * 2,
    "confidence": [0.5] * 8, "path": [1, 1, 3], "pieces": {"1": "a"},
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"key": 5}, {"pieces": []}, {"pieces": {"x": "y"}}, {"pieces": {"1": 3}}, {"sizes": [-4, 12]}, {"sizes": "ab"},
        {"sizes": [4.5, 3.5]}, {"sizes": [4, 5]}, {"tokens": [10**30] * 8}, {"tokens": [None] * 8}, {"parents": [2] * 8},
        {"parents": [0, 0, 1, 4] * 2}, {"path": [1, 2, 3]}, {"path": [9, 9, 9]}, {"path": [0, 1, 3]}, {"accepted": [3, 0]},
        {"accepted": [0, 3]}, {"confidence": [2] * 8}, {"confidence": [float("nan")] * 8}, {"confidence": ["x"] * 8},
        {"confidence": [None] * 8}, {"confidence": 0.5}, {"confidence": [True] * 8},
    ],
    ids=str,
)  # fmt: skip
def test_a_line_that_is_no_trees_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / FOLDER).mkdir()
    file = tmp_path / FOLDER / "c.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(TWO_TREES).encode()))
    assert read_drafts(tmp_path).keys() == {"k"} and read_pieces(tmp_path) == {"c": {1: "a"}}
    file.write_bytes(gzip.compress(json.dumps(TWO_TREES | change).encode()))
    with pytest.raises(UserError, match="c.jsonl.gz.* drafted trees .*remove the file: `--trees` makes it again"):
        read_drafts(tmp_path)


def test_a_tree_of_one_confidence_has_no_slope_and_is_drawn_all_the_same(tmp_path: Path) -> None:
    (record,) = [r for r in read(write_ledger(tmp_path, [made_up("eagle2", 0, [1, 2])]))]
    (tmp_path / FOLDER).mkdir()
    line = json.dumps(TWO_TREES | {"key": record["key"]}).encode()
    (tmp_path / FOLDER / "c.jsonl.gz").write_bytes(gzip.compress(line))
    assert any("calibration" in path.name for path in write_plots(tmp_path))


def test_trees_that_came_after_a_ledger_was_packed_are_packed_beside_the_others(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "scripts" / "pack.py"), str(tmp_path)]
    for key in ("first", "second"):
        TreeStore(tmp_path, str).add("cell", key, [1], [DraftedTree([4], [0], None, [1], False)])
        subprocess.run(words, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert set(read_drafts(tmp_path)) == {"first", "second"} and os.listdir(tmp_path / FOLDER) == ["cell.jsonl.xz"]


def test_a_packed_ledger_is_read_as_it_was(tmp_path: Path) -> None:
    measured(tmp_path, COMMAND, "--trees")
    before, pieces, records = read_drafts(tmp_path), read_pieces(tmp_path), counted(tmp_path)
    words = [sys.executable, str(ROOT / "scripts" / "pack.py"), str(tmp_path)]
    subprocess.run(words, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    found = [p for p in tmp_path.rglob("*") if p.is_file() and tmp_path / "cache" not in p.parents]
    left = {p.suffix for p in found if ".lock" not in p.name}
    assert left == {".xz", ".json"} and not (tmp_path / "records.jsonl").exists()
    after = read_drafts(tmp_path)
    assert counted(tmp_path) == records and read_pieces(tmp_path) == pieces and after.keys() == before.keys()
    assert all(np.array_equal(before[k].tokens, after[k].tokens) and np.array_equal(before[k].path, after[k].path) for k in after)
    subprocess.run([*words, "--no-trees"], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert len(read_drafts(tmp_path)) == len(before)  # packed trees stay: they are kept on purpose
    spoilt = next((tmp_path / FOLDER).glob("*.xz"))
    spoilt.write_bytes(spoilt.read_bytes()[:-20])
    with pytest.raises(UserError, match="not drafted trees"):
        read_drafts(tmp_path)
