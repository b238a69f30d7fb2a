"""What a user's file may do to a command: fail a file or a prompt, never end it in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import harness, isolate, measured, refused, run, tiny_copy
from places import EXAMPLES, TINY

import methods
from harness.audit import audit
from harness.ledger.ledger import read
from harness.load.kinds import KINDS

METHOD = """
import sys
from methods import get, method

class Odd(BaseException):
    pass

{first}

@method("mine", line="plain decoding with an accident", small={{}})
def mine(width: int = 2):
    {building}
    plain = get("vanilla").build()

    def decode(prompt_ids, target, drafter, params):
        {decoding}
        return plain(prompt_ids, target, drafter, params)

    return decode
"""
ENDINGS = ["sys.exit(0)", "raise SystemExit", "raise Odd()"]


def method_file(folder: Path, first: str = "", building: str = "pass", decoding: str = "pass") -> Path:
    file = folder / "mine.py"
    file.write_text(METHOD.format(first=first, building=building, decoding=decoding))
    return file


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_ends_the_command_when_it_is_imported_is_an_error_of_that_file(tmp_path: Path, ending: str) -> None:
    file = method_file(tmp_path, first=ending)
    for command in ("list methods", f"run --model {TINY} --task gsm8k --method mine", f"verify --model {TINY} --method mine"):
        refused(harness(command, "--include", file), f"cannot load {file}:8", "would have ended the command")


@pytest.mark.parametrize(
    "declared",
    ["'mine', line=3", "'mine', line='x', small='0 00'", "'mine', line='x', small=[1]", "'mine', line='x', candidates=['x']",
     "'mine', line='x', presets={'../x': {}}", "'mine', line='x', presets=[1]", "'mine', line='x', presets={'a': 1}",
     "'mine', line='x', drafter='../../x'", "'mine', line='x', drafter=3", "'mine', lines=3", "'../x', line='x'",
     "'all', line='x'", "3, line='x'"],
)  # fmt: skip
def test_a_declaration_that_cannot_be_is_an_error_of_its_line(tmp_path: Path, declared: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"from methods import method\n\n\n@method({declared})\ndef build():\n    return print\n")
    refused(harness("list methods --include", file), f"cannot load {file}:4")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_task_file_that_ends_the_command_is_an_error_of_that_file(tmp_path: Path, ending: str) -> None:
    file = tmp_path / "my_task.py"
    file.write_text(f"import sys\nclass Odd(BaseException): pass\n{ending}\nTASK = None\n")
    refused(harness("list tasks --include", file), f"cannot load {file}:3", "would have ended the command")


@pytest.mark.parametrize("ending", ["sys.exit(0)", "raise Odd()"])
def test_leaving_while_decoding_fails_the_prompt(tmp_path: Path, ending: str) -> None:
    outcome = run(tmp_path / "out", "--method mine --task gsm8k --include", method_file(tmp_path, decoding=ending))
    refused(outcome, "1 generations failed")
    statuses = {r["method"]: r["status"] for r in read(tmp_path / "out") if not r["is_warmup"]}
    assert statuses == {"mine": "error", "vanilla": "ok"}


def test_leaving_while_decoding_fails_the_audit_of_the_method(tmp_path: Path) -> None:
    file = method_file(tmp_path, decoding="sys.exit(0)")
    outcome = harness(
        f"verify --model {TINY} --threads 1 --dtype float32 --json --method mine --include", file, "--out", tmp_path / "out"
    )
    refused(outcome, "mine fails")
    rows = json.loads(next(line for line in outcome.out.splitlines() if line.startswith("[{")))
    assert any(row["method"] == "mine" and row["passed"] is False for row in rows)


@pytest.mark.parametrize("raising", ["sys.exit(0)", "raise Odd()", "raise KeyError('width')"])
def test_a_builder_that_raises_is_one_line_that_names_method_and_file(tmp_path: Path, raising: str) -> None:
    file = method_file(tmp_path, building=raising)
    refused(run(tmp_path / "out", "--method mine --task gsm8k --include", file), "method mine", str(file))


@pytest.mark.parametrize(
    "leaving", ["sys.exit(0)", "sys.exit()", "exec('raise SystemExit')", "exec('raise click.exceptions.Exit(0)')"]
)
def test_code_that_leaves_where_nobody_looks_for_it_does_not_end_well(tmp_path: Path, leaving: str) -> None:
    file = method_file(tmp_path, first=f"import click, harness.audit.audit as a\na.audit = lambda request: {leaving}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(audit, "audit", audit.audit)  # put back after the test
        outcome = harness(f"verify --model {TINY} --method mine --include", file, "--out", tmp_path / "out")
    assert outcome.code == 1 and "would have ended the command, before it was done" in outcome.err


KIND = """
from harness.load.kinds import DrafterKind, add_kind
from methods import method

