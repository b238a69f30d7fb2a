"""What a run measures, writes down and skips: turns, resuming, killing, order, failures. In-process on the tiny model."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import SMALL, counted, files, harness, ids, isolate, lines, measured, questions, refused, run, tiny_copy
from places import ROOT
from tiny_model import shared_tiny_model

import methods
import tasks
from harness.ledger.ledger import RECORDS, Ledger, read
from harness.ledger.record import Record, canonical_hash, ids_sha, validate
from harness.metrics.cells import summarise
from harness.metrics.comparisons import comparisons

METHODS = "--method vanilla --method eagle1 --method eagle2 --method pld"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


# ---- two turns ------------------------------------------------------------------------------------------------------


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_second_turns(records: list[Record]) -> None:
    """Every second turn was asked after vanilla's greedy first answer, of which there is one a conversation."""
    tiny = shared_tiny_model("float32")
    first = [r for r in records if r["method"] == "vanilla" and r["turn"] == 1 and r["temperature"] == 0]
    answer = {r["sample_id"]: r for r in first}
    assert len(answer) == len(first), "a first turn was made twice"
    second = [r for r in records if r["turn"] == 2]
    assert second and all(r["turn1_sha"] is None for r in records if r["turn"] == 1)
    prompts = {p.id: p.turns for p in tasks.load("mt_bench", source="bundled").prompts}
    for r in second:
        vanilla, turns = answer[r["sample_id"]], prompts[r["sample_id"]]
        assert r["turn1_sha"] == ids_sha(vanilla["token_ids"])
        dialogue = [("user", turns[0]), ("assistant", vanilla["text"]), ("user", turns[1])]
        assert r["prompt_sha"] == sha(tiny.loaded.render(dialogue))


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("baseline", ["", "--no-baseline"])
def test_second_turns_follow_vanillas_greedy_first_turn_which_is_made_once(
    tmp_path: Path, temperature: int, baseline: str
) -> None:
    command = f"--method eagle2 --method pld --task mt_bench --limit 2 --temperature {temperature} {baseline}"
    records = measured(tmp_path, command)
    check_second_turns(records)
    made = Counter((r["method"], r["temperature"], r["turn"]) for r in records)
    asked = ["eagle2", "pld"] if baseline else ["vanilla", "eagle2", "pld"]
    assert made == {("vanilla", 0, 1): 2} | {(m, temperature, t): 2 for m in asked for t in (1, 2)}
    before = files(tmp_path)
    assert "nothing to measure" in run(tmp_path, command).err and files(tmp_path) == before


def test_the_first_turn_made_for_a_sampled_run_serves_other_temperatures_and_the_baseline(tmp_path: Path) -> None:
    for options in ("--temperature 1 --no-baseline", "--temperature 0.5", "--temperature 0"):
        records = measured(tmp_path, "--method pld --task mt_bench", options)
    check_second_turns(records)
    ids(records)  # each generation once


