"""tests/tiny is what tests/make_tiny.py makes: byte for byte, on the machine and torch that made it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from make_tiny import OTHERS, make
from places import TINY


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_committed_drafters_are_what_the_script_makes_of_the_committed_target(tmp_path: Path) -> None:
    """The head is an older one, which many figures of tests rest on: see the script."""
    folder = tmp_path / "tiny"
    shutil.copytree(TINY.parent, folder)
    for name in OTHERS:
        shutil.rmtree(folder / name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        make(folder)
    finally:
        torch.set_num_threads(threads)
    made, kept = ({str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
                  for root in (folder, TINY.parent))  # fmt: skip
    assert made.keys() == kept.keys() and [name for name in made if made[name] != kept[name]] == []
