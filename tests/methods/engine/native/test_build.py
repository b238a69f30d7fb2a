"""The native engine's library is compiled once, kept, chosen by this CPU, and fails in one line."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from places import ROOT

from methods.engine.native import build
from methods.engine.native.build import NoNativeEngine

HEADER = "enum { ANSWER = 42 };\n"
SOURCE = """
#include <math.h>
#include "a.h"
#ifndef REFUSES
enum { REFUSES = 0 };
#endif
int ne_prepare(void) { return REFUSES; }
int answer(void) { return ANSWER; }
double root(double x) { return sqrt(x) + exp(x - x) - 1; }
#ifdef NE_PATH_AMX
const char *path = "amx";
#elif defined(NE_PATH_AVX512_BF16)
const char *path = "avx512_bf16";
#elif defined(NE_PATH_AVX512)
const char *path = "avx512";
#elif defined(NE_PATH_AVX2)
const char *path = "avx2";
#elif defined(NE_PATH_PORTABLE)
const char *path = "portable";
#endif
"""


def forget() -> None:
    """What a process remembers of compiling, so that a test sees what a new process does."""
    for remembered in (build._library, build._best, build._compiler):
        remembered.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of small C sources; with a cache that is empty, and a process that remembers nothing."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "a.c").write_text('#include "a.h"\nint twice(void) { return 2 * ANSWER; }\n')
    (sources / "b.c").write_text(SOURCE)
    (sources / "a.h").write_text(HEADER)
    forget()
    yield sources
    forget()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths compiled, in this order."""
    names: list[str] = []
    real = build._compiled

    def told(name: str, folder: Path) -> bytes:
        names.append(name)
        return real(name, folder)

    monkeypatch.setattr(build, "_compiled", told)
    return names


def script(file: Path, text: str) -> str:
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def refused(path: str | None, folder: Path) -> str:
    """The line that tells why there is no native engine."""
    with pytest.raises(NoNativeEngine) as caught:
        build.library(path, folder)
    line = str(caught.value)
    assert line and "\n" not in line and len(line) < 600
    return line


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "native").glob(f"*{build.SUFFIX}"))


@pytest.mark.parametrize("path", build.PATHS)
def test_every_path_of_this_cpu_is_compiled_of_all_sources_with_its_own_flags(folder: Path, path: str) -> None:
    if path not in build.paths_here():
        pytest.skip("this CPU does not have it")
    library = build.library(path, folder)
    assert (library.answer(), library.twice()) == (42, 84)
    library.root.restype, library.root.argtypes = ctypes.c_double, (ctypes.c_double,)
    assert library.root(9.0) == 3
    assert ctypes.c_char_p.in_dll(library, "path").value == path.encode()
    told = build.describe(path, folder)
    assert told["path"] == path and told["compiler"] and "-ffast-math" not in told["flags"] and "native" not in told["flags"]
    assert all(flag in told["flags"].split() for flag in build.PATHS[path].flags)


def test_a_process_compiles_once_and_the_next_one_not_at_all(folder: Path, tmp_path: Path, compiled: list[str]) -> None:
    first = build.library(folder=folder)
    assert build.library(build.best_path(folder), folder) is first
    forget()
    build.library(folder=folder)
    assert compiled == [build.paths_here()[0]] and len(kept(tmp_path)) == 1