def test_a_third_turn_follows_both_answers(tmp_path: Path) -> None:
    (tmp_path / "three.py").write_text(
        'from tasks import Task\nTASK = Task(name="three", title="Three", line="three turns", n_turns=3)\n'
    )
    row = {"question_id": "a", "turns": ["One?", "Two?", "Three?"]}
    (tmp_path / "three.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "out"
    records = measured(out, "--method eagle2 --task three --source auto --temperature 1 --include", tmp_path / "three.py")
    answers = [r["text"] for r in records if r["method"] == "vanilla" and r["temperature"] == 0]
    assert len(answers) == 2
    dialogue = [("user", "One?"), ("assistant", answers[0]), ("user", "Two?"), ("assistant", answers[1]), ("user", "Three?")]
    (third,) = {r["prompt_sha"] for r in records if r["turn"] == 3}
    assert third == sha(shared_tiny_model("float32").loaded.render(dialogue))


# ---- what is there is not measured again ----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_same_command_again_measures_nothing(tmp_path: Path, temperature: int) -> None:
    command = f"{METHODS} --task gsm8k --temperature {temperature} --repeats 2 --json"
    first = run(tmp_path, command)
    before = files(tmp_path)
    again = run(tmp_path, command)
    assert files(tmp_path) == before
    assert "nothing to measure" in again.err
    assert again.value == first.value  # numbers are recomputed from the records, not from the process


def test_a_higher_limit_keeps_the_records_of_a_lower_one(tmp_path: Path) -> None:
    run(tmp_path, "--method eagle2 --task gsm8k --task mt_bench --limit 1")
    before = lines(tmp_path)
    records = measured(tmp_path, "--method eagle2 --task gsm8k --task mt_bench --limit 2")
    assert lines(tmp_path)[: len(before)] == before
    ids(records)
    assert Counter((r["task"], r["method"]) for r in records) == {
        (task, method): n for task, n in (("gsm8k", 2), ("mt_bench", 4)) for method in ("vanilla", "eagle2")
    }
    summary = run(tmp_path, "--method eagle2 --task gsm8k --limit 1 --json").value
    assert summary["prompts"] == 1  # what is beyond the limit asked for stays out of the numbers


def test_a_second_method_is_paired_with_the_baseline_that_is_there(tmp_path: Path) -> None:
    run(tmp_path, "--method eagle2 --task gsm8k")
    records = measured(tmp_path, "--method pld --task gsm8k")
    assert Counter(r["method"] for r in records) == {"vanilla": 1, "eagle2": 1, "pld": 1}


def sampled(out: Path, *words: object) -> dict[tuple[Any, ...], list[int]]:
    return ids(measured(out, "--temperature 1 --max-new-tokens 16 --limit 2", *words))


def test_sampled_ids_do_not_depend_on_order_sharding_or_resuming(tmp_path: Path) -> None:
    whole = sampled(tmp_path / "whole", METHODS, "--task gsm8k --task mt_bench")
    backwards = " ".join(f"--method {m}" for m in ("pld", "eagle2", "eagle1", "vanilla"))
    assert sampled(tmp_path / "order", backwards, "--task mt_bench --task gsm8k") == whole
    shards = [sampled(tmp_path / task, METHODS, f"--task {task}") for task in ("mt_bench", "gsm8k")]
    assert shards[0] | shards[1] == whole
    sampled(tmp_path / "resumed", "--method eagle1 --task mt_bench --limit 1 --no-baseline")
    assert sampled(tmp_path / "resumed", METHODS, "--task gsm8k --task mt_bench") == whole
    other_seed = sampled(tmp_path / "seed", METHODS, "--task gsm8k --seed 1")
    assert all(other_seed[name] != whole[name] for name in other_seed)


def test_repeats_are_samples_of_their_own_in_one_conversation(tmp_path: Path) -> None:
    outcome = run(tmp_path, "--method eagle2 --task gsm8k --temperature 1 --repeats 3 --max-new-tokens 16 --json")
    records = counted(tmp_path)
    by_repeat = ids(records)
    assert {r["repeat"] for r in records} == {0, 1, 2} and len(records) == 6
    own = [v for k, v in by_repeat.items() if k[0] == "eagle2"]
    assert len({tuple(v) for v in own}) == 3
    assert outcome.value["prompts"] == 1 and outcome.value["new_tokens"] == sum(map(len, own))


# ---- killed, interrupted, full --------------------------------------------------------------------------------------

LONG = f"{METHODS} --task gsm8k --task mt_bench --limit 3 --max-new-tokens 32 --temperature 1"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], list[int]]:
    """What `LONG` gives when it is left alone."""
    return ids(measured(tmp_path_factory.mktemp("undisturbed"), LONG))


