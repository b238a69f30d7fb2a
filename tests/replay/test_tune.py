"""`harness tune`: what is replayed is what decoding does; the choice, its place in the cache, and the preset it becomes."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from command_line import harness, isolate, refused, run, tiny_copy
from hypothesis import given
from places import ROOT, TINY
from tiny_model import TinyModel, shared_tiny_model

import methods
from harness.common.errors import UserError
from harness.ledger import ledger as records
from harness.load.config import model_config
from harness.load.model import Loaded
from harness.replay import costs
from harness.replay import tune as tuning
from harness.replay.costs import Costs, measure_costs
from harness.replay.pools import ABSENT, TOTALS, answer_ranks, levels_run, path_ranks, replayed_tau
from harness.replay.prompts import vanilla_answers
from harness.replay.race import FAIR_TRIAL, HOPELESS, race
from harness.replay.trees import choices
from harness.run import tiers, tuned
from harness.run.request import RunRequest
from methods.base import Decode, SamplerParams
from methods.engine.grow import dynamic_tree
from methods.engine.loop import Context
from methods.engine.sampling import Chooser, stream_key
from methods.engine.tree import Tree
from tasks import overlap as command

KEY = tuned.Key("tiny", "t", "ab", "eagle2", 0.0, "float32", 1, "Some CPU")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("method", "frequent"), [("eagle2", None), ("eagle2-fr", 200)])
def test_a_replay_has_the_tau_of_the_decode_it_stands_for(
    temperature: float, method: str, frequent: int | None, tiny: TinyModel
) -> None:
    """Ranks of one deep pool give the tau of every shallower and smaller tree, as decoding with that tree would."""
    answers = vanilla_answers(tiny.loaded, tiny.prompts[:4], temperature, 24)
    for top_k in (2, 5):
        drafts = [answer_ranks(tiny.loaded, a, top_k, 5, frequent) for a in answers]
        ranks = [r for r, _ in drafts]
        for depth, total in ((1, 1), (2, 4), (3, 9), (5, 3), (5, 24)):
            tokens = forwards = 0
            for i, prompt in enumerate(tiny.prompts[:4]):
                params = SamplerParams(24, frozenset({0, 2}), temperature=temperature, key=stream_key(0, f"tune/{i}", 1, 0))
                options = {"top_k": top_k, "depth": depth, "total": total} | ({"frequent": frequent} if frequent else {})
                made = tiny.decode(method, prompt, params, **options)
                assert made.trace is not None
                tokens, forwards = tokens + len(made.token_ids) - 1, forwards + len(made.trace.accepted)
            assert replayed_tau(ranks, depth, total) == pytest.approx(tokens / forwards)


def test_the_levels_charged_are_those_that_a_decode_drafts(tiny: TinyModel) -> None:
    """At total 3 most drafts end early with `stop_early`: the head runs as often as `levels_run` says."""
    drafter = tiny.loaded.drafter
    assert drafter is not None
    (answer,) = vanilla_answers(tiny.loaded, tiny.prompts[:1], 0.0, 12)
    _, run = answer_ranks(tiny.loaded, answer, 3, 6, None)
    text, n = [*answer.prompt, *answer.ids], len(answer.prompt)
    features, _ = tiny.loaded.target.prefill(text[:-1], 1)
    drafter.start(len(text) + 40, None)
    calls, seen, real = list[int](), 0, drafter.expand
    for j in range(len(answer.ids) - 1):
        drafter.observe(text[seen + 1 : n + j + 1], features[seen : n + j])
        seen, count = n + j, [1]
        with pytest.MonkeyPatch.context() as m:
            m.setattr(drafter, "expand", lambda *a, count=count: (count.append(1), real(*a))[1])
            dynamic_tree(3, 6, 3, stop_early=True).tree(drafter, Context(text[: n + j + 1], 1, Chooser(SamplerParams(1))))
        calls.append(len(count))
    assert calls == run[:, TOTALS.index(3)].tolist() and min(calls) < 6
    flat = np.zeros(9, dtype=np.float32)
    flat[3:] = -1
    assert levels_run(flat, [3, 6, 9], 2) == 2


@st.composite
def pools(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int], list[int]]:
    """Pools of three levels with many equal values, and an answer: tokens, parents, values, where levels end, answer."""
    tokens, parents, values, ends = list[int](), list[int](), list[float](), list[int]()
    level = [-1]
    for _ in range(3):
        new = []
        for p in level[:2]:
            for t in draw(st.permutations(range(4)))[:2]:
                new.append(len(tokens))
                tokens.append(t)
                parents.append(p)
                values.append((values[p] if p >= 0 else 0.0) - draw(st.integers(0, 2)))
        ends.append(len(tokens))
        level = draw(st.permutations(new))
    answer = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    return np.array(tokens), np.array(parents), np.array(values, dtype=np.float32), ends, answer


@given(pool=pools())
def test_a_rank_is_the_place_in_the_order_that_reranking_takes(pool: tuple) -> None:
    tokens, parents, values, ends, answer = pool
    ranks = path_ranks(tokens, parents, values, ends, answer)
    for depth in (1, 2, 3):
        order = sorted(range(ends[depth - 1]), key=lambda i: (-values[i], i))
        node = -1
        for m in range(depth):
            node = next((i for i in range(ends[depth - 1]) if node is not None and parents[i] == node and m < len(answer)
                         and tokens[i] == answer[m]), None)  # fmt: skip
            assert ranks[m, depth - 1] == (ABSENT if node is None else order.index(node))
            if node is None:
                break


def test_the_best_tree_is_the_one_with_the_most_tokens_a_second() -> None:
    """Two tokens deep, the first of rank 0 and the second of rank 3, at each of 40 positions."""
    ranks = {2: [(np.tile(np.array([[0, 0], [99, 3]]), (40, 1, 1)), np.full((40, len(TOTALS)), 2))]}
    cheap = Costs(10, 1.0, 0.0, {1: 1.0, 2: 1.0, 5: 1.0}, {(2, 1): 0.1, (2, 2): 0.2})
    best = choices(ranks, cheap, (1, 2), (1, 2, 4))[0]
    assert (best.depth, best.total, best.tau) == (2, 4, pytest.approx(40 / 14)) and best.speedup > 2
    dear = replace(cheap, verify={1: 1.0, 2: 1.2, 5: 3.0})
    assert (choices(ranks, dear, (1, 2), (1, 2, 4))[0].depth, choices(ranks, dear, (1, 2), (1, 2, 4))[0].total) == (1, 1)


def test_only_a_draft_that_stops_early_is_charged_less_than_all_its_levels() -> None:
    """Every draft could end after one of its two levels."""
    ranks = {2: [(np.tile(np.array([[0, 0], [99, 3]]), (40, 1, 1)), np.full((40, len(TOTALS)), 1))]}
    costs = Costs(10, 1.0, 0.0, {1: 1.0, 5: 1.0}, {(2, 1): 0.1, (2, 2): 0.2})
    whole, stopped = (choices(ranks, costs, (2,), (2,), stops)[0] for stops in (False, True))
    assert (whole.c_draft, whole.stop_early, stopped.c_draft, stopped.stop_early) == (0.2, False, 0.1, True)
    assert whole.tau == stopped.tau


def test_costs_cover_what_was_asked_and_lie_between_their_neighbours() -> None:
    tiny = shared_tiny_model("float32")
    costs = measure_costs(tiny.loaded, 40, (2, 4), (1, 3), 0.0, None, rounds=2, rows=(1, 8, 16))
    assert set(costs.verify) == {1, 8, 16} and set(costs.draft) == {(2, 1), (2, 3), (4, 1), (4, 3)}
    assert min(*costs.verify.values(), *costs.draft.values(), costs.step) > 0
    assert costs.verify_s(12) == pytest.approx((costs.verify[8] + costs.verify[16]) / 2)


# ---- where it is kept ----


PREDICTED = {"tau": 2.0, "speedup": 1.5}


def test_an_entry_is_found_again_by_all_of_its_key_and_a_newer_one_replaces_it(tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    tuned.save(tuned.Entry(KEY, {"total": 4}, PREDICTED), file)
    tuned.save(tuned.Entry(replace(KEY, temperature=1.0), {"total": 5}, PREDICTED), file)
    tuned.save(tuned.Entry(KEY, {"total": 6}, PREDICTED), file)
    assert tuned.lookup(KEY, file).options == {"total": 6} and len(json.loads(file.read_text())) == 2
    for change in ({"machine": "Other CPU"}, {"head": "cd"}, {"threads": 2}, {"dtype": "bfloat16"}, {"temperature": 0.5}):
        with pytest.raises(UserError, match="harness tune --model tiny"):
            tuned.lookup(replace(KEY, **change), file)


def test_a_spoilt_list_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    row = {"key": asdict(KEY), "options": {"total": 4}, "predicted": PREDICTED}
    spoilt_rows: list[Any] = [
        row | {"predicted": {"tau": 2.0}}, row | {"predicted": PREDICTED | {"tau": "2.0"}}, row | {"options": [4]}, 1, "k", None,
        row | {"predicted": PREDICTED | {"speedup": float("nan")}}, row | {"key": row["key"] | {"temperature": "0"}},
        row | {"key": row["key"] | {"threads": None}}, row | {"key": row["key"] | {"machine": 5}},
    ]  # fmt: skip
    spoilt_files = ('[{"key": {}}]', "{}", "null", "[" * 100_000, "rubbish", *(json.dumps([r]) for r in spoilt_rows))
    for spoilt in spoilt_files:
        file.write_text(spoilt)
        with pytest.raises(UserError, match="no list of tuned presets"):
            tuned.lookup(KEY, file)
    file.write_text(json.dumps([row]))
    assert tuned.lookup(KEY, file).predicted == PREDICTED


def test_a_preset_of_other_options_than_the_method_has_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuned before `stop_early` was an option, when drafts on a CPU stopped early: run with the default it would be another."""
    isolate(monkeypatch, tmp_path)
    config = model_config(str(TINY))
    key = tuned.tuned_key(config, "eagle2", config.head_folder, temperature=0.0, dtype="float32", threads=1)
    older = {"top_k": 2, "depth": 2, "total": 4}
    tuned.save(tuned.Entry(key, older, PREDICTED))
    refused(run(tmp_path / "out", "--method eagle2 --task gsm8k --preset tuned"), "its options were others (stop_early)",
            f"harness tune --model {TINY} --method eagle2")  # fmt: skip
    tuned.save(tuned.Entry(key, older | {"stop_early": True}, PREDICTED))
    assert run(tmp_path / "out", "--method eagle2 --task gsm8k --preset tuned --limit 1").code == 0
    (r, *_) = [r for r in records.read(tmp_path / "out") if r["method"] == "eagle2"]
    assert r["options"] == older | {"stop_early": True}


