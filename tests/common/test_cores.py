"""The cores that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.common import cores


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_quota_of_a_control_group_is_read_in_both_versions(
    files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cores._cpu_quota(tmp_path) == quota


def test_usable_cores_are_those_of_the_affinity_mask_and_never_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    monkeypatch.setattr(cores, "_cpu_quota", lambda root: None)
    assert cores.usable_cores() == 3
    monkeypatch.setattr(cores, "_cpu_quota", lambda root: 0.2)
    assert cores.usable_cores() == 1
    monkeypatch.setattr(cores, "_cpu_quota", lambda root: 2.0)
    assert cores.usable_cores() == 2