def signalled(out: Path, number: int, after: int) -> subprocess.Popen[str]:
    """`LONG` in a process of its own, signalled when `after` records are written; -> that process, ended."""
    command = [sys.executable, "-m", "harness.cli", "run", *SMALL, *LONG.split(), "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        path = out / RECORDS
        while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < after):
            time.sleep(0.005)
        process.send_signal(number)
        process.wait(timeout=120)
    finally:
        process.kill()
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_run_stopped_in_the_middle_goes_on_and_gives_what_it_would_have(
    tmp_path: Path, number: int, code: int, undisturbed: dict[tuple[Any, ...], list[int]]
) -> None:
    process = signalled(tmp_path, number, after=12)
    _, err = process.communicate()
    assert process.returncode == code, err
    if number == signal.SIGINT:
        assert err.splitlines()[-1].startswith("interrupted: ") and "Traceback" not in err
        assert all(json.loads(line) for line in lines(tmp_path))
    stopped = ids(counted(tmp_path))
    assert 0 < len(stopped) < len(undisturbed)
    records = measured(tmp_path, LONG)
    assert ids(records) == undisturbed
    assert len({r["key"] for r in records}) == len(records)
    for record in read(tmp_path):
        validate(record)


def user_method(folder: Path, before_decoding: str) -> Path:
    """A file with the method `mine`: vanilla's loop after the statement given; `call` counts generations from 1."""
    path = folder / "mine.py"
    path.write_text(
        "import os\n"
        "from methods import get, method\n"
        "calls = []\n"
        '@method("mine", line="plain decoding with an accident")\n'
        "def mine(width: int = 2):\n"
        '    plain = get("vanilla").build()\n'
        "    def decode(prompt_ids, target, drafter, params):\n"
        "        calls.append(1)\n"
        "        call = len(calls)\n"
        f"        {before_decoding}\n"
        "        return plain(prompt_ids, target, drafter, params)\n"
        "    return decode\n"
    )
    return path


FIRST = 3  # the call of the first generation that counts: warming up takes two


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_drops_the_prompt_under_way_and_keeps_the_others(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, command = tmp_path / "out", "--method mine --task gsm8k --limit 3 --no-baseline --include"
    with monkeypatch.context() as patched:
        isolate(patched, tmp_path)
        stopping = user_method(tmp_path, f"if call == {FIRST + 1}: os.kill(os.getpid(), {int(number)})")
        outcome = run(out, command, stopping)
    assert outcome.code == 128 + number
    assert outcome.err.splitlines()[-1].startswith("interrupted: ") and "Traceback" not in outcome.err
    assert len(counted(out)) == 1
    assert len(ids(measured(out, command, user_method(tmp_path, "pass")))) == 3


def test_a_full_disk_ends_the_run_with_the_records_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "--method vanilla --task gsm8k")
    before, write, written = lines(tmp_path), os.write, []

    def until_full(fd: int, data: bytes) -> int:
        if data.startswith(b'{"schema"'):
            written.append(data)
            if len(written) > 3:
                write(fd, data[:100])
                raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", until_full)
        outcome = run(tmp_path, "--method vanilla --task gsm8k --limit 4")
    refused(outcome, "cannot write to", str(tmp_path), "No space left on device")
    assert lines(tmp_path)[: len(before)] == before and len(lines(tmp_path)) == len(before) + 3
    assert len(ids(measured(tmp_path, "--method vanilla --task gsm8k --limit 4"))) == 4


def test_a_disk_full_before_the_first_record_leaves_the_ledger_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "--method vanilla --task gsm8k")
    before = files(tmp_path)

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        outcome = run(tmp_path, "--method pld --task gsm8k --no-baseline")
    refused(outcome, "No space left on device")
    assert {k: v for k, v in files(tmp_path).items() if k in before} == before


# ---- what a record says ---------------------------------------------------------------------------------------------


def test_warm_ups_are_recorded_marked_and_left_out(tmp_path: Path) -> None:
    outcome = run(tmp_path, "--method vanilla --method eagle2 --task gsm8k --json")
    warm_ups = [r for r in read(tmp_path) if r["is_warmup"]]
    assert Counter(r["method"] for r in warm_ups) == {"vanilla": 1, "eagle2": 1}
    for r in warm_ups:
        validate(r)
    for r in counted(tmp_path):
        cell = outcome.cells[r["method"], "gsm8k"]
        assert (cell["new_tokens"], cell["seconds"]) == (len(r["token_ids"]), r["wall_s"])
    keys = {r["key"] for r in counted(tmp_path)}
    assert len(keys) == 2 and not keys & {r["key"] for r in warm_ups}


