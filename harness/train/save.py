"""A trained drafter on disk: weights, config, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from harness.common.files import save_whole, sha256_file, whole_file
from harness.load.eagle_head import FREQUENT
from harness.train.report import write_report
from harness.train.trainers import Trainer, W


def save_drafter(
    trainer: Trainer[W], head: W, out: Path, target_sha: str, curve: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], *,
    calibrated: Sequence[Mapping[str, float]] = (), frequent: np.ndarray | None = None,
    figures: Mapping[str, Any] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Write trained weights to `out`, in bf16, and how they were made.

    `config.json` has their sizes and `figures`; an EAGLE head is in the official layout. `training.json` has the settings,
    `curve.jsonl` and `calibration.jsonl` the rows given, each drawn as a figure. frequent: token ids [n], kept beside the
    weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    shipped = trainer.shipped(head)
    state = {k: (v.detach().to(torch.bfloat16) if v.is_floating_point() else v).contiguous()
             for k, v in shipped.state_dict().items()}  # fmt: skip
    file = out / "model.safetensors"
    save_whole(file, partial(save_file, state))
    values: dict[str, Any] = {
        "architectures": [trainer.drafter.architectures[0]],
        **trainer.config_values(shipped.config),
        **figures,
    }
    values |= {"target_sha256": target_sha, "weights_sha256": sha256_file(file)}
    with whole_file(out / "config.json") as tmp:
        tmp.write_text(json.dumps(values, indent=2) + "\n")
    with whole_file(out / "training.json") as tmp:
        tmp.write_text(json.dumps(dict(settings), indent=2, sort_keys=True) + "\n")
    for name, rows in (("curve.jsonl", curve), ("calibration.jsonl", calibrated)):
        with whole_file(out / name) as tmp:
            tmp.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    if frequent is not None:
        save_whole(out / FREQUENT, partial(save_file, {"tokens": torch.from_numpy(frequent)}))
    write_report(out)