def test_whatever_the_machine_code_depends_on_makes_another_library(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [build._key("portable", folder)]

    def changed() -> bool:
        keys.append(build._key("portable", folder))
        return len(set(keys)) == len(keys)

    (folder / "a.h").write_text(HEADER.replace("42", "43"))
    assert changed()
    shutil.copy(folder / "a.c", folder / "c.c")
    assert changed()
    monkeypatch.setattr(build, "FLAGS", ("-O2", *build.FLAGS[1:]))
    assert changed()
    monkeypatch.setitem(build.PATHS, "portable", replace(build.PATHS["portable"], flags=("-g",)))
    assert changed()
    monkeypatch.setattr(build, "cpu_flags", lambda: {"sse2"})
    assert changed()
    monkeypatch.setenv("CC", script(tmp_path / "newer", 'echo "newer 2.0"'))
    build._compiler.cache_clear()
    assert changed()
    monkeypatch.setattr(build.platform, "machine", lambda: "pdp11")
    assert changed()
    assert keys[-1] == build._key("portable", folder) != build._key("avx2", folder)


def test_without_a_compiler_one_line_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert refused(None, folder).startswith("no C compiler (cc, gcc, clang not found): install gcc")
    assert refused(None, build.FOLDER).startswith("no C compiler")  # the engine itself, too
    forget()
    monkeypatch.setenv("CC", "missing -O1")
    assert "missing, which CC names, not found" in refused("portable", folder)
    forget()
    monkeypatch.setenv("CC", "gcc 'half")
    assert refused("portable", folder).startswith("CC names no C compiler")


def test_a_compiler_that_fails_is_quoted_with_its_first_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/bin/false")
    assert "the C compiler /bin/false fails" in refused(None, folder)
    forget()
    fails = 'case "$1" in --version) echo "sick 1.0";; *) echo "a note" >&2; echo "b.c:1: error: it hurts" >&2; exit 1;; esac'
    monkeypatch.setenv("CC", script(tmp_path / "sick", fails))
    assert refused(None, folder) == f"the C compiler {tmp_path / 'sick'} fails: b.c:1: error: it hurts"
    assert kept(tmp_path) == []
    forget()
    monkeypatch.setenv("CC", str(folder))
    assert "which CC names" in refused(None, folder)


def test_an_error_in_the_sources_is_told(folder: Path) -> None:
    (folder / "a.c").write_text("int twice(void) { return undeclared; }\n")
    assert "error: " in refused("portable", folder) and "undeclared" in refused("portable", folder)
    for file in folder.iterdir():
        file.unlink()
    forget()
    assert "the installation is not whole" in refused(None, folder)


def test_a_flag_that_the_compiler_does_not_know_passes_over_to_the_next_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "cpu_flags", lambda: set().union(*(path.needs for path in build.PATHS.values())))
    for newer in ("amx", "avx512_bf16", "avx512", "avx2"):
        monkeypatch.setitem(build.PATHS, newer, replace(build.PATHS[newer], flags=(f"-m{newer}-of-tomorrow",)))
    told = build.describe(folder=folder)
    assert told["path"] == build.best_path(folder) == "portable"
    assert list(told["passed_over"]) == ["amx", "avx512_bf16", "avx512", "avx2"]
    assert all("of-tomorrow" in why for why in told["passed_over"].values())
    assert "of-tomorrow" in refused("amx", folder)


def test_a_path_that_the_system_does_not_permit_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "cpu_flags", lambda: set(build.PATHS["avx2"].needs))
    monkeypatch.setitem(build.PATHS, "avx2", replace(build.PATHS["avx2"], flags=("-DREFUSES=1",)))
    assert build.best_path(folder) == "portable"
    assert refused("avx2", folder) == "the system does not permit the native engine's path avx2"


def test_a_library_that_this_cpu_cannot_run_is_not_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[str]
) -> None:
    monkeypatch.setattr(build, "cpu_flags", lambda: {"avx2", "fma"})
    monkeypatch.setattr(build.ctypes, "CDLL", lambda file: pytest.fail(f"loaded {file}"))
    assert "it lacks avx512_bf16, avx512bw" in refused("avx512_bf16", folder)
    assert compiled == [] and build.paths_here() == ["avx2", "portable"]
    assert "no path 'sse9'; it has: amx, avx512_bf16" in refused("sse9", folder)


def test_a_machine_whose_numbers_lie_the_other_way_round_has_no_native_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.sys, "byteorder", "big")
    assert "big-endian" in refused(None, folder)


