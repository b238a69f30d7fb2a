"""`harness predict`: the arithmetic, the verdicts, the published splits, and what it says of bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import harness, isolate, refused, run
from made_up_costs import at, figure, table
from places import TINY

import methods
from harness.common.errors import UserError
from harness.costs.price import step_costs
from harness.costs.splits import checked, points
from harness.costs.step import StepWork
from harness.costs.table import Outside, as_json
from harness.costs.work import work_of
from harness.ledger.ledger import RECORDS, write_env
from harness.load.config import model_config
from harness.paper import held_against
from harness.paper.held_against import against
from harness.paper.prediction import (
    PROMPTS,
    Lengths,
    chain_rates,
    deeper_levels,
    end_to_end,
    predict,
    predictions_of,
    published_trees,
)
from harness.paper.prediction_tables import held_table
from harness.paper.published import ITEMS, cells
from harness.paper.tables_1_3 import judged_table
from harness.paper.verdict import ReportedModel, judge
from methods.eagle1 import SHAPE

SMALL_COSTS = f"--model {TINY} --dtype float32 --threads 1 --context 32 --rounds 1"
TEXT = "how often it drafts depends on the text or on what its heads say of themselves, or its options' costs are not here"
NOTHING_OUTSIDE = Outside(plain=0, step=0, level=0, row=0, node=0, token=0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


# ---- what a step does ----


@pytest.mark.parametrize(
    ("name", "options", "temperature", "work"),
    [
        ("vanilla", {}, 0.0, StepWork(1, is_plain=True)),
        ("eagle2", {}, 0.0, StepWork(60, (10,) * 5, 1)),
        ("eagle2", {"top_k": 3, "depth": 2, "total": 7}, 1.0, StepWork(8, (3,), 1)),
        ("eagle2-no-both", {}, 0.0, StepWork(60, (10,) * 5, 1)),
        ("eagle1", {}, 0.0, StepWork(26, (4, 8, 8, 3), 1)),
        ("eagle1", {"shape": "0 00"}, 1.0, StepWork(3, (1,), 1)),
        ("eagle1-top", {"shape": "0 00"}, 1.0, StepWork(3, (1,), 1)),
        ("sps", {}, 0.0, StepWork(6, (1,) * 4, 1, drafter="lm")),
        ("sps", {"gamma": 3}, 1.0, StepWork(4, (1,) * 2, 1, drafter="lm")),
        ("medusa", {}, 0.0, StepWork(64, (1,) * 3, 1, drafter="medusa")),  # a head a level, whatever nodes it has
        ("hydra", {"tree": "0 1 00 01 000"}, 0.0, StepWork(6, (1, 1), 1, drafter="hydra")),
    ],
)
def test_what_a_step_does_is_counted(name: str, options: dict[str, Any], temperature: float, work: StepWork) -> None:
    m = methods.get(name)
    found = work_of(m, {**m.options, **options}, temperature)
    assert found is not None
    if name == "eagle1" and not options:  # which nodes have children: the shape says it
        words = SHAPE.split()
        expanded = [sum(len(w) == d and any(v[:-1] == w for v in words) for w in words) for d in range(1, 5)]
        work = StepWork(26, tuple(expanded), 1)
    assert found == work


@pytest.mark.parametrize(
    ("name", "options"),
    [("pld", {}), ("lookahead", {}), ("eagle2", {"stop_early": True}), ("medusa", {"tree": "chosen"}), ("hf-generate", {})],
)
def test_of_what_depends_on_the_text_or_on_the_heads_own_accuracies_there_is_no_such_count(
    name: str, options: dict[str, Any]
) -> None:
    m = methods.get(name)
    assert work_of(m, {**m.options, **options}) is None


@pytest.mark.parametrize(
    "name", [name for name in methods.names(group=methods.POLICIES) if name != "eagle1-top"]
)  # whose is fixed
def test_a_policys_steps_depend_on_the_text_wherever_its_costs_were_measured(name: str) -> None:
    m = methods.get(name)
    elsewhere = {"costs": "away.json@0123456789ab"} if "costs" in m.options else {}
    assert work_of(m, {**m.options, **elsewhere}) is None
    work, why = held_against._work(name, elsewhere, 0.0)
    assert work is None and "depends on the text" in why
    assert held_against._work("theirs", {}, 0.0) == (None, "a method that is not registered here")


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize(("top_k", "total"), [(10, 4), (10, 9), (10, 10), (10, 25), (2, 3), (2, 4), (3, 12), (3, 59)])
def test_a_tree_that_stops_early_has_a_count_only_where_it_never_can(top_k: int, depth: int, total: int) -> None:
    """Before the last level the nodes of all levels but the newest and the newest's best: only if these are more than are kept
    may some be out of reach. Two levels differ by ties alone: equally likely drafts all stay, of others `total` do."""
    m = methods.get("eagle2")
    above = 0 if depth <= 2 else top_k + (depth - 3) * top_k**2
    can_stop = depth > 1 and above + top_k > total
    found = work_of(m, {"top_k": top_k, "depth": depth, "total": total, "stop_early": True})
    assert (found is None) is can_stop


# ---- the arithmetic ----


def test_a_step_costs_the_sum_of_its_parts_in_plain_steps() -> None:
    t = table(at(100))
    found = step_costs(t, StepWork(60, (10,) * 5, 1), 4.0, 100)
    base = 10.1
    assert found.plain_ms == pytest.approx(base)
    assert found.verify == pytest.approx(20 / base)
    assert found.draft == pytest.approx((1.3 + 0.5 + 5 * 2) / base)
    assert found.other == pytest.approx((0.2 + 6 * 0.1 + 59 * 0.01 + 4 * 0.05) / base)
    speedup = found.speedup(4.0)
    assert speedup.value == pytest.approx(4 / found.total) and speedup.low < speedup.value < speedup.high


def test_plain_decoding_is_the_measure() -> None:
    found = step_costs(table(at(100)), StepWork(1, is_plain=True), 1.0, 100)
    assert found.total == 1 and found.speedup(1.0) == (1, 1, 1)


def test_exact_costs_give_an_exact_speedup_and_noisy_ones_the_interval_of_their_sum() -> None:
    exact = {k: (v, v, v) for k, v in {"plain": 10.0, "root": 0.0, "prefill": 1.0, "head_prefill": 0.0}.items()}
    flat = {1: (0.0, 0.0, 0.0)}
    quiet = table(at(100, **exact, level=flat, observe=flat, verify={60: (20.0, 20.0, 20.0)}), outside=NOTHING_OUTSIDE)
    noisy = table(at(100, **exact, level=flat, observe=flat, verify={60: (20.0, 18.0, 22.0)}), outside=NOTHING_OUTSIDE)
    work = StepWork(60, (1,), 1)
    assert step_costs(quiet, work, 3.0, 100).speedup(3.0) == (1.5, 1.5, 1.5)
    assert step_costs(noisy, work, 3.0, 100).speedup(3.0) == pytest.approx((1.5, 3 / 2.2, 3 / 1.8))


def test_a_head_that_was_not_measured_is_no_free_one() -> None:
    t = table(at(100, level=None, observe=None, root=None, head_prefill=None))
    with pytest.raises(ValueError, match="measured without a draft head"):
        step_costs(t, StepWork(60, (10,), 1), 4.0, 100)
    found = predict(t, model_config("vicuna-7b"), {}, Lengths(100, 100))
    assert all(p.decode is None for p in found if p.cell.method_here in ("eagle1", "eagle2"))
    assert any(p.verdict == "not predicted: no draft head was measured" for p in found)


def test_end_to_end_has_the_prefill_of_both_models() -> None:
    t = table(at(100), outside=NOTHING_OUTSIDE)
    work = StepWork(60, (10,) * 5, 1)
    costs = step_costs(t, work, 4.0, 100)
    whole = end_to_end(t, costs, work, 4.0, Lengths(100, 101))
    assert whole == pytest.approx((100 + 100 * 10) / (100 + 10 + 25 * costs.total * 10))
    assert end_to_end(t, costs, work, 4.0, Lengths(1, 10_001)) == pytest.approx(4 / costs.total, rel=0.02)
    longer = table(at(100), at(200), outside=NOTHING_OUTSIDE)
    mid = end_to_end(longer, costs, work, 4.0, Lengths(150, 101))
    assert mid == pytest.approx((150 + 100 * 10) / (150 + 15 + 25 * costs.total * 10))


def test_every_cell_of_the_tables_is_predicted_or_says_why_not() -> None:
    config = model_config("vicuna-7b")
    found = predict(table(at(100), at(1000)), config, {}, Lengths(100, 100))
    of_model = [c for i in ITEMS if i.kind == "table" for c in cells(i) if c.model == "Vicuna-7B" and c.tau]
    assert len(found) == len(of_model) > 70
    assert {p.cell.method_here for p in found if p.decode} == {
        "eagle1",
        "eagle2",
        "eagle2-no-value",
        "eagle2-no-rerank",
        "eagle2-no-both",
    }
    assert all(p.why for p in found if not p.decode)
    for p in found:
        if p.decode:
            assert p.costs and p.decode.value == pytest.approx(p.tau / p.costs.total)
            assert p.needed == pytest.approx(p.tau / (p.published or math.nan))


def test_the_verdict_is_consistent_within_5_percent_or_the_interval_and_else_says_by_how_much() -> None:
    config = model_config("vicuna-7b")
    (first, *_) = [p for p in predict(table(at(100)), config, {}, Lengths(100, 100)) if p.cell.method_here == "eagle2"]
    assert first.costs and first.published
    for scale, verdict in ((1.04, "consistent"), (1.2, "published is 17% lower"), (0.5, "published is 100% higher")):
        cost = first.tau / (first.published * scale)
        free = {1: figure(0), 10: figure(0)}
        exact = at(100, plain=(10.0,) * 3, verify={60: (10.0 * cost,) * 3}, level=free, observe=free, root=figure(0))
        t = table(exact, outside=NOTHING_OUTSIDE)
        (p, *_) = [p for p in predict(t, config, {}, Lengths(100, 100)) if p.cell.method_here == "eagle2"]
        assert p.verdict == verdict


# ---- deeper levels, published rates and times ----


def test_a_level_pays_where_it_costs_less_than_it_adds() -> None:
    t = table(at(100, level={1: figure(1)}, observe={1: figure(0)}, root=figure(1), verify={1: figure(10), 9: figure(10)}),
              outside=NOTHING_OUTSIDE)  # fmt: skip
    found = deeper_levels(t, (0.8, 0.5, 0.1), 100)
    assert [d.gain for d in found] == pytest.approx([0.8, 0.4, 0.04])
    assert [d.costs for d in found] == pytest.approx([0.1, 0.1, 0.1])
    assert [d.pays_under for d in found] == pytest.approx([0.8, 1.1 * 0.4 / 1.8, 1.2 * 0.04 / 2.2])
    assert [d.pays for d in found] == [True, True, False]
    assert [d.speedup for d in found] == pytest.approx([1.8 / 1.1, 2.2 / 1.2, 2.24 / 1.3])


def test_the_break_even_of_the_head_is_what_the_rest_of_a_level_leaves() -> None:
    found = deeper_levels(table(at(100)), (0.8, 0.7), 100)
    assert [d.break_even for d in found] == pytest.approx([d.pays_under - d.costs + d.draft for d in found])
    assert [d.pays for d in found] == [d.draft < d.break_even for d in found]
    # the head over 1 + 0.8 + 0.56 tokens, its logits and one level, in steps of 10.1 ms
    assert sum(d.draft for d in found) == pytest.approx((1 + 0.3 * 1.36 / 3 + 0.5 + 1) / 10.1)


def test_of_published_drafts_the_one_that_pays_most_comes_first() -> None:
    config = model_config("vicuna-7b")
    t, chain = table(at(100)), chain_rates(config)[0]
    cells = predict(t, config, {}, Lengths(100, 100))
    found = published_trees(chain, deeper_levels(t, chain.rates, 100), cells)
    assert {name for name, _ in found} == {*(f"a chain of {n}" for n in range(1, 6)), "EAGLE's tree", "EAGLE-2's tree"}
    assert [speed for _, speed in found] == sorted((speed for _, speed in found), reverse=True)
    (own,) = [p.decode for p in cells if (p.cell.method, p.cell.task, p.cell.temperature) == ("EAGLE-2", "MT-bench", 0.0)][:1]
    assert own and dict(found)["EAGLE-2's tree"] == own.value


def test_the_papers_rates_are_by_depth() -> None:
    found = {chain.title: chain.rates for chain in chain_rates(model_config("vicuna-7b"))}
    assert list(found) == ["Vicuna-7B, MT-bench, T = 0", "Vicuna-7B, MT-bench, T = 1"]
    assert all(len(rates) == 5 and rates[0] == max(rates) for rates in found.values())


def test_published_times_are_predicted_from_the_others() -> None:
    found = checked()
    assert {p.of for p in points()} == {"vLLM", "LTD", "RADAR"} and all(p.source for p in points())
    vllm = [c for c in found if c.what.startswith("vLLM")]
    assert len(vllm) == 6 and max(abs(c.error) for c in vllm) < 0.02
    # the line through K = 3 .. 7 has the slope (2 (12.84 - 9.82) + 12.10 - 10.71) / 10 = 0.743 and is at 11.384 for K = 5
    (first,) = [c for c in vllm if c.what.endswith(" 2 drafts")]
    assert first.predicted == pytest.approx(11.384 - 3 * 0.743)
    radar = [c for c in found if c.what.startswith("RADAR")]
    assert len(radar) == 4 and not any(c.expected for c in radar)
    (mt_bench,) = [c for c in radar if "MT-bench" in c.what]
    assert mt_bench.published == pytest.approx(8.9) and mt_bench.predicted == pytest.approx(2.75 * 2.81)


# ---- the command ----


def test_the_command_reads_a_folder_and_writes_three_tables(tmp_path: Path) -> None:
    (tmp_path / "costs/machine").mkdir(parents=True)
    (tmp_path / "costs/machine/vicuna-7b.json").write_text(as_json(table(at(100), at(1000))))
    done = harness("predict", "--costs", str(tmp_path / "costs"), "--out", str(tmp_path / "out"), "--json")
    assert done.code == 0, done.err
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        f"{n}.{s}" for n in ("predict", "levels", "splits") for s in ("md", "csv")
    }
    rows = pd.read_csv(tmp_path / "out/predict.csv")
    assert len(rows) == len(json.loads(done.out.splitlines()[-1])) and set(rows["model"]) == {"vicuna-7b"}
    assert "where the paper measured, a step cost" in done.out and "random weights" in done.out
    alone = harness("predict", "--costs", str(tmp_path / "costs/machine/vicuna-7b.json"), "--model", "Vicuna-7B")
    assert alone.code == 0 and "Vicuna-7B, T = 1" in alone.out


def test_shipped_tables_are_read_from_the_package() -> None:
    done = harness("predict", "--model", "vicuna-7b")
    assert done.code == 0, done.err
    assert "layers measured, the others scaled" in done.out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--costs nowhere", "--costs nowhere: no such file or folder"),
        ("--costs empty", "--costs empty: no table of costs there"),
        ("--costs other", "other: no costs of a target of the paper there"),
        ("--costs here --model llama2-chat-7b", "no costs of llama2-chat-7b there; targets of the paper with costs: vicuna-7b"),
        ("--costs here --model smollm2-135m", "model 'smollm2-135m' is not in the paper"),
        ("--costs spoilt", "is no table of costs that `harness costs` writes"),
        ("--costs here --prompt-tokens 0", "--prompt-tokens is 0"),
        ("--costs here --answer-tokens 1", "--answer-tokens is 1; it must be at least 2"),
        ("--costs here --results here --model vicuna-7b", "--model is of the paper's tables"),
        ("--costs here --results here --prompt-tokens 9", "--prompt-tokens is of the paper's tables"),
    ],
)
def test_what_cannot_be_predicted_is_said(words: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("here/vicuna-7b", as_json(table())), ("other/mine", as_json(table(model="mine"))), ("spoilt/x", "{")):
        file = Path(f"{name}.json")
        file.parent.mkdir()
        file.write_text(text)
    Path("empty").mkdir()
    refused(harness("predict", words), why)


def test_prompts_have_a_length_for_each_task() -> None:
    assert set(PROMPTS) == {c.task_here for c in cells(ITEMS[0]) if c.task != "Mean"}


def test_the_papers_tables_have_predictions_in_a_column() -> None:
    t = table(at(100), at(1000))
    found = predictions_of([table(model="mine"), t])
    target = ReportedModel("vicuna-7b", "Vicuna-7B", 512)
    judged = [judge(c, target, None) for c in cells(ITEMS[0]) if c.model == "Vicuna-7B"]
    made = judged_table(ITEMS[0], judged, found)
    shown = pd.concat([s.shown for s in made.sections])
    own = shown[shown["method"] == "eagle2"]["predicted"]
    assert len(own) == 14 and all(cell.endswith("×") for cell in own)
    assert set(shown[shown["method"] == "medusa"]["predicted"]) <= {"—"}
    first = found["vicuna-7b", "EAGLE-2", "MT-bench", 0.0]
    row = made.numbers[(made.numbers["method"] == "eagle2") & (made.numbers["task"] == "mt_bench")].iloc[0]
    assert first.decode and row["predicted"] == first.decode.value and any(t.machine.label in note for note in made.notes)
    assert "predicted" not in judged_table(ITEMS[0], judged).sections[0].shown.columns


def test_two_tables_of_one_target_are_not_taken_for_one(tmp_path: Path) -> None:
    slower = table(at(100, plain=12.0), machine=table().machine.model_copy(update={"threads": 1}))
    with pytest.raises(UserError, match="--costs has two tables of vicuna-7b: on a CPU, 2 threads, .*; on a CPU, 1 threads"):
        predictions_of([table(), slower])
    cut = table(frequent=64)
    assert predictions_of([table(), cut]) == predictions_of([table()]) and predictions_of([cut]) == {}


# ---- held against a ledger ----


def test_a_ledger_that_took_what_the_table_says_is_predicted_and_another_is_not(tmp_path: Path) -> None:
    """A ledger of made-up times, each of them the table's."""
    t = table(at(100), model="tiny")
    plain_s, work = (10 + 0.1) / 1e3, work_of(methods.get("eagle2"), methods.get("eagle2").options)
    assert work is not None
    drafting = 1.3 + 0.5 + 5 * 2
    other = 0.2 + 6 * 0.1 + 59 * 0.01 + 4 * 0.05

    def record(method: str, steps: list[tuple[float, float, float]], accepted: int, **changes: Any) -> Any:
        trace = {
            "tree_size": [59 if method.startswith("eagle2") else 0] * len(steps), "accepted": [accepted] * len(steps),
            "draft_s": [sum(s[1:]) / 1e3 for s in steps], "verify_s": [s[0] / 1e3 for s in steps],
            "target_s": [s[0] / 1e3 for s in steps], "drafter_s": [s[1] / 1e3 for s in steps],
        }  # fmt: skip
        n_cut = changes.pop("n_cut", 0)
        took = {"token_ids": [1] * (1 + len(steps) * (accepted + 1) - n_cut), "prefill_s": 0.5,
                "wall_s": 0.5 + sum(map(sum, steps)) / 1e3}  # fmt: skip
        what = {"task": "gsm8k", "sample_id": "1", "turn": 1, "repeat": 0, "n_prompt": 100, "temperature": 0.0}
        how = {"status": "ok", "is_warmup": False, "method": method, "preset": "paper", "options": {}}
        return what | how | took | {"trace": trace, **changes}

    vanilla = record("vanilla", [(10, 0, 0.1)] * 12, 0)
    found = against([t], [vanilla, record("eagle2", [(20, drafting, other)] * 3, 3)])
    base, own = found
    assert (base.method, base.measured, base.predicted) == ("vanilla", pytest.approx(1), pytest.approx(1))
    assert own.measured == pytest.approx(4 * plain_s / ((20 + drafting + other) / 1e3))
    assert own.error == pytest.approx(0, abs=1e-9) and own.draft and own.draft[0] == pytest.approx(own.draft[1])
    cut_off = against([t], [vanilla, record("eagle2", [(20, drafting, other)] * 3, 3, n_cut=2)])[1]
    assert own.tau == 4 and cut_off.tau == pytest.approx(10 / 3)  # tokens that a stop token or the budget cut off are none
    assert cut_off.measured == pytest.approx(10 / 3 * plain_s / ((20 + drafting + other) / 1e3))
    slower = against([t], [vanilla, record("eagle2", [(25, drafting, other)] * 3, 3)])[1]
    assert slower.error is not None and slower.error > 0.1 and slower.most_off == "c_verify -0.50"
    text = held_table([(t, [*found, slower], ""), (t, found, "")])
    assert len(text.sections) == 2 and len(text.numbers) == 5  # one file holds both
    assert list(text.sections[0].shown["verdict"]) == ["within 5%", "within 5%", "missed: c_verify -0.50"]
    assert text.sections[0].conclusions == ("1 of 2 decode speedups are within 5% of what is predicted.",)
    unknown = against(
        [t], [vanilla, record("eagle2", [(20, 1, 1)], 3, options={"stop_early": True}), record("sps", [(20, 1, 1)], 2)]
    )
    assert [h.why for h in unknown[1:]] == ["no draft LM was measured", TEXT]
    cut = record("eagle2-fr", [(20, drafting, other)] * 3, 3, options={"frequent": 64})
    assert against([t], [vanilla, cut])[1].why == "no draft head over 64 frequent tokens was measured"
    both = against([t, t.model_copy(update={"frequent": 64})], [vanilla, cut])[1]
    assert both.why == "" and both.error == pytest.approx(own.error, abs=1e-9)


