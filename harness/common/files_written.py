"""The last line of a command that writes files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def files_written(paths: Sequence[Path]) -> str:
    """`24 files in results/runs/tables`."""
    folders = list(dict.fromkeys(str(path.parent) for path in paths))
    count = f"{len(paths)} {'file' if len(paths) == 1 else 'files'}"
    return f"{count} in {' and '.join(folders)}" if folders else "nothing to write: no numbers for it in these records"
