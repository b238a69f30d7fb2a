"""The plan of an audit is data, the loop does it, and the whole can be called from Python."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import harness, isolate
from places import TINY
from tiny_model import fresh_tiny_model, shared_tiny_model

import methods
from harness.audit import estimate, page
from harness.audit.audit import audit, verify
from harness.audit.estimate import Progress, Rates, Work
from harness.audit.jobs import Job, Sample, ScoreTest, Stage, expected
from harness.audit.keeper import Keeper, Origin
from harness.audit.layers import Scope, planned
from harness.audit.levels import LEVELS, Case, Prompts
from harness.audit.loop import Loop
from harness.audit.prepare import chosen
from harness.audit.probe import replay
from harness.audit.probe.ledger_pairs import LedgerPrompts
from harness.audit.request import AuditRequest, FaultsRequest
from harness.audit.store import Store
from harness.common.errors import UserError
from methods.base import SamplerParams


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr(page.figures, "draw_all", lambda *args: [])


def scope() -> Scope:
    loaded, level = shared_tiny_model("float32").loaded, LEVELS["quick"]
    subjects = chosen(["eagle2", "pld"], loaded.config)
    origin, stop_ids = Origin.of(loaded, 1, ("float32", "float64")), frozenset(loaded.config.stop_ids)
    return Scope(
        level,
        "quick",
        subjects,
        {"eagle2"},
        origin,
        stop_ids,
        Prompts.of(loaded, level),
        [],
        LedgerPrompts(),
        frozenset(),
        "float32",
    )


@pytest.mark.parametrize("name", [m.name for m in methods.registered() if m.replay_only])
def test_what_only_a_replay_has_is_refused_by_name_and_left_out_of_a_group(name: str) -> None:
    config = shared_tiny_model("float32").loaded.config
    with pytest.raises(UserError, match=f"method {name} is a bound or a control that only `harness replay` has"):
        chosen([name], config)
    assert name not in {subject.name for subject in chosen([methods.POLICIES], config)}


def test_nothing_is_generated_while_planning() -> None:
    made, loaded = scope(), shared_tiny_model("float32").loaded
    target = loaded.target

    class Untouchable:
        """Tells what kind of target it is; refuses all else."""

        model, device = target.model, target.device

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"planning uses the target's {name}")

    untouchable: Any = Untouchable()
    plan = planned(made, replace(loaded, target=untouchable), ("float32", "float64"))
    jobs = list(expected(plan, lambda job: None))
    kinds = [job.about["kind"] for job in jobs]
    assert kinds.index("greedy") > kinds.index("control") > max(i for i, kind in enumerate(kinds) if kind == "law")
    assert {stage.dtype for stage in plan} == {"", "float32", "float64"}
    assert kinds.count("greedy") == 3 + 2 + 3  # three methods; the long output of vanilla is the control's
    assert all(job.beside is not None and job.beside in jobs for job in jobs if job.about["kind"] == "greedy")


def test_the_same_inputs_give_the_same_plan() -> None:
    loaded = shared_tiny_model("float32").loaded
    first, second = ([job.about for job in expected(planned(scope(), loaded, ("float32",)), lambda job: None)] for _ in "ab")
    assert first == second


def score_test(n_tokens: int, length: int) -> ScoreTest:
    subject = chosen(["pld"], shared_tiny_model("float32").loaded.config)[1]

    def sample(repeat: int, prompt: tuple[str, list[int]]) -> Sample:
        about = {"kind": "sampled", "method": "pld", "prompt": prompt[0], "repeat": repeat}
        return Sample(Job(about, Work("sampled", "pld", n_tokens=length), dict), prompt[1], SamplerParams(length))

    return ScoreTest(subject, [("a", [1]), ("b", [2])], n_tokens, length, 1, sample)


def test_the_score_test_asks_for_more_outputs_as_they_turn_out_short() -> None:
    test = score_test(n_tokens=100, length=30)
    first = test.more(0, 0)
    assert [(s.job.about["prompt"], s.job.about["repeat"]) for s in first] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert len(test.more(4, 4 * 30)) == 0
    assert [(s.job.about["prompt"], s.job.about["repeat"]) for s in test.more(4, 40)] == [("a", 2), ("b", 2)]
    assert test.more(4, test.tokens_in({"error": "MemoryError"})) == []  # an error ends it


def test_a_count_grows_with_the_plan_and_never_exceeds_it(tmp_path: Path) -> None:
    """Outputs of 10 tokens instead of 30: ten of them are needed where four were planned."""
    test = score_test(n_tokens=100, length=30)
    short = replace(test, sample=lambda *args: _with(test.sample(*args), lambda: {"n": 10}))
    stage, told = Stage("L4", "", tests=[short]), list[str]()
    with Store(tmp_path) as store:
        keeper = Keeper(store)
        jobs = list(expected([stage], keeper.found))
        loop = Loop(keeper, Progress([j.work for j in jobs], Rates()), {keeper.key(j) for j in jobs}, told.append)
        assert loop.progress.n == 4
        counts = list[tuple[int, int]]()
        made = loop.progress.made
        loop.progress.made = lambda work: (made(work), counts.append((loop.progress.done, loop.progress.n)))  # type: ignore
        loop.run(stage, shared_tiny_model("float32").loaded)
        assert loop.progress.done == loop.progress.n == 10 and all(done <= n for done, n in counts)


def _with(sample: Sample, make: Any) -> Sample:
    return replace(sample, job=replace(sample.job, make=make))


def test_what_is_not_made_after_all_leaves_the_count(tmp_path: Path) -> None:
    def job(case: str, finding: dict[str, Any]) -> Job:
        return Job({"kind": "law", "method": "m", "case": case}, Work("law", "m", seconds=1.0), lambda: finding)

    stage = Stage("L1 m", "", [job("a", {"n": 1}), job("b", {"refused": "too many branches"}), job("c", {"n": 1})])
    with Store(tmp_path) as store:
        loop = Loop(Keeper(store), Progress([j.work for j in stage.jobs], Rates()), (), lambda _: None)
        loop.run(stage, shared_tiny_model("float32").loaded)
        assert (loop.progress.done, loop.progress.n) == (2, 2) and len(loop.keeper.touched) == 2
        assert not loop.lacks([stage], "")  # nor is it planned again


def test_a_broken_control_ends_its_dtype_and_no_other(tmp_path: Path) -> None:
    def stage(dtype: str, kind: str, make: Any) -> Stage:
        abouts = [{"kind": kind, "method": method, "dtype": dtype} for method in ("vanilla", "pld")]
        return Stage(dtype, dtype, [Job(about, Work(kind, "vanilla", dtype), make) for about in abouts])

    def raises(loaded: Any) -> Any:
        raise ValueError("no")

    loaded = shared_tiny_model("float32").loaded
    with Store(tmp_path) as store:
        loop = Loop(Keeper(store), Progress([], Rates()), (), lambda _: None)
        (row,) = loop.run(stage("float32", "control", raises), loaded)
        assert row.blocks and row.why == "plain decoding raised ValueError: no"
        assert loop.run(stage("float32", "greedy", lambda loaded: {"n": 1}), loaded) == []
        loop.run(stage("float64", "greedy", lambda loaded: {"n": 1}), loaded)
        assert [f["dtype"] for f in loop.keeper.touched if f["kind"] == "greedy"] == ["float64", "float64"]


def test_a_model_is_not_loaded_for_what_the_store_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = AuditRequest(model=str(TINY), methods=("pld",), out=tmp_path, threads=1)
    told: list[str] = []
    rows = verify(request)
    assert audit(request, told.append).rows == rows
    assert [text for text in told if text.startswith("loading")] == [told[0]]  # the first tells what there is to find


def test_one_text_is_run_through_the_plain_forward_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, n = fresh_tiny_model("float32").loaded, list[int]()
    real = replay._forward
    monkeypatch.setattr(replay, "_forward", lambda *args: n.append(1) or real(*args))
    first, again = (replay.plain_forward(loaded, [1, 2, 3], [4, 5]) for _ in range(2))
    assert len(n) == 1 and again[1] is first[1]
    others = [([1, 2], [3, 4, 5]), ([1, 2, 3], [4, 6])]  # another prompt of the same text, another text
    for prompt, ids in others:
        features, logits = replay.plain_forward(loaded, prompt, ids)
        assert torch.equal(logits, real(loaded, prompt, ids)[1]) and len(logits) == len(ids)
    assert len(n) == 3
    for i in range(2 * replay.KNOWN_TEXTS):
        replay.plain_forward(loaded, [1], [i])
    replay.plain_forward(loaded, [1, 2, 3], [4, 5])  # forgotten by now
    assert len(n) == 4 + 2 * replay.KNOWN_TEXTS


def test_only_a_long_audit_times_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, timed = shared_tiny_model("float32").loaded, list[str]()
    subjects, prompt = chosen(["pld", "eagle2"], loaded.config), shared_tiny_model("float32").prompts[0]
    real = estimate._seconds_a_token
    monkeypatch.setattr(estimate, "_seconds_a_token", lambda loaded, s, *rest: timed.append(s.name) or real(loaded, s, *rest))
    work = Work("sampled", "eagle2", "float32", n_tokens=10, n_prompt=10)
    rates = estimate.measured(loaded, subjects, prompt, {}, [work])
    assert timed == ["vanilla"] and rates.token["pld"] == pytest.approx(estimate.USUAL_PACE * rates.token["vanilla"])
    estimate.measured(loaded, subjects, prompt, {}, [Work("law", "pld", seconds=10_000.0)])
    assert sorted(timed[1:]) == ["eagle2", "pld", "vanilla"]


def test_the_first_line_on_progress_comes_after_five_seconds_and_then_every_thirty(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("harness.audit.estimate.time", SimpleNamespace(monotonic=lambda: now))
    progress, shown = Progress([Work("law", "m", seconds=1.0)] * 90, Rates()), []
    for _ in range(70):
        now += 1.0
        progress.made(Work("law", "m", seconds=1.0))
        shown += [progress.done] if progress.line("m") else []
    assert shown == [5, 35, 65]


# ---- from Python ----


def test_verify_gives_verdicts_and_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    request = AuditRequest(model=str(TINY), methods=("pld",), dtypes=("float32",), out=tmp_path, threads=1)
    rows = verify(request)
    assert {r.method for r in rows if r.passed} == {"vanilla", "pld", "all"} and not any(r.passed is False for r in rows)
    assert capfd.readouterr() == ("", "")
    assert verify(request) == rows  # from the store


def test_a_failing_layer_is_told_when_it_fails(tmp_path: Path) -> None:
    """medusa-typical deviates on purpose: layer 1 sees that before any model is run."""
    told: list[str] = []
    request = AuditRequest(model=str(TINY), methods=("medusa-typical",), dtypes=("float32",), out=tmp_path, threads=1)
    report = audit(request, told.append)
    (line,) = (i for i, text in enumerate(told) if text.startswith("so far medusa-typical fails L1 exact law: 0."))
    assert "it declares itself inexact" in told[line]
    assert list(report.problems) == []
    assert not any("fails" in text for text in told[:line])


def test_exit_0_needs_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.audit.audit.judged", lambda *args: [])
    done = harness("verify --method pld --dtype float32 --threads 1 --model", TINY, "--out", tmp_path)
    assert done.code == 2 and "nothing was judged at all" in done.err


@pytest.mark.parametrize(
    ("request_of", "part"),
    [
        (lambda: AuditRequest(level="most"), "unknown level 'most'"),
        (lambda: AuditRequest(dtypes=("int4",)), "unknown dtype 'int4'"),
        (lambda: AuditRequest(methods=("eagle4",)), "unknown method 'eagle4'"),
        (lambda: AuditRequest(threads=0), "threads is 0"),
        (lambda: FaultsRequest(level="most"), "unknown level 'most'"),
        (lambda: FaultsRequest(threads=-1), "threads is -1"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_where_it_is_made(request_of: Any, part: str) -> None:
    with pytest.raises(UserError, match=re.escape(part)):
        request_of()


def test_threads_are_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.audit.request.usable_cores", lambda: 3)
    assert AuditRequest().n_threads == FaultsRequest().n_threads == 3 and AuditRequest(threads=2).n_threads == 2


def test_the_audit_imports_no_trainer() -> None:
    folder = Path(methods.__file__).parents[1] / "harness" / "audit"
    users = [p.name for p in folder.rglob("*.py") if re.search(r"^\s*(from|import) harness\.train", p.read_text(), re.M)]
    assert users == []


def test_long_outputs_are_judged_in_float32_alone() -> None:
    prompt = ("p", [1, 2])
    short, long, exact = Case(prompt, 4), Case(prompt, 8, guided=True, stops=False), Case(prompt, 4, guided=True)
    prompts = Prompts([short, long], [exact], [], [])
    assert [list(prompts.greedy(dtype)) for dtype in ("float32", "bfloat16", "float64")] == [[short, long], [short], [exact]]