def test_options_set_by_hand_are_in_force_in_the_record_and_in_the_presets_name(tmp_path: Path) -> None:
    command = "--method eagle2 --method pld --task gsm8k --no-baseline --set total=12 --set depth=4 --json"
    outcome = run(tmp_path, command)
    eagle2, pld = (next(r for r in counted(tmp_path) if r["method"] == m) for m in ("eagle2", "pld"))
    assert (
        eagle2["options"] == {"top_k": 10, "depth": 4, "total": 12, "stop_early": False}
        and eagle2["preset"] == "paper+depth=4+total=12"
    )
    assert set(eagle2["trace"]["tree_size"]) == {12}
    assert pld["options"] == {"max_ngram": 3, "n_draft": 10} and pld["preset"] == "paper"
    cell = outcome.cells["eagle2", "gsm8k"]
    assert (cell["preset"], cell["settings"]) == (eagle2["preset"], eagle2["options"])
    records = measured(tmp_path, "--method eagle2 --task gsm8k --no-baseline")  # a cell of its own
    assert len({r["cell"] for r in records if r["method"] == "eagle2"}) == 2


def test_settings_beside_are_timed_along_and_compared_with_their_like(tmp_path: Path) -> None:
    """In one process. Drafts that stop early give the same trees, so all but the times is the same."""
    pair = ("eagle2", "eagle2-no-rerank")
    command = " ".join(f"--method {m} --beside {m}+depth=4+total=5+stop_early=true" for m in pair)
    records = measured(tmp_path, f"{command} --task gsm8k --set depth=4 --set total=5")
    assert len({r["run"] for r in records}) == 1
    for m in pair:
        whole, stopped = (
            [r for r in records if r["method"] == m and r["options"]["stop_early"] is stops] for stops in (False, True)
        )
        assert [(r["token_ids"], r["trace"]["accepted"]) for r in whole] == [
            (r["token_ids"], r["trace"]["accepted"]) for r in stopped
        ]
        assert (whole[0]["preset"], stopped[0]["preset"]) == ("paper+depth=4+total=5", "paper+depth=4+stop_early=True+total=5")
    compared = {(c.method, c.against) for c in comparisons(records, summarise(records))}
    off, on = ("(paper+depth=4+total=5)", "(paper+depth=4+stop_early=True+total=5)")
    assert compared == {(f"eagle2 {how}", f"eagle2-no-rerank {how}") for how in (off, on)} | {
        (f"{m} {on}", f"{m} {off}") for m in pair
    }


@pytest.mark.parametrize(
    ("beside", "parts"),
    [
        ("eagle2+tuned+paper", ["--beside takes METHOD[+PRESET][+KEY=VALUE]...", "eagle2+tuned+paper"]),
        ("+total=3", ["--beside takes METHOD", "+total=3"]),
        ("eagle2+", ["--beside takes METHOD", "eagle2+"]),
        ("eagle2+=4", ["--beside takes METHOD", "eagle2+=4"]),
        ("all+total=4", ["--beside takes METHOD", "of one method"]),
        ("eagle2+total=4+total=6", ["--beside 'eagle2+total=4+total=6'", "names total twice"]),
        ("eagle4", ["unknown method 'eagle4'"]),
        ("eagle2+early=true", ["unknown option 'early'", "eagle2"]),
        ("eagle2+total=0", ["total=0", "at least 1"]),
        ("eagle2+tuned", ["no tuned preset of eagle2"]),
    ],
)
def test_a_setting_beside_that_cannot_be_had_is_one_line(beside: str, parts: list[str], tmp_path: Path) -> None:
    refused(run(tmp_path, f"--method eagle2 --task gsm8k --beside {beside}"), *parts)


