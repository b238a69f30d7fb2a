"""The audit finds what is planted, passes what is whole, resumes, and says what it could not judge."""

from __future__ import annotations

import json
import lzma
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Outcome, harness, isolate, refused, tiny_copy
from places import TINY
from tiny_model import TinyModel, shared_tiny_model

import methods
from harness.audit import figure_data, figures, keeper, levels, page, prepare
from harness.audit.estimate import Progress, Rates, Work, known_rates
from harness.audit.faults import bench as bench_module
from harness.audit.faults.bench import Bench, counts_differently, run_mutant
from harness.audit.faults.faults import EQUIVALENT, MUTANTS, Mutant
from harness.audit.faults.forwards import Misgiven, one_further
from harness.audit.levels import LEVELS
from harness.audit.probe import findings, lanes
from harness.audit.probe.replay import head_law, replayed
from harness.audit.probe.subject import Subject
from harness.audit.store import Store
from harness.audit.verdicts import verdict as verdicts
from harness.audit.verdicts.acceptance import acceptance_verdicts
from harness.audit.verdicts.greedy import classify, greedy_verdicts
from harness.audit.verdicts.replay import Control, control_verdicts, controls, replay_verdicts
from harness.audit.verdicts.sampling import coupled_verdicts, score_verdicts
from harness.common.errors import UserError
from methods.base import SamplerParams
from methods.engine.loop import prefilled
from methods.engine.native.build import VARIABLE
from methods.engine.sampling import probabilities

COMMAND = f"verify --model {TINY} --threads 1"

BROKEN = '''
from methods import method
from methods.engine.grow import dynamic_tree
from methods.engine.loop import speculative
from methods.engine.verify import Accepted, walk


def forgets(tree, logits, chooser, position):
    """A rejected token keeps its mass."""
    if chooser.greedy:
        return walk(tree, logits, chooser, position)
    children, path = tree.children(), [0]
    while True:
        at = position + len(path) - 1
        p = chooser.law(logits[path[-1]])
        for attempt, child in enumerate(children[path[-1]]):
            if chooser.accept(min(1.0, float(p[tree.tokens[child]])), at, attempt):
                path.append(child)
                break
        else:
            return Accepted(path, chooser.draw(p, at))


@method("forgets", line="broken on purpose", needs_head=True, small={"top_k": 2, "depth": 2, "total": 3}, exact=EXACT)
def broken(top_k: int = 10, depth: int = 6, total: int = 20):
    return speculative(dynamic_tree(top_k, depth, total), forgets)
'''


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    isolate(monkeypatch, tmp_path)
    if "with_figures" not in request.fixturenames:  # drawing takes longer than auditing the tiny model
        monkeypatch.setattr(page.figures, "draw_all", lambda *args: [])


@pytest.fixture
def with_figures() -> None:
    """Marks the tests whose audits draw."""


# ---- layer 5 ----


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(shared_tiny_model("float32").loaded, LEVELS["quick"])


@pytest.fixture(scope="module")
def many_tokens() -> Bench:
    level = replace(LEVELS["quick"], score_tokens=1500, score_length=32, score_prompts=6, score_tree={}, score_stops=True)
    return Bench(shared_tiny_model("float32").loaded, level)


def named(m: Mutant) -> str:
    return f"{m.number} {m.what}"


@pytest.mark.parametrize("mutant", [*MUTANTS, *EQUIVALENT], ids=named)
def test_level_quicks_own_cases_show_a_planted_fault_and_flag_no_equivalent_change(mutant: Mutant, bench: Bench) -> None:
    outcome = run_mutant(bench, mutant)
    assert outcome.right, outcome.seen


@pytest.mark.parametrize("mutant", [*(m for m in MUTANTS if m.given_tokens), *EQUIVALENT], ids=named)
def test_the_score_test_alone_shows_it_given_tokens(mutant: Mutant, many_tokens: Bench) -> None:
    look = many_tokens.l4(mutant.subject(), mutant.temperature, draws=False)
    assert (look.what is not None) == bool(mutant.killers), look


def test_tokens_counted_in_two_ways_are_noticed() -> None:
    assert counts_differently().right


# ---- the command ----


def test_verify_passes_whole_methods_and_resumes(tmp_path: Path, with_figures: None) -> None:
    done = harness(COMMAND, "--method eagle2 --method pld --dtype float32 --dtype float64 --json --out", tmp_path)
    assert done.code == 0, done.err
    rows = done.value
    assert {r["passed"] for r in rows if not r["why"]} == {True}
    for layer in ("L1 exact law", "L2 logit replay, float32", "L3 greedy equality, float64", "L4 own draws", "L4 score test"):
        assert any(r["layer"].startswith(layer) and r["method"] == "eagle2" for r in rows), layer
    assert all(r["detectable"] for r in rows)
    before = (tmp_path / "audit.jsonl").read_bytes()
    again = harness(COMMAND, "--method eagle2 --method pld --dtype float32 --dtype float64 --out", tmp_path)
    assert again.code == 0 and (tmp_path / "audit.jsonl").read_bytes() == before
    page = (tmp_path / "audit.md").read_text()
    for figure in ("l1-law", "l2-replay", "l3-gaps", "l4-scores", "l5-acceptance"):
        assert f"({figure}.png)" in page and all((tmp_path / f"{figure}.{kind}").exists() for kind in ("png", "csv"))
    n = int(done.err.split(" findings to make: about ")[0].split()[-1])
    assert n == len(before.splitlines())  # what was planned is what was done
    assert "already: nothing to run" in again.err


