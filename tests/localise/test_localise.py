"""`harness localise`: it names the operator, the layer and the ulp of a planted fault, and finds none where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from command_line import harness, isolate, refused
from places import TINY
from small_families import small_config
from tiny_model import TinyModel, fresh_tiny_model
from torch import Tensor

from harness.localise import engines, localise
from methods.engine import llama
from methods.engine.native.target import NativeTarget
from methods.engine.row_invariant.target import InBlocks
from methods.engine.target import HFTarget
from methods.engine.tree import Tree

COMMAND = f"localise --model {TINY} --dtype float32 --threads 1 --rows 1,2,5,9"
NONE = "no operator of any layer changes a bit, at any of these row counts."


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr(localise, "TEXTS", 1)
    monkeypatch.setenv("HARNESS_ENGINE", "torch")


def attended_by_row(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """`grouped_attention` of one row at a time, over the keys that the row sees."""
    _, heads, n, d = query.shape
    kv_heads, length = key.shape[1], key.shape[2]
    out = []
    for i in range(n):
        sees = torch.arange(length) < length - n + 1 + i if mask is None else mask[0, 0, i] == 0
        group = query[:, :, i].reshape(1, kv_heads, heads // kv_heads, d)
        one = F.scaled_dot_product_attention(group, key[:, :, sees], value[:, :, sees], scale=scaling)
        out.append(one.reshape(1, 1, heads, d))
    return torch.cat(out, dim=1), None


def by_row(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same operator, computed for one row [.., size] at a time."""

    def computed(x: Tensor, **others: Tensor | bool) -> Tensor:
        made = []
        for i in range(x.shape[-2]):
            own = {name: other[..., i : i + 1, :] if isinstance(other, Tensor) else other for name, other in others.items()}
            made.append(compute(x[..., i : i + 1, :], **own))
        return torch.cat(made, dim=-2)

    return computed


def with_a_fault(compute: Callable[..., Tensor], ulps: int = 1) -> Callable[..., Tensor]:
    """An operator whose result is a few ulp larger where it has more than 4 rows."""

    def computed(x: Tensor, **others: Any) -> Tensor:
        made = compute(x, **others)
        for _ in range(ulps if x.shape[-2] > 4 else 0):
            made = torch.nextafter(made, torch.tensor(torch.inf, dtype=made.dtype))
        return made

    return computed


MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


@pytest.fixture
def invariant(monkeypatch: pytest.MonkeyPatch) -> TinyModel:
    """The tiny model in float32, on both engines with every matrix and attention computed row by row; what `load` gives."""
    tiny = fresh_tiny_model("float32")
    monkeypatch.setattr(llama, "grouped_attention", attended_by_row)
    monkeypatch.setattr(engines, "grouped_attention", attended_by_row)
    for name, module in tiny.loaded.target.model.named_modules():
        if name.rpartition(".")[2] in MAPS:
            module.forward = by_row(module.forward)
    target: Any = tiny.loaded.target
    for layer in target._layers:
        for name in ("qkv", "o", "gate", "up", "down"):
            setattr(layer, name, by_row(getattr(layer, name)))
    target.lm_head = by_row(target.lm_head)
    given(monkeypatch, tiny)
    return tiny


def given(monkeypatch: pytest.MonkeyPatch, tiny: TinyModel, **changes: Any) -> None:
    """What the command loads from now on."""
    loaded = replace(tiny.loaded, **changes)
    monkeypatch.setattr(localise, "load", lambda *args, **kwargs: loaded)


def last_lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if ": " in line and line.endswith(".") and ", float32: " in line]


# ---- what it finds --------------------------------------------------------------------------------------------------


def test_operators_that_compute_row_by_row_show_no_difference(invariant: TinyModel) -> None:
    done = harness(COMMAND, "--json")
    assert done.code == 0, done.err
    assert last_lines(done.out) == [f"the torch path, float32: {NONE}", f"transformers' LlamaForCausalLM, float32: {NONE}"]
    for engine in done.value["engines"]:
        assert engine["operators"] == [] and engine["left_out"] == []
        assert {(s["differing"], s["flips"], s["first"]) for s in engine["settings"]} == {(0, 0, None)}
        shapes = {(s["shape"], s["rows"]) for s in engine["settings"]}
        assert shapes == {(s, n) for s in ("prefill", "chain", "tree") for n in (1, 2, 5, 9)} | {("plain step, again", 1)}


