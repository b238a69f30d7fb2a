"""The audit of an engine elsewhere: what it passes, what it finds, and what it cannot judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
from command_line import Outcome, harness, isolate, refused
from engine_stand_in import Serving, engine
from places import TINY
from tiny_model import shared_tiny_model

from harness.audit import served
from harness.audit.request import AuditRequest
from harness.audit.served import Control, Difference, Pair, Target, _greedy_row
from harness.common.errors import UserError
from harness.ledger.record import Record
from harness.run import engines

AUDIT = f"verify --model {TINY} --threads 1 --method server"
NAMED = ("--set", "drafts=k")  # what it drafts with, which llama.cpp does not say
NAME = "server (paper+drafts=k)"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr(engines, "AUDITED", {"quick": (1, 24, 1), "full": (1, 24, 2)})


def audited(out: Path, spec: Serving, plain: Serving, *words: str) -> Outcome:
    return harness(AUDIT, "--json --out", out, "--set", f"url={spec.url}", "--set", f"baseline_url={plain.url}", *NAMED, *words)


def row(outcome: Outcome, layer: str) -> dict[str, object]:
    (found,) = [r for r in outcome.value if r["layer"].startswith(layer)]
    return found


def no_target(self: Target) -> None:
    raise UserError("the whole would need 64.1 GB of 22.9 GB free")


def test_an_engine_whose_speculation_changes_nothing_holds_and_needs_no_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "_load", no_target)
    with engine(drafts=2) as spec, engine() as plain:
        outcome = audited(tmp_path, spec, plain)
        assert outcome.code == 0, outcome.err
    assert [r["passed"] for r in outcome.value if r["layer"][:2] in ("L3", "L4")] == [True, True]
    assert all(not r["blocks"] for r in outcome.value)
    assert row(outcome, "L4")["why"] == "with the same seeds it draws the same tokens"
    assert json.loads((tmp_path / "lossless.json").read_text())["methods"] == {NAME: "lossless (quick)"}
    alone = harness(AUDIT, "--json --results", tmp_path / "served-1", "--out", tmp_path / "served-1" / "audit")
    assert alone.code == 0 and alone.value == outcome.value
    assert harness("table --results", tmp_path / "served-1").code == 0
    (line, *_) = [
        line for line in (tmp_path / "served-1/tables/main.md").read_text().splitlines() if line.startswith(f"| {NAME} ‖")
    ]
    assert line.rstrip(" |").endswith("lossless (quick)")


def test_an_audit_judges_what_it_has_just_asked(tmp_path: Path) -> None:
    with engine(drafts=2, flip_at=5, version="b1") as spec, engine(version="b1") as plain:
        refused(audited(tmp_path, spec, plain), f"{NAME} fails L3")
        spec.flip_at, n = None, len(spec.requests)  # mended, and it calls itself what it was
        assert audited(tmp_path, spec, plain).code == 0 and len(spec.requests) == 2 * n
        refused(audited(tmp_path, spec, plain, "--results", str(tmp_path / "served-1")), "one of the two")
    assert json.loads((tmp_path / "lossless.json").read_text())["methods"][NAME] == "lossless (quick)"


def test_engines_in_one_folder_are_judged_apart(tmp_path: Path) -> None:
    run = f"run --model {TINY} --source bundled --limit 2 --max-new-tokens 8 --method server --task gsm8k"
    for temperature in (0, 1):
        for version, drafts, flip_at in (("b1", 2, 3), ("b2", 2, None)):
            with (
                engine("sglang", drafts=drafts, version=version, flip_at=flip_at) as spec,
                engine("sglang", version=version) as plain,
            ):
                urls = ("--set", f"url={spec.url}", "--set", f"baseline_url={plain.url}")
                assert harness(run, "--temperature", temperature, "--out", tmp_path, *urls).code == 0
    outcome = harness(AUDIT, "--json --results", tmp_path, "--out", tmp_path / "audit")
    refused(outcome, "server fails L3")
    for layer in ("L3", "L4"):
        found = {str(r["checked"]).rpartition("sglang ")[2][:2]: r for r in outcome.value if r["layer"].startswith(layer)}
        assert set(found) == {"b1", "b2"} and [r["cells"] for r in found.values()] == [2, 2]
        assert found["b2"]["worst"] == "all identical" and found["b1"]["worst"] != "all identical"


def test_a_token_that_is_no_near_tie_is_a_fault(tmp_path: Path) -> None:
    with engine(drafts=2, flip_at=5) as spec, engine() as plain:
        outcome = audited(tmp_path, spec, plain)
    refused(outcome, f"{NAME} fails L3 greedy equality, served", "FAULT")
    assert row(outcome, "L3")["passed"] is False
    table = (tmp_path / "divergences.csv").read_text().splitlines()
    assert len(table) == 1 + 7 and all(",5," in line and "FAULT" in line for line in table[1:])  # six tasks, one of two turns
    assert json.loads((tmp_path / "lossless.json").read_text())["methods"][NAME] == "fails L3"


def test_without_the_target_a_difference_is_not_judged_which_is_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "_load", no_target)
    with engine(drafts=2, flip_at=5) as spec, engine() as plain:
        outcome = audited(tmp_path, spec, plain)
    refused(outcome, f"{NAME} is not judged by L3", f"{NAME} is not judged by L4", "64.1 GB of 22.9 GB free")
    assert "unjudged" in (tmp_path / "divergences.csv").read_text()
    assert json.loads((tmp_path / "lossless.json").read_text())["methods"][NAME] == "open"


def test_other_draws_of_the_same_law_hold_and_those_of_another_do_not(tmp_path: Path) -> None:
    with engine(drafts=2, reseeded=1) as spec, engine() as plain:
        outcome = audited(tmp_path / "same", spec, plain, "--level full")
    assert outcome.code == 0, outcome.err
    same = row(outcome, "L4")
    assert same["passed"] and "0 of" in str(same["why"]) and "6 functions" in str(same["checked"])
    with engine(drafts=2, reseeded=1, sharpened=4.0) as spec, engine() as plain:
        outcome = audited(tmp_path / "other", spec, plain, "--level full")
    refused(outcome, f"{NAME} fails L4 plain engine's law, T = 1, served: p = ")
    assert row(outcome, "L3")["passed"] is True


def test_what_is_the_same_on_both_sides_is_in_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = shared_tiny_model("float32").loaded
    monkeypatch.setattr(Target, "prompt", lambda self, record, turns: [1, 2, 3])

    def output(*ids: int) -> Record:
        return cast(Record, {"token_ids": list(ids), "temperature": 1.0, "top_p": 1.0})

    def pair(own: Record, base: Record) -> Pair:
        return Pair(own, base, (), served.first_divergence(base["token_ids"], own["token_ids"]))

    target = Target(loaded.config, AuditRequest(model=str(TINY)))
    late = pair(output(*range(10, 40), 60, 61), output(*range(10, 40), 70, 71, 72))
    found = served._sums([(late.own, (), 30)], target, loaded)
    whole = served._sums([(late.own, (), 0)], target, loaded)
    assert (found.n, whole.n) == (2, 32) and all(
        0 < a < b / 4 for a, b in zip(found.variances[1:3], whole.variances[1:3], strict=True)
    )
    same = pair(output(*range(10, 40)), output(*range(10, 40)))
    alone, among = (served._sampled_row("L4", "server", "?", mine, target, loaded) for mine in ([late], [late, same, same]))
    assert alone.worst == among.worst and alone.detectable == among.detectable and among.why.startswith("2 of 3 have")


def test_tokens_of_the_plain_engine_far_below_the_best_here_set_no_threshold() -> None:
    assert Control(0.2, 100, 1, 50).gap_tol == pytest.approx(0.3)
    assert Control(served.MOST_GAP + 0.1, 100, 1, 50).gap_tol is None


def test_near_ties_hold_unless_there_are_more_of_them_than_the_plain_engine_shows() -> None:
    def told(n: int, exposed: int) -> bool | None:
        near = Difference("server", "p", 3, 0.0, 0.1, 0.3, False, "near_tie", "")
        return _greedy_row("L3", "server", "?", 100, 1000, [near] * n, Control(0.2, exposed, 2, exposed), "").passed

    assert told(3, 1000) is True and told(40, 1000) is False


def test_an_output_that_ends_where_the_other_goes_on_is_a_fault(tmp_path: Path) -> None:
    with engine(drafts=2) as spec, engine() as plain:
        assert audited(tmp_path, spec, plain).code == 0
    records = tmp_path / "served-1" / "records.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    for r in lines:
        if r["method"] == "server" and r["temperature"] == 0 and not r["is_warmup"] and len(r["token_ids"]) > 8:
            r |= {"token_ids": r["token_ids"][:8], "looped": False}
            r["served"] |= {"steps": None, "why": "cut by a test"}
    records.write_text("".join(json.dumps(r) + "\n" for r in lines))
    outcome = harness(AUDIT, "--results", tmp_path / "served-1", "--out", tmp_path / "again")
    refused(outcome, f"{NAME} fails L3")
    assert "one output ended and the other went on" in (tmp_path / "again" / "divergences.csv").read_text()


def test_records_without_sampled_outputs_are_not_judged_whole(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    with engine(drafts=2) as spec, engine() as plain:
        words = f"run --model {TINY} --source bundled --limit 1 --max-new-tokens 8 --method server --task gsm8k"
        assert harness(words, "--out", out, "--set", f"url={spec.url}", "--set", f"baseline_url={plain.url}", *NAMED).code == 0
    refused(harness(AUDIT, "--results", out, "--out", tmp_path / "audit"), "not judged: L4: no outputs at T > 0 to compare")


def test_what_does_not_go_together_is_one_line(tmp_path: Path) -> None:
    at = ("--out", tmp_path)
    refused(harness(AUDIT, *at), "needs an engine or its records", "--set url=URL --set baseline_url=URL, or --results DIR")
    refused(
        harness(AUDIT, "--method eagle2 --results x", *at), "server, eagle2: --method server is judged beside its own baseline"
    )
    refused(harness(AUDIT.replace("server", "server-plain"), "--results x", *at), "judged beside its own baseline")
    refused(harness(AUDIT, "--dtype float32 --results x", *at), "--dtype is for methods that run here")
    refused(harness(AUDIT.replace("server", "pld"), "--set url=http://h:1", *at), "--set url=http://h:1 is for --method server")
    refused(harness(AUDIT, "--set url=http://127.0.0.1:9", *at), "needs a baseline")
