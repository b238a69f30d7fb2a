"""A fault of a metric: it is planted, and the metric's own check must see it."""

from __future__ import annotations

from typing import Any

from harness.metrics import definitions as metrics


def equal_arms() -> str | None:
    """The metric's own check: an arm against itself has a speedup of exactly 1. -> what is wrong, None for nothing."""
    arms = []
    for method in ("vanilla", "the same"):
        record: Any = {"task": "t", "source": "s", "sample_id": "1", "method": method, "token_ids": [1, 2, 3, 4], "wall_s": 1.0,
                       "prefill_s": 0.1, "trace": None, "n_text_tokens": 3}  # fmt: skip
        arms.append({("1",): record})
    ratio = metrics.point(arms[::-1], metrics.speed_ratio)
    return None if ratio == 1.0 else f"equal arms have a speedup of {ratio}"


def seen_when_recounted() -> str | None:
    """What the check sees if the baseline's text is tokenised again and counted, as the reference's script does."""
    honest = metrics.totals

    def recounted(record: Any) -> tuple[float, ...]:
        found = honest(record)
        return (record["n_text_tokens"], *found[1:]) if record["method"] == "vanilla" else found

    metrics.totals = recounted
    try:
        return equal_arms()
    finally:
        metrics.totals = honest
