"""`harness tune`: what is replayed is what decoding does; the race that settles it, and the preset that its winner becomes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from command_line import harness, isolate, refused, run, tiny_copy
from hypothesis import given
from made_up_costs import at, figure, table
from places import ROOT, TINY
from tiny_model import TinyModel, shared_tiny_model

import methods
from harness.common.errors import UserError
from harness.costs import measure, outside
from harness.costs.price import step_costs
from harness.costs.step import StepWork
from harness.costs.table import CostTable, OfDrafter, Outside, read
from harness.ledger import ledger as records
from harness.ledger.tuned_presets import Entry, Key, save, stored
from harness.load.config import model_config
from harness.load.engine import expected_engine
from harness.load.model import Loaded
from harness.metrics.intervals import MIN_UNITS
from harness.replay import tune as tuning
from harness.replay.pools import ABSENT, TOTALS, answer_ranks, drafter_over, levels_run, path_ranks, replayed_tau
from harness.replay.prompts import LEAST, Prompt, parts_of, vanilla_answers
from harness.replay.race import FAIR_TRIAL, HOPELESS, Raced, race
from harness.replay.trees import choices
from harness.run import tiers, tuned
from harness.run.request import RunRequest
from methods import Arm
from methods.base import Decode, SamplerParams
from methods.engine.grow import dynamic_tree
from methods.engine.loop import Context
from methods.engine.sampling import Chooser, stream_key
from methods.engine.tree import Tree
from tasks import overlap as command

FIGURES = {"tau": 2.0, "speedup": 1.5}
N = sum(LEAST)  # the fewest conversations that can be tuned on


def numbered(prompts: Sequence[list[int]]) -> list[Prompt]:
    return [Prompt(i, ids) for i, ids in enumerate(prompts)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("method", "frequent"), [("eagle2", None), ("eagle2-fr", 200), ("eagle3", None)])
def test_a_replay_has_the_tau_of_the_decode_it_stands_for(
    temperature: float, method: str, frequent: int | None, tiny: TinyModel
) -> None:
    """Ranks of one deep pool give the tau of every shallower and smaller tree, as decoding with that tree would."""
    answers = vanilla_answers(tiny.loaded, numbered(tiny.prompts[:4]), temperature, 24)
    for top_k in (2, 5):
        kind = methods.get(method).drafter or ""
        drafts = [answer_ranks(drafter_over(tiny.loaded, a, 10, 5, frequent, kind), a, top_k, 5) for a in answers]
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
    (answer,) = vanilla_answers(tiny.loaded, numbered(tiny.prompts[:1]), 0.0, 12)
    _, run = answer_ranks(drafter_over(tiny.loaded, answer, 10, 6, None), answer, 3, 6)
    text, n = [*answer.prompt.ids, *answer.ids], len(answer.prompt.ids)
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


def costs(plain: float, verify: dict[int, float], root: float, level: dict[int, float], *outside_ms: float) -> CostTable:
    """Milliseconds; accepted tokens cost nothing. outside_ms: of a step, level, row, node and token."""
    free = outside_ms or (0.0,) * 5
    exact = {n: (ms, ms, ms) for n, ms in verify.items()}
    own = at(
        10, (plain,) * 3, verify=exact, root=(root,) * 3, level={n: (ms,) * 3 for n, ms in level.items()}, observe={1: (0, 0, 0)}
    )
    return table(own, outside=Outside(plain=0, **dict(zip(("step", "level", "row", "node", "token"), free, strict=True))))


def test_the_best_tree_is_the_one_with_the_most_tokens_a_second() -> None:
    """Two tokens deep, the first of rank 0 and the second of rank 3, at each of 40 positions."""
    ranks = {2: [(np.tile(np.array([[0, 0], [99, 3]]), (40, 1, 1)), np.full((40, len(TOTALS)), 2))]}
    cheap = costs(1.0, {1: 1.0, 2: 1.0, 5: 1.0}, 0.1, {2: 0.1})
    best = choices(ranks, cheap, 10, (1, 2), (1, 2, 4))[0]
    assert (best.depth, best.total, best.tau) == (2, 4, pytest.approx(40 / 14)) and best.speedup > 2
    (first, *_) = choices(ranks, costs(1.0, {1: 1.0, 2: 1.2, 5: 3.0}, 0.1, {2: 0.1}), 10, (1, 2), (1, 2, 4))
    assert (first.depth, first.total) == (1, 1)


def test_only_a_draft_that_stops_early_is_charged_less_than_all_its_levels() -> None:
    """Every draft could end after one of its two levels."""
    ranks = {2: [(np.tile(np.array([[0, 0], [99, 3]]), (40, 1, 1)), np.full((40, len(TOTALS)), 1))]}
    found = (choices(ranks, costs(1.0, {1: 1.0, 5: 1.0}, 0.1, {2: 0.1}), 10, (2,), (2,), stops)[0] for stops in (False, True))
    whole, stopped = found
    assert (whole.c_draft, whole.stop_early, stopped.c_draft, stopped.stop_early) == (pytest.approx(0.2), False, 0.1, True)
    assert whole.tau == stopped.tau


def test_what_is_outside_both_models_makes_a_step_dearer_and_a_smaller_tree_the_best() -> None:
    """Every level, row, node and token has its price; the same drafts as above."""
    ranks = {2: [(np.tile(np.array([[0, 0], [99, 3]]), (40, 1, 1)), np.full((40, len(TOTALS)), 2))]}
    inside = 2.0, {1: 2.0, 5: 2.0}, 0.2, {2: 0.2}
    (best,) = [c for c in choices(ranks, costs(*inside, 0.1, 0.02, 0.03, 0.04, 0.05), 10, (2,), (4,)) if c.total == 4]
    assert best.tau == pytest.approx(40 / 14)
    assert best.c_other == pytest.approx((0.1 + 2 * 0.02 + (1 + 2) * 0.03 + 4 * 0.04 + best.tau * 0.05) / 2)
    assert best.cost == pytest.approx(1 + 0.2 + best.c_other) and best.speedup == pytest.approx(best.tau / best.cost)
    free, dear_nodes = costs(*inside), costs(*inside, 0.0, 0.0, 0.0, 2.0, 0.0)
    assert [choices(ranks, t, 10, (1, 2), (1, 4))[0].total for t in (free, dear_nodes)] == [4, 1]


def test_a_tree_on_an_eagle3_head_is_charged_what_that_head_costs() -> None:
    ranks = {2: [(np.tile(np.array([[0, 0], [99, 3]]), (40, 1, 1)), np.full((40, len(TOTALS)), 2))]}
    own = costs(1.0, {1: 1.0, 5: 1.0}, 0.1, {2: 0.1}).contexts[0]
    dearer = {"root": (0.3,) * 3, "levels": [{2: (0.4,) * 3}], "observe": {1: (0, 0, 0)}, "prefill": (0, 0, 0)}
    both = table(own.model_copy(update={"drafters": {"eagle3": OfDrafter.model_validate(dearer)}}),
                 outside=Outside(plain=0, step=0, level=0, row=0, node=0, token=0))  # fmt: skip
    drafted = {kind: choices(ranks, both, 10, (2,), (2,), kind=kind)[0] for kind in ("eagle", "eagle3")}
    assert [drafted[kind].c_draft for kind in drafted] == pytest.approx([0.2, 0.7])


def test_what_tune_predicts_of_a_step_is_what_the_table_of_costs_has() -> None:
    """At any context, and each level of a draft at the price of its own nodes."""
    t, ranks = table(at(100), at(300, plain=14, level={1: figure(3), 10: figure(7)})), np.zeros((40, 3, 3), dtype=np.int64)
    drafts = {k: [(ranks, np.full((40, len(TOTALS)), 3))] for k in (2, 10)}
    for c in choices(drafts, t, 170, (1, 2, 3), (1, 8, 59)):
        wanted = step_costs(t, StepWork(c.total + 1, (c.top_k,) * (c.depth - 1), 1), c.tau, 170)
        assert (c.c_verify, c.c_draft, c.c_other) == pytest.approx((wanted.verify, wanted.draft, wanted.other))
        assert c.speedup == pytest.approx(wanted.speedup(c.tau).value)


# ---- the conversations ----


@given(n=st.integers(N, 60))
def test_every_conversation_is_in_one_part_and_the_last_part_is_large_enough_for_an_interval(n: int) -> None:
    prompts = [[i] for i in range(n)]
    parts = parts_of(prompts)
    assert [p.ids for p in (*parts.rank, *parts.choose, *parts.measure)] == prompts
    assert [p.number for p in (*parts.rank, *parts.choose, *parts.measure)] == list(range(n))
    assert len(parts.rank) == len(parts.choose) >= 2 and len(parts.measure) >= MIN_UNITS
    assert len(parts.measure) >= n / 2


def test_too_few_conversations_say_how_many_there_are_and_are_needed() -> None:
    with pytest.raises(UserError, match=rf"^8 held-out conversations are too few .* at least {N} are needed, 2 to rank"):
        parts_of([[1]] * (N - 1))


# ---- the preset ----


def test_a_preset_of_other_options_than_the_method_has_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuned before `stop_early` was an option, when drafts on a CPU stopped early: run with the default it would be another."""
    isolate(monkeypatch, tmp_path)
    config = model_config(str(TINY))
    key = tuned.tuned_key(config, "eagle2", config.head_folder, temperature=0.0, dtype="float32", threads=1)
    older = {"top_k": 2, "depth": 2, "total": 4}
    key = replace(key, engine=expected_engine(config, "float32"))
    save(Entry(key, older, FIGURES, FIGURES), tuned.found_here())
    refused(run(tmp_path / "out", "--method eagle2 --task gsm8k --preset tuned"), "its options were others (stop_early)",
            f"harness tune --model {TINY} --method eagle2")  # fmt: skip
    save(Entry(key, older | {"stop_early": True}, FIGURES, FIGURES), tuned.found_here())
    assert run(tmp_path / "out", "--method eagle2 --task gsm8k --preset tuned --limit 1").code == 0
    (r, *_) = [r for r in records.read(tmp_path / "out") if r["method"] == "eagle2"]
    assert r["options"] == older | {"stop_early": True}


