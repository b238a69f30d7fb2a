"""Which engine runs a model: what is chosen, what cannot be, and the one line that says why the best was not taken."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import isolate, refused, run
from places import TINY
from random_llamas import head_of, module_of

import methods
from harness.load.config import model_config
from harness.load.model import load
from methods.engine.draft_head import EagleDrafter
from methods.engine.draft_lm import LMDrafter
from methods.engine.engines import COSTS, eagle_drafter, lm_drafter, target_of, target_type
from methods.engine.llama import LlamaTarget
from methods.engine.native import build
from methods.engine.native.drafters import NativeEagleDrafter, NativeLMDrafter
from methods.engine.native.target import NativeTarget
from methods.engine.row_invariant.drafters import RowInvariantEagleDrafter, RowInvariantLMDrafter
from methods.engine.row_invariant.target import RowInvariantTarget
from methods.engine.target import HFTarget

KINDS = {
    "": NativeTarget,
    "native": NativeTarget,
    "native:portable": NativeTarget,
    "torch": LlamaTarget,
    "module": HFTarget,
    "row-invariant": RowInvariantTarget,
}
DRAFTERS = {
    NativeTarget: (NativeEagleDrafter, NativeLMDrafter), RowInvariantTarget: (RowInvariantEagleDrafter, RowInvariantLMDrafter),
}  # fmt: skip
PACKED = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.delenv(build.VARIABLE, raising=False)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CC names none, the cache is empty (`isolate`), and nothing is remembered of those that were found before."""
    monkeypatch.setenv("CC", "no-such-compiler")
    known = build._best, build._library, build._compiler
    for function in known:
        function.cache_clear()
    yield
    for function in known:
        function.cache_clear()


def a_model(dtype: torch.dtype = torch.float32, **changes: object) -> torch.nn.Module:
    model = copy.deepcopy(module_of("tiny", torch.float32)).to(dtype)
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


# ---- each choice ----


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize(("asked", "kind"), KINDS.items())
def test_each_choice_is_taken(asked: str, kind: type, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.VARIABLE, asked)
    model = a_model(dtype)
    target = target_of(model)
    assert type(target) is kind is target_type(model, dtype)
    assert target.notice is None
    assert target.engine == target.engine_in(model, dtype)
    assert target.is_row_invariant is (kind in DRAFTERS)
    made = eagle_drafter(target, head_of("tiny", dtype), target.embedding, None), lm_drafter(target, a_model(dtype))
    assert tuple(map(type, made)) == DRAFTERS.get(kind, (EagleDrafter, LMDrafter))


@pytest.mark.parametrize("path", build.paths_here())
def test_a_path_of_machine_code_can_be_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.VARIABLE, f"native:{path}")
    target = target_of(a_model())
    assert isinstance(target, NativeTarget) and target.path == path
    assert target.engine == f"native {path}"
    assert lm_drafter(target, a_model())._native.library is target.library  # type: ignore[attr-defined]


def test_the_best_path_is_taken_where_none_is_named() -> None:
    target = target_of(a_model())
    assert isinstance(target, NativeTarget) and target.path == build.best_path()


