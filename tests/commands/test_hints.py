"""Commands in messages: each can be copied as it stands, and asks for what the command that said it was asked for."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import harness, isolate, measured, run, tiny_copy
from places import TINY

from harness.cli import cli
from harness.common.hints import hinted
from harness.replay import tune as tuning
from harness.run import tuned
from harness.run.lossless_now import tell_differences


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    figures = {"tau": 2.0, "speedup": 1.5}
    monkeypatch.setattr(tuning, "held_out_prompts", lambda *_: [[1, 2]] * 9)
    monkeypatch.setattr(tuning, "_found", lambda _, job: tuning.Found(dict(job.arm.options), figures, figures))


def hints(said: str) -> list[str]:
    """The commands in a text, `harness` left out; each is one that the command line takes."""
    found = [command.removeprefix("harness ") for command in re.findall("`(harness [^`]+)`", said)]
    for command in found:
        with pytest.raises((click.exceptions.Exit, SystemExit)):  # `--help` comes last: whatever stands before it is parsed
            cli.main([*shlex.split(command), "--help"], standalone_mode=True)
    return found


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file to include, with a space in its name."""
    file = tmp_path / "my method.py"
    file.write_text(
        "from methods import get, method\n"
        '@method("mine", line="plain decoding")\n'
        "def mine(n: int = 1):\n"
        '    return get("vanilla").build()\n'
    )
    return file


ASKED = "--dtype float32 --threads 1"


def test_what_was_not_tuned_names_the_command_that_tunes_it_for_this_run(tmp_path: Path, mine: Path) -> None:
    head = TINY.parent / "head"
    words = ["run --task gsm8k --source bundled --limit 1 --max-new-tokens 8 --temperature 1 --preset tuned", f"--model {TINY}"]
    words += [ASKED, "--out", str(tmp_path / "out"), f"--head {head}"]
    said = harness(*words, "--method eagle2").err
    assert hints(said) == [f"tune --model {TINY} --method eagle2 --temperature 1 --dtype float32 --threads 1 --head {head}"]
    every = harness(*words[:-1], "--method all --include", mine).err.splitlines()[-1]
    assert hints(every) == [f"tune --model {TINY} --method all --dtype float32 --threads 1 --include '{mine}'"]


def test_what_was_tuned_names_the_command_that_uses_it(tmp_path: Path) -> None:
    done = harness(f"tune --method pld --model {TINY} --max-new-tokens 8 --conversations 9", ASKED)
    assert done.code == 0, done.err
    (use,) = hints(done.err)
    assert use == f"run --model {TINY} --method pld --task all --preset tuned --temperature 0 --dtype float32 --threads 1"
    used = harness(use, "--source bundled --limit 1 --max-new-tokens 8 --json --out", tmp_path / "out")
    assert used.code == 0 and {c["preset"] for (m, _), c in used.cells.items() if m == "pld"} == {"tuned"}


def test_options_saved_where_no_run_looks_are_not_said_to_be_used(tmp_path: Path) -> None:
    yaml = tiny_copy(tmp_path / "model")
    words = f"tune --method pld --model {yaml} --max-new-tokens 8 --conversations 9 {ASKED} --save"
    said = harness(words, tmp_path / "own.json").err.splitlines()[-1]
    shipped = tmp_path / "model" / "tiny.tuned.json"
    assert said == (f"saved in {tmp_path / 'own.json'}, where no run looks: `--preset tuned` reads {tuned.found_here()} and "
                    f"{shipped}")  # fmt: skip
    (use,) = hints(harness(words, shipped).err)
    assert f"--model {yaml}" in use and run(tmp_path / "out", use.removeprefix("run "), "--task gsm8k").code == 0


def test_what_a_model_lacks_names_it_as_it_was_given(tmp_path: Path) -> None:
    bare = tiny_copy(tmp_path / "bare", drafters="{}")
    lacks = run(tmp_path / "out", "--method sps --task gsm8k --model", bare).err
    assert hints(lacks) == [f"train sps --model {bare} --out DIR --threads 1"]
    dry = run(tmp_path / "out", "--method eagle2 --task gsm8k --dry-run --model llama2-chat-7b").out
    assert "fetch --model llama2-chat-7b" in hints(dry)
    absent = run(tmp_path / "out", f"--method eagle2 --task gsm8k --head {tmp_path / 'none'}").err
    assert hints(absent) == [f"train eagle --model {TINY} --out DIR --threads 1"]
    named = harness("run --method sps --task gsm8k --model tiny --include", bare).err
    assert hints(named) == ["train sps --model tiny --out DIR"]


def test_an_audit_of_a_ledger_names_the_run_that_gives_it_something_to_judge(tmp_path: Path) -> None:
    measured(tmp_path / "out", "--method vanilla --task gsm8k")
    said = harness(f"verify --model {TINY} --threads 1 --out", tmp_path / "audit", "--results", tmp_path / "out").err
    assert hints(said) == [f"run --model {TINY} --method all --task all --out {tmp_path / 'out'} --threads 1"]
    words = f"verify --model {TINY} --row-invariant --out"
    said = harness(words, tmp_path / "audit", "--results", tmp_path / "out").err
    assert hints(said) == [f"run --model {TINY} --method all --task all --out {tmp_path / 'out'} --row-invariant"]


def test_figures_not_measured_name_the_command_that_measures_them(tmp_path: Path) -> None:
    measured(tmp_path / "out", "--method vanilla --task gsm8k")
    said = harness(f"reproduce --no-run --figure 5 --model {TINY} --out", tmp_path, "--results", tmp_path / "out").out
    assert hints(said) == [f"reproduce --model {TINY} --figure 5 --results {tmp_path / 'out'}"]


def test_differences_name_the_audit_of_this_ledger(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HARNESS_ENGINE", "torch")  # on a row-invariant engine a difference is an error
    record: dict[str, Any] = measured(tmp_path / "out", "--method vanilla --method pld --task gsm8k")[0] | {}
    records = [record | {"method": m, "token_ids": ids} for m, ids in (("vanilla", [5, 6]), ("pld", [5, 7]))]
    assert tell_differences(records, str(TINY), tmp_path / "out") == 0  # type: ignore[arg-type]
    assert hints(capsys.readouterr().err) == [f"verify --model {TINY} --results {tmp_path / 'out'}"]


def test_outside_the_command_line_a_hint_is_its_words() -> None:
    assert hinted("train eagle", "--out", "a b") == "`harness train eagle --out 'a b'`"