def test_the_command_holds_a_ledger_against_the_costs_of_the_same_machine(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    assert run(folder, "--method eagle2 --task gsm8k").code == 0
    done = harness("costs", SMALL_COSTS, "--out", tmp_path / "costs")
    assert done.code == 0, done.err
    held = harness("predict", "--costs", tmp_path / "costs", "--results", folder, "--out", tmp_path / "out")
    assert held.code == 0, held.err
    assert "decode speedups are within 5%" in held.out and (tmp_path / "out/held.csv").exists()
    refused(harness("predict", "--results", folder), "the shipped tables: no costs of what", "`harness costs` with its --model")
    other = tmp_path / "other"
    assert run(other, "--method eagle2 --task gsm8k --limit 2 --shard 2/2").code == 0
    (file,) = other.glob("env-*.json")
    env = json.loads(file.read_text())
    env["packages"]["torch"] = "0.1"
    file.unlink()
    lines = (other / RECORDS).read_text()
    (other / RECORDS).write_text(lines.replace(file.stem.removeprefix("env-"), write_env(other, env)))
    assert harness("merge", other, "--out", folder).code == 0
    held = harness("predict", "--costs", tmp_path / "costs", "--results", folder, "--out", tmp_path / "out")
    assert held.code == 0 and held.out.count("Measured on: ") == 2 and "torch 0.1, " in held.out, held.out + held.err
    assert len(set(pd.read_csv(tmp_path / "out/held.csv")["measured_on"])) == 2
