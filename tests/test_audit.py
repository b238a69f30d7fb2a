"""The audit finds what is planted, passes what is whole, resumes, and says what it could not judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import TINY, harness, isolate, refused
from lab import Lab, shared_lab

import methods
from harness.audit import law, verdicts
from harness.audit.mutants import EQUIVALENT, MUTANTS
from harness.audit.mutation import Bench, counts_differently
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


@pytest.mark.parametrize("name", methods.names(exact=True))
def test_every_exact_method_has_the_exact_law(name: str) -> None:
    m = methods.get(name)
    for case in law.cases(2, "quick"):
        found = law.method_law(m, case)
        assert found.deviation <= law.TOLERANCE, case.name


def test_a_law_off_by_little_is_seen() -> None:
    """Every deviation over rounding counts: the smallest of these faults moves one probability by a thousandth."""
    (case,) = (c for c in law.cases(2, "full") if c.name == "unrelated, T=1")
    worst = {m.number: law.decode_law(m.number, m.build(True), case).deviation for m in MUTANTS if m.number in ("1", "4", "11")}
    assert min(worst.values()) > 1e-4


# ---- layer 5 ----


@pytest.fixture(scope="module")
def bench() -> Bench:
    lab: Lab = shared_lab("float32")
    return Bench(lab.loaded, [lab.prompts[i] for i in (0, 2, 3, 4, 6, 10)], n_tokens=1500)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.number} {m.what}")
def test_a_planted_fault_is_noticed_by_a_layer_that_should(mutant, bench: Bench) -> None:  # noqa: ANN001
    layers = bench.layers()
    assert any(layers[name](mutant) for name in mutant.killers)


@pytest.mark.parametrize("mutant", EQUIVALENT, ids=lambda m: f"{m.number} {m.what}")
def test_a_change_that_keeps_the_law_is_not_flagged(mutant, bench: Bench) -> None:  # noqa: ANN001
    layers = bench.layers()
    assert {name: layers[name](mutant) for name in ("L1", "stop", "L3", "L4")} == dict.fromkeys(("L1", "stop", "L3", "L4"))


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
    def kind(a: float, b: float, **changes: object) -> str:
        return verdicts.classify({"gap_vanilla": a, "gap_method": b, "ended": False, "before": 0.0, **changes}, 0.5, 1.0)

    assert [kind(0, 0), kind(0, 0.4), kind(0, 0.6), kind(0.6, 0)] == ["benign_tie", "near_tie", "FAULT", "FAULT"]
    assert kind(0, 0, ended=True) == kind(0, 0, before=1.1) == "FAULT"


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
