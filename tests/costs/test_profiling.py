"""`harness profile`: the parts of a step add up, both models are told apart, and files and pictures are written."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from command_line import harness, isolate, refused
from made_up_costs import at, table
from places import TINY
from tiny_model import shared_tiny_model

from harness.common.errors import UserError
from harness.costs import ceiling as module
from harness.costs.ceiling import ceiling
from harness.costs.price import step_costs
from harness.costs.show import three_digits
from harness.costs.step import StepWork
from harness.costs.steps import ACCEPTED, GROWTH, LOOP, MASK, TARGET, Profile, outside, profiled
from harness.costs.sweep import TAU
from harness.costs.table import read
from methods import Arm, get
from methods.base import SamplerParams

COMMAND_SWEEP = f"profile --model {TINY} --dtype float32 --threads 1 --sweep"
COMMAND = f"profile --model {TINY} --dtype float32 --threads 1 --max-new-tokens 8"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    monkeypatch.setattr("harness.commands.profile.ROUNDS", 1)
    monkeypatch.setattr("harness.costs.session.CONTEXTS", (64,))
    monkeypatch.setattr("harness.costs.measure.PROBE_TOKENS", 8)


def arm(name: str, **options: Any) -> Arm:
    return Arm(get(name), "paper", {**get(name).options, **options})


def of_tiny(names: dict[str, Arm], params: SamplerParams, **changes: Any) -> dict[str, Profile]:
    tiny = shared_tiny_model("float32")
    t = table(at(40), at(60), model="tiny", **changes)
    found = profiled(tiny.loaded, list(names.values()), {None: t}, tiny.prompts[:2], params)
    return dict(zip(names, found, strict=True))


def test_a_step_is_taken_apart_without_a_rest_at_the_tables_prices() -> None:
    params = SamplerParams(16, frozenset({0, 2}))
    tiny = shared_tiny_model("float32")
    found = of_tiny({"v": arm("vanilla"), "e": arm("eagle2")}, params)
    plain, own = found["v"], found["e"]
    levels = [f"draft level {i}" for i in range(1, 7)]
    assert list(own.parts) == [TARGET, ACCEPTED, *levels, GROWTH, MASK, LOOP]
    assert list(plain.parts) == [TARGET, LOOP] and plain.tau == 1 and plain.total == pytest.approx(10.1)
    made = [tiny.decode("eagle2", p, params) for p in tiny.prompts[:2]]
    assert own.steps == sum(len(g.trace.accepted) for g in made if g.trace) and own.measured_ms > 0
    assert own.parts[TARGET] == pytest.approx(20) and own.parts["draft level 1"] == pytest.approx(0.5)
    assert [own.parts[level] for level in levels[1:]] == pytest.approx([2] * 5)
    # once a step, but for the last of each prompt, after which nothing is drafted
    assert 0.5 < own.parts[ACCEPTED] < 1.5
    work = StepWork(60, (10,) * 5, 1)
    wanted = step_costs(table(at(40), at(60)), work, own.tau, 50)
    assert own.parts[GROWTH] + own.parts[MASK] + own.parts[LOOP] == pytest.approx(wanted.other * wanted.plain_ms)
    assert 0 < outside(own) < 1


def test_a_draft_that_stops_early_is_charged_what_it_drafted() -> None:
    params = SamplerParams(12, frozenset({0, 2}))
    small = {"top_k": 3, "depth": 6, "total": 3}
    found = of_tiny({"whole": arm("eagle2", **small), "early": arm("eagle2", **small, stop_early=True)}, params)
    assert found["early"].tau == found["whole"].tau and found["early"].total < found["whole"].total


def test_a_method_without_a_drafter_has_no_drafting_parts_and_its_own_trees() -> None:
    found = of_tiny({"pld": arm("pld")}, SamplerParams(12))["pld"]
    assert list(found.parts) == [TARGET, GROWTH, MASK, LOOP] and found.parts[GROWTH] == 0 and 10 <= found.parts[TARGET] < 12


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
    assert "one step, as timed here" in done.out and f"by the costs in {tmp_path / 'p' / 'costs'}" in done.out
    assert " 0.443 MB " in done.out and not re.search(r"(?<![\d.])0(\.0+)? (MB|ms)", done.out)
    assert "best options raced" not in done.out  # nothing was tuned here
    rows = pd.read_csv(tmp_path / "p" / "profile.csv")
    assert set(rows["method"]) == {"vanilla", "eagle1", "eagle2"}
    assert rows.groupby("method")["share"].sum().tolist() == pytest.approx([1.0] * 3)
    assert {p.name for p in (tmp_path / "p").iterdir()} == {"profile.csv", "profile.md", "profile.png", "costs"}
    again = harness(COMMAND, "--method eagle2 --out", tmp_path / "p")  # by the table that is there now
    assert again.code == 0 and "measuring" not in again.err
    csv = pd.read_csv(tmp_path / "p" / "profile.csv")
    assert csv[csv["method"] == "eagle2"]["ms"].iloc[0] == pytest.approx(
        rows[(rows["method"] == "eagle2")]["ms"].iloc[0], rel=1e-3
    )


def test_numbers_have_three_digits_that_mean_something() -> None:
    assert [three_digits(x) for x in (1234.5, 269.4, 13.58, 0.02246, 0.0)] == ["1234", "269", "13.6", "0.0225", "0"]


def test_the_sweep_is_the_tables_costs_by_context_and_tree(tmp_path: Path) -> None:
    done = harness(
        COMMAND_SWEEP, "--context 32 --context 64 --context 99999 --tree 4 --tree 20 --method pld --out", tmp_path / "s"
    )
    assert done.code == 0, done.err
    rows = pd.read_csv(tmp_path / "s" / "sweep.csv")
    assert sorted(set(rows["context"])) == [32, 64] and list(dict.fromkeys(rows["arm"])) == ["vanilla", "4 nodes", "20 nodes"]
    assert (tmp_path / "s" / "sweep.png").exists() and (rows[rows["arm"] == "vanilla"]["plain_steps"] == 1).all()
    (file,) = (tmp_path / "s" / "costs").rglob("*.json")
    (own,) = rows[(rows["context"] == 64) & (rows["arm"] == "20 nodes")].to_dict("records")
    wanted = step_costs(read(file), StepWork(21, (10,) * 5, 1), TAU, 64)
    assert (own["c_verify"], own["plain_steps"]) == pytest.approx((wanted.verify, wanted.total), rel=1e-2)
    again = harness(COMMAND_SWEEP, "--tree 4 --costs", file, "--out", tmp_path / "t")
    assert again.code == 0 and "measuring" not in again.err
    refused(harness(COMMAND_SWEEP, "--context 128 --costs", file), "reach to a context of 64 tokens, not 128")
    refused(harness(COMMAND_SWEEP, "--tree 200 --costs", file), "reach to 128 rows of the target, not 201")
    refused(harness(COMMAND, "--method medusa --costs", file), "were measured without a set of Medusa heads")
    refused(harness(COMMAND, "--temperature 1 --costs", file), "no costs of tiny on", "T = 1 there")


def test_bad_input_to_profile_is_one_line(tmp_path: Path) -> None:
    refused(harness(COMMAND, "--method hf-generate --out", tmp_path), "no steps to profile")
    refused(harness(COMMAND, "--limit 0 --out", tmp_path), "--limit is 0")
    refused(harness(COMMAND_SWEEP, "--context 99999 --out", tmp_path), "--context 99999: none leaves 512 of the model's 2560")
    refused(harness(COMMAND_SWEEP, "--limit 2 --out", tmp_path), "--limit is of decoding, and --sweep decodes nothing")
    refused(harness(COMMAND, "--sweep --out", tmp_path), "--max-new-tokens is of decoding, and --sweep decodes nothing")
    refused(harness(COMMAND, "--max-new-tokens 1 --out", tmp_path), "--max-new-tokens is 1")
    refused(harness(COMMAND, "--max-new-tokens 2560 --out", tmp_path), "the context of tiny is 2,560")


def test_what_a_gpu_lacks_to_measure_its_bandwidth_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(loaded: Any) -> Any:
        raise UserError("the memory's bandwidth takes 1.6 GB")

    monkeypatch.setattr(module, "ceiling", lacking)
    done = harness(f"{COMMAND} --method eagle2 --limit 1 --out", tmp_path)
    refused(done, "the memory's bandwidth takes 1.6 GB")
    assert "measuring" not in done.err and "decoding" not in done.err
