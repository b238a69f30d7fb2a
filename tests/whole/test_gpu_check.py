"""`scripts/gpu_check.py`: its parts in order, what it writes after each, and one that differs or has no time left."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from places import ROOT


@pytest.fixture
def check() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts/gpu_check.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def test_what_is_worth_most_comes_first_and_a_rehearsal_leaves_no_kind_of_part_out(check: Any, tmp_path: Path) -> None:
    on_gpu, on_cpu = ([p.name.split(",")[0] for p in check.parts(tmp_path, on)] for on in (False, True))
    assert list(dict.fromkeys(on_gpu)) == ["tiny", "costs", "predict", "train", "embedded"] == list(dict.fromkeys(on_cpu))
    assert on_gpu.count("costs") == 9
    for on in (False, True):
        tiny = [(p.name, p.engine) for p in check.parts(tmp_path, on) if "float16" in p.name]
        assert [name for name, _ in tiny] == [
            f"tiny, {what}, {dtype}" for dtype in ("float16", "bfloat16") for what in ("row-invariant", "localise")
        ]
        assert {engine for _, engine in tiny} == {"row-invariant"}


@pytest.mark.parametrize("method", ["eagle2", "hf-generate"])
def test_in_half_precision_our_own_loops_outputs_must_be_vanillas(method: str, check: Any, tmp_path: Path) -> None:
    (part, *_) = [p for p in check.parts(tmp_path, True) if p.name.startswith("tiny, row-invariant")]
    cells = [{"method": "pld", "identical": 6, "prompts": 6}, {"method": method, "identical": 5, "prompts": 6}]
    assert check.faults(part, cells) == ({"not vanilla's": cells[1:]} if method == "eagle2" else {})


def test_an_operator_of_the_row_invariant_engine_that_changes_a_bit_fails_the_check(check: Any, tmp_path: Path) -> None:
    (part, *_) = [p for p in check.parts(tmp_path, True) if p.name.startswith("tiny, localise")]
    torchs = {"engine": "torch", "finding": "the first operator", "operators": [1], "left_out": [], "settings": []}
    own = torchs | {"engine": "row-invariant", "finding": "none", "operators": [], "settings": [{"differing": 0}]}
    assert check.faults(part, {"engines": [own, torchs]}) == {}
    assert check.brief({"engines": [own, torchs]}) == {"row-invariant": "none", "torch": "the first operator"}
    for wrong in ({"operators": [1]}, {"left_out": ["an expert"]}, {"settings": [{"differing": 2}]}):
        assert check.faults(part, {"engines": [own | wrong, torchs]}) == {"changes bits": ["none"]}
    assert check.faults(part, None)  # nothing came of it


def test_each_part_is_written_at_once_and_one_that_differs_fails_the_check(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def run(part: Any, on_cpu: bool, seconds: float) -> dict[str, Any]:
        seen.append(len(summary(tmp_path)["parts"]) if (tmp_path / "summary.json").exists() else 0)
        same = part.name != "tiny, torch, T = 0"
        cells = [{"identical": None, "prompts": 6}, {"identical": 6 if same else 5, "prompts": 6, "method": "pld"}]
        engine = {"engine": "row-invariant", "finding": "none", "operators": [], "left_out": [], "settings": []}
        if part.words[0] == "localise":
            return {"part": part.name, "engine": part.engine, "exit": 0, "seconds": 1, "result": {"engines": [engine]},
                    "refused": False, "stderr": ""}  # fmt: skip
        return {"part": part.name, "engine": part.engine, "exit": 0, "seconds": 1, "result": cells, "refused": False,
                "stderr": ""}  # fmt: skip

    monkeypatch.setattr(check, "run", run)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path), "--device", "cpu"])
    assert check.main() == 1
    assert seen == list(range(len(seen)))
    (wrong,) = [p for p in summary(tmp_path)["parts"] if "not vanilla's" in p]
    assert wrong["part"] == "tiny, torch, T = 0" and wrong["not vanilla's"] == [{"identical": 5, "prompts": 6, "method": "pld"}]
    assert "differs" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path), "--device", "cpu", "--minutes", "0.1"])
    assert check.main() == 1
    assert {p["stderr"] for p in summary(tmp_path)["parts"]} == {"no time was left"}


def test_a_part_whose_graphs_were_refused_is_told_apart(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever in its errors that is said. What is worse comes first: a part that differs, or that ended badly."""
    said = "no CUDA graphs (out of memory): steps are launched call by call, which is slower\n"

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        wrong = [{"identical": 5, "prompts": 6, "method": "pld"}] if " --temperature 1 " in " ".join(command) else []
        refused = env.get("HARNESS_ENGINE") == "static" and "costs" not in command
        return SimpleNamespace(
            returncode=int("eagle2" in command), stdout=json.dumps(wrong), stderr=said * refused + "more\n" * 999
        )

    monkeypatch.setattr(check.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path), "--device", "cpu"])
    assert check.main() == 1
    there = summary(tmp_path)["parts"]
    assert [p["part"] for p in there if "graphs" in p] == ["tiny, static, T = 0", "tiny, static, T = 1", "embedded, static"]
    assert not any("refused" in p or len(p["stderr"]) > 2000 for p in there)
    lines = {line.split(" s  ")[1]: line.split("  ")[0] for line in capsys.readouterr().out.splitlines()}
    assert lines["tiny, static, T = 0"] == "no graphs" and lines["tiny, static, T = 1"].startswith("differs")
    assert lines["embedded, static"].startswith("exit 1")


def test_without_a_gpu_it_says_how_to_rehearse(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path / "out")])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert check.main() == 2 and "--device cpu" in capsys.readouterr().err and not (tmp_path / "out").exists()
