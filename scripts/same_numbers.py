"""Whether two checkouts compute the same from every committed ledger: their tables, claims and plots' data, cell by cell.

    python scripts/same_numbers.py OLD_CHECKOUT NEW_CHECKOUT WORK_FOLDER [LEDGER ...]

Runs `harness table`, `claims` and `plot` of both checkouts on each ledger of NEW_CHECKOUT/results (or those named), into
WORK_FOLDER/old and WORK_FOLDER/new, and compares every CSV. Rows may come in another order. Prints one line a difference; the
exit status is 1 if there is any.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd


def make(checkout: Path, ledger: Path, out: Path) -> None:
    """All outputs of one ledger by the code of one checkout."""
    for command in ("table", "claims", "plot"):
        folder = out / ledger.name / command
        if not folder.exists():
            words = [sys.executable, "-m", "harness.cli", command, "--results", str(ledger), "--out", str(folder)]
            done = subprocess.run(words, cwd=checkout, capture_output=True, text=True)
            if done.returncode:
                print(f"{checkout} {command} {ledger.name}: {(done.stderr.splitlines() or ['?'])[-1]}")


def differences(old: Path, new: Path) -> list[str]:
    """One line for each file or cell that is not the same."""
    names = sorted({p.relative_to(root) for root in (old, new) for p in root.rglob("*.csv")})
    found = []
    for name in names:
        if not (old / name).exists() or not (new / name).exists():
            found.append(f"{name}: only in {'new' if (new / name).exists() else 'old'}")
            continue
        a, b = (pd.read_csv(root / name, dtype=str, keep_default_na=False) for root in (old, new))
        if list(a.columns) != list(b.columns):
            missing, added = set(a.columns) - set(b.columns), set(b.columns) - set(a.columns)
            found.append(f"{name}: columns gone {sorted(missing)}, new {sorted(added)}")
        both = [c for c in a.columns if c in b.columns]
        rows_a, rows_b = (sorted(map(tuple, t[both].itertuples(index=False))) for t in (a, b))
        if rows_a != rows_b:
            only_old = [row for row in rows_a if row not in set(rows_b)]
            found.append(f"{name}: {len(only_old)} of {len(rows_a)} rows differ, for instance {only_old[:1]}")
    return found


def main() -> None:
    old, new, work, *named = [Path(arg).resolve() for arg in sys.argv[1:]]
    ledgers = named or sorted(p.parent for p in (new / "results").glob("*/records.jsonl*"))
    for ledger in ledgers:
        for checkout, side in ((old, "old"), (new, "new")):
            make(checkout, ledger, work / side)
        print(f"{ledger.name}: made", flush=True)
    found = differences(work / "old", work / "new")
    print("\n".join(found) or "every number is the same")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
