"""Tensors in 2 MB pages where the kernel grants them, in ordinary memory elsewhere; and memory that is there already."""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT, TINY

from methods.engine.native import pages

MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
kernel_grants = pytest.mark.skipif(not MODE.is_file() or "[never]" in MODE.read_text(), reason="this kernel grants no 2 MB pages")
collapses = pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (6, 1) or sys.platform != "linux",
    reason="MADV_COLLAPSE came with Linux 6.1",
)


def mapped(address: int) -> bool:
    return any(m.start <= address < m.end for m in pages._mappings())


@pytest.mark.parametrize("shape", [(3,), (5, 7), (1000, 1000), (9 << 20, 2), (0, 4), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_tensor_of_any_shape_and_dtype_holds_what_is_written(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor, other = pages.empty(shape, dtype), pages.empty(shape, dtype)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (torch.Size(shape), dtype, True)
    assert tensor.data_ptr() % 64 == other.data_ptr() % 64 == 0
    tensor.fill_(3)
    other.fill_(4)
    assert (tensor == 3).all() and (other == 4).all()


def is_granted_now() -> bool:
    """Whether the kernel gives 2 MB pages at this moment: where memory is in pieces it does not."""
    memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    tensor = torch.frombuffer(memory, dtype=torch.uint8).fill_(1)
    return pages.granted(tensor) > 0.8


@kernel_grants
def test_the_kernel_grants_2_mb_pages_also_where_few_of_their_bytes_are_touched() -> None:
    if not is_granted_now():
        pytest.skip("this kernel grants no 2 MB pages now")
    large = pages.empty((40 << 20,), torch.uint8)
    assert pages.granted(large) > 0.9
    small = [pages.empty((1 << 20,), torch.uint8) for _ in range(5)]
    assert all(pages.granted(tensor) > 0.9 for tensor in small)


def test_ordinary_memory_is_said_to_be_so() -> None:
    memory = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    tensor.fill_(1)
    assert pages.granted(tensor) == 0


def test_small_tensors_share_a_mapping_and_large_ones_are_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_small", [])
    start = pages.empty((1,), torch.uint8).data_ptr()
    small = [pages.empty((1000,), torch.uint8).data_ptr() - start for _ in range(50)]
    assert max(small) - min(small) <= 1024 * 49
    for _ in range(3):
        large = pages.empty((pages.CHUNK // 4 + 1,), torch.uint8)
        assert large.data_ptr() % pages.HUGE == 0


def test_a_mapping_is_freed_with_the_last_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    large = pages.empty((48 << 20,), torch.uint8)
    part, address = large[-5:], large.data_ptr()
    del large
    assert mapped(address) and part.fill_(1).sum() == 5
    del part
    assert not mapped(address)
    monkeypatch.setattr(pages, "_small", [])
    small = [pages.empty((5 << 20,), torch.uint8) for _ in range(2)]
    address = small[0].data_ptr()
    pages._small.clear()
    small.pop()
    assert mapped(address)
    small.pop()
    assert not mapped(address)


def test_where_the_system_knows_no_such_pages_memory_is_ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert pages.empty((2, 3), torch.float32).fill_(1).sum() == 6
    monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert (pages.granted(torch.ones(3)), pages.collapse_large()) == (0, 0)


def test_what_the_kernel_refuses_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    tensor = pages.empty((20 << 20,), torch.uint8)
    assert tensor.fill_(2).float().mean() == 2
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: (_ for _ in ()).throw(OSError("no libc")))
    assert pages.collapse_large() == 0


COLLAPSING = """
import torch
from harness.common.machine import keep_freed_memory
from methods.engine.native import pages
keep_freed_memory()  # as the command line does: what is large lies in the heap
rows = torch.arange(24 << 20, dtype=torch.int32)
small = torch.ones(1000)
before = pages.granted(rows)
share = pages.collapse_large()
assert torch.equal(rows, torch.arange(24 << 20, dtype=torch.int32)) and small.sum() == 1000
print(before, pages.granted(rows), share)
"""


@kernel_grants
@collapses
def test_memory_that_is_there_already_gets_them_and_keeps_what_it_holds() -> None:
    done = subprocess.run([sys.executable, "-c", COLLAPSING], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if not is_granted_now():
        pytest.skip("this kernel grants no 2 MB pages now")
    before, after, share = map(float, done.stdout.split())
    assert after > 0.8 and share > 0.8 and (before < 0.5 or "[always]" in MODE.read_text())


def test_a_share_is_told_in_words_that_do_not_change_from_run_to_run() -> None:
    assert [pages.in_words(share) for share in (0, 0.19, 0.5, 0.8, 1)] == ["4 KB", "4 KB", "mixed", "2 MB", "2 MB"]


@pytest.mark.parametrize("engine", ["native", "torch", "module"])
def test_a_large_model_says_its_pages_on_every_engine_and_a_small_one_does_not(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.load.config import model_config
    from harness.load.model import load

    monkeypatch.setenv("HARNESS_ENGINE", engine)
    target = load(model_config(str(TINY)), "float32", drafters=()).target
    assert "pages" not in target.engine_facts
    monkeypatch.setattr(pages, "matter", lambda model: True)
    target = load(model_config(str(TINY)), "float32", drafters=()).target
    assert target.engine_facts["pages"] in ("2 MB", "mixed", "4 KB")