add_kind(DrafterKind("odd", "odd drafter", None, lambda *a: {}["no such thing"], lambda sizes: 1, architectures=("Odd",)))

@method("mine", line="drafts with an odd drafter", drafter="odd")
def mine():
    return print
"""


def test_an_error_of_a_users_code_is_one_line_with_its_place_wherever_it_is_raised(tmp_path: Path) -> None:
    """Here it is the size of a made-up drafter, which a dry run asks for."""
    yaml = tiny_copy(tmp_path / "model", drafters="{odd: odd}", head="null")
    (yaml.parent / "odd").mkdir()
    (yaml.parent / "odd" / "config.json").write_text('{"architectures": ["Odd"]}')
    (yaml.parent / "odd" / "model.safetensors").write_bytes(b"")
    file = tmp_path / "kind.py"
    file.write_text(KIND)
    try:
        outcome = harness("run --dry-run --method mine --task gsm8k --source bundled --include", file, "--model", yaml)
    finally:
        KINDS.pop("odd", None), methods.DRAFTERS.pop("odd", None)
    refused(outcome, f"{file}:5: KeyError: 'no such thing'")


def test_a_file_may_bring_a_kind_of_drafter_alone(tmp_path: Path) -> None:
    file = tmp_path / "kind.py"
    file.write_text(KIND.split("@method")[0].replace("from methods import method\n", ""))
    try:
        outcome = harness("list methods --include", file)
    finally:
        KINDS.pop("odd", None), methods.DRAFTERS.pop("odd", None)
    assert outcome.code == 0 and outcome.err.splitlines() == [f"--include {file}: loaded kind.py; kind of drafter: odd"]


def test_of_a_folder_the_files_that_register_something_are_loaded_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    method_file(folder)
    (folder / "analysis.py").write_text("raise SystemExit('a script of mine')\n")
    (folder / "compose.yaml").write_text("services: {}\n")
    outcome = harness("list methods --include", folder)
    assert outcome.code == 0 and "mine" in outcome.out
    assert outcome.err.splitlines() == [
        f"--include {folder}: loaded mine.py; left out, as they register nothing: analysis.py, compose.yaml"
    ]


def test_a_file_named_by_itself_is_loaded_whatever_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "imports.py").write_text("import importlib, sys\nsys.path.insert(0, '.')\nraise ValueError('it ran')\n")
    refused(harness("list methods --include", tmp_path / "imports.py"), "imports.py:3", "it ran")


def test_the_folder_of_examples_says_what_it_loaded() -> None:
    outcome = harness("list methods --include", EXAMPLES)
    assert "loaded my_method.py, my_task.py, wrong_method.py, my_model.yaml; left out" in outcome.err


def test_a_file_is_run_once(tmp_path: Path) -> None:
    both = method_file(tmp_path)
    (tmp_path / "both.jsonl").write_text('{"question_id": 1, "turns": ["Why?"]}\n')
    both.write_text(both.read_text() + "\nfrom pathlib import Path\nfrom tasks import Task\n"
                    "with Path(__file__).with_name('runs').open('a') as f: f.write('x')\n"
                    "TASK = Task(name='both', title='t', line='l')\n")  # fmt: skip
    for how in (("--include", both), ("--include", tmp_path), ("--include", both, "--include", tmp_path)):
        with pytest.MonkeyPatch.context() as patched:
            isolate(patched, tmp_path)
            (tmp_path / "runs").unlink(missing_ok=True)
            assert harness("list methods", *how).code == 0
        assert (tmp_path / "runs").read_text() == "x"
    records = measured(tmp_path / "out", "--method mine --task both --source auto --no-baseline --include", both)
    assert {(r["method"], r["task"]) for r in records} == {("mine", "both")}
