"""Weights of stop networks for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from harness.replay.stop_training import Learner
from methods.engine.stop_net import CONTINUE, STOP


def written(path: Path, learner: Learner) -> str:
    save_file({k: v.half().contiguous() for k, v in learner.state_dict().items()}, path)
    return str(path)


def constant(path: Path, dim: int, stops: bool) -> str:
    """One that always says the same."""
    learner = Learner(dim, 4)
    with torch.no_grad():
        learner.mlp[3].weight.zero_()
        learner.mlp[3].bias[STOP], learner.mlp[3].bias[CONTINUE] = (50.0, -50.0) if stops else (-50.0, 50.0)
    return written(path, learner)


def coin(path: Path, dim: int, seed: int = 0) -> str:
    """One that says now this, now that, by what it sees."""
    torch.manual_seed(seed)
    learner = Learner(dim, 8)
    with torch.no_grad():
        for p in learner.parameters():
            torch.nn.init.normal_(p, std=0.5)
        learner.mlp[3].bias.zero_()
    return written(path, learner)
