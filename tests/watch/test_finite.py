"""Logits that are not finite make a prompt an error that names the model, the forward and the position. Masked ones do not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import counted, isolate, refused, run, tiny_copy
from safetensors.torch import load_file, save_file
from tiny_model import shared_tiny_model

import methods
from harness.common.files import sha256_file
from harness.watch.check import BadGeneration
from harness.watch.run import names_of, watched
from methods.base import SamplerParams
from methods.engine.target import HFTarget


def spoil(path: Path, key: str, value: float) -> None:
    """Put one value into a tensor of a safetensors file, as if it had been trained so: its config.json may name its hash."""
    tensors, config, before = load_file(path), path.with_name("config.json"), sha256_file(path)
    tensors[key].view(-1)[3] = value
    save_file(tensors, path, metadata={"format": "pt"})
    config.write_text(config.read_text().replace(before, sha256_file(path)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_target_whose_logits_are_not_finite_gives_no_number(
    value: float, temperature: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path)
    real = HFTarget.prefill

    def prefill(self: HFTarget, prompt_ids: list[int], room: int) -> tuple[torch.Tensor, torch.Tensor]:
        features, logits = real(self, prompt_ids, room)
        return features, logits + value if len(prompt_ids) > 20 else logits  # loading tries a few tokens

    monkeypatch.setattr(HFTarget, "prefill", prefill)
    done = run(tmp_path, f"--task gsm8k --method pld --temperature {temperature}")
    refused(done, "2 generations failed")
    assert "1.00×" not in done.out
    for r in counted(tmp_path):
        assert r["status"] == "error" and not r["token_ids"]
        assert "the logits of the target tiny are not finite" in r["error"] and "the prefill, output position 0" in r["error"]


@pytest.mark.parametrize(
    ("method", "folder", "key"),
    [
        ("eagle2", "head", "fc.weight"),
        ("eagle1", "head", "layers.0.mlp.down_proj.weight"),
        ("medusa", "medusa", "heads.1.down.weight"),
        ("hydra", "hydra", "heads.1.up.weight"),
        ("sps", "sps", "up.weight"),
    ],
)
def test_a_drafter_with_a_weight_that_is_not_finite_is_named(
    method: str, folder: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path)
    yaml = tiny_copy(tmp_path / "model")
    spoil(tmp_path / "model" / folder / "model.safetensors", key, math.nan)
    refused(run(tmp_path / "out", f"--task gsm8k --method {method} --model", yaml), "1 generations failed")
    (record,) = (r for r in counted(tmp_path / "out") if r["method"] == method)
    what = methods.DRAFTERS[methods.get(method).drafter or ""]
    assert record["status"] == "error" and f"the logits of the {what} of tiny are not finite" in record["error"]
    assert "drafts for forward 1 after the prefill" in record["error"]


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
