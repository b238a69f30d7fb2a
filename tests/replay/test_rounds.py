"""The table that a policy learns from, and the way from pools to a policy that decodes: on the tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stop_nets
from command_line import counted, harness, isolate, refused
from places import TINY
from safetensors import safe_open
from safetensors.numpy import save_file

from harness.replay import radar, record, stop_training
from harness.replay.known import KnownText
from harness.replay.record import Replay
from harness.replay.rounds import Rounds, recorded, rounds_of
from harness.replay.rows import Rows
from harness.replay.store import FOLDER

TREE = (3, 4, 10)  # top_k, depth, total
WORDS = "+".join(f"{name}={n}" for name, n in zip(("top_k", "depth", "total"), TREE, strict=True))


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replays of a tiny ledger: EAGLE-2 with every number of calls, and a narrower tree, which adds its nodes."""
    out = tmp_path_factory.mktemp("pools")
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, out)
        words = [f"eagle2+{WORDS}", *(f"eagle2+top_k=10+depth={d}+total=10" for d in range(1, 5))]
        policies = [part for word in words for part in ("--policy", word)]
        told = harness("replay --model", TINY, "--task gsm8k --source bundled --limit 11 --max-new-tokens 16 --dtype float32",
                       "--threads 1 --temperature 0 --temperature 1", *policies, "--out", out)  # fmt: skip
    assert told.code == 0, told.err
    return out


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def replays(pools: Path, depth: int) -> list[tuple[Replay, list[int]]]:
    return [
        (r, r.accepted) for r in record.read(pools) if (r.options["top_k"], r.options["depth"]) == (10, depth) and r.tokens > 1
    ]


def of(pools: Path, depth: int) -> list[tuple[list[int], list[int]]]:
    return sorted((r.accepted, r.sizes) for r, _ in replays(pools, depth))


def walked(rounds: Rounds, calls: int) -> tuple[list[int], list[int]]:
    """(accepted, sizes) of a decode of one text with so many calls a round, read off the table of every position."""
    at, accepted, sizes = 0, list[int](), list[int]()
    while at < len(rounds):
        accepted.append(int(rounds.accepted[at, calls - 1]))
        sizes.append(int(rounds.sizes[at, calls - 1]))
        at += accepted[-1] + 1
    return accepted, sizes


def test_the_table_says_what_trees_with_any_number_of_calls_accept(pools: Path) -> None:
    rounds, drawn = recorded(pools, (), 10, 4, 10, every=True)
    texts = [rounds.take(rounds.text == n) for n in np.unique(rounds.text)]
    assert rounds.most == 4 and rounds.states.shape[1:] == (3, 10) and drawn.model == "tiny" and len(texts) > 11
    for calls in range(1, 5):
        assert sorted(walked(text, calls) for text in texts) == of(pools, calls)
    assert (np.diff(rounds.states, axis=2) <= 0).all() and (rounds.states < 0).all()
    assert len(np.unique(rounds.accepted[:, -1])) > 1 and (rounds.accepted[:, -1] != rounds.accepted[:, 0]).any()


def test_a_decode_visits_the_rounds_of_the_whole_tree_and_only_those_are_drafted(pools: Path) -> None:
    every, own = (recorded(pools, (0.0,), 10, 4, 10, every=e)[0] for e in (True, False))
    visited = every.take(every.visited)
    assert all(np.array_equal(getattr(visited, name), getattr(own, name)) for name in Rounds.__slots__)
    steps = [accepted for r, accepted in replays(pools, 4) if r.temperature == 0]
    assert len(own) == sum(map(len, steps)) < len(every) and own.visited.all()
    assert len(np.unique(own.conversation)) == 11 and (own.length > own.position).all()


def test_pools_over_frequent_tokens_and_those_without_a_line_are_left_out(pools: Path, tmp_path: Path) -> None:
    """What `--policy all` leaves beside, and what a kill leaves between the pool and its line."""
    shutil.copytree(pools, tmp_path / "again")
    (one,) = {file.parent for file in (tmp_path / "again" / FOLDER).rglob("*.safetensors")}
    first = min(one.glob("*.safetensors"))
    shutil.copy(first, one / f"{'0' * len(first.stem)}.safetensors")
    (one.parent / "frequent").mkdir()
    with safe_open(first, framework="numpy") as opened:
        arrays: dict[str, Any] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        told = opened.metadata()
    save_file(arrays, one.parent / "frequent" / first.name, {**told, "frequent": "64", "head_id": "another"})
    (mine, who), (rounds, drawn) = recorded(tmp_path / "again", (), 10, 4, 10), recorded(pools, (), 10, 4, 10)
    assert who == drawn and np.array_equal(mine.accepted, rounds.accepted)


