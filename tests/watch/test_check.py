"""What a method returns is checked before it is recorded: whatever it is, it becomes a record or an error, never a traceback."""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import counted, isolate, refused, run
from tiny_model import shared_tiny_model

import methods
from harness.load.model import Loaded
from harness.watch import originals
from harness.watch.check import BadGeneration, check_cores, check_form
from harness.watch.run import built, names_of, watched
from methods.base import Decode, Generation, SamplerParams, Trace
from methods.engine.native.library import n_threads
from methods.engine.target import HFTarget

PARAMS = SamplerParams(12)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return shared_tiny_model("float32").loaded


@pytest.fixture(scope="module")
def right(loaded: Loaded) -> Generation:
    return made_by(loaded, "eagle2")


def made_by(loaded: Loaded, method: str, params: SamplerParams = PARAMS, decode: Decode | None = None) -> Generation:
    """A generation that passed every check."""
    m, prompt = methods.get(method), shared_tiny_model("float32").prompts[0]
    drafter, names = loaded.drafter_of(m.drafter), names_of(loaded, m.drafter)
    return watched(
        decode or m.build(), prompt, loaded.target, drafter, params, names, external=m.external
    ).generation  # fmt: skip


def of_ids(ids: Any) -> Callable[[Generation], Any]:
    return lambda g: replace(g, token_ids=ids)


def with_id(token: Any) -> Callable[[Generation], Any]:
    return lambda g: replace(g, token_ids=[*g.token_ids[:-1], token])


def with_column(name: str, change: Callable[[list[Any]], Any]) -> Callable[[Generation], Any]:
    def changed(g: Generation) -> Generation:
        trace = copy.deepcopy(g.trace)
        setattr(trace, name, change(getattr(trace, name)))
        return replace(g, trace=trace)

    return changed