@pytest.mark.parametrize("ulps", [1, 3])
def test_a_planted_fault_is_named_by_operator_layer_rows_and_ulp_on_both_engines(invariant: TinyModel, ulps: int) -> None:
    target: Any = invariant.loaded.target
    target._layers[1].up = with_a_fault(target._layers[1].up, ulps)
    module = target.model.model.layers[1].mlp.up_proj
    module.forward = with_a_fault(module.forward, ulps)
    done = harness(COMMAND, "--json")
    assert done.code == 0, done.err
    for engine, name in zip(done.value["engines"], ("up projection x gate", "mlp.up_proj"), strict=True):
        assert (
            f"the first operator is layer 1's {name}, at 5 rows (prefill), {ulps} ulp; at 9 rows 100% of rows"
            in engine["finding"]
        )
        assert engine["finding"] in done.out.splitlines()
        own = [o for o in engine["operators"] if o["own_differ"]]
        assert {(o["layer"], o["operator"], o["own_ulp"], o["own_differ"] == o["compared"]) for o in own} == {
            (1, name, ulps, True)
        }
        assert {(o["shape"], o["rows"]) for o in own} == {(s, n) for s in ("prefill", "chain", "tree") for n in (5, 9)}
        after = {o["operator"] for o in engine["operators"] if o["carried_differ"] and not o["own_differ"]}
        assert "LM head" in after and not {"input norm", "input_layernorm", "attention"} & after  # those behind it alone
        for s in engine["settings"]:
            assert s["differing"] == (s["rows"] if s["rows"] > 4 else 0) * (s["compared"] // s["rows"])
    rows = [line for line in done.out.splitlines() if line.startswith(("up projection x gate", "mlp.up_proj"))]
    assert [row.split("  ")[-2:] for row in rows] == [[f"{ulps} ulp, 1 layer"] * 2] * 2
    assert [row.count("—") for row in rows] == [2, 2]  # at 1 row and at 2


def test_the_first_of_two_faults_is_named_and_both_are_counted(invariant: TinyModel) -> None:
    target: Any = invariant.loaded.target
    target._layers[0].down = with_a_fault(target._layers[0].down)
    target._layers[1].qkv = with_a_fault(target._layers[1].qkv)
    engine = harness(COMMAND, "--engine torch --json").value["engines"][0]
    assert "the first operator is layer 0's down projection + residual, at 5 rows" in engine["finding"]
    own = {(o["layer"], o["operator"]) for o in engine["operators"] if o["own_differ"]}
    assert own == {(0, "down projection + residual"), (1, "qkv projection")}


def test_a_fault_in_the_attention_to_a_nodes_ancestors_is_the_attentions(
    invariant: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of earlier rows of the same forward are the plain steps', too."""

    def wrong(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        made, none = attended_by_row(module, query, *args, **kwargs)
        return (torch.nextafter(made, torch.tensor(torch.inf)) if query.shape[2] > 4 else made), none

    monkeypatch.setattr(engines, "grouped_attention", wrong)
    engine = harness(COMMAND, "--engine module --json").value["engines"][0]
    own = {(o["layer"], o["operator"]) for o in engine["operators"] if o["own_differ"]}
    assert own == {(0, "attention"), (1, "attention")}


def test_a_step_that_does_not_repeat_itself_is_told_instead_of_blaming_the_rows(invariant: TinyModel) -> None:
    target: Any = invariant.loaded.target
    gate, calls = target._layers[1].gate, []

    def noisy(x: Tensor, **others: Any) -> Tensor:
        calls.append(1)
        made: Tensor = gate(x, **others)
        return made + len(calls)

    target._layers[1].gate = noisy
    done = harness(COMMAND, "--engine torch")
    assert done.code == 0 and last_lines(done.out)[-1].startswith(
        "the torch path, float32: the same plain step done again gives other bits, from layer 1's gate projection, SiLU on:"
    )


def test_a_difference_that_no_operator_makes_is_not_passed_over(invariant: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    target: Any = invariant.loaded.target
    monkeypatch.setattr(target, "verify", lambda tree, verify=target.verify: (None, verify(tree)[1] + 1))
    said = last_lines(harness(COMMAND, "--engine torch").out)[-1]
    assert "no operator that is watched differs by itself; at 9 rows" in said and "0% of argmaxes flip" in said


def test_real_kernels_differ_and_argmaxes_that_flip_are_counted(tmp_path: Path) -> None:
    done = harness(COMMAND, "--engine module --json", tmp_path / "found.json")
    assert done.code == 0 and "engine torch" not in done.err, done.err
    value = json.loads((tmp_path / "found.json").read_text())
    assert (value["model"], value["dtype"], value["rows"]) == ("tiny", "float32", [1, 2, 5, 9])
    assert done.out.splitlines()[-1] == value["engines"][0]["finding"]
    for s in value["engines"][0]["settings"]:
        assert 0 <= s["flips"] <= s["differing"] <= s["compared"]


# ---- engines and input ----------------------------------------------------------------------------------------------


def test_an_engine_that_shows_its_logits_alone_is_judged_by_them(invariant: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    target: Any = invariant.loaded.target
    target.is_row_invariant = True
    finding = harness(COMMAND, "--engine native --json").value["engines"][0]["finding"]
    assert finding == "the native engine, float32: no logit of any row changes a bit, at any of these row counts."
    target._layers[1].up = with_a_fault(target._layers[1].up)
    finding = harness(COMMAND, "--engine native --json").value["engines"][0]["finding"]
    assert finding.startswith("the native engine, float32: the first operator is the LM head, at 5 rows (")


def test_another_architecture_has_the_module_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    torch.manual_seed(0)
    tiny = fresh_tiny_model("float32")
    config = small_config("qwen3_moe", unbound=True, vocab_size=384, max_position_embeddings=2560)
    target = HFTarget(transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    given(monkeypatch, tiny, target=target)
    done = harness(COMMAND, "--json")
    assert done.code == 0 and "engine torch is left out: it is for plain LLaMA models" in done.err
    (engine,) = done.value["engines"]
    assert engine["title"] == "transformers' Qwen3MoeForCausalLM" and "\nself_attn.q_norm " in done.out
    inside = [f"layer {i}'s {what}mlp.experts.act_fn" for i in (0, 1) for what in ("", "what enters ")]
    assert engine["left_out"] == sorted(inside) and "Not compared, as they do not make one row for each row: mlp.ex" in done.out
    assert "mlp.experts" in {o["operator"] for o in engine["operators"]}  # what they make together is
    refused(harness(COMMAND, "--engine torch"), "engine torch: model tiny cannot have it", "not for Qwen3MoeForCausalLM")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--rows 1,two", "--rows is '1,two'; it must be whole numbers"),
        ("--rows 1,,2", "--rows is '1,,2'"),
        ("--rows 2.5", "--rows is '2.5'"),
        ("--rows -3", "--rows is '-3'"),
        ("--rows 0", "--rows is 0; it must be at least 1"),
        ("--rows 99999", "--rows is 99,999; it may be at most 4,096"),
        ("--rows 1,2433", "--rows is up to 2,433: behind a context of 128 tokens tiny has room for 2,432"),
        ("--engine fast", "unknown engine 'fast'; known: all, module, native, row-invariant, torch"),
        ("--engine native", "engine native: model tiny cannot have it: it runs on another here (lean)"),
        ("--dtype int8", "unknown dtype 'int8'"),
        ("--threads 0", "--threads is 0"),
        ("--model nosuch", "unknown model 'nosuch'"),
        ("--dtype float64 --engine torch", "it is for plain LLaMA models in float32 or bfloat16 on a CPU"),
    ],
)
def test_bad_input_is_one_line(words: str, part: str) -> None:
    refused(harness(COMMAND, words), part)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_the_native_engine_no_operator_changes_a_bit(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.delenv("HARNESS_ENGINE")
    done = harness(COMMAND.replace("float32", dtype), "--engine native")
    assert done.code == 0 and f"{dtype}: {NONE}" in done.out and "attention" in done.out and "Not compared" not in done.out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_on_the_row_invariant_torch_path_no_operator_changes_a_bit(dtype: str) -> None:
    done = harness(COMMAND.replace("float32", dtype), "--engine row-invariant --json")
    assert done.code == 0, done.err
    assert f"the row-invariant torch path, {dtype}: {NONE}" in done.out and "Not compared" not in done.out
    [engine] = done.value["engines"]
    assert engine["operators"] == [] and {(s["differing"], s["flips"]) for s in engine["settings"]} == {(0, 0)}


def test_an_operator_that_leaves_its_block_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_no_block(self: InBlocks, x: Tensor, **others: Any) -> Tensor:
        made: Tensor = self.compute(x, **others)
        return made

    monkeypatch.setattr(InBlocks, "__call__", in_no_block)
    done = harness(COMMAND, "--engine row-invariant")
    assert "the first operator is layer 0's qkv projection" in done.out, done.out


def test_where_the_model_runs_row_invariant_the_torch_path_is_shown_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_ENGINE", "row-invariant")
    done = harness(COMMAND, "--rows 1,9 --json")
    assert [engine["engine"] for engine in done.value["engines"]] == ["row-invariant", "torch", "module"]
    own, torchs, modules = done.value["engines"]
    assert not own["operators"] and torchs["operators"] and modules["operators"]
    assert "engine native is left out: it runs on another here (lean row-invariant)" in done.err


def test_a_fault_on_the_native_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARNESS_ENGINE")
    real = NativeTarget.tapped

    def tapped(self: NativeTarget, tree: Tree) -> dict[str, Tensor]:
        found = real(self, tree)
        if len(tree) > 4:
            found["1.attention"] = torch.nextafter(found["1.attention"], torch.tensor(torch.inf))
        return found

    monkeypatch.setattr(NativeTarget, "tapped", tapped)
    done = harness(COMMAND, "--engine native")
    assert "the first operator is layer 1's attention, at 5 rows" in done.out, done.out