def test_a_text_of_one_token_has_no_round() -> None:
    none = rounds_of(KnownText([1, 2], [3], [4] * 8), Rows(), *TREE)
    assert len(none) == 0 and none.states.shape == (0, 3, 3) and none.accepted.shape == (0, 4)


def test_pools_that_lack_a_tree_or_are_not_there_are_one_line(pools: Path, tmp_path: Path) -> None:
    words = ("train-policy radar --out", tmp_path / "w", "--threads 1 --results")
    refused(
        harness(*words, pools, "--top-k 10 --depth 12"), "a pool lacks nodes of this tree", "Replay eagle2 with these options"
    )
    refused(harness(*words, tmp_path), "holds no pools: `harness replay` drafts them")
    refused(harness(*words, pools, "--temperature 0.5"), "holds no pools at T = 0.5")
    refused(harness(*words, pools, "--objective speed"), "--objective 'speed'; known: mean, ratio")
    refused(harness(*words, pools, "--depth 1"), "--depth is 1; it must be at least 2")
    refused(harness(*words, pools, "--set gamma=2"), "training setting gamma is '2'")
    refused(harness(*words, pools, "--costs nowhere"), "costs='nowhere': no such file")


def trained(pools: Path, out: Path, *more: object) -> list[dict[str, Any]]:
    told = harness("train-policy radar --results", pools, "--top-k 3 --depth 4 --total 10 --threads 1 --json --set epochs=2",
                   "--set hidden=8 --out", out, *more)  # fmt: skip
    assert told.code == 0, told.err
    rows: list[dict[str, Any]] = json.loads(told.out.splitlines()[-1])
    return rows


def test_the_table_is_of_conversations_that_no_choice_has_seen(
    pools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    seen: dict[str, set[int]] = {}

    def spied_train(learn: Rounds, judge: Rounds, *given: Any) -> Any:
        seen["learn"], seen["choose"] = set(learn.conversation.tolist()), set(judge.conversation.tolist())
        return stop_training.train(learn, judge, *given)

    def spied_table(learner: Any, learn: Rounds, shown: Rounds, *given: Any) -> Any:
        seen["show"] = set(shown.conversation.tolist())
        return made(learner, learn, shown, *given)

    made = radar._table
    monkeypatch.setattr(radar, "train", spied_train)
    monkeypatch.setattr(radar, "_table", spied_table)
    trained(pools, tmp_path / "w.safetensors")
    assert all(seen.values()) and sum(map(len, seen.values())) == len(set[int]().union(*seen.values())) == 11


def test_a_policy_is_trained_replayed_and_run_and_both_say_the_same(pools: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    rows = trained(pools, weights, "--temperature 1 --objective ratio")
    names = [row["rule"] for row in rows]
    assert names[0] == "radar" and names[-1] == "oracle" and len(rows) == 5
    value = {row["rule"]: row["ratio"] for row in rows}
    assert value["oracle"] >= max(value.values()) and all(1 <= row["calls"] <= 4 for row in rows)
    with safe_open(weights, framework="numpy") as file:
        told = file.metadata()
        assert {file.get_tensor(name).dtype.name for name in file.keys()} == {"float16"}
    assert (
        told["objective"] == "ratio" and told["costs"] == "gpu-radar" and told["temperatures"] == "1" and told["tree"] == "3/4/10"
    )
    policy, out = f"radar+weights={stop_nets.coin(tmp_path / 'coin', 3)}+{WORDS}", tmp_path / "again"
    again = harness("replay --model", TINY, "--results", pools, "--policy", policy, "--out", out, "--threads 1")
    assert again.code == 0, again.err
    changes = [f"--set {change}" for change in policy.split("+")[1:]]
    live = harness("run --model", TINY, "--task gsm8k --source bundled --limit 11 --max-new-tokens 16 --dtype float32",
                   "--threads 1 --temperature 1 --method radar", *changes, "--out", out)  # fmt: skip
    assert live.code == 0, live.err
    replays = {r.sample_id: r for r in record.read(out) if r.temperature == 1}
    records = [r for r in counted(out) if r["method"] == "radar"]
    assert len(records) == 11 == len(replays)
    for r in records:
        mine = replays[r["sample_id"]]
        assert r["options"] == mine.options and r["trace"] is not None
        assert (r["trace"]["accepted"], r["trace"]["tree_size"]) == (mine.accepted, mine.sizes)
    assert len({len(calls) for r in replays.values() for calls in r.calls}) > 1, "it stops now here, now there"