BAD: dict[str, tuple[Callable[[Generation], Any], str]] = {
    "None": (lambda g: None, "it returned None (NoneType); a method returns a Generation"),
    "the ids alone": (lambda g: g.token_ids, "; a method returns a Generation"),
    "ids as a tensor": (of_ids(torch.tensor([1])), "token_ids is tensor([1]) (Tensor); it must be a list of ints"),
    "ids as a text": (of_ids("abc"), "token_ids is 'abc' (str); it must be a list of ints"),
    "a bool": (with_id(True), "token_ids holds True (bool); ids are ints"),
    "a number of numpy": (with_id(np.int64(3)), "(int64); ids are ints"),
    "a tensor": (with_id(torch.tensor(3)), "token_ids holds tensor(3) (Tensor); ids are ints"),
    "a float": (with_id(3.0), "token_ids holds 3.0 (float); ids are ints"),
    "a negative id": (with_id(-1), "token_ids holds -1; the vocabulary has 512 tokens"),
    "an id beyond": (with_id(512), "token_ids holds 512; the vocabulary has 512 tokens"),
    "no ids": (of_ids([]), "it returned 0 tokens; the budget is 12"),
    "over the budget": (of_ids([5] * 500), "it returned 500 tokens; the budget is 12"),
    "too few": (lambda g: replace(g, token_ids=g.token_ids[:-1]), "it ended after 11 of 12 tokens without a stop id"),
    "an unknown end": (lambda g: replace(g, finish="done"), "finish is 'done' (str); with these ids it is 'length'"),
    "the wrong end": (lambda g: replace(g, finish="stop"), "finish is 'stop' (str); with these ids it is 'length'"),
    "n_cut of None": (lambda g: replace(g, n_cut=None), "n_cut is None (NoneType)"),
    "n_cut below 0": (lambda g: replace(g, n_cut=-1), "n_cut is -1 (int)"),
    "n_cut of another sum": (lambda g: replace(g, n_cut=g.n_cut + 1), "1 + sum(accepted + 1) - n_cut is "),
    "prefill_s of NaN": (lambda g: replace(g, prefill_s=math.nan), "prefill_s is or holds nan (float); times are finite"),
    "prefill_s as text": (lambda g: replace(g, prefill_s="1"), "prefill_s is or holds '1' (str); times are finite"),
    "a trace of another type": (lambda g: replace(g, trace={}), "trace is {} (dict); it must be a Trace or None"),
    "a column of None": (with_column("draft_s", lambda c: None), "the trace's draft_s is None (NoneType); it must be a list"),
    "a column too short": (with_column("target_s", lambda c: c[1:]), "the trace's columns differ in length: tree_size has "),
    "infinite time": (with_column("verify_s", lambda c: [math.inf, *c[1:]]), "verify_s is or holds inf (float)"),
    "negative time": (with_column("draft_s", lambda c: [-1.0, *c[1:]]), "draft_s is or holds -1.0 (float)"),
    "a count of floats": (with_column("accepted", lambda c: [float(n) for n in c]), "(float); counts are ints of 0 or more"),
    "more accepted than drafted": (with_column("tree_size", lambda c: [0 for _ in c]), "draft tokens accepted of 0"),
    "trees of another type": (with_column("trees", lambda c: [1]), "the trace's trees are not a list of DraftedTree"),
    "time for trees not kept": (with_column("keeping_s", lambda c: 5.0), "keeping_s is 5, and no trees were to be kept"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_recorded_is_refused_in_one_line(name: str, right: Generation) -> None:
    spoil, why = BAD[name]
    with pytest.raises(BadGeneration) as refusal:
        check_form(spoil(right), PARAMS, 512)
    assert why in str(refusal.value) and "\n" not in str(refusal.value)


class Leaves:
    """Ends the program whatever it is asked."""

    @property
    def __class__(self) -> Any:
        raise SystemExit(0)

    def __repr__(self) -> str:
        raise SystemExit(0)


def test_what_leaves_when_it_is_looked_at_is_refused_too(right: Generation) -> None:
    for made in (Leaves(), replace(right, trace=Leaves()), replace(right, prefill_s=Leaves())):  # type: ignore[arg-type]
        with pytest.raises(BadGeneration, match=r"\? \(Leaves\)"):
            check_form(made, PARAMS, 512)


def test_nothing_may_follow_a_stop_id(right: Generation) -> None:
    with pytest.raises(BadGeneration, match=f"9 tokens follow the stop id {right.token_ids[2]}; the output ends there"):
        check_form(right, replace(PARAMS, stop_ids=frozenset({right.token_ids[2]})), 512)


@pytest.mark.parametrize("name", ["None", "ids as a tensor", "a number of numpy", "a column of None", "over the budget"])
def test_a_run_records_it_as_an_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch, tmp_path)
    spoil, _ = BAD[name]
    plain = methods.get("vanilla").build()
    methods.method("odd", line="returns something else")(lambda: lambda *given: spoil(plain(*given)))
    refused(run(tmp_path, "--task gsm8k --method odd"), "1 generations failed")
    assert {r["method"]: r["status"] for r in counted(tmp_path)} == {"vanilla": "ok", "odd": "error"}


@pytest.mark.parametrize("ends", [SystemExit(0), SystemExit("enough"), GeneratorExit()])
def test_a_method_that_ends_the_program_fails_its_prompt_alone(
    ends: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path)

    def decode(*_: Any) -> Generation:
        raise ends

    methods.method("quits", line="ends the program")(lambda: decode)
    refused(run(tmp_path, "--task gsm8k --method quits"), "1 generations failed")
    (failed,) = (r for r in counted(tmp_path) if r["status"] == "error")
    assert failed["error"].startswith("TriedToExit: ")


@pytest.mark.parametrize("name", sorted(methods.names()))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("keep_trees", [False, True])
def test_every_method_of_this_repository_is_recorded(name: str, temperature: float, keep_trees: bool, loaded: Loaded) -> None:
    params = SamplerParams(24, frozenset({0, 2}), temperature=temperature, key=7, keep_trees=keep_trees)
    assert made_by(loaded, name, params).token_ids


# ---- what the engine saw --------------------------------------------------------------------------------------------


def decoding(change: Callable[[Generation], Generation], method: str = "eagle2") -> Decode:
    """A method whose generation is changed before it is returned."""
    decode = methods.get(method).build()
    return lambda *given: change(decode(*given))


SEEN = {
    "a forward less": (
        lambda g: with_column("accepted", lambda c: [c[0] + c[1] + 1, *c[2:]])(
            with_column("tree_size", lambda c: c[1:])(
                with_column("draft_s", lambda c: c[1:])(
                    with_column("verify_s", lambda c: c[1:])(
                        with_column("target_s", lambda c: c[1:])(with_column("drafter_s", lambda c: c[1:])(g))
                    )
                )
            )
        ),
        "forwards after the prefill; the target ran",
    ),
    "smaller trees": (with_column("tree_size", lambda c: [n - 1 for n in c]), "in step 1 the trace has 58 tokens drafted; the"),
    "other steps": (
        with_column("accepted", lambda c: [*c[:-2], c[-2] + c[-1], 0] if c[-1] else [c[0] + 1, c[1] - 1, *c[2:]]),
        " tokens accepted; the target saw ",
    ),
    "another token": (
        lambda g: replace(g, token_ids=[9, *g.token_ids[1:]]),
        "output token 0 (9) was in no forward of the target",
    ),
    "half the time": (
        lambda g: replace(g, trace=replace(g.trace, target_s=[s / 9 for s in g.trace.target_s])),  # type: ignore[type-var]
        "the model's forwards take ",
    ),
    "more time than there was": (with_column("draft_s", lambda c: [1.0 for _ in c]), "which is more than the whole generation"),
    "a prefill of hours": (lambda g: replace(g, prefill_s=3600.0), "prefill_s and the steps of the trace take 3.6e+03 s"),
    "a drafter without time": (with_column("drafter_s", lambda c: [0.0 for _ in c]), "the model's forwards take "),
}


@pytest.mark.parametrize("name", SEEN)
def test_what_is_told_must_be_what_was_seen(name: str, loaded: Loaded) -> None:
    change, why = SEEN[name]
    with pytest.raises(BadGeneration) as refusal:
        made_by(loaded, "eagle2", SamplerParams(200), decoding(change))  # enough of them that clocks' slack hides nothing
    assert why in str(refusal.value)


def test_time_in_a_drafter_that_was_never_called_is_a_lie(loaded: Loaded) -> None:
    change = with_column("drafter_s", lambda c: [1e-6 for _ in c])
    with pytest.raises(BadGeneration, match="the drafter was never called"):
        made_by(loaded, "pld", PARAMS, decoding(change, "pld"))


def test_time_between_steps_that_nobody_tells_of_is_noticed(loaded: Loaded) -> None:
    import time

    decode = methods.get("pld").build()

    def works(*given: Any) -> Generation:
        until = time.thread_time() + 0.3
        while time.thread_time() < until:
            pass
        return decode(*given)

    def waits(*given: Any) -> Generation:
        time.sleep(0.3)
        return decode(*given)

    with pytest.raises(BadGeneration, match="prefill_s and the steps of the trace take .* the whole generation took"):
        made_by(loaded, "pld", PARAMS, works)
    made_by(loaded, "pld", PARAMS, waits)  # as where other work has the core: its wall clock has it, no verdict does


def test_a_tree_kept_is_the_tree_verified(loaded: Loaded) -> None:
    def other(g: Generation) -> Generation:
        assert g.trace is not None
        g.trace.trees[1].tokens[0] += 1
        return g

    with pytest.raises(BadGeneration, match="the tree that the trace keeps of step 2 is not the one"):
        made_by(loaded, "eagle2", SamplerParams(40, keep_trees=True), decoding(other))


def test_another_prompt_a_second_prefill_and_trees_not_committed_are_noticed(loaded: Loaded) -> None:
    plain = methods.get("vanilla").build()

    def elsewhere(ids: list[int], *given: Any) -> Generation:
        return plain(ids[1:], *given)

    def twice(*given: Any) -> Generation:
        plain(*given)
        return plain(*given)

    for decode, why in ((elsewhere, "the target's prefill was of another prompt"), (twice, "the target ran 2 prefills")):
        with pytest.raises(BadGeneration, match=why):
            made_by(loaded, "vanilla", PARAMS, decode)


def test_a_method_cannot_spoil_the_prompt_of_the_next(loaded: Loaded) -> None:
    plain, prompt = methods.get("vanilla").build(), list(shared_tiny_model("float32").prompts[0])

    def empties(ids: list[int], *given: Any) -> Generation:
        made = plain(ids, *given)
        ids.clear()
        return made

    made_by(loaded, "vanilla", PARAMS, empties)
    assert shared_tiny_model("float32").prompts[0] == prompt


@pytest.mark.parametrize("past", ["clock", "module"])
def test_forwards_past_the_interface_are_counted(past: str, loaded: Loaded) -> None:
    plain = methods.get("vanilla").build()

    def hidden(ids: list[int], target: Any, *given: Any) -> Generation:
        made = plain(ids, target, *given)
        if past == "clock":
            loaded.target.step(5)
        else:
            target.model.model(torch.tensor([[5]]), use_cache=False)
        return made

    with pytest.raises(BadGeneration, match="the target ran 1 forwards besides the 12 that it was asked for"):
        made_by(loaded, "vanilla", PARAMS, hidden)


class TwoFaced(Trace):
    """Tells whoever asks first one thing, and others another."""


@pytest.mark.parametrize("what", ["trace", "generation", "a time"])
def test_what_is_only_like_a_generation_is_refused(what: str, loaded: Loaded) -> None:
    plain = methods.get("vanilla").build()

    def like(*given: Any) -> Any:
        made = plain(*given)
        assert made.trace is not None
        if what == "trace":
            return replace(made, trace=TwoFaced(**{f.name: getattr(made.trace, f.name) for f in fields(Trace)}))
        if what == "a time":
            return replace(made, prefill_s=np.float64(made.prefill_s))
        return type("Mine", (Generation,), {})(**{f.name: getattr(made, f.name) for f in fields(Generation)})

    with pytest.raises(BadGeneration, match="TwoFaced|Mine|float64"):
        made_by(loaded, "vanilla", PARAMS, like)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: torch.set_num_threads(torch.get_num_threads() + 2), "the number of threads"),
        (lambda: sys.setprofile(lambda *_: None), "sys.setprofile"),
        (lambda: torch.set_default_dtype(torch.float64), "torch's default dtype"),
        (lambda: os.chdir("/"), "the working folder"),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_what_a_method_leaves_changed_is_put_back_and_fails_it(
    change: Callable[[], None], named: str, fails: bool, loaded: Loaded
) -> None:
    plain, before = methods.get("vanilla").build(), (torch.get_num_threads(), torch.get_default_dtype(), os.getcwd())

    def leaves(*given: Any) -> Generation:
        made = plain(*given)
        change()
        if fails:
            raise ValueError(named)
        return made

    with pytest.raises((BadGeneration, ValueError), match=named):
        made_by(loaded, "vanilla", PARAMS, leaves)
    assert (torch.get_num_threads(), torch.get_default_dtype(), os.getcwd()) == before and sys.getprofile() is None


