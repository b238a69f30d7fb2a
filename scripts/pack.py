"""Packs finished ledgers, so that a repository that holds them travels: every command reads a packed ledger as it is.

    python scripts/pack.py LEDGER ... [--no-trees]

records.jsonl, replays.jsonl, audit.jsonl, acceptance.csv and drafted trees become .xz (or trees go, with --no-trees). To go on
measuring into a packed ledger: `unxz LEDGER/records.jsonl.xz`.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

from harness.common.files import whole_file
from harness.ledger.trees import FOLDER, packed


def replaced(old: Path, new: Path, data: bytes) -> None:
    """Write `new`, then remove `old`: a kill leaves one or both, never neither."""
    with whole_file(new) as tmp:
        tmp.write_bytes(data)
    if new != old:
        old.unlink()


def pack(ledger: Path, keep_trees: bool) -> None:
    """Pack one ledger in place."""
    for name in ("records.jsonl", "replays.jsonl", "audit/audit.jsonl", "tables/acceptance.csv"):
        file, archive = ledger / name, ledger / f"{name}.xz"
        if file.exists():
            before = lzma.decompress(archive.read_bytes()) if archive.exists() and name.startswith("audit") else b""
            replaced(file, archive, lzma.compress(before + file.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
    for file in sorted((ledger / FOLDER).glob("*.jsonl.gz")):
        if keep_trees:
            archive = file.with_suffix(".xz")  # of a ledger that was unpacked and added to
            replaced(file, archive, (archive.read_bytes() if archive.exists() else b"") + packed(file))
        else:
            file.unlink()
    if (ledger / FOLDER).is_dir() and not any((ledger / FOLDER).iterdir()):
        (ledger / FOLDER).rmdir()


def main() -> None:
    words = sys.argv[1:]
    folders = [Path(word) for word in words if word != "--no-trees"]
    if not folders:
        sys.exit(__doc__)
    for folder in folders:
        pack(folder, keep_trees="--no-trees" not in words)


if __name__ == "__main__":
    main()
