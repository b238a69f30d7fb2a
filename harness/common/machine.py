"""What a record was measured on: written beside the records, compared before records are."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.common.cores import usable_cores

# Settings of the environment by which libraries choose other kernels or memory.
KERNELS = ("ATEN_", "ONEDNN_", "DNNL_", "MKL_", "KMP_", "GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD", "NVIDIA_", "CUBLAS_", "CUDNN_",
           "PYTORCH_", "TORCH_")  # fmt: skip
PACKAGES = ("torch", "transformers", "numpy", "safetensors", "tokenizers", "draft-tree-harness")


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(
    *, dtype: str, threads: int, target_sha: str, target_parts: Mapping[str, str], head_sha: str | None, engine_sha: str,
    seed: int, n_devices: int, template: str, system: str, is_row_invariant: bool, engine_facts: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The environment of a run as plain JSON.

    n_devices: over how many the target's layers are spread. target_parts: what the target's identity is made of. engine_sha: the
    hash of `methods.engine`. is_row_invariant: whether each row of a forward has the bits of plain decoding. engine_facts: what
    else the target's engine tells of itself: `pages`, how large those are that its weights lie in ("2 MB"), `native`, what
    compiled code runs (path, compiler, flags), and `mode`, of steps of fixed shapes ("eager" or "graphs").
    """
    import torch

    git_commit, git_dirty = _git()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if gpu is not None and n_devices > 1:  # a target spread over more of them is timed on another machine
        gpu = f"{n_devices} x {gpu}"
    return {
        "git_commit": git_commit,
        "git_dirty": git_dirty,
        "packages": {p: _version(p) for p in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_flags": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in cpu_flags()],
        "n_cores": usable_cores(),
        "gpu": gpu,
        "cuda": torch.version.cuda,
        "driver": _driver() if gpu is not None else None,
        "engine_sha": engine_sha,
        "dtype": dtype,
        "threads": threads,
        "target_sha": target_sha,
        "target_parts": dict(target_parts),
        "row_invariant": is_row_invariant,
        **engine_facts,
        "head_sha": head_sha,
        "seed": seed,
        "template": template,
        "system": system,
        "omp": {k: os.environ[k] for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if k in os.environ},
        "kernels": {k: v for k, v in sorted(os.environ.items()) if k.startswith(KERNELS) and not k.endswith("_NUM_THREADS")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep large blocks instead of handing them back at every free; call before anything large is allocated.

    Logits of 10 rows are such a block: without this their log-softmax spends three quarters of its time on page faults.
    """
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (OSError, AttributeError):  # another libc
            return
        for option, value in ((M_MMAP_THRESHOLD, 2**31 - 1), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28)):
            mallopt(option, value)


def _driver() -> str | None:
    """The version of NVIDIA's kernel driver; None where it does not say."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_flags() -> set[str]:
    """What this CPU can do, as /proc/cpuinfo names it; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in text.splitlines() if line.startswith("flags")), set())


def commit_here() -> str | None:
    """The commit of the checkout that this code is in, `-dirty` behind it where files were changed; None outside of one."""
    commit, is_dirty = _git()
    return commit and f"{commit}{'-dirty' if is_dirty else ''}"


def _git() -> tuple[str | None, bool | None]:
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        top, ours = git("rev-parse", "--show-toplevel"), here.parent.parent
        if top is None or Path(top) != ours:  # installed elsewhere: another project's commit would be a lie
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except OSError:
        return None, None
