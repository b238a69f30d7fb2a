"""Which verdicts of a ledger of claims are not what they were at a commit.

    python scripts/changed_verdicts.py COMMIT NEW_CLAIMS_CSV LEDGER     # LEDGER: results/smollm2-135m-claims

Compares claims/claims.csv of LEDGER at COMMIT with NEW_CLAIMS_CSV and prints one Markdown row for each verdict that is another,
or whose claim is only in one of them. Effects and intervals stand beside the words, so that the reason can be seen.
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pandas as pd

KEY = ["model", "claim", "temperature", "on", "test"]
MARKS = " §¶≈!†"  # a test that got a mark is the same test
OUTPUTS = {"": "all", "_no_loops": "no loops"}


def said(row: pd.Series, name: str) -> str:
    """`0.12 [0.05, 0.19] shown`; without an interval where there is none."""
    value, low, high = (row[f"effect{name}{end}"] for end in ("", "_low", "_high"))
    interval = "" if pd.isna(low) else f" [{low:.3g}, {high:.3g}]"
    return f"{'' if pd.isna(value) else f'{value:.3g}'}{interval} {row[f'verdict{name}']}".strip()


def changes(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """One line `| claim | outputs | old | new |` for each verdict that differs."""
    before, after = ({tuple(str(x).rstrip(MARKS) for x in row[KEY]): row for _, row in table.iterrows()} for table in (old, new))
    lines = []
    for key in dict.fromkeys([*before, *after]):
        a, b = before.get(key), after.get(key)
        about = f"{key[1]}, T = {key[2]}, {key[3]} ({key[4].split(',')[0]})"
        for name, outputs in OUTPUTS.items():
            if a is None or b is None or a[f"verdict{name}"] != b[f"verdict{name}"]:
                words = ["absent" if row is None else said(row, name) for row in (a, b)]
                lines.append(f"| {about} | {outputs} | {' | '.join(words)} |")
    return lines


if __name__ == "__main__":
    commit, new, ledger = sys.argv[1:]
    git = ["git", "show", f"{commit}:{Path(ledger) / 'claims' / 'claims.csv'}"]
    old = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    found = changes(pd.read_csv(io.StringIO(old)), pd.read_csv(new))
    print("\n".join(["| claim | outputs | before | now |", "|:--|:--|:--|:--|", *found]))
