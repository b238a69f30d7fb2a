"""`harness profile`: the parts of a step add up, both models are told apart, and files and pictures are written."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from command_line import harness, isolate, refused
from places import TINY
from tiny_model import shared_tiny_model

from harness.common.errors import UserError
from harness.costs import ceiling as module
from harness.costs.ceiling import ceiling
from harness.costs.show import three_digits
from harness.costs.steps import ACCEPTED, outside, profile
from methods import Arm, get
from methods.base import SamplerParams

COMMAND = f"profile --model {TINY} --dtype float32 --threads 1 --max-new-tokens 8"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def arm(name: str) -> Arm:
    return Arm(get(name), "paper", get(name).options)


def test_a_step_is_taken_apart_without_a_rest() -> None:
    tiny = shared_tiny_model("float32")
    params = SamplerParams(16, frozenset({0, 2}))
    found = profile(tiny.loaded, arm("eagle2"), tiny.prompts[:2], params)
    levels = [f"draft level {i}" for i in range(1, 7)]
    assert list(found.parts) == [
        "target forward", ACCEPTED, *levels, "growth (top-k, scores, tree)", "mask and positions", "cache", "acceptance", "loop",
    ]  # fmt: skip
    assert min(found.parts.values()) >= 0 and found.steps > 0 and found.tau >= 1
    assert 0 < outside(found) < 1
    made = [tiny.decode("eagle2", p, params) for p in tiny.prompts[:2]]
    assert found.steps == sum(len(g.trace.accepted) for g in made if g.trace)


def test_vanilla_has_no_drafting_parts() -> None:
    tiny = shared_tiny_model("float32")
    found = profile(tiny.loaded, arm("vanilla"), tiny.prompts[:1], SamplerParams(8))
    assert found.tau == 1 and not any(part.startswith(("draft", "growth")) for part in found.parts)


def test_the_ceiling_counts_the_matrices_a_step_reads() -> None:
    tiny = shared_tiny_model("float32")
    found = ceiling(tiny.loaded, megabytes=2)
    model = tiny.loaded.target.model
    n = sum(p.numel() for p in model.parameters()) - tiny.loaded.target.embedding.numel() - model.model.norm.weight.numel()
    assert found.weight_bytes == 4 * n and found.bandwidth > 0 and found.step_ms > 0


class Event:
    """A stand-in for torch's event: the device's clock, in milliseconds, is what was launched until it was recorded."""

    launched = 0.0
    waits = 0

    def __init__(self, enable_timing: bool):
        self.at = math.nan

    def record(self, stream: object) -> None:
        self.at = Event.launched

    def synchronize(self) -> None:
        Event.waits += 1

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


def test_a_gpus_bandwidth_is_read_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)

    def work() -> None:
        Event.launched += 2.5

    Event.waits = 0
    assert module._device_seconds(work, torch.device("cuda")) == pytest.approx(2.5e-3) and Event.waits == 1


def test_a_gpus_block_is_4_gb_or_what_its_free_memory_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu, free = torch.device("cuda", 0), [80 << 30]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 80 << 30))
    assert module.gpu_block(gpu) == 4 << 30 and not capsys.readouterr().err
    free[0] = (1 << 30) + (3 << 30)
    assert module.gpu_block(gpu) == 3 << 29
    assert "blocks of 1.6 GB and not 4.3 GB: no more is free" in capsys.readouterr().err
    free[0] = 1 << 30
    with pytest.raises(UserError, match=r"takes 1\.6 GB of free memory on cuda:0; 1\.1 GB are free"):
        module.gpu_block(gpu)


def test_the_ceiling_of_a_gpu_is_of_its_own_block_and_of_a_cpu_of_512_mb(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(module, "bandwidth", lambda device, n: asked.append((device.type, n)) or 1e9)
    monkeypatch.setattr(module, "gpu_block", lambda device: 77 << 20)
    tiny = shared_tiny_model("float32").loaded.target
    for where in ("cpu", "cuda"):
        target = SimpleNamespace(model=tiny.model, lm_head=tiny.lm_head, device=torch.device(where))
        ceiling(SimpleNamespace(target=target))  # type: ignore[arg-type]
    assert asked == [("cpu", 512 << 20), ("cuda", 77 << 20)]


def test_the_command_writes_table_and_picture(tmp_path: Path) -> None:
    done = harness(COMMAND, "--method eagle1 --method eagle2 --out", tmp_path / "p")
    assert done.code == 0, done.err
    for word in (
        "target forward",
        "draft level 1",
        "growth",
        "Ceiling of plain decoding",
        "| eagle1 | eagle2 |",
        "decode speedup",
    ):
        assert word in done.out
    assert " 0.443 MB " in done.out and not re.search(r"(?<![\d.])0(\.0+)? (MB|ms)", done.out)
    assert "best options raced" not in done.out  # nothing was tuned here
    rows = pd.read_csv(tmp_path / "p" / "profile.csv")
    assert set(rows["method"]) == {"vanilla", "eagle1", "eagle2"}
    assert rows.groupby("method")["share"].sum().tolist() == pytest.approx([1.0] * 3)
    assert {p.name for p in (tmp_path / "p").iterdir()} == {"profile.csv", "profile.md", "profile.png"}


def test_numbers_have_three_digits_that_mean_something() -> None:
    assert [three_digits(x) for x in (1234.5, 269.4, 13.58, 0.02246, 0.0)] == ["1234", "269", "13.6", "0.0225", "0"]


def test_the_sweep_has_a_row_a_context_and_tree(tmp_path: Path) -> None:
    done = harness(COMMAND, "--sweep --context 32 --context 64 --context 99999 --tree 4 --tree 20 --out", tmp_path / "s")
    assert done.code == 0, done.err
    rows = pd.read_csv(tmp_path / "s" / "sweep.csv")
    assert sorted(set(rows["context"])) == [32, 64] and list(dict.fromkeys(rows["arm"])) == ["vanilla", "4 nodes", "20 nodes"]
    assert (rows["tokens_per_s"] > 0).all() and (tmp_path / "s" / "sweep.png").exists()
    vanilla = rows[rows["arm"] == "vanilla"]
    assert (vanilla["tau"] == 1).all()
    steps = 1e3 * 7 / vanilla["tokens_per_s"] / vanilla["step_ms"]  # the budget less the token of the prefill
    assert steps.tolist() == pytest.approx([7, 7])


def test_the_sweep_takes_eagle2_whatever_else_is_named(tmp_path: Path) -> None:
    done = harness(COMMAND, "--sweep --method pld --context 32 --tree 4 --out", tmp_path)
    assert done.code == 0 and set(pd.read_csv(tmp_path / "sweep.csv")["arm"]) == {"vanilla", "4 nodes"}, done.err


def test_bad_input_to_profile_is_one_line(tmp_path: Path) -> None:
    refused(harness(COMMAND, "--method hf-generate --out", tmp_path), "no steps to profile")
    refused(harness(COMMAND, "--limit 0 --out", tmp_path), "--limit is 0")
    refused(harness(COMMAND, "--sweep --context 99999 --out", tmp_path), "no context of 99999 fits")
    refused(harness(COMMAND, "--max-new-tokens 1 --out", tmp_path), "--max-new-tokens is 1")
    refused(harness(COMMAND, "--max-new-tokens 2560 --out", tmp_path), "the context of tiny is 2,560")