def test_the_first_table_has_a_row_a_layer_with_what_was_checked_in_how_many_cells() -> None:
    def row(method: str, passed: bool | None, ratio: float, cells: int) -> verdicts.Verdict:
        return verdicts.Verdict("L1 exact law", method, "?", f"{method}'s", "1", "little", passed, cells=cells, ratio=ratio)

    shown = page.overview([row("pld", True, 0.9, 3), row("eagle2", False, 7.0, 4), row("x", None, 0.0, 0)]).shown
    names = ["layer", "checked", "cells", "worst value", "threshold", "smallest detectable effect", "verdict"]
    assert list(shown.columns) == names
    assert list(shown.iloc[0]) == [
        "L1 exact law",
        "2 methods",
        "7",
        "eagle2: eagle2's",
        "1",
        "little",
        "1 hold, 1 FAIL, 1 not judged",
    ]


def test_a_presets_word_is_its_methods_and_its_own_cells() -> None:
    def row(layer: str, method: str, passed: bool | None) -> verdicts.Verdict:
        return verdicts.Verdict(layer, method, "", "", "", "", passed, blocks=passed is None)

    rows = [row("L3", "eagle2", True), row("L4", "eagle2", True), row("L3, ledger", "eagle2 (small)", True)]
    assert page.summary(rows, "full") == {"eagle2": "lossless (full)", "eagle2 (small)": "lossless (full)"}
    rows[2] = row("L3, ledger", "eagle2 (small)", False)
    assert page.summary(rows, "full") == {"eagle2": "lossless (full)", "eagle2 (small)": "fails L3"}
    rows[1] = row("L4", "eagle2", None)
    assert page.summary(rows, "full") == {"eagle2": "open", "eagle2 (small)": "fails L3"}
    rows = [*rows[:1], row("L4", "eagle2", True), verdicts.Verdict.not_applicable("L3, ledger", "all", "pld was not asked for")]
    assert page.summary(rows, "full") == {"eagle2": "lossless (full)"}  # what was not asked for leaves nothing open
    rows.append(verdicts.Verdict.not_applicable("all of float64", "all", "this dtype was not asked for"))
    assert page.summary(rows, "full") == {"eagle2": "open"}


def test_an_estimate_is_the_sum_of_what_is_missing_at_the_rates_measured() -> None:
    sampled = Work("sampled", "eagle2", "float32", n_tokens=100, n_prompt=50, rows=300, scored=True)
    rates = Rates("float32", {"eagle2": 0.2}, row=0.01, score=0.003)
    assert rates.seconds(sampled) == pytest.approx(100 * 0.2 + 350 * 0.01 + 100 * 0.003)
    double = replace(sampled, dtype="float64", scored=False)
    assert rates.seconds(double) == pytest.approx(3 * (100 * 0.2 + 350 * 0.01))  # as much slower as float64 is
    here = {"machine": "m", "threads": 2, "torch": "t"}
    stored = [
        {"kind": "sampled", "method": "eagle2", "dtype": "float32", "n": n, "seconds": s, **here} for n, s in ((60, 8), (40, 2))
    ]
    known = known_rates([*stored, {**stored[0], "machine": "other", "seconds": 999}], here)
    assert Rates("float32", {}, known=known).seconds(sampled) == pytest.approx(10.0)  # measured goes before all
    progress = Progress([sampled, Work("law", "eagle2", seconds=7.0)], rates)
    assert progress.by_layer == {"float32": pytest.approx(23.8), "the exact law": 7.0}
    progress.made(sampled)
    assert progress.to_go == pytest.approx(7.0) and progress.done == 1


def test_a_survivor_is_named_with_the_layers_that_did_not_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [
        bench_module.Outcome("3", "a fault", ("L1", "L4"), {"L1": "0.2, allowed 1e-12", "L4": None}, {"L1": 2e11, "L4": 0.4}),
        bench_module.Outcome("E1", "no fault", (), {"L1": None}, {"L1": 1e-4}),
    ]
    monkeypatch.setattr(bench_module, "all_outcomes", lambda bench: outcomes)
    outcome = harness("verify --mutants --threads 1 --model", TINY, "--out", tmp_path)
    refused(outcome, "survived or wrongly flagged: 3 (a fault): not noticed by L4")
    assert "killed 0/1; equivalent mutants flagged 0/1" in outcome.out
    assert {f.name for f in tmp_path.iterdir()} >= {"mutants.md", "mutants.csv", "mutants.png"}