def test_a_models_preset_changes_the_options_it_names(tmp_path: Path) -> None:
    model = tiny_copy(tmp_path / "model", presets="{small: {total: 8}}")
    records = measured(tmp_path / "out", "--method eagle2 --method vanilla --task gsm8k --preset small --model", model)
    assert {r["method"]: (r["preset"], r["options"]) for r in records} == {
        "eagle2": ("small", {"top_k": 10, "depth": 6, "total": 8, "stop_early": False}),
        "vanilla": ("small", {}),
    }


def test_what_the_models_paper_sets_is_not_set_for_policies(tmp_path: Path) -> None:
    """A model's `paper` is EAGLE-2's paper. Each policy has one of its own: radar's trees are 8 levels deep."""
    model = tiny_copy(tmp_path / "model", presets="{paper: {depth: 3}}")
    records = measured(tmp_path / "out", "--method eagle2 --method opt-tree --task gsm8k --model", model)
    depths = {r["method"]: r["options"].get("depth") for r in records}
    assert depths == {"vanilla": None, "eagle2": 3, "opt-tree": methods.get("opt-tree").options["depth"]}


def test_an_option_that_no_method_has_is_no_preset(tmp_path: Path) -> None:
    model = tiny_copy(tmp_path / "model", presets="{small: {totl: 8}}")
    refused(
        run(tmp_path / "out", "--method eagle2 --task gsm8k --preset small --model", model), "unknown option 'totl'", "'total'"
    )


def test_a_record_says_what_it_was_made_with_and_where(tmp_path: Path) -> None:
    records = measured(tmp_path, "--method vanilla --method eagle2 --task gsm8k --seed 5 --top-p 0.9 --temperature 0.7")
    tiny = shared_tiny_model("float32")
    for r in records:
        assert (r["seed"], r["top_p"], r["temperature"], r["dtype"], r["threads"]) == (5, 0.9, 0.7, "float32", 1)
        assert r["target_sha"] == tiny.loaded.target_sha
        assert r["head_sha"] == (tiny.loaded.head_sha if r["method"] == "eagle2" else None)
        assert r["text"] == tiny.loaded.decode(r["token_ids"]) and r["n_text_tokens"] == len(tiny.loaded.encode(r["text"]))
        assert r["n_text_tokens"] + r["n_special"] == len(tiny.loaded.tokenizer(r["text"]).input_ids)
        env = json.loads((tmp_path / f"env-{r['env']}.json").read_text())
        assert env["packages"]["torch"] and env["cpu"] and env["threads"] == 1 and env["head_sha"] == tiny.loaded.head_sha
    assert len({r["run"] for r in read(tmp_path)}) == 1


def test_methods_take_turns_on_each_prompt_in_an_order_drawn_from_the_seed(tmp_path: Path) -> None:
    command = f"{METHODS} --task alpaca --limit 6"
    orders = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        records = measured(tmp_path / folder, command, f"--seed {seed}")
        samples = [r["sample_id"] for r in records]
        assert samples == sorted(samples, key=samples.index) and len(set(samples)) == 6  # prompt by prompt
        orders.append([r["method"] for r in records])
    assert orders[0] == orders[1] != orders[2]
    assert len({tuple(orders[0][i : i + 4]) for i in range(0, 24, 4)}) > 1  # not one order for all prompts


# ---- another machine, another process -------------------------------------------------------------------------------


