"""Every example runs on the tiny model and does what its first line says."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from command_line import harness, isolate, measured
from places import EXAMPLES, ROOT, TINY

HERE_TESTED = {
    "my_method.py", "wrong_method.py", "my_task.py", "my_task.jsonl", "my_model.yaml", "read_a_ledger.py", "decode_one_prompt.py",
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def verified(file: str, method: str, out: Path) -> tuple[int, str]:
    """-> the exit status of `harness verify` on an example, and the last line it printed to stderr."""
    outcome = harness("verify --threads 1 --model", TINY, "--include", EXAMPLES / file, f"--method {method} --out", out)
    return outcome.code, outcome.err.splitlines()[-1]


def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: str, *arguments: object) -> str:
    """-> what an example prints when it is run as a script with these arguments."""
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / file), *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / file), run_name="__main__")
    return capsys.readouterr().out


def block(first: str) -> str:
    """README's block of code that begins with the line given."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    code = lines[lines.index(f"    {first}") :]
    n = next(i for i, line in enumerate(code) if line and not line.startswith("    "))
    return "\n".join(line.removeprefix("    ") for line in code[:n]).rstrip() + "\n"


def test_no_example_goes_untested() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == HERE_TESTED


def test_my_method_drafts_gives_vanillas_tokens_and_passes_the_audit(tmp_path: Path) -> None:
    code, last = verified("my_method.py", "last-seen", tmp_path / "audit")
    assert code == 0, last
    records = measured(
        tmp_path / "out", "--method last-seen --task gsm8k --max-new-tokens 32 --include", EXAMPLES / "my_method.py"
    )
    ids = {r["method"]: r["token_ids"] for r in records}
    assert ids["last-seen"] == ids["vanilla"]
    drafted = [r["trace"]["tree_size"] for r in records if r["method"] == "last-seen" and r["trace"]]
    assert sum(map(sum, drafted)) > 0


def test_the_audit_catches_the_wrong_method(tmp_path: Path) -> None:
    code, last = verified("wrong_method.py", "wrong", tmp_path / "audit")
    assert code == 2 and last.startswith("error: wrong fails L1 exact law") and "L3 greedy equality" in last


def test_my_task_is_asked_in_its_own_words(tmp_path: Path) -> None:
    command = "--method vanilla --task my_task --source auto --limit 3 --include"
    records = measured(tmp_path / "out", command, EXAMPLES / "my_task.py")
    assert {r["source"] for r in records} == {"file"} and len(records) == 3


def test_my_model_is_measured_by_its_path_and_by_its_name(tmp_path: Path) -> None:
    model = EXAMPLES / "my_model.yaml"
    for how in (("--model", model), ("--model my-model --include", model)):
        records = measured(tmp_path / "out", "--method eagle2 --method sps --task gsm8k", *how)
        assert {(r["model"], r["method"]) for r in records} == {("my-model", m) for m in ("vanilla", "eagle2", "sps")}


def test_a_ledger_is_read_into_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    measured(out, "--method eagle2 --task gsm8k")
    printed = script(monkeypatch, capsys, "read_a_ledger.py", out)
    assert "tau_low" in printed and "eagle2" in printed and "vanilla" in printed


def test_one_prompt_decoded_with_eagle2_has_vanillas_tokens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = script(monkeypatch, capsys, "decode_one_prompt.py", TINY)
    assert "a target forward" in printed and printed.splitlines()[-1] == "the same tokens as plain decoding: True"


def test_readmes_method_is_that_of_the_example() -> None:
    method = block('@method("last-seen", line="copies what followed the last token before", small={"length": 3})').split(
        "\nharness"
    )[0]
    assert method.count("\n") >= 9 and method.rstrip() in (EXAMPLES / "my_method.py").read_text(encoding="utf-8")


def test_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = f'model="{TINY}", threads=1'
    code = block("import harness")
    for call, on_tiny in (
        ('load_model("smollm2-135m")', f'load_model("{TINY}", threads=1)'),
        ("RunRequest(", f'RunRequest({tiny}, max_new_tokens=8, source="bundled", dtype="float32", '),
        ("verify(", f"verify({tiny}, "),
    ):
        assert code.count(call) == 1
        code = code.replace(call, on_tiny)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "eagle2" in printed and "speedup" in printed and printed.splitlines()[-1] == "[]"


def test_the_folder_of_examples_is_included_and_none_of_them_runs(capsys: pytest.CaptureFixture[str]) -> None:
    done = harness("list methods --include", EXAMPLES)
    assert done.code == 0, done.err
    assert "last-seen" in done.out and "wrong" in done.out and "the same tokens" not in done.out