@pytest.mark.parametrize("damage", ["truncated", "altered", "no seal"])
def test_a_damaged_library_is_compiled_again(folder: Path, tmp_path: Path, compiled: list[str], damage: str) -> None:
    build.library("portable", folder)
    (file,) = kept(tmp_path)
    code = file.read_bytes()
    broken = {"truncated": code[:5000], "altered": code[:5000] + b"\xff" + code[5001:], "no seal": code}[damage]
    (tmp_path / "broken").write_bytes(broken)
    os.replace(tmp_path / "broken", file)  # never written in place: it is in this process's memory
    if damage == "no seal":
        file.with_name(f"{file.name}.sha256").unlink()
    forget()
    assert build.library("portable", folder).answer() == 42
    assert compiled == ["portable"] * 2 and len(kept(tmp_path)) == 1


def loads_only_where(monkeypatch: pytest.MonkeyPatch, says: str, fails: int = 10**9, place: Path | None = None) -> list[Path]:
    """Have the system's loader fail so many times, or in one place alone; -> what it was asked for."""
    asked, real = list[Path](), ctypes.CDLL

    def load(file: str) -> ctypes.CDLL:
        asked.append(Path(file))
        if len(asked) <= fails and (place is None or Path(file).is_relative_to(place)):
            raise OSError(f"{file}: {says}")
        return real(file)

    monkeypatch.setattr(build.ctypes, "CDLL", load)
    return asked


def test_a_library_that_does_not_load_is_compiled_again_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[str]
) -> None:
    loads_only_where(monkeypatch, "invalid ELF header", fails=1)
    assert build.library("portable", folder).answer() == 42 and compiled == ["portable"] * 2
    forget()
    loads_only_where(monkeypatch, "invalid ELF header")
    assert "does not load" in refused("portable", folder) and "invalid ELF header" in refused("portable", folder)
    assert compiled == ["portable"] * 3  # it was in the cache, so once


NOEXEC = "failed to map segment from shared object"


def test_a_cache_mounted_noexec_is_replaced_by_a_private_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path))
    asked = loads_only_where(monkeypatch, NOEXEC, place=tmp_path / "cache")
    assert build.library("portable", folder).answer() == 42
    private = asked[-1].parent
    assert private.parent == tmp_path and private.stat().st_mode & 0o777 == 0o700 and len(asked) == 2
    forget()
    private.chmod(0o777)  # anybody could put code there
    assert "not this user's own" in refused("portable", folder)
    forget()
    private.chmod(0o700)
    loads_only_where(monkeypatch, NOEXEC)
    assert "mounted noexec" in refused("portable", folder) and "HARNESS_CACHE" in refused("portable", folder)


def test_a_cache_that_cannot_be_written_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    line = refused(None, folder)
    assert line.startswith(f"cannot write to the cache {tmp_path / 'cache'}") and "HARNESS_CACHE" in line


LOAD = "import sys; from pathlib import Path; from methods.engine.native import build; " \
       "print(build.library('portable', Path(sys.argv[1])).answer())"  # fmt: skip


def loading(folder: Path) -> subprocess.Popen[str]:
    """Another process that loads the library."""
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def slow_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: str) -> Path:
    """Has CC name a compiler that sleeps before it compiles; -> a file with a line a compilation."""
    log = tmp_path / "log"
    compiles = f'case "$1" in --version) ;; *) echo begun >>{log}; {seconds};; esac; exec {shutil.which("cc")} "$@"'
    monkeypatch.setenv("CC", script(tmp_path / "slow", compiles))
    return log


def test_two_processes_at_once_compile_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = slow_compiler(tmp_path, monkeypatch, "sleep 2")
    for process in [loading(folder) for _ in range(2)]:
        said, _ = process.communicate(timeout=60)
        assert (said, process.returncode) == ("42\n", 0)
    assert log.read_text() == "begun\n"


def test_a_killed_compilation_leaves_nothing_that_is_taken_for_a_library(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = slow_compiler(tmp_path, monkeypatch, f"[ -e {tmp_path / 'quick'} ] || sleep 100")
    process = loading(folder)
    end = time.monotonic() + 60
    while not log.exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.communicate(timeout=60) == ("", None) and kept(tmp_path) == []
    (tmp_path / "quick").touch()
    assert build.library("portable", folder).answer() == 42 and log.read_text() == "begun\n" * 2
