"""How far a training is, and its checkpoints on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.common.errors import UserError, in_one_line
from harness.common.files import save_whole
from harness.train.settings import TrainSettings

CHECKPOINT, BEFORE_COOLDOWN = "checkpoint.pt", "before-cooldown.pt"


@dataclass(slots=True)
class Progress:
    """How far a training is: `seen` counts positions, `at` is the next batch of the epoch; `cooled`: its rate is falling."""

    step: int = 0
    seen: int = 0
    epoch: int = 0
    at: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    cooled: bool = False


def save_checkpoint(
    file: Path, head: nn.Module, optimizers: Sequence[torch.optim.Optimizer], progress: Progress, settings: TrainSettings,
    pool_tokens: int,
) -> None:  # fmt: skip
    """Write a training whole, or not at all. pool_tokens: of the data that it is trained on.

    Raises:
        OSError: it cannot be written.
    """
    whole = {"head": head.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "state": asdict(progress),
             "settings": _plain(settings), "pool_tokens": pool_tokens}  # fmt: skip
    save_whole(file, partial(torch.save, whole))


def resume(
    folder: Path, head: nn.Module, optimizers: Sequence[torch.optim.Optimizer], settings: TrainSettings, pool_tokens: int,
    say: Callable[[str], None],
) -> Progress:  # fmt: skip
    """Go on from the checkpoint in `folder`, if there is one: weights and optimizers are loaded in place.

    Where the data has grown since, a new epoch begins.

    Raises:
        UserError: the checkpoint is of other settings or data. More positions are no other settings until the rate falls.
    """
    file = folder / CHECKPOINT
    if not file.exists():
        return Progress()
    try:
        saved = torch.load(file, weights_only=True, map_location="cpu")  # numbers alone: a folder of somebody else's runs no code
    except Exception as e:  # of a corrupted pickle nearly any error may come
        raise UserError(f"{file} is no checkpoint that can be read ({in_one_line(e)}); move it away") from None
    now, before = _plain(settings), _plain(TrainSettings()) | saved["settings"]  # a setting added since has its default
    progress = Progress(**saved["state"])
    is_longer = before | {"tokens": settings.tokens} == now
    if not is_longer or saved["pool_tokens"] > pool_tokens or (before != now and progress.cooled):
        raise UserError(
            f"{file} was made with other settings or data; move it away, or choose another --work folder (more "
            f"positions: put {BEFORE_COOLDOWN}, if there is one, in its place)"
        )
    head.load_state_dict(saved["head"])
    for optimizer, its in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(its)
    if saved["pool_tokens"] < pool_tokens:
        progress.epoch, progress.at = progress.epoch + 1, 0
        say(f"the data has grown from {saved['pool_tokens']:,} to {pool_tokens:,} tokens: a new epoch begins")
    say(f"resuming at step {progress.step}, {progress.seen:,} tokens seen")
    return progress


def _plain(settings: TrainSettings) -> dict[str, Any]:
    """As JSON has it: a tuple is a list."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return plain
