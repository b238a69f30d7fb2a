"""scripts/ledgers.py: commands run once, of a commit, with what they took told; and the list's commands are the harness's."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from places import ROOT

from harness.cli import cli

sys.path.insert(0, str(ROOT / "scripts"))
import ledgers as script  # noqa: E402

sys.path.pop(0)
CODE_COMMIT = script.code_commit


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a list of one ledger."""
    (tmp_path / "results").mkdir()
    commands = ["echo a >> {out}/a", "test -e {out}/go", "echo b >> {out}/b"]
    one = {"holds": "a\n test", "by_clock": False, "commands": commands}
    (tmp_path / "results" / "ledgers.yaml").write_text(json.dumps({"one": one}))
    (tmp_path / "results" / "README.md").write_text("head\n<!-- begin ledgers -->\nold\n<!-- end -->\nfoot\n")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(script, "code_commit", lambda: "0123456789")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ledgers.py", *words])
    return script.main()


def test_a_command_that_fails_ends_it_and_those_before_are_not_run_again(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = own / "results" / "one"
    with pytest.raises(SystemExit, match="one: status 1 of: test -e"):
        run(monkeypatch, "one")
    (out / "go").touch()
    assert run(monkeypatch, "one") == 0 and run(monkeypatch, "one") == 0
    assert (out / "a").read_text() == "a\n" and (out / "b").read_text() == "b\n"
    made: list[dict[str, Any]] = json.loads((out / "made.json").read_text())
    assert [m["commit"] for m in made] == ["0123456"] * 3 and all(m["seconds"] >= 0 for m in made)
    run(monkeypatch, "--table")
    shown = (own / "results" / "README.md").read_text()
    assert "| [one](#one) | a test; no clock | 0123456 |" in shown and "    test -e {out}/go    # 0 s" in shown
    assert shown.startswith("head\n") and shown.endswith("<!-- end -->\nfoot\n")
    assert run(monkeypatch, "--table", "--check") == 0
    (out / "made.json").write_text(json.dumps(made[:1]))
    assert run(monkeypatch, "--table", "--check") == 1


def test_what_the_commands_write_is_no_change_of_the_code(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "code_commit", CODE_COMMIT)
    (own / "models").mkdir()
    (own / "methods").mkdir()
    (own / "results" / "one").mkdir()
    for name in ("results/one/go", "results/one/a", "models/tiny.tuned.json", "methods/eagle1.py"):
        (own / name).touch()

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", own, "-c", "user.name=a", "-c", "user.email=a@b.example", *words], check=True)

    with pytest.raises(SystemExit, match="this is no checkout"):
        run(monkeypatch, "one")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    (own / "methods" / "eagle1.py").write_text("pass")
    with pytest.raises(SystemExit, match="tracked files are changed"):
        run(monkeypatch, "one")
    assert not (own / "results" / "one" / "made.json").exists()
    (own / "methods" / "eagle1.py").write_text("")
    (own / "models" / "tiny.tuned.json").write_text("[]")  # by the command before
    assert run(monkeypatch, "one") == 0
    assert (own / "results" / "one" / "a").read_text() == "a\n"


def test_a_page_without_a_place_for_the_table_is_told_of(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own / "results" / "README.md").write_text("no place\n")
    for words in (["--table"], ["--table", "--check"]):
        with pytest.raises(SystemExit, match=r"README.md has no place for it"):
            run(monkeypatch, *words)
    assert (own / "results" / "README.md").read_text() == "no place\n"


def test_a_ledger_that_is_none_is_named(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    with pytest.raises(SystemExit):
        run(monkeypatch, "two")
    assert "no ledger two; there are: one" in capsys.readouterr().err


def test_the_table_is_that_of_what_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--table", "--check") == 0, "run `python scripts/ledgers.py --table`"


def test_the_lists_commands_are_the_harnesss() -> None:
    """Their names and options: hours after the start is too late to learn of a slip."""
    for ledger in script.ledgers():
        for command in ledger.commands:
            program, *words = shlex.split(command.split("|")[0])
            if program != "harness":
                assert (ROOT / program).is_file(), command
                continue
            found = cli.get_command(click.Context(cli), words[0])
            assert found is not None, command
            known = {name for parameter in found.params if isinstance(parameter, click.Option) for name in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, command
