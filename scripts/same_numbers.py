"""Whether two checkouts compute the same from every committed ledger: their tables, claims and plots' data, cell by cell.

    python scripts/same_numbers.py OLD_CHECKOUT NEW_CHECKOUT WORK_FOLDER [LEDGER ...]

Runs `harness table`, `claims` and `plot` of both checkouts on each ledger of NEW_CHECKOUT/results (or those named), into
WORK_FOLDER/old and WORK_FOLDER/new, and compares every CSV. Rows may come in another order. Prints one line a difference, and one
for each kind of difference that is meant (`MEANT`). The exit status is 1 if there is any that is not.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Meant:
    """A difference that a change of the code was made for: in these files these columns may have lost their value."""

    files: str  # a pattern of the file's name
    columns: tuple[str, ...]
    why: str


MEANT = (Meant("acceptance_*.csv", ("low", "high"), "plots: no interval where fewer than 5 conversations reached the depth"),)


def make(checkout: Path, ledger: Path, out: Path) -> None:
    """All outputs of one ledger by the code of one checkout."""
    for command in ("table", "claims", "plot"):
        folder = out / ledger.name / command
        if not folder.exists():
            words = [sys.executable, "-m", "harness.cli", command, "--results", str(ledger), "--out", str(folder)]
            done = subprocess.run(words, cwd=checkout, capture_output=True, text=True)
            if done.returncode:
                print(f"{checkout} {command} {ledger.name}: {(done.stderr.splitlines() or ['?'])[-1]}")


def differences(old: Path, new: Path) -> tuple[list[str], dict[str, int]]:
    """One line for each file or cell that is not the same; and how many values are gone for a reason of `MEANT`."""
    names = sorted({p.relative_to(root) for root in (old, new) for p in root.rglob("*.csv")})
    found: list[str] = []
    meant: dict[str, int] = {}
    for name in names:
        if not (old / name).exists() or not (new / name).exists():
            found.append(f"{name}: only in {'new' if (new / name).exists() else 'old'}")
            continue
        a, b = read_numbers(old / name), read_numbers(new / name)
        if list(a.columns) != list(b.columns):
            missing, added = set(a.columns) - set(b.columns), set(b.columns) - set(a.columns)
            found.append(f"{name}: columns gone {sorted(missing)}, new {sorted(added)}")
        both = [c for c in a.columns if c in b.columns]
        a, b = a[both], b[both]
        for kind in MEANT:
            if name.match(kind.files) and len(a) == len(b):
                a, n_gone = without_the_gone(a, b, [c for c in kind.columns if c in both])
                meant[kind.why] = meant.get(kind.why, 0) + n_gone
        rows_a, rows_b = (sorted(map(tuple, t.itertuples(index=False))) for t in (a, b))
        if rows_a != rows_b:
            only_old = [row for row in rows_a if row not in set(rows_b)]
            found.append(f"{name}: {len(only_old)} of {len(rows_a)} rows differ, for instance {only_old[:1]}")
    return found, meant


def read_numbers(path: Path) -> pd.DataFrame:
    """A CSV as text; without columns where it holds nothing."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def without_the_gone(a: pd.DataFrame, b: pd.DataFrame, columns: list[str]) -> tuple[pd.DataFrame, int]:
    """The old table with these columns emptied where the new table's same row has them empty; and how many that were."""
    others = [c for c in a.columns if c not in columns]
    a, b = (t.sort_values([*others, *columns]).reset_index(drop=True) for t in (a, b))
    if not a[others].equals(b[others]):
        return a, 0
    gone = (b[columns] == "") & (a[columns] != "")
    return a.assign(**{c: a[c].mask(gone[c], "") for c in columns}), int(gone.sum().sum())


def main() -> None:
    old, new, work, *named = [Path(arg).resolve() for arg in sys.argv[1:]]
    ledgers = named or sorted(p.parent for p in (new / "results").glob("*/records.jsonl*"))
    for ledger in ledgers:
        for checkout, side in ((old, "old"), (new, "new")):
            make(checkout, ledger, work / side)
        print(f"{ledger.name}: made", flush=True)
    found, meant = differences(work / "old", work / "new")
    for why, n_values in meant.items():
        if n_values:
            print(f"meant: {n_values} values gone: {why}")
    print("\n".join(found) or "every number is the same, but for what is meant")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
