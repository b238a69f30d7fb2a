"""An engine elsewhere measured like any method: records, baseline, counts, times, and every way in which it can fail."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_stand_in
import pytest
from command_line import Outcome, files, harness, isolate, refused
from engine_stand_in import MODEL, OWNERS, Serving, _Handler, engine
from places import TINY

from harness.ledger.ledger import RECORDS, read
from harness.ledger.record import Record, validate
from harness.load import model as model_of_weights

KINDS = sorted(OWNERS)
BASE = f"--model {TINY} --source bundled --limit 2 --max-new-tokens 16 --method server"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def asked(out: Path, spec: Serving, plain: Serving | None, *words: object) -> Outcome:
    urls = ["--set", f"url={spec.url}", *(["--set", f"baseline_url={plain.url}"] if plain else [])]
    if spec.kind != "sglang" and not any("drafts=" in str(word) for word in words):
        urls += ["--set", "drafts=k"]  # which they do not say
    return harness("run", BASE, "--out", out, *urls, *(words or ("--task gsm8k",)))


def measured(out: Path, method: str = "server") -> list[Record]:
    """Those of a method that count: whole, and no warm-ups."""
    return [r for r in read(out) if not r["is_warmup"] and r["status"] == "ok" and r["method"] == method]


# ---- what is recorded ----


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_is_measured_beside_itself_without_speculation_and_no_target_is_loaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine(kind, drafts=3) as spec, engine(kind) as plain:
        monkeypatch.setattr(model_of_weights, "_target_model", None)  # which would load one
        outcome = asked(tmp_path, spec, plain, "--task gsm8k --json")
    assert outcome.code == 0, outcome.err
    own, base = measured(tmp_path), measured(tmp_path, "server-plain")
    assert [r["sample_id"] for r in own] == [r["sample_id"] for r in base] and len(own) == 2
    for record, plain_one in zip(own, base, strict=True):
        assert record["token_ids"] == plain_one["token_ids"] and record["finish"] in ("stop", "length")
        assert record["trace"] is None and record["cpu_s"] is None and record["peak_bytes"] is None
        served = record["served"]
        assert 0 < served["first_s"] < record["wall_s"] and record["prefill_s"] == served["first_s"]
        assert (served["prompt_as"], served["ids_from"]) == (("text", "text") if kind == "openai" else ("ids", "engine"))
        assert plain_one["served"]["steps"] is None and plain_one["served"]["why"]  # nothing is made up
        assert record["head_id"] != plain_one["head_id"] or kind == "openai"
        assert (record["target_id"], record["target_sha"]) == (plain_one["target_id"], plain_one["target_sha"])
        if kind == "openai":
            assert served["steps"] is None and served["why"] == "it tells of no steps"
        else:  # a step accepts 0, 1, 2, 3, 0 ... drafts: seven for fifteen tokens after the first
            assert (len(record["token_ids"]), served["steps"], served["drafted"]) == (16, 7, 21), served
            assert served["why"] is None and served["accepted"] == 15 - 7
    cell = outcome.cells["server", "gsm8k"]
    assert cell["tau"] == (None if kind == "openai" else pytest.approx(15 / 7)) and cell["speedup"] > 0
    assert cell["identical"] == 2


def test_records_name_the_engine_and_leave_addresses_out(tmp_path: Path) -> None:
    with engine("sglang", drafts=2, version="0.5.23") as spec, engine("sglang", version="0.5.23") as plain:
        assert asked(tmp_path, spec, plain, "--task gsm8k --set drafts=eagle-k2").code == 0
    (record, *_) = measured(tmp_path)
    (env,) = (json.loads(file.read_text()) for file in tmp_path.glob("env-*.json"))
    assert record["target_sha"] == f"{MODEL}@sglang 0.5.23" and record["dtype"] == "served"
    assert env["target_parts"]["engine"] == "sglang 0.5.23 over HTTP"
    assert env["engines"]["server"]["drafting"] == {"speculative_algorithm": "EAGLE", "speculative_num_steps": "2"}
    assert env["engines"]["server-plain"]["drafting"] == {}
    assert record["options"] == {"drafts": "eagle-k2"} and record["preset"] == "paper+drafts=eagle-k2"
    assert spec.url not in (tmp_path / RECORDS).read_text() + json.dumps(env)


def test_both_are_asked_prompt_by_prompt_with_the_same_token_ids_budget_and_stop_ids(tmp_path: Path) -> None:
    with engine("vllm", drafts=1) as spec, engine("vllm") as plain:
        assert asked(tmp_path, spec, plain).code == 0
    for a, b in zip(spec.requests, plain.requests, strict=True):
        assert {k: v for k, v in a.items() if k != "cache_salt"} == {k: v for k, v in b.items() if k != "cache_salt"}
    last = spec.requests[-1]
    assert last["stop_token_ids"] == [0, 2] and last["ignore_eos"] and last["max_tokens"] == 16 and last["temperature"] == 0
    assert [r["n_prompt"] for r in measured(tmp_path)] == [len(body["prompt"]) for body in spec.requests[-2:]]
    order = [(r["sample_id"], r["method"]) for r in read(tmp_path) if not r["is_warmup"]]
    assert [sample for sample, _ in order] == ["1", "1", "2", "2"]


def test_what_would_change_the_law_is_switched_off_as_far_as_the_engine_has_switches(tmp_path: Path) -> None:
    for kind, more in (("openai", set()), ("vllm", {"repetition_penalty", "top_k", "min_p"})):
        with engine(kind, drafts=1) as spec, engine(kind) as plain:
            assert asked(tmp_path / kind, spec, plain).code == 0
        body = spec.requests[-1]
        assert body["frequency_penalty"] == body["presence_penalty"] == 0 and more <= set(body) and "seed" in body


def test_later_turns_hold_the_plain_engines_answers(tmp_path: Path) -> None:
    with engine(drafts=2, flip_at=3) as spec, engine() as plain:
        assert asked(tmp_path, spec, plain, "--task mt_bench").code == 0
    first, second = ([r for r in measured(tmp_path, name) if r["sample_id"] == "1"] for name in ("server-plain", "server"))
    assert first[0]["token_ids"] != second[0]["token_ids"]
    assert first[1]["prompt_sha"] == second[1]["prompt_sha"] and first[1]["turn1_sha"] == second[1]["turn1_sha"]


def test_what_is_there_is_not_asked_again_but_of_an_engine_with_other_settings(tmp_path: Path) -> None:
    with engine(drafts=2) as spec, engine() as plain:
        assert asked(tmp_path, spec, plain).code == 0
        before, n = files(tmp_path), len(spec.requests)
        again = asked(tmp_path, spec, plain)
        assert "nothing to measure" in again.err and files(tmp_path) == before and len(spec.requests) == n
    with engine(drafts=2, version="b2") as spec, engine(version="b2") as plain:
        assert "holds records of another tiny" in asked(tmp_path, spec, plain).err and spec.requests
    assert len(measured(tmp_path)) == 4


def test_vllms_own_metrics_of_a_request_need_all_steps_beside_them(tmp_path: Path) -> None:
    with engine("vllm", drafts=3, per_request=True, fault="others ask too", since=3) as spec, engine("vllm") as plain:
        assert asked(tmp_path, spec, plain).code == 0
    told = [r["served"] for r in measured(tmp_path)]
    assert [served["steps"] for served in told] == [7, None] and "other requests ran" in told[1]["why"]
    assert {(served["drafted"], served["counter"]) for served in told} == {(21, "metrics.speculative_decoding, /metrics")}


def test_counters_that_other_requests_share_tell_of_no_steps_and_tables_say_so(tmp_path: Path) -> None:
    with engine("vllm", drafts=3, fault="others ask too", since=3) as spec, engine("vllm") as plain:
        outcome = asked(tmp_path, spec, plain)
    told = [r["served"] for r in measured(tmp_path)]
    assert [served["steps"] for served in told] == [7, None]
    assert told[1]["why"] == "its /metrics counted 23 new tokens, and the answer has 16: other requests ran"
    assert "server gsm8k: 1 answers not in τ, as the engine tells of no steps" in outcome.out


def test_pairs_of_which_one_engine_had_more_of_the_prompt_in_its_cache_are_counted_below_the_table(tmp_path: Path) -> None:
    with engine("sglang", drafts=3, fault="caches", since=3) as spec, engine("sglang") as plain:
        outcome = asked(tmp_path, spec, plain)
    assert [r["served"]["n_cached"] for r in measured(tmp_path)] == [0, 4]
    assert "server gsm8k: 1 pairs in which one engine had more of the prompt in its cache" in outcome.out


def test_tokens_that_llama_cpp_does_not_stream_are_asked_for_off_the_clock(tmp_path: Path) -> None:
    with engine(drafts=3) as spec, engine() as plain:
        assert asked(tmp_path / "a", spec, plain).code == 0
        spec.held_back = plain.held_back = (0, 4, 5, 9)
        assert asked(tmp_path / "b", spec, plain).code == 0
        assert [body["stream"] for body in spec.requests[-4:]] == [True, False] * 2 and spec.requests[-1]["return_tokens"]
    for method in ("server", "server-plain"):
        whole, held = (measured(tmp_path / name, method) for name in "ab")
        assert [r["token_ids"] for r in held] == [r["token_ids"] for r in whole] and len(held) == 2
        assert all(r["served"]["steps"] is None and "streamed not every token" in r["served"]["why"] for r in held)
        assert all(r["prefill_s"] is None and r["wall_s"] < engine_stand_in.AGAIN_S for r in held)


def test_ids_of_another_answer_than_was_streamed_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(drafts=3, held_back=(4,)) as spec, engine() as plain:
        made = engine_stand_in.made

        def other(s: Serving, *how: Any) -> engine_stand_in.Made:
            is_again = bool(s.drafts and s.requests) and not s.requests[-1]["stream"]
            return made(replace(s, flip_at=7) if is_again else s, *how)

        monkeypatch.setattr(engine_stand_in, "made", other)
        outcome = asked(tmp_path, spec, plain)
    assert "it counted 16 tokens and streamed 15" in outcome.err and not measured(tmp_path)


def test_without_a_baseline_there_is_a_tau_and_no_speedup(tmp_path: Path) -> None:
    with engine(drafts=3) as spec:
        outcome = asked(tmp_path, spec, None, "--task gsm8k --no-baseline --json")
        assert outcome.code == 0 and outcome.value["speedup"] is None and outcome.value["tau"] == pytest.approx(15 / 7)
        refused(asked(tmp_path, spec, None, "--task mt_bench --no-baseline"), "task mt_bench has later turns", "baseline_url")


def test_the_plain_engine_alone_can_be_asked(tmp_path: Path) -> None:
    with engine() as plain:
        outcome = harness("run", BASE.replace("--method server", "--method server-plain"), "--task gsm8k --json --out", tmp_path,
                          "--set", f"url={plain.url}")  # fmt: skip
    assert outcome.code == 0 and outcome.value["speedup"] == 1 and len(measured(tmp_path, "server-plain")) == 2


def test_differences_from_the_plain_engine_are_told_and_stand_in_the_table_of_divergences(tmp_path: Path) -> None:
    with engine(drafts=2, flip_at=4) as spec, engine() as plain:
        outcome = asked(tmp_path, spec, plain)
    assert outcome.code == 0 and "2 of 2 greedy outputs of server differ from server-plain's" in outcome.err
    assert "`harness verify --model" in outcome.err and "--method server --results" in outcome.err
    assert harness("table --results", tmp_path).code == 0
    table = (tmp_path / "tables" / "divergences.md").read_text()
    assert (
        table.count("| server (paper+drafts=k) ‖") == 2
        and "‖ external: an engine elsewhere (llama.cpp b1-test over HTTP)" in table
    )


def test_every_table_marks_it_external_and_no_vanilla_is_its_baseline(tmp_path: Path) -> None:
    """The same model's own runs in the same folder: neither side has the other's baseline."""
    with engine(drafts=3) as spec, engine() as plain:
        assert asked(tmp_path, spec, plain).code == 0
        alone = asked(tmp_path, spec, None, "--task humaneval --no-baseline")
        assert alone.code == 0, alone.err
    ours = f"--model {TINY} --source bundled --limit 2 --max-new-tokens 16 --dtype float32 --threads 1 --method pld --task gsm8k"
    assert harness("run", ours, "--task humaneval --out", tmp_path).code == 0
    assert harness("table --results", tmp_path).code == 0
    made = {file.stem: file.read_text() for file in (tmp_path / "tables").glob("*.md")}
    for name in ("main", "cells", "official"):
        rows = [line for line in made[name].splitlines() if line.startswith("| server")]
        assert rows and all(line.startswith(("| server (paper+drafts=k) ‖ |", "| server-plain ‖ |")) for line in rows), name
        assert "its baseline is server-plain" in made[name]
    row = next(line for line in made["cells"].splitlines() if line.startswith("| server (paper+drafts=k) ‖ | humaneval"))
    assert row.split("|")[3].strip() == "—"  # vanilla's records of the same prompts are no baseline of it
    assert "served over HTTP" in made["main"] and "float32, 1 threads" in made["main"]


def test_stored_records_pass_the_schema(tmp_path: Path) -> None:
    with engine(drafts=3) as spec, engine() as plain:
        assert asked(tmp_path, spec, plain).code == 0
    for line in (tmp_path / RECORDS).read_text().splitlines():
        validate(json.loads(line))


# ---- what can go wrong ----

FAULTS: dict[str, tuple[str, str]] = {
    "counts": ("llama.cpp", "it counted 19 tokens and streamed 16"),
    "another prompt": ("llama.cpp", "it read a prompt of"),
    "truncates": ("llama.cpp", "it ended after 2 of 16 tokens (limit)"),
    "goes on": ("llama.cpp", "2 tokens follow where the output ends (length at token 16): another stop rule"),
    "another tokenizer": ("llama.cpp", "another tokenizer serves there"),
    "breaks off": ("llama.cpp", "its answer broke off after 16 tokens"),
    "own context": ("llama.cpp", "it cut the answer at its own context after 16 tokens"),
    "refuses": ("llama.cpp", "answers with status 400: the prompt is too long for me"),
    "fails": ("llama.cpp", "answers with status 500: the prompt is too much for me"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_cannot_be_recorded_fails_its_prompt_and_is_asked_again(fault: str, tmp_path: Path) -> None:
    kind, said = FAULTS[fault]
    with engine(kind, drafts=2, fault=fault, since=3) as spec, engine(kind) as plain:  # two requests warm it up, one is right
        outcome = asked(tmp_path, spec, plain)
        refused(outcome, "1 generations failed")
        (line,) = [line for line in outcome.err.splitlines() if line.startswith("server failed on 2 turn 1: ")]
        assert said in line
        assert len(measured(tmp_path)) == 1 and len(measured(tmp_path, "server-plain")) == 2  # nothing else is lost
        spec.fault = ""
        assert asked(tmp_path, spec, plain).code == 0
    assert len(measured(tmp_path)) == 2


@pytest.mark.parametrize(("kind", "fault", "said"), [
    ("vllm", "counts", "it counted 19 tokens and streamed 16"), ("sglang", "counts", "it counted 19 tokens and streamed 16"),
    ("openai", "counts", "its text has 16 tokens here and it counted 19"), ("openai", "another prompt", "it read a prompt of"),
    ("vllm", "truncates", "it ended after 2 of 16 tokens (length)"),
    ("sglang", "truncates", "it ended after 2 of 16 tokens (length)"),
])  # fmt: skip
def test_the_other_engines_answers_are_checked_alike(kind: str, fault: str, said: str, tmp_path: Path) -> None:
    with engine(kind, drafts=2, fault=fault, since=3) as spec, engine(kind) as plain:
        outcome = asked(tmp_path, spec, plain)
    assert outcome.code == 2 and said in outcome.err and len(measured(tmp_path)) == 1


@pytest.mark.parametrize(("fault", "said"), [
    ("slow", "gave no whole answer within 0.5 s (--set timeout=SECONDS)"),
    ("another model", "it answers as 'another-model', and 'tiny-served' was asked for"),
    ("hangs up", "broke off its answer"),
])  # fmt: skip
def test_an_engine_that_is_gone_or_another_ends_the_run_with_the_prompt_named(fault: str, said: str, tmp_path: Path) -> None:
    with engine(drafts=2, fault=fault, since=3) as spec, engine() as plain:
        refused(asked(tmp_path, spec, plain, "--task gsm8k --set timeout=0.5"), "server on 2 turn 1: ", said,
                "the same command goes on from here")  # fmt: skip
        n = len(measured(tmp_path)) + len(measured(tmp_path, "server-plain"))
        assert n >= 2 and read(tmp_path)[-1]["status"] == "error"
        spec.fault = ""
        assert asked(tmp_path, spec, plain).code == 0
    assert len(measured(tmp_path)) + len(measured(tmp_path, "server-plain")) == 4


def test_an_engine_that_fails_and_answers_nothing_more_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: _Handler) -> None:
        if self.serving.drafts and len(self.serving.requests) > 3:
            self._send(500, "{}")
        else:
            told(self)

    told = _Handler.do_GET
    monkeypatch.setattr(_Handler, "do_GET", fails)
    with engine(drafts=2, fault="fails", since=3) as spec, engine() as plain:
        refused(asked(tmp_path, spec, plain), "server on 2 turn 1: ", "status 500", "the same command goes on from here")


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_engines_that_are_down_or_no_engines_are_one_line(tmp_path: Path) -> None:
    down = Serving(url=f"http://127.0.0.1:{closed_port()}")
    with engine() as plain:
        refused(asked(tmp_path, down, plain), f"no engine answers at {down.url} (Connection refused)")
        refused(asked(tmp_path, plain, down), f"no engine answers at {down.url}")
        refused(asked(tmp_path, Serving(url=f"{plain.url}/elsewhere"), plain), "no OpenAI-compatible engine answers at")
        warm = "server on 1 turn 1, warming up: "
        with engine(fault="hangs up", drafts=1) as spec:
            refused(asked(tmp_path, spec, plain), warm)
    assert not (tmp_path / RECORDS).read_text()


def test_addresses_and_options_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    def wrong(*words: str) -> Outcome:
        return harness("run", BASE, "--task gsm8k --out", tmp_path, *(part for word in words for part in ("--set", word)))

    refused(wrong(), "url is missing: url takes the engine's address, such as url=http://127.0.0.1:8000")
    for url in ("127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://127.0.0.1:port", "http://host:1/?a=b", "http://u:p@host"):
        refused(wrong(f"url={url}"), f"url is {url!r}", "such as url=http://127.0.0.1:8000")
    refused(wrong("url=http://127.0.0.1:8"), "needs a baseline", "--set baseline_url=URL, or --no-baseline")
    for base in ("http://127.0.0.1:8000/", "http://localhost:8000", "http://127.0.0.1:8000/v1"):
        refused(wrong("url=http://127.0.0.1:8000", f"baseline_url={base}"), "baseline_url is url")
    refused(wrong("url=http://127.0.0.1:8", "baseline_url=nowhere"), "baseline_url is 'nowhere'")
    refused(wrong("url=http://127.0.0.1:8", "timeout=0"), "timeout is 0")
    refused(wrong("url=http://127.0.0.1:8", "engine=vlm"), "unknown engine 'vlm'; did you mean 'vllm'?")


def test_what_an_engine_elsewhere_does_not_take_is_one_line(tmp_path: Path) -> None:
    with engine(drafts=2) as spec, engine() as plain:
        refused(asked(tmp_path, spec, plain, "--task gsm8k --method eagle2"), "eagle2 run here: measure them by two commands")
        refused(asked(tmp_path, spec, plain, "--task gsm8k --method server-plain"), "one command measures one engine")
        for words in ("--dtype float32", "--threads 2", "--trees"):
            refused(asked(tmp_path, spec, plain, f"--task gsm8k {words}"), f"{words.split()[0]} is of decoding here")
        refused(asked(tmp_path, spec, plain, "--task gsm8k --set model=other"), "unknown model of", f"known: {MODEL}")


def test_a_baseline_that_is_another_engine_or_speculates_is_refused(tmp_path: Path) -> None:
    with engine(drafts=2) as spec, engine(version="b2") as newer, engine(drafts=1) as drafting, engine("vllm") as other:
        refused(asked(tmp_path, spec, newer), "differ in more than speculation: version: b1-test and b2")
        refused(asked(tmp_path, spec, other), "differ in more than speculation: engine: llama.cpp and vllm")
        refused(asked(tmp_path, spec, drafting), "tells of speculation (types ngram-simple): start it without")


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llama.cpp"])
def test_an_engine_that_does_not_speculate_is_refused(kind: str, tmp_path: Path) -> None:
    with engine(kind) as spec, engine(kind) as plain:
        refused(asked(tmp_path, spec, plain), f"the engine at {spec.url} does not speculate: start {kind} with speculation")
        assert not spec.requests


@pytest.mark.parametrize("kind", ["llama.cpp", "openai", "vllm"])
def test_what_an_engine_drafts_with_must_be_named_where_it_does_not_say(kind: str, tmp_path: Path) -> None:
    with engine(kind, drafts=2) as spec, engine(kind) as plain:
        refused(
            asked(tmp_path, spec, plain, "--task gsm8k --set drafts="), "does not say what it drafts with", "--set drafts=NAME"
        )
        assert asked(tmp_path, spec, plain, "--task gsm8k --set drafts=k2").code == 0
    with engine(kind, drafts=3) as spec, engine(kind) as plain:
        assert asked(tmp_path, spec, plain, "--task gsm8k --set drafts=k3").code == 0 and spec.requests
    assert {r["options"]["drafts"] for r in measured(tmp_path)} == {"k2", "k3"} and len(measured(tmp_path)) == 4


def test_a_baseline_that_is_named_and_not_wanted_is_refused(tmp_path: Path) -> None:
    with engine(drafts=2) as spec, engine() as plain:
        refused(asked(tmp_path, spec, plain, "--task gsm8k --no-baseline"), "--no-baseline does without what --set baseline_url")


def test_a_loaded_model_says_that_it_is_no_engine_elsewhere() -> None:
    from tiny_model import shared_tiny_model

    from harness.api import Model
    from harness.common.errors import UserError

    with pytest.raises(UserError, match="decodes on no loaded model: `harness run` measures it"):
        Model(shared_tiny_model("float32").loaded, None).generate("Hi", method="server", url="http://127.0.0.1:8")


def test_list_names_it_and_all_leaves_it_out() -> None:
    assert "server-plain" in harness("list methods").out
    outcome = harness(f"run --dry-run --model {TINY} --method all --task gsm8k --source bundled")
    assert outcome.code == 0 and "server" not in outcome.out + outcome.err


def test_a_dry_run_asks_nobody(tmp_path: Path) -> None:
    with engine(drafts=2) as spec, engine() as plain:
        outcome = asked(tmp_path, spec, plain, "--task gsm8k --dry-run")
    assert outcome.code == 0 and "server-plain (baseline)" in outcome.out and not spec.requests and not plain.requests
    assert "memory: nothing is loaded here but the tokenizer" in outcome.out and "KV cache" not in outcome.out
