"""Options that `harness replay --choose` chose, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import methods
from harness.common.errors import UserError
from harness.common.files import read_json, write_file


@dataclass(frozen=True, slots=True)
class Choice:
    """A policy's options under some costs, and what they gave on the held-out conversations. `tried`: sets of options."""

    method: str
    temperature: float
    costs: str
    options: Mapping[str, Any]
    speedup: float
    tau: float
    tried: int
    conversations: int


def save(choices: Sequence[Choice], path: Path) -> Path:
    """Write choices, to be read by `read`."""
    return write_file(path, json.dumps([asdict(c) for c in choices], indent=1) + "\n")


def read(path: Path) -> list[Choice]:
    """
    Raises:
        UserError: the file holds no choices, or of a method that is not here.
    """
    try:
        found = [Choice(**row) for row in read_json(path)]
        for c in found:
            methods.get(c.method)
        return found
    except (TypeError, ValueError) as e:
        raise UserError(f"{path} holds no choices of `harness replay --choose`: {e}") from None