def pretend_elsewhere(folder: Path, **machine: Any) -> None:
    """Make a folder's records those of another machine."""
    (path,) = folder.glob("env-*.json")
    env = {**json.loads(path.read_text()), **machine}
    env["hash"] = canonical_hash({key: value for key, value in env.items() if key not in ("created", "hash")})
    old = path.stem.removeprefix("env-")
    path.unlink()
    (folder / f"env-{env['hash']}.json").write_text(json.dumps(env))
    records = folder / RECORDS
    records.write_text(records.read_text().replace(old, env["hash"]))


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("cpu", {"cpu": "Z80"}),
        ("gpu", {"gpu": "Voodoo"}),
        ("torch", {"packages": {"torch": "0.4"}}),
        ("transformers", {"packages": {"torch": torch.__version__, "transformers": "4.0"}}),
        ("engine", {"engine_sha": "another"}),
        ("n_cores", {"n_cores": 999}),
    ],
)
def test_a_cell_from_another_machine_is_refused_and_the_key_named(tmp_path: Path, key: str, change: dict[str, Any]) -> None:
    run(tmp_path, "--method pld --task gsm8k")
    pretend_elsewhere(tmp_path, **change)
    before = files(tmp_path)
    refused(run(tmp_path, "--method pld --task gsm8k --limit 2"), "from another machine", f"{key} was", str(tmp_path))
    assert files(tmp_path) == before
    assert len(measured(tmp_path, "--method pld --task alpaca")) == 4  # another cell of the folder is free


def test_a_first_turn_from_another_machine_is_refused_even_without_a_baseline(tmp_path: Path) -> None:
    run(tmp_path, "--method vanilla --task mt_bench")
    pretend_elsewhere(tmp_path, cpu="Z80")
    refused(run(tmp_path, "--method pld --task mt_bench --no-baseline --temperature 1"), "cpu was 'Z80'")


def test_a_ledger_that_another_process_writes_to_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "--method vanilla --task gsm8k")
    before = files(tmp_path)
    with Ledger(tmp_path):
        refused(run(tmp_path, "--method pld --task gsm8k"), "another process", str(tmp_path))
    assert files(tmp_path) == before


# ---- prompts that do not fit, methods that fail ---------------------------------------------------------------------

LONG_TEXT = "long " * 100


@pytest.fixture
def cramped(tmp_path: Path) -> str:
    """Options for a model with room for about 100 tokens and a set of prompts, of which the second does not fit."""
    questions(tmp_path / "prompts", "gsm8k", ("1 + 1?",), (LONG_TEXT,), ("2 + 2?",))
    questions(tmp_path / "prompts", "mt_bench", (LONG_TEXT, "And?"), ("Who?", LONG_TEXT), ("Who?", "And?"))
    model = tiny_copy(tmp_path / "model", context_length="100")
    return f"--model {model} --source paper --prompts {tmp_path / 'prompts'} --limit 3"


def test_a_prompt_that_does_not_fit_ends_the_run_each_time_until_it_may_be_skipped(tmp_path: Path, cramped: str) -> None:
    out, command = tmp_path / "out", f"--method pld --task gsm8k --json {cramped}"
    refused(run(out, command), "prompt 2 turn 1 has", "exceeds the context of 100", "--on-overflow skip")
    assert not (out / "records.jsonl").read_text()  # found out before anything is measured
    outcome = run(out, command, "--on-overflow skip")
    assert outcome.code == 0 and outcome.value["prompts"] == 2
    skipped = [r for r in counted(out) if r["status"] == "skipped"]
    assert {(r["sample_id"], r["method"]) for r in skipped} == {("2", "vanilla"), ("2", "pld")}
    assert all("exceeds the context" in (r["error"] or "") and not r["token_ids"] for r in skipped)
    before = files(out)
    assert run(out, command, "--on-overflow skip").code == 0 and files(out) == before
    refused(run(out, command), "prompt 2 turn 1 has")  # skipped once is not skipped for good
    for record in read(out):
        validate(record)


