"""How many cores there are to work with."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """The cores this process may use: its affinity mask, and the CPU quota of its control group if that is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(Path("/sys/fs/cgroup"))
    return max(1, min(cores, round(quota))) if quota else cores


def _cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time that the control group may use (version 2 or 1); None without a limit."""

    def numbers(name: str) -> list[float]:
        try:
            return [float(word) for word in (root / name).read_text().split()]
        except (OSError, ValueError):  # no such file, or `max`: no limit
            return []

    both = numbers("cpu.max") or numbers("cpu/cpu.cfs_quota_us") + numbers("cpu/cpu.cfs_period_us")
    return both[0] / both[1] if len(both) == 2 and both[0] > 0 and both[1] > 0 else None
