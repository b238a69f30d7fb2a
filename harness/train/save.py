"""A trained drafter on disk: weights, config, and how it was made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from harness.common.files import sha256_file, whole_file
from harness.load.eagle_head import FREQUENT
from harness.train.kinds import plain_head
from harness.train.report import write_report
from methods.engine.draft_head import EagleHead
from methods.engine.draft_lm import NarrowLM
from methods.engine.heads import ResidualHeads


def save_drafter(
    head: torch.nn.Module, out: Path, target_sha: str, curve: list[dict[str, Any]], settings: dict[str, Any], *,
    calibrated: list[dict[str, float]] = [], frequent: np.ndarray | None = None,  # noqa: B006  (never written to)
    accuracies: list[list[float]] | None = None,
) -> None:  # fmt: skip
    """Weights in bf16 with their config.json (an EAGLE head in the official layout, the list of frequent tokens beside it), and
    how they were made: `training.json` (settings), `curve.jsonl`, `calibration.jsonl` and figures of both."""
    out.mkdir(parents=True, exist_ok=True)
    shipped = plain_head(head)
    state = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in shipped.state_dict().items()}
    file = out / "model.safetensors"
    with whole_file(file) as tmp:
        save_file(state, tmp)
    assert isinstance(shipped, (EagleHead, ResidualHeads, NarrowLM))
    values: dict[str, Any] = {"architectures": [architecture_of(shipped)], **asdict(shipped.config)}
    values |= {} if accuracies is None else {"accuracies": accuracies}
    values |= {"target_sha256": target_sha, "weights_sha256": sha256_file(file)}
    with whole_file(out / "config.json") as tmp:
        tmp.write_text(json.dumps(values, indent=2) + "\n")
    with whole_file(out / "training.json") as tmp:
        tmp.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    for name, rows in (("curve.jsonl", curve), ("calibration.jsonl", calibrated)):
        with whole_file(out / name) as tmp:
            tmp.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if frequent is not None:
        with whole_file(out / FREQUENT) as tmp:
            save_file({"tokens": torch.from_numpy(frequent)}, tmp)
    write_report(out)


def architecture_of(head: EagleHead | ResidualHeads | NarrowLM) -> str:
    """What config.json calls it: `harness.weights.ARCHITECTURES`."""
    if isinstance(head, ResidualHeads):
        return "HydraHeads" if head.config.sees_tokens else "MedusaHeads"
    return type(head).__name__
