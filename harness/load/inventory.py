"""Every file that a model is made of: is it pinned, is it here, is it intact? Nothing is fetched, and everything is read anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from harness.common.errors import UserError
from harness.common.files import hub_folder, read_json, sha256_file
from harness.common.identities import shown_id
from harness.load.config import ModelConfig
from harness.load.hub_cache import SMALL, WEIGHTS, expected, fault_of, listing
from harness.load.kinds import KINDS, kind_of
from harness.load.layout import lacking, weight_files, weights_digest, why_not_whole
from harness.load.sources import GGUFWheel, HubRepo
from harness.load.weights import MARK, wheel_folder

YES = "yes"
OWN = "own file"  # of the user's, or of the repository with this code: nothing outside says what it should be


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a model. part: `target`, or a drafter's title. where: a folder or repository. bytes: None where it is absent.

    pinned: by what (`commit`, `sha256`, `own file`), or `no` and why. intact: `yes`, or `no` or `unknown` and why; empty where it
    is absent.
    """

    part: str
    where: str
    file: str
    bytes: int | None
    pinned: str
    intact: str

    @property
    def faults(self) -> list[str]:
        """Which of `pinned`, `present`, `intact` it is not."""
        if self.bytes is None:
            return ["present"] + ["pinned"] * self.pinned.startswith("no")
        return ["pinned"] * self.pinned.startswith("no") + ["intact"] * (self.intact != YES)


def inventory(config: ModelConfig) -> Iterator[Item]:
    """The target's files, then those of each drafter that the YAML names."""
    w = config.weights
    if isinstance(w, HubRepo):
        yield from _of_hub("target", w)
    elif isinstance(w, GGUFWheel):
        yield from _of_wheel(wheel_folder(config, w))
    else:
        yield from _of_folder("target", (config.folder / w.path).resolve(), w.sha256)
    for kind in KINDS:
        source, title = config.drafter_source(kind), kind_of(kind).title
        if isinstance(source, HubRepo):
            yield from _of_hub(title, source)
        elif (folder := config.drafter_folder(kind)) is not None:
            yield from _of_folder(title, folder, _said_by_config(folder))


def _of_hub(part: str, repo: HubRepo) -> Iterator[Item]:
    folder = hub_folder(repo.hub, repo.revision)
    pinned = (
        "commit"
        if repo.is_pinned
        else f"no: {repo.revision} may change"
        + (f"; here it is {folder.name}" if folder.is_dir() and folder.name != repo.revision else "")
    )
    where = shown_id(f"{repo.hub}@{folder.name}")
    names = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file() and _is_model_file(f.name)}
    listed = {path for path in listing(folder) if _is_model_file(path)}
    if any(path.endswith(".safetensors") for path in listed):
        listed = {path for path in listed if not fnmatch(path, "*.bin") and not fnmatch(path, "*.pt")}
    lacks, odd = _lacks(folder)
    for name in sorted(names | listed | lacks):
        file = folder / name
        if not file.is_file():
            yield Item(part, where, name, None, pinned, "")
            continue
        fault = fault_of(folder, file, anew=True)
        if fault is not None:
            intact = f"no: {fault.real} {fault.why}"
        elif odd is not None and odd.startswith(str(file)):
            intact = f"no: {odd}"
        else:
            intact = YES if expected(folder, file) else "unknown: nothing here says what it should be"
        yield Item(part, where, name, file.stat().st_size, pinned, intact)


def _is_model_file(path: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in (*SMALL, *WEIGHTS))


def _lacks(folder: Path) -> tuple[set[str], str | None]:
    """(the first file that a folder lacks, if one is; what is wrong with the index that names them, or with config.json)."""
    try:
        absent = lacking(folder)
    except UserError as e:
        return set(), str(e)
    return set() if absent is None else {absent.relative_to(folder).as_posix()}, None


def _of_wheel(folder: Path) -> Iterator[Item]:
    """What was made of a wheel once: `COMPLETE.json` has every file's sha256."""
    try:
        mark = json.loads((folder / MARK).read_text())
        pins = {"model.safetensors": str(mark["sha256"]), **mark.get("files", {})}
    except (OSError, ValueError, KeyError, TypeError):
        there = (folder / MARK).is_file()
        yield Item("target", str(folder), MARK, 0 if there else None, "sha256", "no: it cannot be read" if there else "")
        return
    for name, pin in sorted(pins.items()):
        file = folder / name
        if not file.is_file():
            yield Item("target", str(folder), name, None, "sha256", "")
            continue
        got = sha256_file(file)
        yield Item(
            "target", str(folder), name, file.stat().st_size, "sha256", YES if got == pin else f"no: sha256 {got}, expected {pin}"
        )


def _of_folder(part: str, folder: Path, pin: str | None) -> Iterator[Item]:
    """A folder of the user's, or one that comes with this code. pin: its weights' `weights_digest`, where something names it."""
    try:
        files = weight_files(folder)
    except UserError as e:
        yield Item(part, str(folder), "weights", 0, "sha256" if pin else "no: nothing names a sha256", f"no: {e}")
        return
    whole = all(file.is_file() for file in files)
    digest = weights_digest(files) if whole else ""
    pinned = "sha256" if pin else f"no: no sha256 is named{f'; it is {digest}' if digest else ''}"
    for file in files:
        if not file.is_file():
            yield Item(part, str(folder), file.name, None, pinned, "")
            continue
        if why := why_not_whole(file):
            intact = f"no: {why}"
        elif not pin or not whole:
            intact = (
                "unknown: its sha256 is of all shards, and one is absent" if pin else "unknown: nothing says what it should be"
            )
        else:
            intact = YES if digest == pin else f"no: sha256 {digest}, expected {pin}"
        yield Item(part, str(folder), file.name, file.stat().st_size, pinned, intact)
    config = folder / "config.json"
    if not config.is_file():
        yield Item(part, str(folder), config.name, None, OWN, "")
    for file in sorted(f for f in folder.glob("*") if f.is_file() and any(fnmatch(f.name, p) for p in SMALL)):
        yield Item(part, str(folder), file.name, file.stat().st_size, OWN, _readable(file))


def _readable(file: Path) -> str:
    """Of a file that nothing pins: whether it is JSON, where it should be."""
    try:
        if file.suffix == ".json":
            read_json(file)
        return YES
    except UserError as e:
        return f"no: {e}"


def _said_by_config(folder: Path) -> str | None:
    """The sha256 of a drafter's weights that its config.json names."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8-sig")).get("weights_sha256")
        return said if isinstance(said, str) else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