def included(folder: Path, text: str) -> Path:
    file = folder / "mine.py"
    file.write_text(text)
    return file


def verdict(outcome: Outcome, layer: str, method: str) -> dict[str, Any]:
    """The one row of a layer and method, from a line that `--json` promises."""
    (rows,) = (json.loads(line) for line in outcome.out.splitlines() if line.startswith("[{"))
    (row,) = (r for r in rows if r["layer"].startswith(layer) and r["method"] == method)
    return row


@pytest.mark.parametrize("exact", ["True", "False"])
def test_a_broken_method_of_a_user_is_rejected_and_an_inexact_one_must_be_caught(exact: str, tmp_path: Path) -> None:
    """Its greedy outputs are vanilla's: only a layer that looks at T > 0 can see it."""
    file = included(tmp_path, BROKEN.replace("EXACT", exact))
    outcome = harness(COMMAND, "--method forgets --dtype float32 --json --include", file, "--out", tmp_path / "out")
    assert verdict(outcome, "L3 greedy", "forgets")["worst"] == "all identical"
    if exact == "True":
        refused(outcome, "forgets fails L1 exact law: 0.", "allowed 1e-12")  # the layer and the size
        assert verdict(outcome, "L1 exact", "forgets")["ratio"] > 1e9
    else:
        assert outcome.code == 0, outcome.err  # it says it is inexact, and it was caught
        page_text, words = (tmp_path / "out" / "audit.md").read_text(), (tmp_path / "out" / "lossless.json").read_text()
        assert "0 fail (besides" in page_text and "of forgets, declared inexact" in page_text
        assert json.loads(words)["methods"]["forgets"] == "inexact, as declared (L1)"


FLIPS = """
from dataclasses import replace

from methods import method
from methods.engine.grow import dynamic_tree
from methods.engine.loop import speculative
from methods.engine.verify import Accepted, walk


def second_best(tree, logits, chooser, position):
    found = walk(tree, logits, chooser, position)
    if chooser.greedy and position + len(found.path) > 2:
        return replace(found, bonus=int(logits[found.path[-1]].topk(2).indices[1]))
    return found


@method("flips", line="broken on purpose", needs_head=True, small={"top_k": 2, "depth": 2, "total": 3})
def flips(top_k: int = 10, depth: int = 6, total: int = 20):
    return speculative(dynamic_tree(top_k, depth, total), second_best)
"""


def test_a_method_that_flips_greedy_ids_is_rejected_with_the_gap_it_flipped_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an engine that rounds a row among many unlike one: elsewhere no gap is asked for."""
    monkeypatch.setenv(VARIABLE, "torch")
    file = included(tmp_path, FLIPS)
    outcome = harness(COMMAND, "--method flips --dtype float32 --json --include", file, "--out", tmp_path / "out")
    refused(
        outcome, "flips fails L1 exact law: 1 (", "flips fails L3 greedy equality, float32: 0 identical, 2 FAULT; largest gap"
    )
    row = verdict(outcome, "L3 greedy", "flips")
    assert row["passed"] is False and row["ratio"] > 100 and row["cells"] == 2
    divergences = (tmp_path / "out" / "divergences.csv").read_text().splitlines()
    assert len(divergences) == 3 and all(line.endswith("FAULT,") for line in divergences[1:])


EXTERNAL = """
from methods import get, method
from methods.base import Generation


@method("hf-flips", line="another's loop with a fault", external=True)
def hf_flips():
    inner = get("hf-generate").build()

    def decode(ids, target, drafter, params):
        made = inner(ids, target, drafter, params)
        new = [t if i % 4 else (t + 7) % 500 + 3 for i, t in enumerate(made.token_ids)]
        return Generation(new, made.finish, made.n_cut, made.prefill_s, None)

    return decode
"""


def test_a_flip_in_anothers_loop_is_seen_by_layers_3_and_4_and_the_table_says_why_by_no_other(tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = harness(COMMAND, "--method hf-flips --json --include", included(tmp_path, EXTERNAL), "--out", out)
    refused(outcome, "hf-flips fails L3 greedy equality, float32", "hf-flips fails L4 score test")
    for layer, why in (
        ("L1 exact law", "another's loop"), ("L2 logit replay, float32", "another's loop keeps no logits"),
        ("L4 own draws", "another's loop draws with its own generator"),
    ):  # fmt: skip
        row = verdict(outcome, layer, "hf-flips")
        assert row["passed"] is None and not row["blocks"] and row["why"] == why
        assert f"not judged ({why})" in (out / "audit.md").read_text()
    assert "L2" not in outcome.err.splitlines()[-1]


FAILS_ONCE = """
from pathlib import Path

from methods import get, method


@method("moody", line="fails while a file is there")
def moody():
    inner = get("pld").build()

    def decode(ids, target, drafter, params):
        if Path(MARK).exists() and params.temperature == 0 and len(ids) > 20:
            raise OSError("the disk went away")
        return inner(ids, target, drafter, params)

    return decode
