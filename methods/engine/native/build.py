"""The native engine's library: compiled once by the machine's C compiler, kept in the cache, loaded where this CPU can run it.

A path is a kind of machine code. The best one that this CPU has, the compiler knows and the system permits is taken.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import filelock

from harness.common.errors import UserError
from harness.common.files import cache_dir, seal, unaltered, whole_file
from harness.common.machine import cpu_flags

VARIABLE = "HARNESS_ENGINE"  # `native:PATH` in it asks for a path; see methods/engine/engines.py
FOLDER = Path(__file__).parent
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
INSTALL = "install gcc or clang (Debian: apt-get install gcc libc6-dev; macOS: xcode-select --install), or name one in CC"
LONGEST_COMPILE = 600  # seconds

# Sums keep their written order: none of these lets the compiler reorder them, as -ffast-math would.
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")


@dataclass(frozen=True, slots=True)
class CodePath:
    """`needs`: the CPU's flags as /proc/cpuinfo names them. `flags`: the compiler's, all of them written out."""

    needs: frozenset[str]
    flags: tuple[str, ...]


_AVX2 = CodePath(frozenset({"avx2", "fma"}), ("-mavx2", "-mfma"))
_AVX512 = CodePath(
    _AVX2.needs | {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    (*_AVX2.flags, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
)
_BF16 = CodePath(_AVX512.needs | {"avx512_bf16"}, (*_AVX512.flags, "-mavx512bf16"))
_AMX = CodePath(_BF16.needs | {"amx_tile", "amx_bf16"}, (*_BF16.flags, "-mamx-tile", "-mamx-bf16"))
PATHS = {"amx": _AMX, "avx512_bf16": _BF16, "avx512": _AVX512, "avx2": _AVX2, "portable": CodePath(frozenset(), ())}
"""Best first."""


class NoNativeEngine(Exception):
    """There is no native engine here; the text is one line that says why."""

    def __init__(self, why: str):
        super().__init__(" ".join(why.split())[:500])


class _NoExec(Exception):
    """The folder's file system does not let code run."""


def asked_path() -> str | None:
    """The path that the environment asks for; None: the best."""
    return os.environ.get(VARIABLE, "").partition(":")[2] or None


def paths_here() -> list[str]:
    """The paths that this CPU has, best first; whether they compile is another question."""
    return [name for name, path in PATHS.items() if path.needs <= cpu_flags()]


def best_path(folder: Path = FOLDER) -> str:
    """The best path that this CPU has, that compiles and that the system permits.

    Raises:
        NoNativeEngine: there is none.
    """
    return _best(folder)[0]


def library(path: str | None = None, folder: Path = FOLDER) -> ctypes.CDLL:
    """The library of a path, the best one if none is named, compiled of the `*.c` of a folder if it is not in the cache.

    Raises:
        NoNativeEngine: no such path, a CPU or a system that cannot run it, no compiler or one that fails, or a cache folder
            that cannot be written or that code cannot be run from.
    """
    found = _library(best_path(folder) if path is None else path, folder)
    if isinstance(found, NoNativeEngine):
        raise NoNativeEngine(str(found))
    return found


def describe(path: str | None = None, folder: Path = FOLDER) -> dict[str, Any]:
    """For a record's environment: the path, the compiler's version line, the flags, and why better paths were passed over.

    Raises:
        NoNativeEngine: as `library` does.
    """
    name, passed_over = _best(folder) if path is None else (path, {})
    library(name, folder)
    return {"path": name, "compiler": _compiler()[1], "flags": " ".join(_flags(name)), "passed_over": passed_over}


@cache
def _best(folder: Path) -> tuple[str, dict[str, str]]:
    """The best path, and why those before it that this CPU has were passed over."""
    passed_over: dict[str, str] = {}
    for name in paths_here():
        found = _library(name, folder)
        if not isinstance(found, NoNativeEngine):
            return name, passed_over
        passed_over[name] = str(found)
    raise NoNativeEngine(passed_over["portable"])  # which every CPU has: what fails there is what is wrong with all


@cache
def _library(name: str, folder: Path) -> ctypes.CDLL | NoNativeEngine:
    """The error is a value, so that a path that failed is not tried again in this process."""
    try:
        if name not in PATHS:
            raise NoNativeEngine(f"the native engine has no path {name!r}; it has: {', '.join(PATHS)}")
        if missing := PATHS[name].needs - cpu_flags():  # before anything is loaded: never an illegal instruction
            raise NoNativeEngine(f"this CPU cannot run the native engine's path {name}: it lacks {', '.join(sorted(missing))}")
        if sys.byteorder != "little":
            raise NoNativeEngine(f"the native engine does not know {platform.machine()}: its bytes are in big-endian order")
        file = f"{name}-{_key(name, folder)}{SUFFIX}"
        try:
            found = _loaded(cache_dir() / "native" / file, name, folder)
        except _NoExec:
            found = _loaded(_private_folder() / file, name, folder)
        if found.ne_prepare() != 0:
            raise NoNativeEngine(f"the system does not permit the native engine's path {name}")
    except _NoExec as e:
        return NoNativeEngine(f"no folder to run compiled code from: {e} (HARNESS_CACHE sets another place)")
    except NoNativeEngine as e:
        return e
    return found


