"""On a row-invariant engine the audit demands plain decoding's ids and bits, in the dtype that is measured."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import harness, isolate
from places import TINY
from row_by_row import NotRowInvariant, OneBitOff, OneFeatureOff, RowByRow, run_on
from tiny_model import fresh_tiny_model, shared_tiny_model

from harness.audit import page
from harness.audit.audit import Report, audit
from harness.audit.faults.bench import Bench, run_mutant
from harness.audit.faults.faults import BITS, EQUIVALENT
from harness.audit.faults.wrappers import RejectedBits, with_last_bit
from harness.audit.keeper import Origin
from harness.audit.levels import LEVELS, Prompts
from harness.audit.prepare import check_engine
from harness.audit.probe import findings, replay
from harness.audit.probe.stand_ins import texts_of
from harness.audit.probe.subject import Subject
from harness.audit.request import AuditRequest
from harness.audit.verdicts.greedy import greedy_verdicts
from harness.audit.verdicts.replay import Control, bits_verdicts
from harness.common.errors import UserError
from methods import get
from methods.base import SamplerParams
from methods.engine.llama import LlamaTarget
from methods.engine.target import HFTarget
from methods.engine.tree import Tree


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr(page.figures, "draw_all", lambda *args: [])


def audited(engine: type[HFTarget], out: Path, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> Report:
    run_on(monkeypatch, engine)
    given = {"methods": ("eagle2",), "dtypes": ("bfloat16",)} | asked
    return audit(AuditRequest(model=str(TINY), out=out, threads=1, **given), tell=lambda _: None)


def verdicts_of(report: Report, method: str) -> dict[str, bool | None]:
    """layer -> what came of it."""
    return {v.layer: v.passed for v in report.rows if v.method == method}


# ---- the stand-in ----


def test_the_stand_ins_rows_are_those_of_plain_steps_of_their_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    run_on(monkeypatch, RowByRow)
    target = fresh_tiny_model("bfloat16").loaded.target
    prompt, tree, path = [5, 9, 11, 40], Tree([7, 8, 9, 10, 11], [-1, 0, 0, 2, 1]), [0, 2, 3]
    target.prefill(prompt, 8)
    _, rows = target.verify(tree)
    target.commit(path)
    after = target.step(12)
    target.prefill(prompt, 8)
    steps = torch.stack([target.step(tree.tokens[i]) for i in path])
    assert replay.same_bits(rows[path], steps) == [True] * 3
    assert torch.equal(after, target.step(12))


def test_a_last_bit_is_one_bit() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)
    other = with_last_bit(rows, 1)
    assert replay.same_bits(other, rows) == [True, False]
    assert (other.view(torch.int16) ^ rows.view(torch.int16)).tolist() == [[0, 0], [1, 0]]
    zero = torch.zeros(1, 3)
    assert replay.same_bits(zero, -zero) == [False]  # equal numbers, other bits
    with pytest.raises(ValueError, match="are compared with rows of"):
        replay.same_bits(zero, zero.double())


# ---- the whole audit ----


@pytest.mark.slow
def test_an_audit_on_a_row_invariant_engine_demands_identity_in_the_dtype_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = audited(RowByRow, tmp_path, monkeypatch, methods=("eagle2", "eagle1", "hf-generate"))
    assert not report.problems
    eagle2, rows = verdicts_of(report, "eagle2"), {(v.layer, v.method): v for v in report.rows}
    for layer in ("L2 same bits", "L3 greedy equality", "L4 same ids at T = 1"):
        assert eagle2[f"{layer}, bfloat16"] is True
    assert rows["L3 greedy equality, bfloat16", "eagle2"].threshold == "identical"
    assert rows["L3 greedy equality, bfloat16", "eagle1"].threshold == "identical"  # at T = 0 it draws nothing
    assert rows["L3 greedy equality, bfloat16", "hf-generate"].threshold.startswith("gap ")  # transformers' module rounds
    assert ("L2 same bits, bfloat16", "hf-generate") not in rows
    for name, part in (("eagle1", "drafts are sampled"), ("hf-generate", "another's loop")):
        row = rows["L4 same ids at T = 1, bfloat16", name]
        assert row.passed is None and part in row.why
    assert rows["L2 control, same bits, bfloat16", "all"].passed is True
    said = (tmp_path / "audit.md").read_text()
    assert "engine row by row (bfloat16)" in said


@pytest.mark.parametrize(
    ("engine", "of"), [(OneBitOff, "14 rows of logits and 0 of features"), (OneFeatureOff, "0 rows of logits and 14")]
)
@pytest.mark.slow
def test_one_bit_of_one_verified_row_is_reported_though_no_token_differs(
    engine: type[HFTarget], of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = audited(engine, tmp_path, monkeypatch)
    mine = verdicts_of(report, "eagle2")
    assert mine["L2 same bits, bfloat16"] is False
    # what a tolerance, and ids, let pass
    assert mine["L2 logit replay, bfloat16"] is True and mine["L3 greedy equality, bfloat16"] is True
    [row] = [v for v in report.rows if v.layer == "L2 same bits, bfloat16" and v.method == "eagle2"]
    assert row.worst.startswith(of) and row.why.startswith("lossy")
    assert any("eagle2 fails L2 same bits" in problem for problem in report.problems)


@pytest.mark.slow
def test_an_engine_that_only_says_so_is_found_out_by_the_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = audited(NotRowInvariant, tmp_path, monkeypatch, methods=("vanilla",))
    assert verdicts_of(report, "all")["L2 control, same bits, bfloat16"] is False
    assert any("what every method is judged by fails" in problem for problem in report.problems)


@pytest.mark.slow
def test_the_measured_dtype_is_audited_unasked_and_bit_by_bit_where_its_engine_is_row_invariant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.audit.prepare.resolve_dtype", lambda _: "bfloat16")
    report = audited(RowByRow, tmp_path, monkeypatch, methods=("pld",), dtypes=())
    assert verdicts_of(report, "pld")["L3 greedy equality, bfloat16"] is True
    other = audited(LlamaTarget, tmp_path / "lean", monkeypatch, methods=("pld",), dtypes=())
    assert verdicts_of(other, "pld")["L3 greedy equality, bfloat16"] is True
    assert not [v for v in other.rows if "same bits" in v.layer]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torchs_row_invariant_engine_passes_as_is(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARNESS_ENGINE", raising=False)
    done = harness(f"verify --model {TINY} --row-invariant --dtype {dtype} --threads 1 --json --method eagle2 --method eagle1",
                   "--method pld --out", tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    rows = {(v["layer"], v["method"]): v for v in done.value}
    for name in ("eagle2", "eagle1", "pld"):
        for layer in ("L2 same bits", "L3 greedy equality"):
            row = rows[f"{layer}, {dtype}", name]
            assert row["passed"] is True and (layer == "L2 same bits" or row["threshold"] == "identical")
    assert rows[f"L2 control, same bits, {dtype}", "all"]["passed"] is True
    assert f"lean row-invariant ({dtype})" in (tmp_path / "audit.md").read_text()


# ---- verdicts ----


def ledger_finding(**more: Any) -> dict[str, Any]:
    near = {"at": 3, "ended": False, "gap_vanilla": 0.0, "gap_method": 1e-3}
    return {"kind": "ledger", "dtype": "bfloat16", "method": "eagle2", "n": 20, "divergence": near, "cell": "c", **more}


def test_a_near_tie_is_lossy_on_a_row_invariant_engine_alone() -> None:
    known = {"bfloat16": Control("bfloat16", 100, 0.1, 0.05, 0.1, 50, 100)}
    [row] = greedy_verdicts([ledger_finding()], known)
    assert row.passed and "near_tie" in row.worst
    [row] = greedy_verdicts([ledger_finding(row_invariant=True)], known)
    assert row.passed is False and row.why.startswith("lossy, whatever the gap (here 0.001)") and row.threshold == "identical"


def test_a_lossy_output_is_called_so_in_divergences_csv(tmp_path: Path) -> None:
    from harness.audit.figure_data import divergence_data

    known = {"bfloat16": Control("bfloat16", 100, 0.1, 0.05, 0.1, 50, 100)}
    found = [ledger_finding(prompt="a"), ledger_finding(prompt="a", row_invariant=True)]
    divergence_data(found, known).to_csv(tmp_path / "d.csv")
    assert [r["class"] for r in csv.DictReader((tmp_path / "d.csv").open())] == ["near_tie", "lossy"]


# ---- the plan ----


def test_findings_name_the_engine_of_their_own_dtype_whichever_is_loaded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    run_on(monkeypatch, RowByRow)
    dtypes = ("float64", "bfloat16")
    first = [Origin.of(fresh_tiny_model(dtype).loaded, 1, dtypes) for dtype in dtypes]
    assert first[0] == first[1]
    assert first[0].targets["bfloat16"].engine == "row by row" and first[0].targets["float64"].engine.startswith("transformers ")
    assert first[0].row_invariant == {"bfloat16"}
    loaded = fresh_tiny_model("bfloat16").loaded
    check_engine(loaded, first[0])
    other = replace(first[0], targets={"bfloat16": replace(loaded.identity, engine="lean")})
    with pytest.raises(UserError, match="in bfloat16 the engine is row by row, and the audit was planned for lean"):
        check_engine(loaded, other)


def test_long_outputs_are_judged_in_16_bits_on_a_row_invariant_engine() -> None:
    prompts = Prompts.of(shared_tiny_model("float32").loaded, LEVELS["quick"])
    assert not any(case.guided for case in prompts.greedy("bfloat16"))
    assert any(case.guided for case in prompts.greedy("bfloat16", is_row_invariant=True))
    assert len(prompts.coupled_bits) == 1 and not prompts.coupled


# ---- planted faults ----


def test_rejected_drafts_are_kept_with_the_text_that_they_hang_on() -> None:
    tiny = shared_tiny_model("float32")
    prompt, params = tiny.prompts[0], SamplerParams(20)
    seen = replay.Recording(tiny.spy())
    made = tiny.decode("eagle2", prompt, params, target=seen)
    rejected, spy = seen.rejected, seen._target
    assert len(rejected) == len(spy.trees) > 3 and len({len(r.path) for r in rejected}) > 1
    for draft, tree, path in zip(rejected, spy.trees, spy.paths, strict=True):
        assert tree.tokens[0] == made.token_ids[draft.at - 1]
        texts = texts_of(tree)
        node = texts.index((tree.tokens[0], *draft.path))
        assert node not in path and texts.count(texts[node]) == 1


def test_some_rejected_drafts_are_compared_with_plain_decoding_of_their_paths() -> None:
    loaded, prompt = shared_tiny_model("float32").loaded, shared_tiny_model("float32").prompts[0]
    s = Subject.of(get("eagle2"), loaded.config)
    vanilla = shared_tiny_model("float32").vanilla(prompt, params := SamplerParams(20)).token_ids
    for subject, wrong in ((s, False), (replace(s, spoilt=RejectedBits), True)):
        finding = findings.greedy_finding(loaded, subject, prompt, params, vanilla, has_bits=True, rejected=3)
        assert finding["n_rejected"] == 3 and not finding["other_bits"] and not finding["other_features"]
        assert len(finding["other_rejected"]) == (3 if wrong else 0)
        [row] = bits_verdicts([{"kind": "greedy", "dtype": "float32", "method": "eagle2", **finding}])
        assert row.passed is not wrong and row.checked.endswith(", 3 rejected drafts")
        assert row.worst == ("0 rows of logits and 0 of features and 3 rejected drafts with other bits" if wrong else "none")
    without = findings.greedy_finding(loaded, s, prompt, params, vanilla, has_bits=True)
    assert "n_rejected" not in without


def test_rejected_drafts_and_sampled_ids_are_looked_at_in_the_measured_dtype_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.audit.prepare.resolve_dtype", lambda _: "bfloat16")
    request = AuditRequest(model=str(TINY), out=tmp_path, threads=1, methods=("pld",), dtypes=("float32", "bfloat16"))
    rows = {v.layer: v for v in audit(request, tell=lambda _: None).rows if v.method == "pld"}
    assert "rejected" in rows["L2 same bits, bfloat16"].checked
    assert rows["L2 same bits, float32"].passed and "rejected" not in rows["L2 same bits, float32"].checked
    assert rows["L4 same ids at T = 1, bfloat16"].passed and "L4 same ids at T = 1, float32" not in rows
    assert rows["L6 conduct, asked again, bfloat16"].passed and "L4 score test, T > 0, bfloat16" in rows
    assert "L4 score test, T > 0, float32" not in rows
    only = replace(request, dtypes=("float32",), out=tmp_path / "only")
    rows = {v.layer: v for v in audit(only, tell=lambda _: None).rows if v.method == "pld"}
    assert "rejected" in rows["L2 same bits, float32"].checked and rows["L4 same ids at T = 1, float32"].passed
    assert "L4 score test, T > 0, float32" in rows


@pytest.mark.slow
def test_planted_bits_are_killed_and_no_equivalent_change_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    run_on(monkeypatch, RowByRow)
    bench = Bench(fresh_tiny_model("float32").loaded, LEVELS["quick"])
    for mutant in BITS:
        outcome = run_mutant(bench, mutant)
        assert outcome.right and "other bits" in str(outcome.seen["L2"]), outcome
        assert ("0 rows of logits and 0 of features" in str(outcome.seen["L2"])) is (mutant.number == "39")
    assert bench.l2(bench.healthy).what is None
    assert bench.l2(EQUIVALENT[0].subject()).what is None


def test_one_bit_is_no_fault_where_rows_round_unlike_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    run_on(monkeypatch, LlamaTarget)
    bench = Bench(fresh_tiny_model("float32").loaded, LEVELS["quick"])
    assert not bench.has_bits
    assert not run_mutant(bench, BITS[0]).right  # so it is not planted there


@pytest.mark.slow
def test_verify_tells_of_a_lossy_engine_and_ends_with_status_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_on(monkeypatch, OneBitOff)
    done = harness(f"verify --model {TINY} --threads 1 --method pld --dtype bfloat16 --out", tmp_path)
    assert done.code == 2 and "lossy" in done.err