@pytest.mark.parametrize("file", sorted((ROOT / "models").glob("*.tuned.json")), ids=lambda file: file.name)
def test_every_shipped_preset_names_all_options_of_its_method(file: Path) -> None:
    assert all(tuned.is_current(entry) for entry in tuned.stored(file))


# ---- the command ----


def test_tuning_says_when_prompts_it_must_not_use_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    said: list[str] = []
    monkeypatch.setattr(command, "say", said.append)
    texts = command.checked_prompts({"gsm8k/paper": ["one", "two"], "alpaca/bundled": ["three"]})
    assert texts == ["one", "two", "three"]
    assert said == ["warning: the paper's prompts of mt_bench, humaneval, alpaca, cnn_dm, natural_questions are not here, so "
                    "overlap with them is not checked"]  # fmt: skip


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Held-out prompts without ShareGPT, few timings, and an empty cache."""
    isolate(monkeypatch, tmp_path)
    questions = shared_tiny_model("float32").prompts[:2]
    monkeypatch.setattr(
        tuning, "held_out_prompts", lambda loaded, n, longest, evaluation: [q for q in questions[:n] if len(q) <= longest]
    )
    monkeypatch.setattr(costs, "ROUNDS", 1)


def test_tune_finds_a_preset_that_run_and_a_tier_then_take(
    prompts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"--model {TINY} --dtype float32 --threads 1 --max-new-tokens 12 --conversations 2 --temperature 0"
    missing = run(tmp_path / "out", "--method eagle2 --task gsm8k --preset tuned")
    refused(missing, "no tuned preset of eagle2 for tiny at T = 0", f"harness tune --model {TINY} --method eagle2")
    found = harness("tune", command)
    assert found.code == 0, found.err
    assert "1." in found.out and "paper" in found.out and "decode speedup" in found.out
    made = run(tmp_path / "out", "--method eagle2 --method eagle2-no-both --task gsm8k --preset tuned --json")
    assert made.code == 0, made.err
    assert {m: c["preset"] for (m, _), c in made.cells.items()} == {"eagle2": "tuned", "eagle2-no-both": "paper"}
    (entry,) = json.loads((tmp_path / "cache" / "tuned.json").read_text())
    assert entry["options"]["stop_early"] is True
    assert {k: made.cells["eagle2", "gsm8k"]["settings"][k] for k in entry["options"]} == entry["options"]
    assert "predicted" in made.err and "measured" in made.err
    row = RunRequest(methods=("eagle2",), tasks=("gsm8k",), limit=1, beside=tiers.TUNED, on_overflow="skip")
    monkeypatch.setitem(tiers.TIERS, "small", (row, replace(row, temperature=1.0)))
    tier = harness("matrix --tier small", "--model", TINY, "--source bundled --max-new-tokens 6 --dtype float32 --threads 1",
                   "--out", tmp_path / "tier")  # fmt: skip
    assert tier.code == 0, tier.err
    trees = {(r["method"], r["preset"], r["temperature"]) for r in records.read(tmp_path / "tier")}
    assert trees == {(m, "paper", t) for m in ("vanilla", "eagle2") for t in (0.0, 1.0)} | {("eagle2", "tuned", 0.0)}
    assert (
        "left out at T = 1, as not tuned for this machine: sps, pld," in tier.err
        and "T = 0: predicted" in tier.err
        and "T = 1: predicted" not in tier.err
    )
    refused(run(tmp_path / "out", "--method eagle2 --task gsm8k --preset tuned --temperature 1"), "T = 1")
    every = run(tmp_path / "every", "--method all --task gsm8k --preset tuned")
    assert every.code == 0 and "left out: " in every.err
    presets = {(r["method"], r["preset"]) for r in records.read(tmp_path / "every")}
    untunable = {m for m in methods.names(exact=True) if not methods.get(m).tunable}
    assert ("eagle2", "tuned") in presets and {m for m, _ in presets} == {"vanilla", "eagle2"} | untunable
    refused(run(tmp_path / "none", "--method all --task gsm8k --preset tuned --temperature 1"), "was tuned for this machine")


def test_a_race_has_the_tau_of_each_candidate_and_the_speeds_of_one_process(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.replay.race.HOPELESS", 0.0)  # both to the end
    pld = methods.get("pld")
    tried = [dict(pld.options) | {"n_draft": n} for n in (1, 10)]
    found = race(tiny.loaded, pld, tried, temperature=0.0, prompts=tiny.prompts[:3], max_new_tokens=24)
    assert found == sorted(found, key=lambda r: -r.speedup) and min(r.speedup for r in found) > 0
    for r in found:
        tokens = forwards = 0
        for i, prompt in enumerate(tiny.prompts[:3]):
            params = SamplerParams(24, frozenset({0, 2}), key=stream_key(0, f"tune/{i}", 1, 0))
            made = tiny.decode("pld", prompt, params, **r.options)
            assert made.trace is not None
            tokens, forwards = tokens + len(made.token_ids) - 1, forwards + len(made.trace.accepted)
        assert r.tau == pytest.approx(tokens / forwards)


class Sleepy:
    """A target that sleeps before it verifies."""

    def __init__(self, target: Any):
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def verify(self, tree: Tree) -> Any:
        time.sleep(0.1)
        return self._target.verify(tree)


def test_what_is_far_behind_leaves_the_race(tiny: TinyModel) -> None:
    pld, decoded = methods.get("pld"), Counter[int]()

    def build(n_draft: int) -> Decode:
        decode = pld.build(n_draft=n_draft)

        def counted(ids: list[int], target: Any, *given: Any) -> Any:
            decoded[n_draft] += 1
            return decode(ids, Sleepy(target) if n_draft == 10 else target, *given)

        return counted

    slow = replace(pld, build=build)
    tried = [{"n_draft": n} for n in (10, 2)]
    found = race(tiny.loaded, slow, tried, temperature=0.0, prompts=tiny.prompts[:5], max_new_tokens=8)
    assert decoded == {2: 1 + 5, 10: 1 + FAIR_TRIAL}  # the first prompt warms up
    assert [r.options["n_draft"] for r in found] == [2, 10] and 0 < found[1].speedup < HOPELESS * found[0].speedup


def test_a_method_without_a_dynamic_tree_is_tuned_by_decoding_with_its_candidates(prompts: None, tmp_path: Path) -> None:
    command = f"--method pld --model {TINY} --dtype float32 --threads 1 --max-new-tokens 8 --conversations 50"
    found = harness("tune", command)
    assert found.code == 0, found.err
    assert "only 2 held-out prompts are there; --conversations is 50" in found.err
    assert "pld on tiny, T = 0" in found.out and "(its defaults): tau" in found.out and "n_draft=3 max_ngram" not in found.err
    assert found.out.count("decode speedup") == 1 + len(methods.get("pld").candidates)
    made = run(tmp_path / "out", "--method pld --task gsm8k --preset tuned --json")
    assert made.code == 0, made.err
    (entry,) = json.loads((tmp_path / "cache" / "tuned.json").read_text())
    assert entry["predicted"]["conversations"] == 2  # those there were, not those asked for
    assert made.cells["pld", "gsm8k"]["settings"] == entry["options"] and made.cells["pld", "gsm8k"]["preset"] == "tuned"


def test_all_tunes_every_exact_method_with_weights_here_once(
    prompts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(loaded: Loaded, job: tuning.Job, *rest: object) -> tuning.Found:
        arm = job.arm
        if arm.name == "lookahead":
            raise UserError("lookahead cannot be raced")
        assert arm.method.drafter is None or loaded.drafter_of(arm.method.drafter) is not None
        return tuning.Found(dict(arm.options), {"tau": 2.0, "speedup": 1.5})

    monkeypatch.setattr(tuning, "_replayed", found)
    monkeypatch.setattr(tuning, "_raced", found)
    bare = tiny_copy(tmp_path / "bare", drafters="{medusa: medusa}")
    command = f"--model {bare} --dtype float32 --threads 1 --max-new-tokens 8 --conversations 2 --temperature 0"
    first = harness("tune --method all", command)
    assert first.code == 0, first.err
    saved = {(e["key"]["method"], e["key"]["temperature"]) for e in json.loads((tmp_path / "cache" / "tuned.json").read_text())}
    assert saved == {(m, 0.0) for m in ("pld", "medusa", "eagle1", "eagle2", "eagle2-fr")}  # exact, with weights
    assert "left out: method sps needs" in first.err and "left out: lookahead cannot be raced" in first.err
    more = harness("tune --method all --method pld --temperature 1", command)
    assert more.code == 0, more.err
    assert more.err.count("was tuned before") == 4 and "pld at T = 0 was" not in more.err  # by name: once more
    assert more.err.count("saved in") == 5 + 1
    elsewhere = harness("tune --method all --save", tmp_path / "own.json", command)
    assert elsewhere.code == 0 and "tuned before" not in elsewhere.err and elsewhere.err.count("saved in") == 5
    spoilt = tiny_copy(tmp_path / "spoilt", drafters="{medusa: nowhere}")
    refused(harness(f"tune --method all --model {spoilt}"), f"there is no {tmp_path / 'spoilt' / 'nowhere'}", "harness fetch")


@pytest.mark.parametrize("name", [n for n in methods.names() if methods.get(n).candidates])
def test_candidates_are_options_that_the_method_can_be_built_with(name: str) -> None:
    m = methods.get(name)
    for changes in m.candidates:
        assert set(changes) <= set(m.options) and m.build(**{**m.options, **changes})


@pytest.mark.parametrize(
    "case",
    [
        ["--method all --method vanilla", "no options that can be tuned; these have: eagle1, eagle2, eagle2-fr, hydra"],
        ["--method eagle4", "unknown method 'eagle4'"],
        [f"--method eagle2 --head {TINY.parent / 'medusa'}", "holds a set of Medusa heads, and none of eagle2 drafts with one"],
        ["--temperature -1", "--temperature is -1"],
        ["--conversations 0", "--conversations is 0"],
        ["--dtype int4", "unknown dtype"],
        ["--max-new-tokens 1", "--max-new-tokens is 1"],
        ["--max-new-tokens 2560 --method pld", "no held-out prompt of at most 0 tokens"],
        ["--max-new-tokens 2560", "no held-out prompt of at most 0 tokens"],
        ["--save /proc/none/tuned.json", "cannot save in /proc/none/tuned.json"],
    ],
    ids=lambda case: case[0],
)
def test_bad_input_to_tune_is_one_line(case: list[str], prompts: None) -> None:
    refused(harness("tune", f"--model {TINY}", case[0]), case[1])
