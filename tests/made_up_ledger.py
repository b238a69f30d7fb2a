"""A ledger folder of made-up records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from make_ledger import ENV, keyed

from harness.ledger.ledger import Ledger
from harness.ledger.record import READ_BESIDE


def write_ledger(folder: Path, records: Iterable[Any], env: dict[str, Any] = ENV) -> Path:
    """A ledger of these records, with the keys of what they hold."""
    with Ledger(folder) as ledger:
        name = ledger.write_env(env)
        for record in records:
            own = keyed(record) | {"env": name}
            ledger.append({key: value for key, value in own.items() if key not in READ_BESIDE})
    return folder