"""


def test_an_error_in_one_methods_cell_is_reported_and_tried_again_by_the_next_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    file = included(tmp_path, FAILS_ONCE.replace("MARK", repr(str(mark))))
    words = (COMMAND, "--method moody --method pld --dtype float32 --json --include", file, "--out", tmp_path / "out")
    first = harness(*words)
    refused(first, "moody fails L3 greedy equality, float32: 2 raised OSError: the disk went away")
    assert verdict(first, "L3 greedy", "moody")["why"] == "the next run tries again"
    assert verdict(first, "L3 greedy", "pld")["passed"] is True  # the others are judged all the same
    mark.unlink()
    second = harness(*words)
    assert second.code == 0, second.err
    assert "3 findings to make" in second.err


def test_findings_of_another_machine_are_kept_apart_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (COMMAND, "--method pld --dtype float32 --out", tmp_path)
    assert harness(*words).code == 0
    before = (tmp_path / "audit.jsonl").read_bytes()
    n = sum("machine" in json.loads(line) for line in before.splitlines())
    real = keeper.machine
    monkeypatch.setattr(keeper, "machine", lambda threads: real(threads) | {"machine": "another one"})
    done = harness(*words)
    assert done.code == 0 and f"holds {n} findings made on {_machine(before)}" in done.err and "not judged here" in done.err
    after = (tmp_path / "audit.jsonl").read_bytes()
    assert after.startswith(before) and sum(json.loads(x).get("machine") == "another one" for x in after.splitlines()) == n


def _machine(lines: bytes) -> str:
    return next(f["machine"] for f in map(json.loads, lines.splitlines()) if "machine" in f)


def test_logits_that_are_no_numbers_are_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = prepare.load_in

    def spoilt(*args: Any) -> Any:
        loaded = real(*args)
        with torch.no_grad():
            loaded.target.model.get_input_embeddings().weight[:] = math.nan
        return loaded

    monkeypatch.setattr(prepare, "load_in", spoilt)
    done = harness(COMMAND, "--method pld --dtype float32 --out", tmp_path)
    refused(done, "not judged: all of float32: plain decoding raised", "not finite")
    assert json.loads((tmp_path / "lossless.json").read_text())["methods"]["pld"] == "open"


def test_a_fault_of_the_forwards_that_all_methods_share_does_not_excuse_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the control, too: multiples of the control's noise would let it pass, so the bound on rounding judges."""
    real = prepare.load_in

    def faulty(*args: Any) -> Any:
        loaded = real(*args)
        loaded.target.verify = Misgiven(loaded.target, one_further).verify
        return loaded

    monkeypatch.setattr(prepare, "load_in", faulty)
    monkeypatch.setattr(lanes, "can_run_in_lanes", lambda *_: False)  # lanes have a forward of their own
    done = harness(COMMAND, "--method eagle2 --dtype float32 --json --out", tmp_path)
    row = verdict(done, "L2 logit replay", "eagle2")
    assert row["passed"] is False and row["threshold"] == "1.0e-02 = more than rounding: the control fails"
    refused(done, "what every method is judged by fails: L2 control, float32", "the target's own forwards are at fault")
    assert json.loads((tmp_path / "lossless.json").read_text())["methods"]["eagle2"] == "fails L2"


@pytest.mark.parametrize(("dtype", "largest", "middle"), [("float32", 2e-2, 0.0), ("float64", 2e-4, 0.0), ("bfloat16", 9.0, 1.1)])
def test_a_control_beyond_rounding_is_no_control(dtype: str, largest: float, middle: float) -> None:
    noisy = Control(dtype, 9, largest, middle, gap=1.0, flipped=0, exposed=9)
    finding = {"kind": "control", "dtype": dtype, "method": "vanilla"}
    for control, passed in ((noisy, False), (replace(noisy, largest=0.0, median=0.0), True)):
        (row,) = control_verdicts([finding], {dtype: control})
        assert row.passed is passed and (row.ratio > 1) is not passed
    raised = {**finding, "of": "a record", "error": "OSError: no"}
    row, _ = control_verdicts([finding, raised], {dtype: noisy})
    assert row.passed is False and row.raised and "ledger" in row.layer  # a text that was not scored is said


def test_a_control_without_any_noise_is_no_division_by_zero() -> None:
    silent = {"float32": Control("float32", 99, 0.0, 0.0, gap=0.0, flipped=0, exposed=99)}
    run = greedy(None, differences=[0.0] * 20, n_offside=0, n_branching=0)
    (row,) = replay_verdicts([run], silent)
    assert row.passed is True and row.ratio == 0
    (row,) = replay_verdicts([{**run, "differences": [1e-6]}], silent)
    assert row.passed is False and row.ratio > 1