def _loaded(file: Path, name: str, folder: Path) -> ctypes.CDLL:
    """Compile if there is no whole library, and once more if there is one that does not load."""
    for anew in (False, True):
        try:
            if anew or not _is_whole(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                with filelock.FileLock(f"{file}.lock"):
                    if anew or not _is_whole(file):  # nor has another process made it meanwhile
                        code = _compiled(name, folder)
                        with whole_file(file) as tmp:
                            tmp.write_bytes(code)
                            seal(tmp, file)
        except OSError as e:
            raise NoNativeEngine(
                f"cannot write to the cache {file.parent}: {e.strerror or e} (HARNESS_CACHE sets another place)"
            ) from e
        try:
            return ctypes.CDLL(str(file))
        except OSError as e:
            if "failed to map segment" in str(e):
                raise _NoExec(f"{file.parent} is mounted noexec") from e
            why = e
    raise NoNativeEngine(f"the native engine's library does not load: {why}")


def _is_whole(file: Path) -> bool:
    """By its sum: a truncated library may load, and kill the process when it is used."""
    try:
        return unaltered(file).is_file()
    except UserError:
        return False


def _private_folder() -> Path:
    """A folder for compiled code that only this user can write to, in the system's folder for temporary files."""
    folder = Path(tempfile.gettempdir()) / f"draft-tree-harness-native-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as e:
        raise NoNativeEngine(f"cannot make the folder {folder}: {e.strerror or e}") from e
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise NoNativeEngine(f"{folder} is not this user's own, so no code is run from it; delete it")
    return folder


def _flags(name: str) -> tuple[str, ...]:
    return (*FLAGS, f"-DNE_PATH_{name.upper()}", *PATHS[name].flags)


def _sources(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.iterdir()) if file.suffix in (".c", ".h"))


def _key(name: str, folder: Path) -> str:
    """16 hex digits over all that the machine code depends on. This CPU's flags, as $CC may say -march=native."""
    parts = [_compiler()[1], *_compiler()[0], *_flags(name), platform.machine(), *sorted(cpu_flags())]
    sources = [f"{file.name}\0".encode() + file.read_bytes() for file in _sources(folder)]
    return hashlib.sha256(b"\0\0".join([*(part.encode() for part in parts), *sources])).hexdigest()[:16]


@cache
def _compiler() -> tuple[tuple[str, ...], str]:
    """The compiler's command, and the first line of its version."""
    try:
        asked = shlex.split(os.environ.get("CC", ""))
    except ValueError as e:
        raise NoNativeEngine(f"CC names no C compiler: {os.environ['CC']!r}: {e}") from None
    for words in [asked] if asked else [["cc"], ["gcc"], ["clang"]]:
        if program := shutil.which(words[0]):
            command = (program, *words[1:])
            return command, (_run([*command, "--version"]).splitlines() or ["?"])[0]
    raise NoNativeEngine(f"no C compiler ({asked[0] + ', which CC names,' if asked else 'cc, gcc, clang'} not found): {INSTALL}")


def _compiled(name: str, folder: Path) -> bytes:
    sources = [str(file) for file in _sources(folder) if file.suffix == ".c"]
    if not sources:
        raise NoNativeEngine(f"no C sources in {folder}: the installation is not whole")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / f"engine{SUFFIX}"
        _run([*_compiler()[0], *_flags(name), *sources, "-o", str(out), "-lm"])
        return out.read_bytes()


def _run(command: list[str]) -> str:
    """What a command of the compiler prints.

    Raises:
        NoNativeEngine: it fails; with its first line that tells of an error.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=os.environ | {"LC_ALL": "C"}, timeout=LONGEST_COMPILE
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise NoNativeEngine(f"the C compiler {command[0]} does not run: {e}") from e
    if done.returncode != 0:
        lines = [line for line in f"{done.stderr}\n{done.stdout}".splitlines() if line.strip()]
        first = next((line for line in lines if "error:" in line), (lines or [f"exit status {done.returncode}"])[0])
        raise NoNativeEngine(f"the C compiler {command[0]} fails: {first}")
    return done.stdout
