"""Files that cheat: each is caught by `harness verify` at level quick, and what a run can see is an error record there."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import counted, harness, isolate, refused, run
from places import TINY

import methods
from harness.audit import page
from harness.audit.verdicts.conduct import pace_verdict
from harness.ledger.ledger import RECORDS
from harness.watch import originals
from harness.watch.pace import TRIES, Pace, pace
from methods.engine.target import HFTarget

VERIFY = f"verify --model {TINY} --threads 1 --dtype float32"

TOP = """
import time
from dataclasses import replace

import torch

import methods
from methods import get, method
from methods.base import Generation, Trace
from methods.engine.loop import Grow, speculative
from methods.engine.target import HFTarget
from methods.engine.tree import chain

plain = get("vanilla").build()
"""

MADE_UP_TRACE = """
@method("cheat", line="plain decoding that tells of half as many forwards")
def cheat():
    def decode(ids, target, drafter, params):
        made = plain(ids, target, drafter, params)
        told, n = Trace(), len(made.token_ids) - 1
        for i in range(-(-n // 2)):
            told.add(1, 1, 0.0, sum(made.trace.verify_s[2 * i : 2 * i + 2]), sum(made.trace.target_s[2 * i : 2 * i + 2]))
        return replace(made, trace=told, n_cut=n % 2)

    return decode
"""

ANSWERS_FROM_MEMORY = """
KNOWN = {}


@method("cheat", line="plain decoding that runs no forward where it knows the answer")
def cheat():
    def decode(ids, target, drafter, params):
        key = (tuple(ids), params.max_new_tokens, params.key, params.temperature)
        if key in KNOWN:
            return KNOWN[key]
        KNOWN[key] = plain(ids, target, drafter, params)
        return KNOWN[key]

    return decode
"""

DRAFTS_FROM_MEMORY = """
known = {}


@method("cheat", line="drafts what it answered before: every draft is verified", small={})
def cheat():
    def tree(drafter, context):
        n = len(context.tokens) - context.position
        prompt = tuple(context.tokens[:n])
        before = known.get(prompt, [])
        known[prompt] = max(before, context.tokens[n:], key=len)
        return chain(context.root, before[context.position : context.position + 4])

    return speculative(Grow(tree, 4))
"""

SLEEPS_IN_VANILLA = """
real = HFTarget.step


def slow(self, token):
    time.sleep(0.001)
    return real(self, token)


HFTarget.step = slow


@method("cheat", line="prompt lookup, beside a slowed baseline")
def cheat():
    return get("pld").build()
"""

OTHER_VANILLA = """
def slow():
    def decode(*given):
        time.sleep(0.01)
        return plain(*given)

    return decode


methods._METHODS["vanilla"] = replace(get("vanilla"), build=slow)


@method("cheat", line="prompt lookup, beside another baseline")
def cheat():
    return get("pld").build()
"""

OVER_THE_BUDGET = """
@method("cheat", line="plain decoding of 500 tokens, whatever was asked for")
def cheat():
    return lambda ids, target, drafter, params: plain(ids, target, drafter, replace(params, max_new_tokens=500))
"""

FALSE_TIMES = """
@method("cheat", line="plain decoding that tells a tenth of its times")
def cheat():
    def decode(*given):
        made = plain(*given)
        trace = made.trace
        for column in (trace.verify_s, trace.target_s):
            column[:] = [seconds / 10 for seconds in column]
        return made

    return decode
"""

UNVERIFIED = """
@method("cheat", line="emits its own guess after every token of the target's", exact=False)
def cheat():
    def decode(ids, target, drafter, params):
        started = time.perf_counter()
        _, logits = target.prefill(ids, params.max_new_tokens)
        new, trace, prefill_s = [int(logits.argmax())], Trace(), time.perf_counter() - started
        while len(new) < params.max_new_tokens and new[-1] not in params.stop_ids:
            began, inside = time.perf_counter(), target.forward_s
            token = int(target.step(new[-1]).argmax())
            new += [7, token]
            trace.add(1, 1, 0.0, time.perf_counter() - began, target.forward_s - inside)
        over = max(len(new) - params.max_new_tokens, 0)
        new = new[: len(new) - over]
        return Generation(new, "stop" if new[-1] in params.stop_ids else "length", over, prefill_s, trace)

    return decode
"""

HIDDEN_FORWARDS = """
@method("cheat", line="has the target itself draft, past its interface")
def cheat():
    def decode(ids, target, drafter, params):
        def tree(drafter, context):
            text = list(context.tokens)
            with torch.inference_mode():
                for _ in range(3):
                    text.append(int(target.model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
            return chain(context.root, text[len(context.tokens) :])

        return speculative(Grow(tree, 3))(ids, target, drafter, params)

    return decode
"""

OTHER_CLOCK = """
real_clock = time.perf_counter
time.perf_counter = lambda: real_clock() / 2


@method("cheat", line="prompt lookup by another clock")
def cheat():
    return get("pld").build()
"""

METHODS = {  # the file, a sentence of the verdict, and the record's error where a run of one prompt sees it
    "made-up trace": (MADE_UP_TRACE, "forwards after the prefill; the target ran", "the target ran 7"),
    "answers from memory": (ANSWERS_FROM_MEMORY, "float32: 1 run that cannot be recorded: the target ran 0 prefills", ""),
    "drafts from memory": (DRAFTS_FROM_MEMORY, "L6 conduct, asked again, float32: it remembers what it was asked: ", ""),
    "over the budget": (OVER_THE_BUDGET, " tokens; the budget is 10", " tokens; the budget is 8, and"),
    "false times": (FALSE_TIMES, "the model's forwards take ", "the model's forwards take "),
    "not verified": (UNVERIFIED, "output token 1 (7) was in no forward of the target", "output token 1 (7) was in no forward"),
    "hidden forwards": (HIDDEN_FORWARDS, "forwards besides the ", "forwards besides the "),
}  # fmt: skip
HARNESS = {
    "sleeps in vanilla": (SLEEPS_IN_VANILLA, "methods.engine.target.HFTarget.step was replaced by "),
    "another vanilla": (OTHER_VANILLA, "method vanilla was replaced by "),
    "another clock": (OTHER_CLOCK, "time.perf_counter was replaced by "),
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr(page.figures, "draw_all", lambda *args: [])
    for place, name in ((HFTarget, "step"), (time, "perf_counter")):
        monkeypatch.setattr(place, name, getattr(place, name))  # put back what a file replaces


def included(folder: Path, text: str) -> Path:
    file = folder / "cheat.py"
    file.write_text(TOP + text)
    return file


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_cheats_is_caught(name: str, tmp_path: Path) -> None:
    text, sentence, error = METHODS[name]
    file = included(tmp_path, text)
    outcome = harness(VERIFY, "--method cheat --include", file, "--out", tmp_path / "audit")
    refused(outcome, "cheat fails L", sentence)
    if error:
        # 8 of the tiny model's forwards take less than what clocks may differ by
        long = "--max-new-tokens 200" if name == "false times" else ""
        done = run(tmp_path / "runs", f"--task gsm8k --method cheat {long} --include", file)
        refused(done, "1 generations failed")
        (record,) = (r for r in counted(tmp_path / "runs") if r["method"] == "cheat")
        assert record["status"] == "error" and error in record["error"] and not record["token_ids"]


@pytest.mark.parametrize("name", HARNESS)
def test_an_audit_beside_a_replaced_part_of_the_harness_fails(name: str, tmp_path: Path) -> None:
    text, sentence = HARNESS[name]
    file = included(tmp_path, text)
    outcome = harness(VERIFY, "--method pld --include", file, "--out", tmp_path)
    refused(outcome, f"what every method is judged by fails: L6 conduct, the harness: {sentence}{file}")


@pytest.mark.parametrize("name", HARNESS)
def test_a_run_beside_a_replaced_part_of_the_harness_is_refused(name: str, tmp_path: Path) -> None:
    text, sentence = HARNESS[name]
    file = included(tmp_path, text)
    refused(run(tmp_path, "--task gsm8k --method pld --include", file), f"{sentence}{file}")
    assert not (tmp_path / RECORDS).read_text()


def test_memory_in_a_closure_gains_nothing(tmp_path: Path) -> None:
    text = ANSWERS_FROM_MEMORY.replace("KNOWN = {}\n", "").replace("    def decode", "    KNOWN = {}\n\n    def decode", 1)
    file = included(tmp_path, text)
    done = run(tmp_path, "--task gsm8k --limit 2 --method cheat --repeats 2 --include", file)
    assert done.code == 0, done.err
    forwards = [len(r["trace"]["tree_size"]) for r in counted(tmp_path)]
    assert forwards == [7] * 8  # two prompts, two repeats, two methods


def test_memory_in_a_module_is_an_error_from_the_second_repeat_on(tmp_path: Path) -> None:
    file = included(tmp_path, ANSWERS_FROM_MEMORY.replace("params.key", "0"))
    run(tmp_path, "--task gsm8k --limit 2 --method cheat --repeats 2 --include", file)
    status = [(r["repeat"], r["status"]) for r in counted(tmp_path) if r["method"] == "cheat"]
    assert status == [(0, "ok"), (0, "ok"), (1, "error"), (1, "error")]


def test_nothing_is_said_to_be_replaced_where_a_file_only_adds(tmp_path: Path) -> None:
    outcome = harness(VERIFY, "--method cheat --include", included(tmp_path, OTHER_VANILLA.replace("methods._METHODS", "{}")),
                      "--out", tmp_path / "audit")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert originals.replaced() == []


def test_a_function_patched_in_place_is_another() -> None:
    originals.remember()
    build, real = methods.get("vanilla").build, methods.get("vanilla").build.__code__
    try:
        build.__code__ = real.replace(co_name="other")
        assert any("method vanilla was replaced" in line for line in originals.replaced())
    finally:
        build.__code__ = real
    assert originals.replaced() == []


@pytest.mark.slow  # four fresh processes
def test_vanilla_slowed_by_other_means_shows_in_a_fresh_process(tmp_path: Path) -> None:
    slowed = pace_of(included(tmp_path, SLEEPS_IN_VANILLA))
    assert slowed.is_slowed and len(slowed.ratios) == TRIES, slowed
    assert pace_verdict(replace(slowed, load=0.5)).passed is False  # whatever runs beside this test
    healthy = tmp_path / "healthy.py"
    healthy.write_text("X = 1\n")
    assert not pace_of(healthy).is_slowed


@pytest.mark.parametrize(
    ("measured", "passed"),
    [
        (Pace((1.02,), 1.0, load=9.0, n_cores=2), True),
        (Pace((1.6, 2.3, 1.1), 1.0, load=0.3, n_cores=2), True),
        (Pace((1.6, 2.3, 1.4), 1.0, load=9.0, n_cores=2), None),  # it waited, and others had the cores
        (Pace((1.6, 2.3, 1.4), 1.0, load=0.3, n_cores=2), False),  # it waited, and nobody else ran: it sleeps
        (Pace((1.6, 2.3, 1.4), 1.6, load=9.0, n_cores=2), False),  # it computed
    ],
)
def test_vanilla_is_slowed_only_where_nothing_else_may_be_why(measured: Pace, passed: bool | None) -> None:
    verdict = pace_verdict(measured)
    assert verdict.passed is passed and verdict.blocks is (passed is None)
    assert ("the machine's load was 9.0 on 2 cores" in verdict.why) is (passed is None)


def pace_of(file: Path) -> Pace:
    return pace(str(TINY), "float32", 1, [file])