def test_a_later_turn_that_may_not_fit_ends_the_run_before_anything_is_measured(tmp_path: Path, cramped: str) -> None:
    questions(tmp_path / "prompts", "mt_bench", ("Who?", "And?"), ("Who?", LONG_TEXT))
    out, command = tmp_path / "out", f"--method pld --task mt_bench {cramped}"
    refused(run(out, command), "prompt 2 turn 2 may have", "8 of them answers; with 8 new ones it exceeds the context of 100")
    assert not (out / "records.jsonl").read_text()
    assert run(out, command, "--limit 1").code == 0


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_conversation_ends_at_the_turn_that_does_not_fit(tmp_path: Path, cramped: str, temperature: int) -> None:
    out = tmp_path / "out"
    command = f"--method pld --task mt_bench --on-overflow skip --temperature {temperature} {cramped}"
    records = measured(out, command)
    assert {(r["sample_id"], r["turn"], r["status"]) for r in records if r["method"] == "pld"} == {
        ("1", 1, "skipped"), ("2", 1, "ok"), ("2", 2, "skipped"), ("3", 1, "ok"), ("3", 2, "ok"),
    }  # fmt: skip
    before = files(out)
    assert "nothing to measure" in run(out, command).err and files(out) == before


def test_a_run_of_which_no_prompt_fits_has_no_numbers(tmp_path: Path, cramped: str) -> None:
    questions(tmp_path / "prompts", "gsm8k", (LONG_TEXT,))
    outcome = run(tmp_path / "out", f"--method pld --task gsm8k --on-overflow skip --json {cramped}")
    assert outcome.code == 0, outcome.err
    cell = outcome.value
    assert (cell["prompts"], cell["new_tokens"], cell["speedup"], cell["tau"]) == (0, 0, None, None)


def test_a_failed_generation_is_recorded_without_numbers_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, command = tmp_path / "out", "--method mine --task gsm8k --limit 3 --json --include"
    with monkeypatch.context() as patched:
        isolate(patched, tmp_path)
        failing = user_method(tmp_path, f"if call == {FIRST + 1}: raise RuntimeError('out of luck\\nand more')")
        outcome = run(out, command, failing)
    refused(outcome, "1 generations failed")
    assert "mine failed on" in outcome.err and outcome.value["prompts"] == 2
    (failed,) = [r for r in counted(out) if r["status"] != "ok"]
    validate(failed)
    assert (failed["method"], failed["status"], failed["error"]) == ("mine", "error", "RuntimeError: out of luck")
    outcome = run(out, command, user_method(tmp_path, "pass"))
    assert outcome.code == 0 and outcome.value["prompts"] == 3 and outcome.value["identical"] == 3
    assert len(counted(out)) == 7  # three prompts twice, and the failure


def test_a_method_that_always_fails_leaves_the_baseline_and_a_record_each(tmp_path: Path) -> None:
    failing = user_method(tmp_path, "raise MemoryError()")
    outcome = run(tmp_path / "out", "--method mine --task gsm8k --limit 2 --json --include", failing)
    refused(outcome, "2 generations failed")
    assert Counter((r["method"], r["status"]) for r in counted(tmp_path / "out")) == {("vanilla", "ok"): 2, ("mine", "error"): 2}


def test_a_failing_first_turn_is_a_failure_where_only_later_turns_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.load import self_check

    kind = type(shared_tiny_model("float32").loaded.target)
    real = kind.step

    def step(self: Any, token: int) -> Any:
        if self.length < 20:  # loading tries a few tokens
            return real(self, token)
        raise RuntimeError("no steps today")

    monkeypatch.setattr(self_check, "check", lambda target: None)  # which would refuse the model
    monkeypatch.setattr(kind, "step", step)  # vanilla's alone: the others verify trees
    outcome = run(tmp_path, "--method pld --task mt_bench --no-baseline")
    refused(outcome, "1 generations failed")
    assert {(r["method"], r["turn"], r["status"]) for r in counted(tmp_path)} == {("pld", 1, "ok"), ("vanilla", 1, "error")}


def test_tables_and_plots_take_the_ledger_of_a_run(tmp_path: Path) -> None:
    run(tmp_path, "--method eagle2 --task gsm8k --task mt_bench")
    outcome = harness("table --results", tmp_path)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "tables").is_dir() and "eagle2" in (tmp_path / "tables" / "main.md").read_text()
    assert harness("table --compare", tmp_path, tmp_path).code == 0
