"""Replays of made-up steps."""

from __future__ import annotations

from typing import Any

from harness.replay.record import Replay


def replay(
    method: str, sample: int, accepted: list[int], calls: list[list[int]], sizes: list[int],
    options: dict[str, Any] | None = None, task: str = "gsm8k", temperature: float = 0.0,
) -> Replay:  # fmt: skip
    """Of an answer with one token more than its steps emit."""
    return Replay(
        answer=f"{task} {sample} {temperature:g}", model="tiny", target_id="t", head_id="h", dtype="float32", method=method,
        preset="paper", options=options or {}, code_sha="c", task=task, source="bundled", sample_id=str(sample), turn=1, repeat=0,
        temperature=temperature, top_p=1.0, max_new_tokens=64, n_prompt=10, tokens=1 + sum(accepted) + len(accepted),
        accepted=accepted, sizes=sizes, calls=calls, asked=1, lacking=0,
    )  # fmt: skip
