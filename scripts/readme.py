"""Copies tables into README.md: what stands between `<!-- begin FILE -->` and `<!-- end -->` is FILE's tables.

    python scripts/readme.py [--check]     # --check: change nothing, exit 1 where README and files differ

The only numbers in README that are not copied are named with the file they come from.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- begin (?P<file>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables_of(text: str) -> str:
    """The headings and tables of a Markdown file, without the notes under them."""
    kept = [line for line in text.splitlines() if line.startswith(("#", "|", "Prompts:"))]
    out: list[str] = []
    for line in kept:
        if out and line.startswith("|") != out[-1].startswith("|"):
            out.append("")
        out.append(re.sub(r"^#+ (.*)$", r"**\1**", line).rstrip())
    return "\n".join(out) + "\n"


def filled(readme: str) -> str:
    return BLOCK.sub(lambda m: m[1] + tables_of((ROOT / m["file"]).read_text(encoding="utf-8")) + m[3], readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    before = path.read_text(encoding="utf-8")
    after = filled(before)
    if "--check" in sys.argv[1:]:
        sys.exit(before != after)
    path.write_text(after, encoding="utf-8")
