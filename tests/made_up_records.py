"""Records as a run would write them, made up by what a test says of them."""

from __future__ import annotations

from typing import Any, cast

from make_ledger import METHODS, base_record

from harness.ledger.record import Record
from harness.metrics.cells import CellSummary, summarise


def measured(method: str, sample: int, accepted: list[int], /, wall_s: float = 1.0, **changes: Any) -> Record:
    """A record of one prompt: `accepted` draft tokens per forward, so 1 + sum(accepted + 1) tokens, 0.1 s of prefill."""
    temperature = changes.pop("temperature", 0.0)
    task = changes.pop("task", "gsm8k")
    n = 1 + sum(a + 1 for a in accepted)
    if method == "vanilla":  # it drafts nothing: as many tokens, one a forward
        accepted = [0] * (n - 1)
    steps = len(accepted)
    tree_size = [0 if method == "vanilla" else 4] * steps
    trace = {"tree_size": tree_size, "accepted": accepted, "draft_s": [0.01] * steps, "verify_s": [0.02] * steps,
             "target_s": [0.015] * steps, "drafter_s": [0.008] * steps}  # fmt: skip
    output = {"token_ids": list(range(n)), "wall_s": wall_s, "prefill_s": 0.1, "trace": trace, "finish": "stop"}
    return cast(Record, base_record(METHODS[method], task, temperature, **{"sample_id": str(sample), **output, **changes}))


def unmeasured(method: str, sample: int, status: str) -> Record:
    return cast(Record, base_record(METHODS[method], "gsm8k", 0.0, sample_id=str(sample), status=status, error="x"))


def only(records: list[Record], method: str = "eagle2", **wanted: Any) -> CellSummary:
    (cell,) = [s for s in summarise(records) if s.method == method
               and all(getattr(s, name) == value for name, value in wanted.items())]  # fmt: skip
    return cell
