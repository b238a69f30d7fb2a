"""Files of tuned presets: options that `harness tune` found, what a race measured with them, and what was predicted before.

They lie in the cache folder, beside a model's YAML, and beside the records that were measured with them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.common.errors import UserError
from harness.common.files import whole_file
from harness.ledger.checked import is_count, is_number, is_text, shown

FILE = "tuned.json"


@dataclass(frozen=True, slots=True)
class Key:
    """What an entry holds for; all of it must agree."""

    model: str
    target: str  # what pins its weights
    head: str  # sha256 of the drafter's weights and of its config.json
    method: str
    temperature: float
    dtype: str
    threads: int
    machine: str
    engine: str  # whose forward the target ran on, as `TargetIdentity.engine` has it: costs of one engine say nothing of another


@dataclass(frozen=True, slots=True)
class Entry:
    """`options`: what to run with. `raced`: tau and decode speedup over vanilla as they were measured on held-out conversations
    that the choice did not use, with 95 % intervals where there are enough. `predicted`: the same as it was expected before the
    race, on the conversations that the options were ranked on."""

    key: Key
    options: Mapping[str, Any]
    raced: Mapping[str, Any]
    predicted: Mapping[str, Any]


def rows(path: Path) -> list[dict[str, Any]]:
    """The stored entries of a file; none where there is no file.

    Raises:
        UserError: the file cannot be read or is something else.
    """
    try:
        stored: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        if type(stored) is not list:
            raise TypeError(f"it is {shown(stored)}")
        # earlier versions did not say of which weights and of which engine they are, and had predicted figures alone
        stored = [row for row in stored if {"target", "engine"} <= row["key"].keys() or "model" not in row["key"]]
        for row in stored:
            key = Key(**row["key"])
            texts = [value for name, value in row["key"].items() if name not in ("temperature", "threads")]
            if not (all(map(is_text, texts)) and is_number(key.temperature) and is_count(key.threads)):
                raise TypeError(f"its key is {shown(row['key'])}")
            if type(row["options"]) is not dict:
                raise TypeError(f"options are {shown(row['options'])}")
            for name in ("raced", "predicted"):
                found = row[name]
                intervals = [found[value] for value in ("tau_ci95", "speedup_ci95") if found.get(value) is not None]
                numbers = [found["tau"], found["speedup"], *(end for low, high in intervals for end in (low, high))]
                if not all(map(is_number, numbers)):
                    raise TypeError(f"{name} is {shown(found)}")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise UserError(f"{path} is no list of tuned presets ({e}); remove it and run `harness tune` again") from None
    return stored


def stored(path: Path) -> list[Entry]:
    return [Entry(Key(**row["key"]), row["options"], row["raced"], row["predicted"]) for row in rows(path)]


def check(path: Path) -> None:
    """Whether `save` could put an entry there.

    Raises:
        UserError: the file is something else, or its folder cannot be written to.
    """
    rows(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as e:
        raise UserError(f"cannot save in {path}: {e.strerror or e}") from None


def save(new: Entry, path: Path) -> Path:
    """Put an entry in the place of an older one with the same key."""
    kept = [row for row in rows(path) if row["key"] != asdict(new.key)]
    kept.append({name: dict(value) for name, value in asdict(new).items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as tmp:
        tmp.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return path
