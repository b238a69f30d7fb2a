"""The audit finds what is planted, passes what is whole, resumes, and says what it could not judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import TINY, harness, isolate, refused
from lab import Lab, shared_lab

from harness.audit import command, verdicts
from harness.audit.mutants import EQUIVALENT, MUTANTS, Mutant
from harness.audit.mutation import Bench, counts_differently, run_mutant
from harness.audit.store import Store
from harness.errors import UserError

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
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


# ---- layer 5 ----


@pytest.fixture(scope="module")
def bench() -> Bench:
    lab: Lab = shared_lab("float32")
    return Bench(lab.loaded, [lab.prompts[i] for i in (0, 2, 3, 4, 6, 10)], 1500, "quick")


@pytest.mark.parametrize("mutant", [*MUTANTS, *EQUIVALENT], ids=lambda m: f"{m.number} {m.what}")
def test_a_planted_fault_is_noticed_and_an_equivalent_change_is_not(mutant: Mutant, bench: Bench) -> None:
    outcome = run_mutant(bench, mutant)
    assert outcome.right, outcome.seen


def test_tokens_counted_in_two_ways_are_noticed() -> None:
    assert counts_differently().right


# ---- the command ----


def test_verify_passes_whole_methods_and_resumes(tmp_path: Path) -> None:
    done = harness(COMMAND, "--method eagle2 --method pld --dtype float32 --dtype float64 --json --out", tmp_path)
    assert done.code == 0, done.err
    rows = done.value
    assert {r["passed"] for r in rows if not r["why"]} == {True}
    for layer in ("L1 exact law", "L2 logit replay, float32", "L3 greedy equality, float64", "L4 same ids", "L4 score test"):
        assert any(r["layer"].startswith(layer) and r["method"] == "eagle2" for r in rows), layer
    assert all(r["detectable"] for r in rows)
    before = (tmp_path / "audit.jsonl").read_bytes()
    again = harness(COMMAND, "--method eagle2 --method pld --dtype float32 --dtype float64 --out", tmp_path)
    assert again.code == 0 and (tmp_path / "audit.jsonl").read_bytes() == before
    assert (tmp_path / "audit.md").exists() and (tmp_path / "audit.csv").exists()


@pytest.mark.parametrize(("exact", "part"), [("True", "forgets fails L1 exact law"), ("False", "")])
def test_a_broken_method_of_a_user_is_rejected_and_an_inexact_one_must_be_caught(exact: str, part: str, tmp_path: Path) -> None:
    file = tmp_path / "forgets.py"
    file.write_text(BROKEN.replace("EXACT", exact))
    outcome = harness(COMMAND, "--method forgets --dtype float32 --include", file, "--out", tmp_path / "out")
    if exact == "True":
        refused(outcome, part)
    else:
        assert outcome.code == 0, outcome.err  # it says it is inexact, and it was caught


def test_an_inexact_method_that_no_layer_caught_is_a_problem() -> None:
    row = verdicts.Verdict("L1 exact law", "eagle2", "", "", "", "", True)
    assert verdicts.overall([row], {"eagle2": True}) == []
    assert "declares itself inexact" in verdicts.overall([row], {"eagle2": False})[0]


def test_divergences_are_classified_by_how_far_they_lie_below_the_best() -> None:
    def kind(a: float, b: float, ended: bool = False) -> str:
        return verdicts.classify({"gap_vanilla": a, "gap_method": b, "ended": ended}, 0.5)

    assert [kind(0, 0), kind(0, 0.4), kind(0, 0.6), kind(0.6, 0)] == ["benign_tie", "near_tie", "FAULT", "FAULT"]
    assert kind(0, 0, ended=True) == "FAULT"


def greedy(at: int | None, gap: float = 0.0, n: int = 20, **more: object) -> dict:
    divergence = None if at is None else {"at": at, "ended": False, "gap_vanilla": 0.0, "gap_method": gap}
    return {"kind": "greedy", "dtype": "float32", "method": "eagle2", "prompt": "p", "n": n, "not_argmax": [],
            "differences": [1e-5] * n, "divergence": divergence, **more}  # fmt: skip


CONTROL = {"float32": verdicts.Control("float32", 4000, largest=1e-4, median=1e-5, gap=2e-4, flipped=1, exposed=4000)}


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
    (row,) = verdicts.greedy_verdicts([finding], CONTROL)
    assert row.passed is passed and part in row.worst


def test_divergences_more_frequent_than_the_controls_are_a_fault_of_their_own() -> None:
    (row,) = verdicts.greedy_verdicts([greedy(5, 1e-5) for _ in range(30)], CONTROL)
    assert row.passed is False and "more often than the control" in row.why
    (row,) = verdicts.greedy_verdicts([greedy(None, n=5000)], CONTROL)
    assert row.passed is None and row.blocks and "4,000" in row.why  # fewer control positions than checked


def test_a_lost_tau_is_seen_against_the_recorded_one_and_noise_is_not() -> None:
    def run(prompt: int, emitted: int) -> dict:
        return greedy(None, prompt=str(prompt), forwards=10, emitted=emitted, has_head=True)

    before = {("eagle2", str(i)): run(i, 22 + i % 5) for i in range(12)}
    for loss, passed in ((0, True), (1, False), (-1, True)):
        (row,) = verdicts.acceptance_verdicts([run(i, 22 + i % 5 - loss) for i in range(12)], before)
        assert row.passed is passed
    (row,) = verdicts.acceptance_verdicts([run(0, 10)], {})
    assert row.passed is False and "no recorded figure" in row.why  # nothing was drafted right


@pytest.mark.parametrize(
    ("options", "part"),
    [("--level most", "unknown level 'most'"), ("--method eagle4", "unknown method"), ("--dtype int4", "unknown dtype 'int4'"),
     ("--threads 0", "--threads is 0")],
)  # fmt: skip
def test_bad_input_to_verify_is_one_line(options: str, part: str, tmp_path: Path) -> None:
    refused(harness("verify", f"--model {TINY}", options, "--out", tmp_path), part)


def test_a_store_drops_a_torn_line_and_names_a_spoilt_one(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add({"kind": "a"}, {"x": 1})
    file = tmp_path / "audit.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"key": "torn')
    with Store(tmp_path) as store:
        assert store.get({"kind": "a"}) == {**json.loads(whole), "x": 1} and file.read_bytes() == whole
    file.write_bytes(b"{spoilt\n" + whole)
    with pytest.raises(UserError, match="audit.jsonl:1: not JSON"):
        Store(tmp_path)


def test_a_ledgers_divergences_are_explained_and_the_main_table_says_what_was_found(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    run = f"run --model {TINY} --threads 1 --method eagle2 --task mt_bench --task gsm8k --source bundled --limit 2"
    assert harness(run, "--dtype bfloat16 --max-new-tokens 48 --out", ledger).code == 0
    audit = f"{COMMAND} --method eagle2 --dtype bfloat16 --json --results"
    done = harness(audit, ledger, "--out", ledger / "audit")
    assert done.code == 0, done.err
    (row,) = (r for r in done.value if r["layer"] == "L3 greedy equality, bfloat16, ledger")
    assert row["checked"].startswith("6 outputs") and row["passed"] is True  # two turns of mt_bench, one of gsm8k
    assert harness("table --results", ledger).code == 0
    assert (
        "| audit |" in (ledger / "tables" / "main.md").read_text() and "lossless" in (ledger / "tables" / "main.md").read_text()
    )
    refused(harness(audit, tmp_path / "none", "--out", tmp_path), "none")
    (ledger / "audit" / "lossless.json").write_text("[]")
    refused(harness("table --results", ledger), "run it again")


def test_what_cannot_be_judged_is_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_doubles(*args: object) -> object:
        raise UserError("this model has no float64 kernels")

    real = command.load_in
    monkeypatch.setattr(command, "load_in", lambda c, dtype, *rest: no_doubles() if dtype == "float64" else real(c, dtype, *rest))
    refused(harness(COMMAND, "--method pld --out", tmp_path), "not judged by all of float64: this model has no float64 kernels")