def test_while_a_method_decodes_on_the_native_engine_torch_has_one_thread_and_the_engine_all(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, found = methods.get("vanilla").build(), []

    def looks(*given: Any) -> Generation:
        found.append((torch.get_num_threads(), n_threads()))
        return plain(*given)

    before = torch.get_num_threads()
    try:
        for n in (3, 1):
            torch.set_num_threads(n)
            made_by(loaded, "vanilla", PARAMS, looks)
            assert (torch.get_num_threads(), n_threads()) == (n, n)
        monkeypatch.setattr(type(loaded.target), "decoding", HFTarget.decoding)  # of an engine that is torch's
        torch.set_num_threads(3)
        made_by(loaded, "vanilla", PARAMS, looks)
    finally:
        torch.set_num_threads(before)
    assert found == [(1, 3), (1, 1), (3, 3)]


def test_more_cores_than_given_are_noticed() -> None:
    check_cores(1.0, 2.05, 2)
    with pytest.raises(BadGeneration, match="2 CPU seconds in 1 s, which is more than 1 threads can"):
        check_cores(1.0, 2.0, 1)


def test_a_builder_that_decodes_is_noticed(loaded: Loaded) -> None:
    m = methods.get("vanilla")

    def ahead() -> Decode:
        loaded.target.prefill([5, 6], 2)
        return m.build()

    with pytest.raises(BadGeneration, match="its builder ran 1 forwards of the target"):
        built(replace(m, build=ahead), {}, loaded.target)


def test_a_model_whose_own_functions_were_replaced_is_noticed(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(originals, "_remembered", {"one file": (methods, "names", originals._facts(methods.names))})
    monkeypatch.setattr(originals, "_known", {})
    made_by(loaded, "vanilla")
    step = loaded.target.step
    monkeypatch.setattr(loaded.target, "step", lambda token: step(token))
    with pytest.raises(BadGeneration, match=f"{type(loaded.target).__name__}.step was replaced by .*test_check.py"):
        made_by(loaded, "vanilla")


def test_each_generations_peak_of_memory_is_its_own(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a GPU's allocator: a method that takes much leaves nothing in the peak of the one after it."""
    peak = [100]
    monkeypatch.setattr(HFTarget, "reset_peak", lambda self: peak.__setitem__(0, 100))
    monkeypatch.setattr(HFTarget, "peak_bytes", lambda self: peak[0])
    vanilla, prompt = methods.get("vanilla").build(), shared_tiny_model("float32").prompts[0]

    def hungry(*args: Any) -> Generation:
        peak[0] = 900
        return vanilla(*args)

    seen = [watched(d, prompt, loaded.target, None, PARAMS, names_of(loaded, None)) for d in (vanilla, hungry, vanilla)]
    assert [made.peak_bytes for made in seen] == [100, 900, 100]
