"""Ctrl-C and SIGTERM: whatever a command is at, it ends with one line on what is kept, and a status that says which it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, counted, harness, isolate, run
from places import ROOT, TINY

from harness.audit import page
from harness.audit.jobs import Finding, Job
from harness.audit.keeper import Keeper
from harness.audit.store import LOCK
from harness.cli import KEPT, NOTHING_KEPT
from harness.common.stopping import Stop, Stopped, stoppable
from harness.ledger.ledger import lock_path
from harness.replay import tune as tuning
from methods.engine.target import HFTarget

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
ON_TINY = f"--model {TINY} --threads 1"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def ask_to_stop(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_while_torch_is_being_imported_is_told_in_one_line(number: int, tmp_path: Path) -> None:
    """In a process of its own, signalled by an import hook: torch is imported once a process."""
    hook = f"""
import os, sys
class Hook:
    def find_spec(self, name, *rest):
        if name == "torch.nn":
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Hook())
from harness.cli import main
main()
"""
    words = ["run", *SMALL, "--method", "eagle2", "--task", "gsm8k", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", hook, *words], cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (STATUS[number], "", f"interrupted: {KEPT['run']}\n")


@pytest.mark.parametrize(
    "words",
    [
        "run --method eagle2 --task gsm8k --source bundled --out OUT",
        "matrix --tier quick --source bundled --out OUT",
        "reproduce --table 3 --source bundled --results OUT",
        "verify --method eagle2 --out OUT",
        "tune --method pld",
        "train eagle --out OUT",
        "profile --method eagle2 --out OUT",
        "localise --engine torch",
    ],
    ids=lambda words: words.split()[0],
)
def test_a_signal_while_the_model_is_loaded_is_told_in_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HFTarget, "__init__", ask_to_stop)
    before = signal.getsignal(signal.SIGTERM)
    done = harness(words.replace("OUT", str(tmp_path / "out")), ON_TINY)
    assert done.code == STATUS[signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is before
    said = [line for line in done.err.splitlines() if not line.startswith("loading tiny")]
    assert said[-1] == f"interrupted: {KEPT.get(words.split()[0], NOTHING_KEPT)}" and "Traceback" not in done.err
    assert sum(line.startswith("interrupted") for line in said) == 1


def test_tuning_that_is_stopped_keeps_what_was_saved_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raced: list[str] = []

    def found(_: tuning.Tuning, job: tuning.Job) -> tuning.Found:
        raced.append(job.arm.name)
        if len(raced) == 3:
            ask_to_stop()
        figures = {"tau": 2.0, "speedup": 1.5}
        return tuning.Found(dict(job.arm.options), figures, figures)

    monkeypatch.setattr(tuning, "_found", found)
    monkeypatch.setattr(tuning, "held_out_prompts", lambda *_: [[1, 2, 3]] * 9)
    words = f"tune --method all {ON_TINY} --dtype float32 --max-new-tokens 8 --conversations 9"
    stopped = harness(words)
    assert stopped.code == 143 and stopped.err.splitlines()[-1] == f"interrupted: {KEPT['tune']}"
    saved = json.loads((tmp_path / "cache" / "tuned.json").read_text())
    assert [entry["key"]["method"] for entry in saved] == raced[:2]
    done = harness(words)
    assert done.code == 0 and raced[2:4] == [raced[2]] * 2 and len(raced) == len(set(raced)) + 1


def test_an_audit_that_is_stopped_keeps_its_findings_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, kept = Keeper.keep, list[str]()

    def counted(self: Keeper, job: Job, made: Finding, seconds: float) -> Finding:
        found = keep(self, job, made, seconds)
        kept.append(found["key"])
        if len(kept) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(Keeper, "keep", counted)
    monkeypatch.setattr(page.figures, "draw_all", lambda *_: [])
    words = f"verify --method vanilla --dtype float32 {ON_TINY} --out"
    stopped = harness(words, tmp_path)
    assert stopped.code == 130 and stopped.err.splitlines()[-1] == f"interrupted: {KEPT['verify']}"
    assert not (tmp_path / LOCK).exists()
    first = (tmp_path / "audit.jsonl").read_bytes()
    assert first.endswith(b"\n") and [json.loads(line)["key"] for line in first.splitlines()] == kept
    done = harness(words, tmp_path)
    assert f"{len(first.splitlines())} are there" in done.err and (tmp_path / "audit.jsonl").read_bytes().startswith(first)
    assert len(kept) == len(set(kept)) > 5 and "Traceback" not in done.err


@pytest.mark.parametrize("number", STATUS)
def test_a_generation_that_is_stopped_is_no_failure_of_its_method(number: int, tmp_path: Path) -> None:
    stopping = tmp_path / "mine.py"
    stopping.write_text(
        "import os\nfrom methods import get, method\ncalls = []\n"
        '@method("mine", line="stops the run at its fourth generation")\n'
        "def mine():\n"
        "    def decode(prompt_ids, target, drafter, params):\n"
        "        calls.append(1)\n"
        f"        if len(calls) == 4: os.kill(os.getpid(), {int(number)})\n"
        '        return get("vanilla").build()(prompt_ids, target, drafter, params)\n'
        "    return decode\n"
    )
    done = run(tmp_path / "out", "--method mine --task gsm8k --limit 3 --no-baseline --include", stopping)
    assert done.code == STATUS[number] and done.err.splitlines()[-1] == f"interrupted: {KEPT['run']}"
    assert [r["status"] for r in counted(tmp_path / "out")] == ["ok"] and not lock_path(tmp_path / "out").exists()


def test_what_a_library_makes_of_the_signal_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def translated(*_: Any, **__: Any) -> None:
        try:
            ask_to_stop()
        except Stopped:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr(HFTarget, "__init__", translated)
    done = harness(f"profile --method vanilla {ON_TINY}")
    assert done.code == 143 and done.err.splitlines()[-1] == f"interrupted: {NOTHING_KEPT}"


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    class Ended(Exception):
        pass

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended, match="143"), stoppable(Stop(), "stopped"):
        try:
            ask_to_stop()
        except Stopped:  # a user's file that lets nothing stop it
            ask_to_stop()
    assert capfd.readouterr().err == "stopped\n"