@pytest.mark.parametrize("asked", ["", "native", "native:portable", "torch", "module"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_run_through_transformers_module(dtype: torch.dtype, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """float64 is what exactness is checked in, whatever the engine; float16 on a CPU is one's own choice."""
    monkeypatch.setenv(build.VARIABLE, asked)
    model = a_model(dtype)
    if dtype == torch.float16 and asked.startswith("native"):
        with pytest.raises(ValueError, match="the native engine does not run LlamaForCausalLM here"):
            target_of(model)
        return
    target = target_of(model)
    assert type(target) is HFTarget and target.notice is None
    assert target.engine.startswith("transformers ") and target.engine.endswith(" LlamaForCausalLM")


def test_the_engine_of_another_dtype_is_told_without_loading_it_in_that_dtype() -> None:
    model = a_model(torch.float64)
    assert target_type(model, torch.bfloat16) is NativeTarget and target_type(model, torch.float64) is HFTarget


def test_the_row_invariant_engine_runs_plain_llamas_in_16_bits_and_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.VARIABLE, "row-invariant")
    assert type(target_of(a_model(torch.float16))) is RowInvariantTarget
    assert type(target_of(a_model(torch.float64))) is HFTarget
    with pytest.raises(ValueError, match="^HARNESS_ENGINE=row-invariant: the row-invariant forward is a plain LLaMA's, not "):
        target_of(a_model(attention_bias=True))


# ---- what cannot be ----


@pytest.mark.parametrize("asked", ["warp", "native:sse9", "native:", "NATIVE", "torch:avx2", "torch "])
def test_an_engine_that_is_none_is_refused(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.VARIABLE, asked)
    with pytest.raises(ValueError) as e:
        target_of(a_model())
    line = str(e.value)
    assert line.startswith(f"HARNESS_ENGINE={asked}: there is no such engine; choose from native, native:amx, ")
    assert line.endswith(", native:portable, torch, static, row-invariant, module") and "\n" not in line


def test_the_command_line_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.VARIABLE, "warp")
    refused(run(tmp_path / "out", "--method vanilla --task gsm8k"), "HARNESS_ENGINE=warp: there is no such engine")


def test_a_model_that_the_native_engine_does_not_run_gets_its_module_and_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model(attention_bias=True)
    target = target_of(model)
    assert type(target) is HFTarget
    assert target.notice is not None and "\n" not in target.notice
    assert target.notice.startswith("the native engine does not run LlamaForCausalLM (it runs plain LLaMAs in float32 and ")
    assert target.notice.endswith(COSTS)
    for asked in ("torch", "module"):  # who asked for it knows
        monkeypatch.setenv(build.VARIABLE, asked)
        assert target_of(model).notice is None
    for asked in ("native", "native:portable"):
        monkeypatch.setenv(build.VARIABLE, asked)
        with pytest.raises(ValueError, match=f"^HARNESS_ENGINE={asked}: the native engine does not run LlamaForCausalLM here"):
            target_of(model)


def test_a_path_that_this_cpu_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset({"avx2"}))
    build._library.cache_clear()
    monkeypatch.setenv(build.VARIABLE, "native:avx2")
    try:
        with pytest.raises(ValueError, match="^HARNESS_ENGINE=native:avx2: this CPU cannot run .* path avx2: it lacks fma$"):
            target_of(a_model())
    finally:
        build._library.cache_clear()


# ---- no compiler ----


@pytest.mark.parametrize("dtype", PACKED)
def test_without_a_compiler_torch_runs_the_model_and_a_notice_says_so(no_compiler: None, dtype: torch.dtype) -> None:
    target = target_of(a_model(dtype))
    assert type(target) is LlamaTarget and target.engine == "lean" and not target.is_row_invariant
    assert target.notice is not None and "\n" not in target.notice
    assert target.notice.startswith("no native engine (no C compiler (no-such-compiler, which CC names, not found): install gcc")
    assert target.notice.endswith(COSTS)
    assert type(lm_drafter(target, a_model(dtype))) is LMDrafter


def test_without_a_compiler_the_native_engine_is_refused(no_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in ("native", "native:portable"):
        monkeypatch.setenv(build.VARIABLE, asked)
        with pytest.raises(ValueError, match=f"^HARNESS_ENGINE={asked}: no C compiler"):
            target_of(a_model())
    for asked, kind in (("torch", LlamaTarget), ("module", HFTarget)):
        monkeypatch.setenv(build.VARIABLE, asked)
        target = target_of(a_model())
        assert type(target) is kind and target.notice is None


def test_a_load_says_it_once(no_compiler: None, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load(model_config(str(TINY)), dtype="bfloat16", drafters=methods.DRAFTERS)
    said = [line for line in capsys.readouterr().err.splitlines() if "native engine" in line]
    assert len(said) == 1 and said[0].startswith("tiny: no native engine (no C compiler") and said[0].endswith(COSTS)
    assert loaded.identity.engine == "lean"


def test_a_load_on_the_native_engine_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load(model_config(str(TINY)), dtype="bfloat16", drafters=methods.DRAFTERS)
    assert "engine" not in capsys.readouterr().err
    assert loaded.identity.engine == f"native {build.best_path()}"
