"""The tau of every method, kept beside a draft head by `--record`: what later audits compare with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.common.errors import UserError
from harness.ledger.record import canonical_hash

TAUS = "tau.json"  # beside a draft head: what `--record` kept

TAU_KEY = ("method", "options", "model", "target", "head", "frequent", "new_tokens")


def tau_key(entry: Mapping[str, Any]) -> str:
    return canonical_hash([entry[name] for name in TAU_KEY])


def taus(head: Path) -> list[dict[str, Any]]:
    file = head / TAUS
    try:
        found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, list):
            raise TypeError(f"{type(found).__name__} instead of a list")
        for entry in found:
            tau_key(entry), entry["runs"].items()
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{file} is not what `harness verify --record` writes ({e}); remove it and record again") from None
    return found
