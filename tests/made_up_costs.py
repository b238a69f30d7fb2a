"""Tables of costs of made-up figures."""

from __future__ import annotations

from typing import Any

from harness.costs.table import AtContext, CostTable, Figure, Machine, Outside
from harness.load.architecture import Architecture

SIZES = Architecture(
    hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, vocab_size=512
)


def figure(ms: float) -> Figure:
    """With an interval of a tenth to either side."""
    return Figure(ms, 0.9 * ms, 1.1 * ms)


def at(tokens: int, plain: Any = 10.0, **changes: Any) -> AtContext:
    """plain: milliseconds, or a figure."""
    parts: dict[str, Any] = {
        "plain": plain if isinstance(plain, tuple) else figure(plain), "root": figure(0.5),
        "verify": {1: figure(10), 16: figure(12), 60: figure(20)},
        "level": {1: figure(1), 10: figure(2)}, "observe": {1: figure(1), 4: figure(1.3)}, "prefill": figure(tokens),
        "head_prefill": figure(tokens / 10),
    }  # fmt: skip
    return AtContext(tokens=tokens, **(parts | changes))


def table(*contexts: AtContext, **changes: Any) -> CostTable:
    """Of vicuna-7b by name, not by size."""
    facts: dict[str, Any] = {
        "model": "vicuna-7b", "architecture": SIZES, "random_weights": True, "layers_measured": 4,
        "machine": Machine(cpu="a CPU", threads=2, dtype="bfloat16", engine="lean"), "contexts": list(contexts) or [at(100)],
        "outside": Outside(plain=0.1, step=0.2, level=0.1, row=0.0, node=0.01, token=0.05), "rounds": 9,
        "command": "harness costs", "created": "2026-12-01T00:00:00+00:00",
    }  # fmt: skip
    return CostTable(**(facts | changes))