def test_trees_whose_first_rows_were_always_accepted_show_nothing_of_the_cache_but_in_another_dtype() -> None:
    known = {d: Control(d, 99, 1e-5, 1e-6, gap=1e-4, flipped=0, exposed=99) for d in verdicts.EXACT_DTYPES}
    run = greedy(None, differences=[0.0] * 20, n_offside=0, n_branching=3)
    (row,) = replay_verdicts([run], known)
    assert row.passed is None and row.blocks and "wrong rows" in row.why
    rows = {v.layer[-7:]: v for v in replay_verdicts([run, {**run, "dtype": "float64", "n_offside": 2}], known)}
    assert rows["float64"].passed is rows["float32"].passed is True and "seen in float64" in rows["float32"].why


def test_a_finding_with_a_number_that_is_none_is_an_error() -> None:
    for name in ("differences", "gaps", "deviations", "variances", "drafts"):
        assert name in findings.guarded(lambda name=name: {name: [0.0, math.nan]})["error"]
    assert "not finite" in findings.guarded(lambda: {"deviation": math.nan})["error"]


def test_without_a_draft_head_what_needs_none_is_audited(tmp_path: Path) -> None:
    model = tiny_copy(tmp_path / "model", head="null")
    out = tmp_path / "out"
    command = ("verify --threads 1 --dtype float32 --model", model, "--out", out)
    refused(harness(*command, "--method eagle2"), "eagle2 is not judged by all of float32: tiny has no draft head")
    done = harness(*command, "--method pld --method vanilla --json")
    assert done.code == 0, done.err
    assert verdict(done, "L4 score test", "pld")["passed"] is True  # q is uniform
    refused(harness(*command, "--method pld --record"), "has none")
    refused(harness("verify --mutants --threads 1 --model", model, "--out", out), "has no draft head")


def test_an_inexact_method_that_no_layer_caught_is_a_problem() -> None:
    row = verdicts.Verdict("L1 exact law", "eagle2", "", "", "", "", True)
    assert verdicts.overall([row], {"eagle2": True}) == []
    assert "declares itself inexact" in verdicts.overall([row], {"eagle2": False})[0]


def test_ids_that_are_not_vanillas_at_t_1_are_a_fault_and_say_what_sampled_drafts_declare() -> None:
    found = [{"kind": "coupled", "dtype": "float64", "method": "mine", "n": 20, "at": at} for at in (None, 7)]
    (row,) = coupled_verdicts(found)
    assert row.passed is False and row.worst == "1 differ, first at token 7" and "samples_drafts=True" in row.why
    (row,) = coupled_verdicts(found[:1])
    assert row.passed is True and not row.why


def test_divergences_are_classified_by_how_far_they_lie_below_the_best() -> None:
    def kind(a: float, b: float, ended: bool = False) -> str:
        return classify({"gap_vanilla": a, "gap_method": b, "ended": ended}, 0.5)

    assert [kind(0, 0), kind(0, 0.4), kind(0, 0.6), kind(0.6, 0)] == ["benign_tie", "near_tie", "FAULT", "FAULT"]
    assert kind(0, 0, ended=True) == "FAULT"


@pytest.mark.parametrize("gap", [math.nan, math.inf])
def test_a_gap_that_is_no_number_is_a_fault_and_no_tie(gap: float) -> None:
    for gaps in ((0.0, gap), (gap, 0.0)):
        for tol in (0.5, None):
            assert classify({"gap_vanilla": gaps[0], "gap_method": gaps[1], "ended": False}, tol) == "FAULT"


def test_a_control_that_fails_makes_no_gap_a_near_tie(tmp_path: Path) -> None:
    """Its own gaps are as broken as what they would excuse: 1.5 x 2.6 let a gap of 3.7 pass."""
    noise = [1e-5] * 98 + [6.0]
    for dtype, differences in (("float32", noise), ("bfloat16", [3.0] * 99), ("float32", [*noise[:98], math.nan])):
        control = {"kind": "control", "dtype": dtype, "method": "vanilla", "differences": differences, "gaps": [2.6] * 99,
                   "flipped": 0, "exposed": 99}  # fmt: skip
        runs = [greedy(5, 3.7, dtype=dtype), greedy(7, 0.0, dtype=dtype), greedy(None, dtype=dtype)]
        known = controls([control])
        table = figure_data.divergence_data([control, *runs], known)
        assert list(table["class"]) == ["unjudged", "benign_tie"]
        assert table["why"][0].startswith("the control fails: its noise of") and not table["why"][1]
        assert figure_data.gap_data([control, *runs], known)["gap_tol"].isna().all()
        (row,) = greedy_verdicts(runs, known)
        assert row.passed is None and row.blocks and "1 unjudged" in row.worst and "the control fails" in row.why
        (row,) = greedy_verdicts(runs[1:], known)
        assert row.passed is True and "the control fails" in row.threshold  # ties and identical ids need no control
        (row,) = greedy_verdicts([greedy(5, 0.1, dtype=dtype, not_argmax=[3])], known)
        assert row.passed is False  # a fault needs none either
        far = greedy(None, dtype=dtype, n_offside=1, n_branching=1, differences=[1.5] * 20)
        (row,) = replay_verdicts([far], known)
        assert row.passed is False and "more than rounding: the control fails" in row.threshold
        (row,) = replay_verdicts([{**far, "differences": [1e-3] * 20}], known)
        assert row.passed is True
        figures.draw_all(tmp_path, [control, *runs], {})
    alone = figure_data.divergence_data([greedy(5, 3.7)], {})
    assert list(alone["class"]) == ["unjudged"] and alone["why"][0] == "there is no control in float32"


