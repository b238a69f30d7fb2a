"""What a process is: its machine, versions and code. A worker that differs from the driver in code or versions is refused."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import harness
import methods
import models
import tasks
from harness.common.files import sha256_file

OURS = tuple(Path(str(package.__file__)).parent for package in (harness, methods, tasks, models))
CODE = (".py", ".c", ".h", ".yaml")
PACKAGES = ("torch", "transformers")


@dataclass(frozen=True, slots=True)
class Asked:
    """What every worker must have: `paths` that it can read, and files and folders whose code is the driver's (`same`)."""

    paths: tuple[str, ...] = ()
    same: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one process. `code`: hash of this repository's; `same`: hash of each path asked for, None where it is not there;
    `unreadable`: of the paths asked for; `gpus`: bytes free on each."""

    host: str
    python: str
    packages: tuple[tuple[str, str], ...]
    code: str
    same: tuple[tuple[str, str | None], ...]
    unreadable: tuple[str, ...]
    gpus: tuple[int, ...] = ()


def facts_here(asked: Asked) -> Facts:
    """Of this process. Nothing heavy is imported."""
    return Facts(
        host=platform.node(),
        python=".".join(platform.python_version_tuple()[:2]),
        packages=tuple((name, _version(name)) for name in PACKAGES),
        code=_sha(OURS),
        same=tuple((path, _sha([Path(path)]) if os.access(path, os.R_OK) else None) for path in asked.same),
        unreadable=tuple(path for path in asked.paths if not os.access(path, os.R_OK)),
        gpus=_gpus(),
    )


def differences(there: Facts, here: Facts) -> Iterator[str]:
    """Why a worker cannot do this driver's work, a phrase each. there: the worker's; here: the driver's."""
    for path in dict.fromkeys([*there.unreadable, *(path for path, sha in there.same if sha is None)]):
        yield f"it cannot read {path}"
    if there.python != here.python:
        yield f"it has Python {there.python}, the driver {here.python}"
    for (name, version), (_, our_version) in zip(there.packages, here.packages, strict=True):
        if version != our_version:
            yield f"it has {name} {version}, the driver {our_version}"
    if there.code != here.code:
        yield f"its code of this harness is {there.code}, the driver's {here.code}"
    for (path, sha), (_, ours) in zip(there.same, here.same, strict=True):
        if sha not in (None, ours):
            yield f"its {path} is another file than the driver's"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _sha(roots: Iterable[Path]) -> str:
    """First 16 hex digits over the code files below these folders, and over those files themselves."""
    digest = hashlib.sha256()
    for root in roots:
        inside: Sequence[Path] = sorted(p for p in root.rglob("*") if p.suffix in CODE) if root.is_dir() else [root]
        for file in inside:
            digest.update(f"{file.relative_to(root)} {sha256_file(file)}\n".encode())
    return digest.hexdigest()[:16]


def _gpus() -> tuple[int, ...]:
    """Bytes free on each NVIDIA GPU of the machine, as its driver says; torch is not asked, for it would take one."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20
        )
        return (
            tuple(int(line) << 20 for line in done.stdout.split("\n") if line.strip().isdecimal()) if not done.returncode else ()
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
