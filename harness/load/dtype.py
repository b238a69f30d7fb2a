"""The device and the dtype that a model runs in."""

from __future__ import annotations

import json
import time
from typing import Any

import torch

from harness.common.files import cache_dir, whole_file
from methods.engine.layer import Linear


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(dtype: str) -> str:
    """`auto` -> bfloat16 where a plain decoding step's matmuls are at least 1.3 times as fast in it as in float32, else float32:
    a baseline in the slower one would flatter every method.

    Probed once per machine, torch version and thread count; the figures are kept in the cache.
    """
    if dtype != "auto":
        return dtype
    where = device()
    import platform

    from harness.common.machine import cpu_name

    name = torch.cuda.get_device_name() if where.type == "cuda" else cpu_name()
    key = f"{name}|{platform.machine()}|torch {torch.__version__}|{torch.get_num_threads()} threads"
    file = cache_dir() / "step-probe.json"
    known: dict[str, Any] = {}
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        pass
    if key not in known:
        known[key] = {d: _probe(getattr(torch, d), where) for d in ("bfloat16", "float32")}
        try:
            with whole_file(file) as tmp:
                tmp.write_text(json.dumps(known, indent=1))
        except OSError:
            pass  # a cache that cannot be written only costs the probe again
    return "bfloat16" if known[key]["bfloat16"] * 1.3 <= known[key]["float32"] else "float32"


def _probe(dtype: torch.dtype, where: torch.device) -> float:
    """Median seconds of one row through matrices of 32 M weights in all, which few caches hold, as decoding runs them."""
    matrices = [Linear(torch.randn(2048, 2048, device=where).to(dtype)) for _ in range(8)]
    row = torch.randn(1, 2048, device=where).to(dtype)
    times = []
    with torch.inference_mode():
        for _ in range(9):
            started = time.perf_counter()
            for matrix in matrices:
                matrix(row)
            if where.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    return sorted(times)[4]