def test_a_method_that_no_layer_looked_at_is_a_problem() -> None:
    row = verdicts.Verdict("L1 exact law", "eagle2", "", "", "", "", True)
    assert verdicts.overall([row], {"eagle2": True, "pld": True, "all": True}) == ["pld was looked at by no layer"]
    assert len(verdicts.overall([], {"all": True})) == 1  # nothing was judged at all


def greedy(at: int | None, gap: float = 0.0, n: int = 20, **more: object) -> dict:
    divergence = None if at is None else {"at": at, "ended": False, "gap_vanilla": 0.0, "gap_method": gap}
    return {"kind": "greedy", "dtype": "float32", "method": "eagle2", "prompt": "p", "n": n, "not_argmax": [],
            "differences": [1e-5] * n, "divergence": divergence, **more}  # fmt: skip


CONTROL = {"float32": Control("float32", 4000, largest=1e-4, median=1e-5, gap=2e-4, flipped=1, exposed=4000)}


@pytest.mark.parametrize(
    ("finding", "passed", "part"),
    [
        (greedy(None), True, "1 identical"),
        (greedy(5, 2.9e-4), True, "1 near_tie"),
        (greedy(5, 3.1e-4), False, "1 FAULT"),  # over 1.5 x the control's largest gap noise
        (greedy(5, 1e-5, differences=[1e-5] * 5 + [3e-3] + [1e-5] * 14), False, "1 FAULT"),  # layer 2 broken by then
        (greedy(None, not_argmax=[3]), False, "1 FAULT"),  # a token its own logits do not name
        (greedy(None, error="ValueError: no"), False, "raised ValueError"),
    ],
)
def test_a_greedy_output_is_judged_by_its_first_divergence(finding: dict, passed: bool, part: str) -> None:
    (row,) = greedy_verdicts([finding], CONTROL)
    assert row.passed is passed and part in row.worst


def test_divergences_more_frequent_than_the_controls_are_a_fault_of_their_own() -> None:
    (row,) = greedy_verdicts([greedy(5, 1e-5) for _ in range(30)], CONTROL)
    assert row.passed is False and "more often than the control" in row.why
    exact = [greedy(None, dtype="float64", method=f"m{i}") for i in range(100)]  # not tested: they take no power away
    (*_, row) = greedy_verdicts([*exact, greedy(5, 1e-5), greedy(5, 1e-5)], CONTROL)
    assert row.passed is False and "more often" in row.why
    (row,) = greedy_verdicts([greedy(None, n=5000)], CONTROL)
    assert row.passed is None and row.blocks and "4,000" in row.why  # fewer control positions than checked


def test_a_lost_tau_is_seen_against_the_recorded_one_and_noise_is_not() -> None:
    def run(prompt: int, emitted: int) -> dict:
        return greedy(None, prompt=str(prompt), forwards=10, emitted=emitted, has_head=True)

    before = {("eagle2", str(i)): run(i, 22 + i % 5) for i in range(12)}
    for loss, passed in ((0, True), (1, False), (-1, True)):
        (row,) = acceptance_verdicts([run(i, 22 + i % 5 - loss) for i in range(12)], before)
        assert row.passed is passed
    (row,) = acceptance_verdicts([run(0, 10)], {})
    assert row.passed is False and "no recorded figure" in row.why  # nothing was drafted right


def test_a_recorded_tau_is_compared_with_from_the_next_audit_on(tmp_path: Path) -> None:
    model = tiny_copy(tmp_path / "model")
    words = ("verify --threads 1 --method eagle2 --dtype float32 --json --record --model", model, "--out", tmp_path / "out")
    first, second = harness(*words), harness(*words)
    assert first.code == second.code == 0, first.err + second.err
    assert verdict(first, "L5 acceptance", "eagle2")["why"] == "no recorded figure to compare with"
    assert "+0.000 [+0.000, +0.000]" in verdict(second, "L5 acceptance", "eagle2")["worst"]
    taus = tmp_path / "model" / "head" / "tau.json"
    kept = json.loads(taus.read_text())
    (entry,) = (e for e in kept if e["method"] == "eagle2")
    entry["runs"] = {prompt: [2 * emitted, forwards] for prompt, (emitted, forwards) in entry["runs"].items()}
    taus.write_text(json.dumps(kept))
    third = harness(*words)
    refused(third, "eagle2 fails L5")
    assert "--record leaves out what failed: eagle2" in third.err
    refused(harness(*words), "eagle2 fails L5")  # the figure it was measured against still stands
    taus.write_text("{}")
    refused(harness(*words), "tau.json is not what `harness verify --record` writes")


