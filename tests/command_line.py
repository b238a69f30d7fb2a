"""The command line inside the test's process: starting torch anew takes seconds, a run on the tiny model a tenth of one."""

from __future__ import annotations

import io
import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from huggingface_hub import constants
from places import TINY

import methods
import tasks
from harness.cli import main
from harness.ledger.ledger import RECORDS, read
from harness.ledger.record import Record
from harness.load import config
from harness.watch import originals, pace

# later options of a command override these
SMALL = f"--model {TINY} --source bundled --limit 1 --max-new-tokens 8 --dtype float32 --threads 1".split()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """The last line of stdout, which `--json` promises to be one JSON value."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def cells(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The objects of `--json` by method and task."""
        value = self.value
        return {(cell["method"], cell["task"]): cell for cell in (value if isinstance(value, list) else [value])}


class Terminal(io.StringIO):
    """Takes what is printed as a terminal would."""

    def isatty(self) -> bool:
        return True


def harness(*words: object, terminal: bool = False) -> Outcome:
    """Run `harness WORDS..`; strings are split at spaces, paths and numbers are not."""
    argv = [part for word in words for part in (word.split() if isinstance(word, str) else [str(word)])]
    out, err = (Terminal(), Terminal()) if terminal else (io.StringIO(), io.StringIO())
    with patch.object(sys, "argv", ["harness", *argv]), redirect_stdout(out), redirect_stderr(err):
        with pytest.raises(SystemExit) as ended:
            main()
    return Outcome(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def run(out: Path, *words: object, terminal: bool = False) -> Outcome:
    """`harness run` on the tiny model, one bundled prompt, 8 tokens, float32, unless `words` say otherwise."""
    return harness("run", *SMALL, "--out", out, *words, terminal=terminal)


def measured(out: Path, *words: object) -> list[Record]:
    """The records after a run that must end well, warm-ups left out."""
    outcome = run(out, *words)
    assert outcome.code == 0, outcome.err
    return counted(out)


def counted(out: Path) -> list[Record]:
    return [r for r in read(out) if not r["is_warmup"]]


def ids(records: list[Record]) -> dict[tuple[Any, ...], list[int]]:
    """Token ids by what names a generation; a generation measured twice is an error."""
    names = [(r["method"], r["preset"], r["task"], r["temperature"], r["sample_id"], r["turn"], r["repeat"]) for r in records]
    assert len(set(names)) == len(names), "a generation was measured twice"
    return dict(zip(names, (r["token_ids"] for r in records), strict=True))


def refused(outcome: Outcome, *parts: str) -> None:
    """One clear line that holds `parts`, exit code 2, and nothing that looks like a crash."""
    assert outcome.code == 2, outcome
    lines = outcome.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0] and "Traceback" not in outcome.err, outcome.err
    for part in parts:
        assert part in errors[0]


def reason(value: object) -> str:
    """Names a parametrised case by the first part of its message, not by the text or the lambda that leads to it."""
    return value[0] if isinstance(value, list) else ""


def files(folder: Path) -> dict[str, bytes]:
    """What a ledger holds, its lock left out."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and not p.name.endswith(".lock")}


def lines(folder: Path) -> list[str]:
    return (folder / RECORDS).read_text().splitlines()


def isolate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, no prompts folder, no network, no token of the hub's, registries to spoil, and no fresh processes."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HARNESS_PROMPTS", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    methods.names()  # the folder is scanned once a process
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    monkeypatch.setattr(tasks, "_registry", dict(tasks._registry))
    monkeypatch.setattr(config, "_included", dict(config._included))
    monkeypatch.setattr(originals, "_remembered", {})  # of this test alone
    monkeypatch.setattr(originals, "_known", {})
    monkeypatch.setattr(pace, "pace", lambda *_: pace.Pace((1.0, 1.0)))  # it takes seconds, and has a test of its own


def tiny_copy(folder: Path, **replaced: str) -> Path:
    """The tiny model's folder copied for a test to spoil, -> its YAML, in which `KEY: ...` lines were replaced.

    `weights` is replaced by one without sha256, unless told otherwise: what comes after that check is what is tested.
    """
    shutil.copytree(TINY.parent, folder)
    yaml = folder / TINY.name
    replaced = {"weights": "{path: target}", **replaced}
    kept = [line for line in yaml.read_text().splitlines() if line.split(":")[0] not in replaced]
    kept = [line for line in kept if not (line.startswith(" ") and "presets" in replaced)]
    yaml.write_text("\n".join([*kept, *(f"{key}: {value}" for key, value in replaced.items())]) + "\n")
    return yaml


def questions(folder: Path, task_folder: str, *turns: tuple[str, ...] | str) -> Path:
    """A question file of source `paper` below `folder`; a string stands for a whole line."""
    path = folder / task_folder / "question.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [t if isinstance(t, str) else json.dumps({"question_id": i, "turns": t}) for i, t in enumerate(turns, 1)]
    path.write_text("".join(row + "\n" for row in rows))
    return path
