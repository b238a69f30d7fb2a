"""Several processes that train one drafter: their steps are those of one process over the whole of each batch."""

from __future__ import annotations

import builtins
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_training import HIDDEN, made_up
from places import TINY
from torch import Tensor, nn
from training_process import MODEL, in_float32, loop, settings_of, tables

from harness import cli
from harness.common.errors import UserError
from harness.train.batches import ALL, collate
from harness.train.loop import batch_loss
from harness.train.processes import ALONE, Processes, started
from harness.train.trainers import TRAINERS

TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("ce_share", [1.0, 0.1])
@pytest.mark.parametrize("kind", TRAINERS)
def test_the_losses_and_gradients_of_the_parts_of_a_batch_add_up_to_the_batchs(kind: str, ce_share: float) -> None:
    embedding, lm_head = tables()
    settings = replace(settings_of(kind, 10), ce_share=ce_share)
    items, trainer = made_up(5), TRAINERS[kind]
    head: nn.Module = trainer.new(MODEL, settings)
    trainer.initialise(head, embedding, items, settings)
    frequent = torch.arange(20)

    def of(rows: slice) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(3)
        with in_float32():
            batch = collate(items, 48, HIDDEN, rows)
            loss, _ = batch_loss(trainer, head, embedding, lm_head, frequent, batch, settings.unroll, settings, rows)
        assert len(batch.features) == len(items[rows])
        head.zero_grad()
        if loss.requires_grad:
            loss.backward()
        return loss.detach(), [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in head.parameters()]

    whole, wanted = of(ALL)
    parts = [of(Processes(number, 7).rows) for number in range(7)]  # two of them have none
    assert torch.allclose(torch.stack([loss for loss, _ in parts]).sum(), whole, rtol=1e-5)
    for i, gradient in enumerate(wanted):
        added = torch.stack([gradients[i] for _, gradients in parts]).sum(0)
        assert (added - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7


def together(*words: object, n: int = 2, **settings: Any) -> list[subprocess.CompletedProcess]:
    """Start `training_process.py` so many times, as `torchrun` would; -> how each ended."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
    }  # fmt: skip
    begun = [
        subprocess.Popen(
            [sys.executable, TESTS / "training_process.py", *map(str, words)],
            env=shared | {"RANK": str(i), "LOCAL_RANK": str(i)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(n)
    ]  # fmt: skip
    return [subprocess.CompletedProcess(p.args, p.returncode, *said) for p in begun for said in [p.communicate(timeout=280)]]


def apart(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    assert one.keys() == two.keys()
    return max(float((one[k] - two[k]).norm() / one[k].norm().clamp_min(1e-6)) for k in one if one[k].dim() == 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eagle", "hydra"])
def test_two_processes_train_the_head_that_one_does_and_go_on_where_they_were(kind: str, tmp_path: Path) -> None:
    for tokens in (1400, 2800):
        alone, curve = loop(kind, tmp_path / "alone", tokens)
        ended = together("loop", kind, tmp_path / "two", tokens)
        assert [p.returncode for p in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    found = [torch.load(tmp_path / "two" / f"weights-{i}.pt") for i in range(2)]
    assert all(torch.equal(found[0]["weights"][k], found[1]["weights"][k]) for k in alone)
    assert apart(alone, found[0]["weights"]) < 0.002 < 0.1 < apart(alone, loop(kind, tmp_path / "short", 1400)[0])
    assert [row["tokens"] for row in found[0]["curve"]][-1] == curve[-1]["tokens"]
    assert found[0]["curve"][-1]["loss"] == pytest.approx(curve[-1]["loss"], abs=1e-3)
    resumed, _ = loop(kind, tmp_path / "two", 2800)  # one process reads the checkpoint of two: nothing is left to do
    assert all(torch.equal(resumed[k], found[0]["weights"][k]) for k in alone)


@pytest.mark.slow
def test_the_command_is_told_and_written_by_the_main_process_alone(tmp_path: Path) -> None:
    changes = [x for c in ("batch_tokens=512", "held_out=4", "warmup_steps=2", "frequent_rows=384", "intermediate_size=16")
               for x in ("--set", c)]  # fmt: skip
    words = ["train", "eagle", "--model", TINY, "--out", tmp_path / "head", "--work", tmp_path / "work", "--answer-tokens", 400,
             "--text-tokens", 300, "--tokens", 1500, *changes]  # fmt: skip
    main, other = together("command", *words)
    assert (main.returncode, other.returncode) == (0, 0), main.stderr + other.stderr
    assert "2 processes share each batch" in main.stderr and "written to" in main.stderr
    assert "training" not in other.stderr and "features" not in other.stderr
    assert json.loads((tmp_path / "head" / "training.json").read_text())["tokens"] == 1500
    failed = together("command", *words[:-2], "--set", "intermediate_size=24")
    assert [p.returncode for p in failed] == [2, 2]
    for p in failed:
        assert "error: " in p.stderr and "other settings or data" in p.stderr and "Traceback" not in p.stderr


def test_one_process_is_alone() -> None:
    assert started() is ALONE and ALONE.is_main and ALONE.rows == ALL
    assert ALONE.once(lambda: 7) == 7


def test_what_processes_cannot_train_together_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        UserError, match=r"^WORLD_SIZE is '2', and RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set: start them by"
    ):
        started()
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="^process 1 of 2 has no GPU of its own: --num_processes may be at most 1 here$"):
        started()
    imported = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == "accelerate":
            raise ImportError(name)
        return imported(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        UserError, match="^2 processes were started to train together, which takes the package accelerate: `pip inst"
    ):
        started()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="^WORLD_SIZE is 'two': start them by"):
        started()


@pytest.mark.parametrize("number", [0, 1])
def test_what_the_main_process_found_is_told_once(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broadcast(made: list[Any]) -> None:
        made[1] = "the work folder is another's"

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", broadcast)
    monkeypatch.setattr(cli, "check_packages", lambda: Processes(number, 2, object()).once(lambda: None))
    with pytest.raises(SystemExit) as ended:
        cli._carry_out()
    assert ended.value.code == 2
    assert capsys.readouterr().err == ("error: the work folder is another's\n" if number == 0 else "")