@pytest.mark.parametrize(
    ("options", "part"),
    [("--level most", "unknown level 'most'"), ("--method eagle4", "unknown method"), ("--dtype int4", "unknown dtype 'int4'"),
     ("--threads 0", "--threads is 0")],
)  # fmt: skip
def test_bad_input_to_verify_is_one_line(options: str, part: str, tmp_path: Path) -> None:
    refused(harness("verify", f"--model {TINY}", options, "--out", tmp_path), part)


def test_a_method_file_that_does_not_import_is_named(tmp_path: Path) -> None:
    file = included(tmp_path, "import no_such_module")
    refused(harness(COMMAND, "--method mine --include", file, "--out", tmp_path), f"cannot load {file}", "no_such_module")


def test_records_without_what_a_layer_needs_are_refused_with_the_field_and_what_records_it(tmp_path: Path) -> None:
    sampled = f"run --model {TINY} --threads 1 --method pld --task gsm8k --source bundled --limit 1 --dtype float32"
    ledger = tmp_path / "ledger"
    assert harness(sampled, "--max-new-tokens 4 --temperature 1 --out", ledger).code == 0
    audit = (COMMAND, "--method pld --dtype float32 --results", ledger, "--out", tmp_path / "audit")
    refused(harness(*audit), "no greedy output", "records both")
    file = ledger / "records.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    del lines[-1]["prompt_sha"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = harness(*audit)
    refused(outcome, "no greedy output")
    assert f"records.jsonl:{len(lines)}: " in outcome.err and "prompt_sha" in outcome.err


def test_fewer_tokens_than_the_stated_power_needs_is_no_pass() -> None:
    finding = {
        "kind": "sampled",
        "dtype": "float32",
        "method": "eagle2",
        "n": 64,
        "deviations": [0.0] * 6,
        "variances": [9.0] * 6,
    }
    (row,) = score_verdicts([finding], wanted_tokens=100)
    assert row.passed is None and row.blocks and row.why == "36 tokens are missing of 100"
    (row,) = score_verdicts([finding], wanted_tokens=64)
    assert row.passed is True and "0.02 needs" in row.detectable


def test_prompts_that_the_score_test_lacks_are_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (levels, prepare):
        monkeypatch.setattr(module, "SCORE_LONGEST", 5)
    done = harness(COMMAND, "--method pld --dtype float32 --out", tmp_path)
    refused(done, "L4 score test: only 0 of 1 prompts have at most 5 tokens")


def test_outputs_on_smaller_trees_are_counted_in_the_row() -> None:
    found = [{"kind": "greedy", "dtype": "float64", "method": "eagle2", "n": 9, "divergence": None, "options": {"total": total}}
             for total in (59, 59, 15)]  # fmt: skip
    (row,) = greedy_verdicts(found, {})
    assert row.checked == "3 outputs (1 on smaller trees), 27 tokens"


def test_findings_of_two_processes_are_judged_together_from_their_files_joined(tmp_path: Path) -> None:
    words = "--dtype float32 --json --out"
    for folder, method in (("a", "pld"), ("b", "hf-generate")):
        assert harness(COMMAND, "--method", method, words, tmp_path / folder).code == 0
    lines = [line for folder in "ab" for line in (tmp_path / folder / "audit.jsonl").read_text().splitlines()]
    spoilt = json.loads(lines[-1])
    error = {name: spoilt[name] for name in spoilt if name not in ("n", "deviations", "variances", "line_sha")} | {
        "error": "MemoryError"
    }
    joined = tmp_path / "joined" / "audit.jsonl"
    joined.parent.mkdir()
    joined.write_text("\n".join([*lines, json.dumps(error)]) + "\n")  # an error does not displace what ended well elsewhere
    before = joined.read_bytes()
    done = harness(COMMAND, "--method pld --method hf-generate", words, joined.parent)
    assert done.code == 0 and "already: nothing to run" in done.err and joined.read_bytes() == before
    for method in ("vanilla", "pld", "hf-generate"):
        assert verdict(done, "L4 score test", method)["passed"] is True


