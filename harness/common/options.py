"""KEY=VALUE options of a command line."""

from __future__ import annotations

from collections.abc import Sequence

from harness.common.errors import UserError


def parse_changes(changes: Sequence[str]) -> dict[str, str]:
    out = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes KEY=VALUE, not {change!r}")
        out[key.strip().replace("-", "_")] = value.strip()
    return out
