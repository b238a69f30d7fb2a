"""What a run says at its end of greedy outputs that are not vanilla's, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import counted, isolate, run
from places import TINY
from row_by_row import RowByRow, run_on

from harness.run.lossless_now import DIFFERS
from methods.engine.llama import LlamaTarget
from methods.engine.native.build import VARIABLE

FLIPS = """
from dataclasses import replace

from methods import get, method
from methods.engine.sampling import Chooser


class SecondBest(Chooser):
    def token(self, logits, position):
        return int(logits.topk(2).indices[1]) if position == 3 else super().token(logits, position)


@method("flips", line="plain decoding with one token changed", exact={exact})
def flips():
    plain = get("vanilla").build()
    return lambda ids, target, drafter, params: plain(ids, target, drafter, replace(params, chooser=SecondBest))
"""


@pytest.mark.parametrize(
    ("engine", "dtype", "exact", "code", "said"),
    [
        ("torch", "float64", True, DIFFERS, "NOT LOSSLESS: 1 of 1 greedy outputs in float64 differ from vanilla's (flips)"),
        ("torch", "float32", True, 0, "warning: 1 of 1 greedy outputs in float32 differ from vanilla's (flips); only near ties"),
        ("torch", "bfloat16", True, 0, "1 of 1 greedy outputs in bfloat16 differ from vanilla's (flips); near ties do that"),
        ("torch", "float64", False, 0, ""),
        ("native", "float32", True, DIFFERS, "NOT LOSSLESS: 1 of 1 greedy outputs in float32 differ from vanilla's (flips)"),
        ("native", "bfloat16", True, DIFFERS, "NOT LOSSLESS: 1 of 1 greedy outputs in bfloat16 differ from vanilla's (flips)"),
        ("native", "bfloat16", False, 0, ""),
    ],
)
def test_a_run_tells_of_outputs_that_are_not_vanillas(
    engine: str, dtype: str, exact: bool, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setenv(VARIABLE, engine)
    file = tmp_path / "flips.py"
    file.write_text(FLIPS.format(exact=exact))
    done = run(tmp_path / "out", "--task gsm8k --method flips --dtype", dtype, "--include", file)
    assert done.code == code, done.err
    assert len(counted(tmp_path / "out")) == 2  # all is recorded first
    if said:
        assert said in done.err and f"harness verify --model {TINY} --results {tmp_path / 'out'}" in done.err
    else:
        assert "differ from vanilla" not in done.err


@pytest.mark.parametrize(("engine", "code"), [(RowByRow, DIFFERS), (LlamaTarget, 0)])
def test_on_a_row_invariant_engine_no_dtype_excuses_a_difference(
    engine: type[LlamaTarget], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path)
    run_on(monkeypatch, engine)
    file = tmp_path / "flips.py"
    file.write_text(FLIPS.format(exact=True))
    done = run(tmp_path / "out", "--task gsm8k --method flips --method eagle2 --dtype bfloat16 --include", file)
    assert done.code == code, done.err
    is_lossy = engine is RowByRow
    assert ("NOT LOSSLESS: 1 of 2 greedy outputs in bfloat16 differ from vanilla's (flips); the method or the engine" in done.err
            ) == is_lossy  # fmt: skip
    assert ("near ties do that" in done.err) == (not is_lossy)
    (env,) = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("env-*.json")]
    assert env["row_invariant"] is is_lossy and env["target_parts"]["engine"] == ("row by row" if is_lossy else "lean")
    assert f"Engine of our loops: {env['target_parts']['engine']} (bfloat16" in done.out
    assert ("0/1 lossy" in done.out) == is_lossy


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_run_of_lossless_methods_says_nothing_and_is_well(dtype: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--task gsm8k --method eagle2 --method pld --dtype", dtype)
    assert done.code == 0 and "differ from vanilla" not in done.err


def test_every_generation_has_its_cpu_seconds_and_the_load(tmp_path: Path) -> None:
    run(tmp_path, "--task gsm8k --method eagle2")
    for r in counted(tmp_path):
        assert 0 < r["cpu_s"] <= r["wall_s"] * 1.05 and r["load"] >= 0


@pytest.mark.parametrize("temperatures", ["--temperature 0 --temperature 1", "--temperature 1 --temperature 0 --temperature 1"])
def test_several_temperatures_are_one_run(temperatures: str, tmp_path: Path) -> None:
    done = run(tmp_path, "--task gsm8k --method pld", temperatures)
    assert done.code == 0, done.err
    assert {(r["method"], r["temperature"]) for r in counted(tmp_path)} == {
        (m, t) for m in ("vanilla", "pld") for t in (0.0, 1.0)
    }
    assert "at T = 0" in done.err and "at T = 1" in done.err
