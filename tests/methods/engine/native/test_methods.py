"""On the native engine every exact method of our own loop emits plain decoding's ids in bfloat16: equality without an excuse."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from random_llamas import same_bits
from tiny_model import TinyModel, shared_tiny_model
from torch import Tensor

import methods
import tasks
from harness.audit.faults.wrappers import with_last_bit
from harness.common.errors import UserError
from harness.load.config import model_config
from methods.base import SamplerParams
from methods.engine.native.drafters import NativeEagle3Drafter, NativeEagleDrafter, NativeLMDrafter
from methods.engine.native.target import NativeTarget
from methods.engine.sampling import stream_key
from methods.engine.tree import Tree

EXACT = [name for name in methods.names(exact=True) if name != "vanilla"]
# (method, T, other options than the paper's): what draws its drafts draws other tokens than vanilla at T > 0
ARMS: list[tuple[str, float, dict[str, Any]]] = [
    (name, temperature, options)
    for name in EXACT
    for temperature in (0.0, 1.0)
    if not (temperature and methods.get(name).samples_drafts)
    for options in ([{}, {"stop_early": True}] if "stop_early" in methods.get(name).options else [{}])
]
each_arm = pytest.mark.parametrize(
    ("name", "temperature", "options"), ARMS, ids=[f"{name}-T={t:g}{'-stop_early' if o else ''}" for name, t, o in ARMS]
)


@pytest.fixture(scope="module")
def native() -> TinyModel:
    return shared_tiny_model("bfloat16")


@cache
def embedded() -> TinyModel:
    from harness.load.model import load

    torch.set_num_threads(1)
    return TinyModel(load(model_config("smollm2-135m"), dtype="bfloat16", drafters=methods.DRAFTERS))


def sampled(model: TinyModel, temperature: float, n: int) -> Iterator[tuple[list[int], SamplerParams]]:
    """Two prompts of each of the six tasks, each with a stream of its own."""
    assert len(tasks.names()) == 6 and len(model.prompts) == 12
    stop_ids = frozenset(model.loaded.config.stop_ids)
    for i, prompt in enumerate(model.prompts):
        yield prompt, SamplerParams(n, stop_ids, temperature=temperature, key=stream_key(0, str(i), 1, 0))


def differing(model: TinyModel, name: str, temperature: float, n: int, target: Any = None, **options: Any) -> list[int]:
    """The prompts of which a method's ids are not vanilla's. All are decoded."""
    found, n_accepted = [], 0
    for i, (prompt, params) in enumerate(sampled(model, temperature, n)):
        made = model.decode(name, prompt, params, target=target, **options)
        if made.token_ids != model.vanilla(prompt, params).token_ids:
            found.append(i)
        assert made.trace is not None
        n_accepted += sum(made.trace.accepted)
    assert n_accepted, "nothing that was drafted was kept, so nothing is shown"
    return found


def test_the_models_of_these_tests_run_on_the_native_engine(native: TinyModel) -> None:
    assert type(native.loaded.target) is NativeTarget and native.loaded.target.dtype == torch.bfloat16
    assert type(native.loaded.drafter_of("eagle")) is NativeEagleDrafter
    assert type(native.loaded.drafter_of("lm")) is NativeLMDrafter
    assert type(native.loaded.drafter_of("eagle3")) is NativeEagle3Drafter


@each_arm
def test_a_methods_ids_are_vanillas(name: str, temperature: float, options: dict[str, Any], native: TinyModel) -> None:
    assert not differing(native, name, temperature, 64, **options)


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.timeout(1200)
@each_arm
def test_a_methods_ids_on_the_embedded_target_are_vanillas(name: str, temperature: float, options: dict[str, Any]) -> None:
    from harness.load.model import weights_folder

    try:
        weights_folder(model_config("smollm2-135m"))
    except UserError as error:
        pytest.skip(f"the embedded target is not to be had: {error}")
    if (kind := methods.get(name).drafter) is not None and kind not in embedded().loaded.drafters:
        pytest.skip(f"the embedded target has no {methods.DRAFTERS[kind]}")
    assert type(embedded().loaded.target) is NativeTarget
    assert not differing(embedded(), name, temperature, 48, **options)


def test_ids_do_not_depend_on_the_number_of_threads(native: TinyModel) -> None:
    params = SamplerParams(48, temperature=1.0, key=3)
    before = native.decode("eagle2", native.prompts[0], params)
    torch.set_num_threads(2)
    try:
        assert native.decode("eagle2", native.prompts[0], params).token_ids == before.token_ids
    finally:
        torch.set_num_threads(1)


# ---- planted faults ----


class RoundedRows(NativeTarget):
    """Several rows at once are rounded to bfloat16, as other engines round, and one row alone is not."""

    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        features, logits = super().verify(tree)
        return features, logits.bfloat16().float() if len(tree) > 1 else logits


class OneBitOff(NativeTarget):
    """Of several rows at once the second one's logits have one number with another last bit."""

    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        features, logits = super().verify(tree)
        return features, with_last_bit(logits, 1) if len(tree) > 1 else logits


def planted(native: TinyModel, kind: type[NativeTarget]) -> NativeTarget:
    return kind(copy.deepcopy(native.loaded.target.model))


def test_rows_that_round_unlike_plain_decoding_show_in_the_ids(native: TinyModel) -> None:
    assert differing(native, "eagle2", 0.0, 64, planted(native, RoundedRows))
    assert not differing(native, "eagle2", 0.0, 64, planted(native, NativeTarget))


def test_one_bit_shows_where_bits_are_compared(native: TinyModel) -> None:
    tree, prompt = Tree([7, 8, 9], [-1, 0, 0]), native.prompts[0]

    def right(kind: type[NativeTarget]) -> list[bool]:
        target, found = planted(native, kind), []
        target.prefill(prompt, 8)
        rows = target.verify(tree)[1]
        for node, tokens in enumerate(([7], [7, 8], [7, 9])):
            target.prefill(prompt, 8)
            found.append(same_bits(rows[node], [target.step(token) for token in tokens][-1]))
        return found

    assert right(NativeTarget) == [True, True, True]
    assert right(OneBitOff) == [True, False, True]
