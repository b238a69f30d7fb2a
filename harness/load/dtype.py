"""The device and the dtype that a model runs in."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import torch

from harness.common.errors import UserError
from harness.common.files import cache_dir, whole_file
from methods.engine.engines import linear_here


def device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(dtype: str) -> str:
    """The dtype that `auto` means here; any other is returned as it is.

    It is bfloat16 where the matmuls of a plain decoding step are at least 1.3 times as fast in it as in float32, else float32. A
    baseline in the slower one would flatter every method. This is probed once per machine, engine, torch version and number of
    threads; the figures are kept in the cache. A GPU without bfloat16 (of before compute capability 8.0) has float32.

    Raises:
        UserError: bfloat16 on such a GPU, where it is computed in float32 at more than its cost.
    """
    where = device()
    if dtype not in ("auto", "bfloat16"):
        return dtype
    if where.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        if dtype == "auto":
            return "float32"
        raise UserError(f"bfloat16: {torch.cuda.get_device_name()} does not compute in it; choose float16 or float32 (--dtype)")
    if dtype == "bfloat16":
        return dtype
    import platform

    from harness.common.machine import cpu_name

    name = torch.cuda.get_device_name() if where.type == "cuda" else cpu_name()
    linear = linear_here(where)
    key = f"{name}|{platform.machine()}|{linear.engine}|torch {torch.__version__}|{torch.get_num_threads()} threads"
    file = cache_dir() / "step-probe.json"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError, RecursionError):  # what is spoilt is measured again
        known = {k: {d: float(t[d]) for d in ("bfloat16", "float32")} for k, t in dict(json.loads(file.read_text())).items()}
    if key not in known:
        known[key] = {d: _probe(getattr(torch, d), where, linear) for d in ("bfloat16", "float32")}
        try:
            with whole_file(file) as tmp:
                tmp.write_text(json.dumps(known, indent=1))
        except OSError:
            pass  # a cache that cannot be written only costs the probe again
    return "bfloat16" if known[key]["bfloat16"] * 1.3 <= known[key]["float32"] else "float32"


def _probe(dtype: torch.dtype, where: torch.device, linear: Any) -> float:
    """Median seconds of one row through matrices of 32 M weights in all, run as decoding runs them. Few caches hold so many."""
    matrices = [linear(torch.randn(2048, 2048, device=where).to(dtype)) for _ in range(8)]
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