@pytest.mark.parametrize("file", sorted((ROOT / "models").glob("*.tuned.json")), ids=lambda file: file.name)
def test_every_shipped_preset_names_all_options_of_its_method(file: Path) -> None:
    assert all(tuned.is_current(entry) for entry in stored(file))


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
    questions = sorted(shared_tiny_model("float32").prompts, key=len)[:N]
    monkeypatch.setattr(
        tuning, "held_out_prompts", lambda loaded, n, longest, evaluation: [q for q in questions[:n] if len(q) <= longest]
    )
    monkeypatch.setattr("harness.replay.trees.ROUNDS", 1)
    monkeypatch.setattr(outside, "PROBES", ((1, 1, 1), (2, 2, 4)))
    monkeypatch.setattr(measure, "PROBED", 1)
    monkeypatch.setattr("harness.replay.trees.TOP_KS", (2, 10))


def test_tune_finds_a_preset_that_run_and_a_tier_then_take(
    prompts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"--model {TINY} --dtype float32 --threads 1 --max-new-tokens 12 --conversations {N} --temperature 0"
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
    assert "raced on held-out training prompts: tau" in made.err and "measured here" in made.err
    row = RunRequest(methods=("eagle2",), tasks=("gsm8k",), limit=1, beside=tiers.TUNED, on_overflow="skip")
    monkeypatch.setitem(tiers.TIERS, "small", (row, replace(row, temperature=1.0)))
    tier = harness("matrix --tier small", "--model", TINY, "--source bundled --max-new-tokens 6 --dtype float32 --threads 1",
                   "--out", tmp_path / "tier")  # fmt: skip
    assert tier.code == 0, tier.err
    trees = {(r["method"], r["preset"], r["temperature"]) for r in records.read(tmp_path / "tier")}
    assert trees == {(m, "paper", t) for m in ("vanilla", "eagle2") for t in (0.0, 1.0)} | {("eagle2", "tuned", 0.0)}
    assert (
        "left out at T = 1, as not tuned for this machine: sps, pld," in tier.err
        and "T = 0: raced" in tier.err
        and "T = 1: raced" not in tier.err
    )
    refused(run(tmp_path / "out", "--method eagle2 --task gsm8k --preset tuned --temperature 1"), "T = 1")
    every = run(tmp_path / "every", "--method all --task gsm8k --preset tuned")
    assert every.code == 0 and "left out: " in every.err
    presets = {(r["method"], r["preset"]) for r in records.read(tmp_path / "every")}
    untunable = {m for m in methods.names(exact=True) if not methods.get(m).tunable}
    assert ("eagle2", "tuned") in presets and {m for m, _ in presets} == {"vanilla", "eagle2"} | untunable
    refused(run(tmp_path / "none", "--method all --task gsm8k --preset tuned --temperature 1"), "was tuned for this machine")


def test_tune_takes_a_table_of_costs_and_no_other_machines(prompts: None, tmp_path: Path) -> None:
    on_tiny = f"--model {TINY} --dtype float32 --threads 1"
    made = harness(f"costs {on_tiny} --context 64 --rounds 1 --out", tmp_path / "costs")
    assert made.code == 0, made.err
    (file,) = (tmp_path / "costs").rglob("*.json")
    plain = read(file).at(64, lambda c: c.plain).ms
    of_tune = f"tune {on_tiny} --max-new-tokens 12 --conversations {N}"
    found = harness(of_tune, "--costs", file)
    assert found.code == 0 and "measuring tiny" not in found.err, found.err
    (entry,) = json.loads((tmp_path / "cache" / "tuned.json").read_text())
    outside_ms = read(file).outside.plain
    assert entry["predicted"]["step_ms"] == pytest.approx(plain + outside_ms, abs=0.01)  # at the one context there is
    refused(harness(of_tune, "--temperature 1 --costs", file), f"--costs {file}: no costs of tiny on", "T = 1 there")
    refused(harness(of_tune, "--method eagle2-fr --costs", file), "drafts over 8,192 frequent tokens")
    refused(harness(of_tune, "--method pld --costs", file), "--costs is for dynamic trees, which are replayed")


def test_a_race_has_the_tau_of_each_candidate_and_the_speeds_of_one_process(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.replay.race.HOPELESS", 0.0)  # both to the end
    pld = methods.get("pld")
    tried = [dict(pld.options) | {"n_draft": n} for n in (1, 10)]
    found = race(tiny.loaded, pld, tried, temperature=0.0, prompts=numbered(tiny.prompts[:3]), max_new_tokens=24)
    assert found == sorted(found, key=lambda r: -r.rank) and min(r.rank for r in found) > 0
    for r in found:
        tokens = forwards = 0
        for i, prompt in enumerate(tiny.prompts[:3]):
            params = SamplerParams(24, frozenset({0, 2}), key=stream_key(0, f"tune/{i}", 1, 0))
            made = tiny.decode("pld", prompt, params, **r.options)
            assert made.trace is not None
            tokens, forwards = tokens + len(made.token_ids) - 1, forwards + len(made.trace.accepted)
        assert r.tau.value == pytest.approx(tokens / forwards)


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
    found = race(tiny.loaded, slow, tried, temperature=0.0, prompts=numbered(tiny.prompts[:5]), max_new_tokens=8)
    assert decoded == {2: 1 + 5, 10: 1 + FAIR_TRIAL}  # the first prompt warms up
    assert [r.options["n_draft"] for r in found] == [2, 10] and 0 < found[1].rank < HOPELESS * found[0].rank


def test_the_race_decides_and_what_is_stored_is_measured_where_nothing_was_chosen(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven were ranked. The race turns their order round, and on the last part the winner is slower than it was before."""
    raced: list[tuple[list[int], list[int]]] = []

    def made_up(loaded: Loaded, m: methods.Method, tried: Sequence[Any], *, prompts: Sequence[Prompt], **_: Any) -> list[Raced]:
        raced.append(([options["n_draft"] for options in tried], [p.number for p in prompts]))
        speed = {options["n_draft"]: options["n_draft"] if len(tried) > 1 else 1.25 for options in tried}
        found = [
            Raced(options, np.array([[10 / speed[options["n_draft"]], 10, 5, 10, 10, 10]] * len(prompts)).T) for options in tried
        ]
        return sorted(found, key=lambda r: -r.rank)

    monkeypatch.setattr(tuning, "race", made_up)
    told: list[str] = []
    pld = methods.get("pld")
    key = Key("tiny", "t", "", "pld", 0.0, "float32", 1, "Some CPU", "lean")
    common = tuning.Tuning(tiny.loaded, parts_of([[1, 2]] * 12), 8, told.append)
    ranked = [tuning.Ranked({**pld.options, "n_draft": n}, {"tau": 2.2, "speedup": 3 - n / 4}) for n in range(1, 6)]
    found = tuning._settled(common, tuning.Job(Arm(pld, "paper", pld.options), key), ranked)
    assert raced == [([1, 2, 3, 4, 5], [3, 4, 5]), ([5], [6, 7, 8, 9, 10, 11])]
    assert found.options["n_draft"] == 5 and found.predicted == {"tau": 2.2, "speedup": 1.75}
    assert (found.raced["tau"], found.raced["speedup"], found.raced["speedup_ci95"]) == (2.0, 1.25, [1.25, 1.25])
    assert (found.raced["conversations"], found.raced["chosen_on"]) == (6, 3)
    assert told[-1].strip() == "predicted: tau 2.20 (+10.0%), decode speedup 1.75x (+40.0%); cost of a step -21.4%"


def test_a_method_without_a_dynamic_tree_is_tuned_by_decoding_with_its_candidates(prompts: None, tmp_path: Path) -> None:
    command = f"--method pld --model {TINY} --dtype float32 --threads 1 --max-new-tokens 8 --conversations 50"
    found = harness("tune", command)
    assert found.code == 0, found.err
    assert f"only {N} held-out prompts are there; --conversations is 50" in found.err
    assert "pld on tiny, T = 0" in found.out and "(its defaults): tau" in found.out and "n_draft=3 max_ngram" not in found.err
    ranked, chosen, measured = (
        found.out.index(part) for part in ("predicted on 2", "raced on 2 others, to", "raced on 5 others")
    )
    assert found.out[ranked:chosen].count("decode speedup") == 1 + len(methods.get("pld").candidates)
    assert found.out[chosen:measured].count("decode speedup") == tuning.RACED
    assert "predicted: tau" in found.out[measured:] and "cost of a step" in found.out[measured:]
    made = run(tmp_path / "out", "--method pld --task gsm8k --preset tuned --json")
    assert made.code == 0, made.err
    (entry,) = json.loads((tmp_path / "cache" / "tuned.json").read_text())
    # those there were, not those asked for
    assert (entry["predicted"]["conversations"], entry["raced"]["chosen_on"], entry["raced"]["conversations"]) == LEAST
    low, high = entry["raced"]["speedup_ci95"]
    assert (
        low < high
        and entry["key"]["engine"] == expected_engine(model_config(str(TINY)), "float32")
        and entry["predicted"]["by"] == "decoding"
    )
    assert made.cells["pld", "gsm8k"]["settings"] == entry["options"] and made.cells["pld", "gsm8k"]["preset"] == "tuned"


def test_all_tunes_every_exact_method_with_weights_here_once(
    prompts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(common: tuning.Tuning, job: tuning.Job) -> tuning.Found:
        arm = job.arm
        if arm.name == "lookahead":
            raise UserError("lookahead cannot be raced")
        assert arm.method.drafter is None or common.loaded.drafter_of(arm.method.drafter) is not None
        return tuning.Found(dict(arm.options), FIGURES, FIGURES)

    monkeypatch.setattr(tuning, "_found", found)
    bare = tiny_copy(tmp_path / "bare", drafters="{medusa: medusa}")
    command = f"--model {bare} --dtype float32 --threads 1 --max-new-tokens 8 --conversations {N} --temperature 0"
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
        ["--method all --method vanilla", "no options that can be tuned; these have: eagle1, eagle2, eagle2-fr, eagle3, hydra"],
        ["--method eagle4", "unknown method 'eagle4'"],
        [f"--method eagle2 --head {TINY.parent / 'medusa'}", "holds a set of Medusa heads, and none of eagle2 drafts with one"],
        ["--temperature -1", "--temperature is -1"],
        ["--conversations 0", "--conversations is 0"],
        ["--conversations 8", "--conversations is 8; tuning takes at least 9: 2 to rank options on, 2 others to choose on"],
        ["--dtype int4", "unknown dtype"],
        ["--max-new-tokens 1", "--max-new-tokens is 1"],
        ["--max-new-tokens 2560 --method pld", "no held-out prompt of at most 0 tokens"],
        ["--max-new-tokens 2560", "no held-out prompt of at most 0 tokens"],
        ["--costs nowhere", "--costs nowhere: no such file or folder"],
        ["--save /proc/none/tuned.json", "cannot save in /proc/none/tuned.json"],
    ],
    ids=lambda case: case[0],
)
def test_bad_input_to_tune_is_one_line(case: list[str], prompts: None) -> None:
    refused(harness("tune", f"--model {TINY}", case[0]), case[1])
