"""The Python API: every module imports, every public name works, and no folder in front of ours goes unnoticed."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT, TINY

import harness
from harness import RunRequest, UserError, load_model
from harness.api import Model

SMALL = {"model": str(TINY), "source": "bundled", "limit": 1, "max_new_tokens": 8, "dtype": "float32", "threads": 1}


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(str(TINY), dtype="float64", threads=1)


@pytest.mark.parametrize("package", ["harness", "methods", "tasks", "models"])
def test_every_module_imports_and_no_public_name_is_a_package(package: str) -> None:
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(found.__path__, f"{package}."):
        if module.name != "harness.__main__":
            importlib.import_module(module.name)
    for name in getattr(found, "__all__", ()):
        assert not isinstance(getattr(found, name), type(sys)), f"{package}.{name} is a module"


@pytest.mark.parametrize("method", ["vanilla", "eagle2", "medusa", "hydra", "sps", "pld"])
def test_any_method_whose_drafter_the_model_has_generates_vanillas_text(method: str, model: Model) -> None:
    plain = model.generate("How is bread made?", method="vanilla", max_new_tokens=12)
    made = model.generate("How is bread made?", method=method, max_new_tokens=12)
    assert made.token_ids == plain.token_ids and made.text == plain.text and made.seconds > 0
    assert plain.tau == 1 and made.tau is not None and made.tau >= 1
    assert (len(made.trees) > 0) is (method != "vanilla")


def test_options_and_temperature_reach_the_method(model: Model) -> None:
    few = model.generate("How is bread made?", total=3, depth=2, top_k=2, max_new_tokens=8)
    assert max(len(tree.tokens) for tree in few.trees) == 3
    sampled = [
        model.generate("How is bread made?", temperature=1.0, seed=seed, max_new_tokens=12).token_ids for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [({"method": "eagel2"}, "did you mean 'eagle2'"), ({"temperature": -1}, "^temperature is -1"),
     ({"max_new_tokens": 0}, "^max_new_tokens is 0"), ({"top_p": 0.9}, "^top_p is 0.9; at temperature 0"),
     ({"depht": 3}, "unknown option 'depht'"), ({"max_new_tokens": 10_000}, "exceeds the context")],
)  # fmt: skip
def test_bad_input_is_one_line(words: dict, said: str, model: Model) -> None:
    with pytest.raises(UserError, match=said):
        model.generate("How is bread made?", **words)


def test_what_is_measured_is_read_and_summarised(tmp_path: Path) -> None:
    request = RunRequest(methods=("eagle2",), tasks=("gsm8k", "alpaca"), out=tmp_path, **SMALL)
    frame = harness.measure(request)
    assert set(zip(frame["method"], frame["task"], strict=True)) == {
        (m, t) for m in ("vanilla", "eagle2") for t in ("gsm8k", "alpaca")
    }
    assert frame.loc[frame["method"] == "eagle2", "tau"].min() >= 1 and frame["tau_low"].isna().all()  # one prompt: no interval
    records = harness.read(tmp_path)
    assert len(records) == 4 and {"token_ids", "wall_s", "cpu_s", "load", "trace"} <= set(records.columns)
    assert harness.summarise(records).equals(frame) and harness.summarise(tmp_path).equals(frame)
    assert len(harness.summarise(records[records["method"] == "vanilla"])) == 2
    with pytest.raises(UserError, match="no records in"):
        harness.read(tmp_path / "none")
    with pytest.raises(UserError, match="measure needs a RunRequest"):
        harness.measure()


def test_a_folder_in_front_of_ours_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import harness; harness.load_model()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "UserError: the harness needs its own package 'models'" in last and str(tmp_path / "models") in last


def test_the_command_line_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "harness", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("harness, version ")


def test_verify_returns_a_verdict_a_layer_and_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = harness.verify(model=str(TINY), methods=("pld",), out=tmp_path, threads=1)
    assert {v.method for v in verdicts if v.passed} >= {"pld", "vanilla"} and not [v for v in verdicts if v.passed is False]
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="unknown level 'fulll'"):
        harness.verify(model=str(TINY), methods=("pld",), level="fulll", out=tmp_path)


def test_wrong_inputs_are_one_line(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="methods is the text 'eagle2'; it must be a tuple of words"):
        RunRequest(methods="eagle2")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least one method and one task"):
        RunRequest(methods=())
    with pytest.raises(UserError, match="methods is the text 'pld'"):
        harness.verify(model=str(TINY), methods="pld", out=tmp_path)
    with pytest.raises(UserError, match="threads is 0"):
        load_model(str(TINY), threads=0)
    with pytest.raises(UserError, match="the prompt is of type list"):
        model.generate(["How is bread made?"])  # type: ignore[arg-type]


def test_a_frame_without_rows_has_its_columns_and_one_without_columns_is_refused(tmp_path: Path) -> None:
    harness.measure(RunRequest(methods=("vanilla",), tasks=("gsm8k",), out=tmp_path, **SMALL))
    records = harness.read(tmp_path)
    none = harness.summarise(records[records["method"] == "eagle2"])
    assert len(none) == 0 and {"method", "tau", "speedup", "speedup_low"} <= set(none.columns)
    with pytest.raises(UserError, match="the frame lacks columns of harness.read: .*status"):
        harness.summarise(records[["method"]])