def test_a_store_drops_a_torn_line_and_names_a_spoilt_one(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add({"kind": "a"}, {"x": 1})
    file = tmp_path / "audit.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"key": "torn')
    with Store(tmp_path) as store:
        kept = {name: value for name, value in json.loads(whole).items() if name != "line_sha"}
        assert store.get({"kind": "a"}) == {**kept, "x": 1} and file.read_bytes() == whole
    file.write_bytes(b"{spoilt\n" + whole)
    with pytest.raises(UserError, match="audit.jsonl:1: not JSON"):
        Store(tmp_path)


def test_a_ledgers_divergences_are_explained_and_the_main_table_says_what_was_found(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    run = f"run --model {TINY} --threads 1 --method eagle2 --task mt_bench --task gsm8k --source bundled --limit 2"
    assert harness(run, "--dtype bfloat16 --max-new-tokens 48 --out", ledger).code == 0
    audit = f"{COMMAND} --method eagle2 --json --results"
    done = harness(audit, ledger, "--out", ledger / "audit")
    assert done.code == 0, done.err
    (row,) = (r for r in done.value if r["layer"] == "L3 greedy equality, bfloat16, ledger")
    assert row["checked"].startswith("6 outputs") and row["passed"] is True  # two turns of mt_bench, one of gsm8k
    assert harness("table --results", ledger).code == 0
    (shown,) = (line for line in (ledger / "tables" / "main.md").read_text().splitlines() if line.startswith("| eagle2 |"))
    assert shown.endswith("| lossless (quick) |")
    other = tmp_path / "other"  # of the same settings, so with the same keys, but another output
    other.mkdir()
    records = [json.loads(line) for line in (ledger / "records.jsonl").read_text().splitlines()]
    next(r for r in records if r["method"] == "eagle2" and not r["is_warmup"])["token_ids"][3] += 1
    for file in ledger.glob("env-*.json"):
        (other / file.name).write_bytes(file.read_bytes())
    (other / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    done = harness(audit, ledger, "--results", other, "--out", ledger / "audit")
    refused(done, "eagle2 fails L3 greedy equality, bfloat16, ledger")
    assert verdict(done, "L3 greedy equality, bfloat16, ledger", "eagle2")["checked"].startswith("7 outputs")  # copies count once
    refused(harness(audit, tmp_path / "none", "--out", tmp_path), "none")
    (ledger / "audit" / "lossless.json").write_text("[]")
    refused(harness("table --results", ledger), "run it again")


def test_what_cannot_be_judged_is_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_doubles(*args: object) -> object:
        raise UserError("this model has no float64 kernels")

    real = prepare.load_in
    monkeypatch.setattr(prepare, "load_in", lambda c, dtype, *rest: no_doubles() if dtype == "float64" else real(c, dtype, *rest))
    refused(harness(COMMAND, "--method pld --out", tmp_path), "not judged: all of float64: this model has no float64 kernels")


@pytest.mark.parametrize("kind", methods.HEADS)
@pytest.mark.parametrize("n_prompt", [None, 2, 1])
def test_q_of_the_score_test_is_what_the_head_would_draft(kind: str, n_prompt: int | None, tiny: TinyModel) -> None:
    """Teacher-forced in one pass of the trainer's forward; a q that says nothing would leave the test without power. After a
    prompt of one token no pair predicts the first one: q is uniform there."""
    target, drafter, prompt = tiny.loaded.target, tiny.loaded.drafter_of(kind), tiny.prompts[0][:n_prompt]
    params = SamplerParams(6, frozenset(), temperature=1.0, key=1)
    run = replayed(tiny.loaded, methods.get("vanilla").build(), prompt, params, None)
    law = head_law(tiny.loaded, run, params, kind)
    for n in (0, 1, 5):
        text = [*prompt, *run.ids[:n]]
        if len(text) == 1:
            assert torch.allclose(law[n], torch.full_like(law[n], 1 / len(law[n])))
            continue
        features, _ = prefilled(target, drafter, text, 1)
        drafter.start(len(text) + 1)
        drafter.observe(text[1:], features[:-1])
        own = probabilities(drafter.root_logits()[0], 1.0, 1.0).double()
        assert torch.allclose(law[n][drafter.named(torch.arange(len(own)))], own, atol=1e-5) and own.max() > 2 / len(own)
        assert law[n].sum() == pytest.approx(1)


def test_hidden_states_of_other_layers_show_in_the_first_drafts_of_an_eagle3_head(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The law of the output is silent about them: every draft is verified."""
    subject = Subject.of(methods.get("eagle3"), tiny.loaded.config)
    params = SamplerParams(16, frozenset())
    vanilla = tiny.vanilla(tiny.prompts[0], params).token_ids

    def off() -> float:
        found = findings.greedy_finding(tiny.loaded, subject, tiny.prompts[0], params, vanilla, guided=True)
        assert found["divergence"] is None
        return max(found["drafts"])

    assert off() < 1e-5
    target = tiny.loaded.target
    real = target._observe
    monkeypatch.setattr(target, "_observe", lambda states: real([max(i - 1, 0) for i in states]))
    assert off() > 0.01


def test_packed_findings_are_found_and_new_ones_go_beside_them(tmp_path: Path) -> None:
    first, second = {"kind": "law", "case": "a"}, {"kind": "law", "case": "b"}
    with Store(tmp_path) as store:
        store.add(first, {"n": 1})
    file = tmp_path / "audit.jsonl"
    (tmp_path / "audit.jsonl.xz").write_bytes(lzma.compress(file.read_bytes()))
    file.unlink()
    with Store(tmp_path) as store:
        assert store.get(first) is not None and store.get(second) is None
        store.add(second, {"n": 2})
    with Store(tmp_path) as store:
        assert {f["case"] for f in store} == {"a", "b"}
    assert len(file.read_text().splitlines()) == 1
    (tmp_path / "audit.jsonl.xz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="no whole xz file"):
        Store(tmp_path)
