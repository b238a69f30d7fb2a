"""Logits that are not finite make a prompt an error that names the model, the forward and the position. Masked ones do not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import counted, isolate, refused, run
from tiny_model import shared_tiny_model

import methods
from harness.watch.check import BadGeneration
from harness.watch.run import names_of, watched
from methods.base import SamplerParams
from methods.engine.target import HFTarget


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_target_whose_logits_are_not_finite_gives_no_number(
    value: float, temperature: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path)
    kind = type(shared_tiny_model("float32").loaded.target)
    real = kind.prefill

    def prefill(self: HFTarget, prompt_ids: list[int], room: int) -> tuple[torch.Tensor, torch.Tensor]:
        features, logits = real(self, prompt_ids, room)
        return features, logits + value if len(prompt_ids) > 20 else logits  # loading tries a few tokens

    monkeypatch.setattr(kind, "prefill", prefill)
    done = run(tmp_path, f"--task gsm8k --method pld --temperature {temperature}")
    refused(done, "2 generations failed")
    assert "1.00×" not in done.out
    for r in counted(tmp_path):
        assert r["status"] == "error" and not r["token_ids"]
        assert "the logits of the target tiny are not finite" in r["error"] and "the prefill, output position 0" in r["error"]


class Spoilt:
    """A drafter of which one call after another is right until one gives a logit that is not finite."""

    def __init__(self, drafter: Any, right: int, value: float, column: int):
        self._drafter, self._right, self._value, self._column = drafter, right, value, column

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def _spoilt(self, logits: torch.Tensor) -> torch.Tensor:
        self._right -= 1
        if self._right < 0:
            logits = logits.clone()
            logits[:, self._column] = self._value
        return logits

    def root_logits(self) -> torch.Tensor:
        return self._spoilt(self._drafter.root_logits())

    def expand(self, *given: Any) -> torch.Tensor:
        return self._spoilt(self._drafter.expand(*given))


@pytest.mark.parametrize("method", ["eagle1", "eagle2", "eagle2-fr", "medusa", "hydra", "sps"])
@pytest.mark.parametrize(("right", "value", "column"), [(0, math.nan, 0), (1, math.nan, 9), (1, math.inf, 9)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_drafter_whose_logits_are_not_finite_is_named(
    method: str, right: int, value: float, column: int, temperature: float
) -> None:
    tiny, m = shared_tiny_model("float32"), methods.get(method)
    drafter = Spoilt(tiny.loaded.drafter_of(m.drafter), right, value, column)
    names, params = names_of(tiny.loaded, m.drafter), SamplerParams(8, temperature=temperature)
    with pytest.raises(BadGeneration) as refusal:
        watched(m.build(), tiny.prompts[0], tiny.loaded.target, drafter, params, names)
    assert f"the logits of the {methods.DRAFTERS[m.drafter or '']} of tiny are not finite" in str(refusal.value)
    assert "drafts for forward 1 after the prefill" in str(refusal.value)


def test_a_run_records_such_a_drafter_as_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch, tmp_path)
    kind = type(shared_tiny_model("float32").loaded.drafter)
    real = kind.root_logits
    monkeypatch.setattr(kind, "root_logits", lambda self: real(self) * math.nan)
    refused(run(tmp_path, "--task gsm8k --method eagle2"), "1 generations failed")
    assert {r["method"]: r["status"] for r in counted(tmp_path)} == {"vanilla": "ok", "eagle2": "error"}


class Masked:
    """A target whose logits are changed from a forward on."""

    def __init__(self, target: Any, after: int, value: float, columns: slice):
        self._target, self._left, self._value, self._columns = target, after, value, columns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def step(self, token: int) -> torch.Tensor:
        logits: torch.Tensor = self._target.step(token).clone()
        self._left -= 1
        if self._left < 0:
            logits[self._columns] = self._value
        return logits


@pytest.mark.parametrize(
    ("value", "columns", "is_wrong"),
    [
        (math.nan, slice(5, 6), True),
        (math.inf, slice(5, 6), True),
        (-math.inf, slice(None), True),
        (-math.inf, slice(5, None), False),  # some models mask tokens of their own
    ],
)
def test_one_step_is_enough_and_a_masked_token_is_none(value: float, columns: slice, is_wrong: bool) -> None:
    tiny = shared_tiny_model("float32")
    target, decode = Masked(tiny.loaded.target, 3, value, columns), methods.get("vanilla").build()

    def made() -> Any:
        return watched(decode, tiny.prompts[0], target, None, SamplerParams(8), names_of(tiny.loaded, None))

    if is_wrong:
        with pytest.raises(BadGeneration, match="forward 4 after the prefill, output position 4"):
            made()
    else:
        assert len(made().generation.token_ids) == 8
