"""Fills the tables of README.md and docs/ from the files that commands wrote into results/.

    python scripts/readme.py [--check]     # --check: change nothing; exit 1 where a document and its file differ

A table stands between `<!-- begin FILE -->` and `<!-- end -->`. FILE may be followed by what is to be shown of it:

    section="T = 0"            only the headings that hold these words, and the tables under them
    columns="method,τ,speedup" only these columns, in this order
    rows="eagle1,eagle2"       only the rows with these words in the first column, in this order
    as="EAGLE-1,EAGLE-2"       what to call these rows
    titles="method,τ,speed"    what to call these columns
    headings="no"              no headings
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- begin (?P<file>\S+)(?P<wanted>(?: \w+=\"[^\"]*\")*) -->\n).*?(<!-- end -->)", re.DOTALL)


def documents() -> list[Path]:
    """Every document that holds a table of results."""
    return [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if BLOCK.search(path.read_text("utf-8"))]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def selected(table: list[str], wanted: dict[str, str]) -> list[str]:
    """A table's lines with the rows and columns asked for.

    Raises:
        ValueError: the table has no such row or column.
    """
    header, rule, *rows = [cells(line) for line in table]
    if "rows" in wanted:
        names = wanted["rows"].split(",")
        by_name = {row[0]: row for row in rows}
        if missing := set(names) - by_name.keys():
            raise ValueError(f"no row {sorted(missing)}; there are: {', '.join(by_name)}")
        rows = [[name, *by_name[row][1:]] for row, name in zip(names, wanted.get("as", wanted["rows"]).split(","), strict=True)]
    if "columns" in wanted:
        columns = wanted["columns"].split(",")
        if missing := set(columns) - set(header):
            raise ValueError(f"no column {sorted(missing)}; there are: {', '.join(header)}")
        places = [header.index(column) for column in columns]
        header, rule, rows = [header[i] for i in places], [rule[i] for i in places], [[row[i] for i in places] for row in rows]
    if "titles" in wanted:
        header = [title for title, _ in zip(wanted["titles"].split(","), header, strict=True)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]


def tables_of(text: str, wanted: dict[str, str]) -> str:
    """The headings and tables of a Markdown file, without the notes under them, as far as they are wanted."""
    parts: list[tuple[list[str], list[str]]] = [([], [])]  # (the lines above a table, its lines)
    for line in text.splitlines():
        if line.startswith("|"):
            parts[-1][1].append(line.rstrip())
        elif line.startswith(("#", "Prompts:")):
            if line.startswith("#") or parts[-1][1]:
                parts.append(([], []))
            parts[-1][0].append(re.sub(r"^#+ (.*)$", r"**\1**", line).rstrip())
    chosen = [part for part in parts if part[1] and wanted.get("section", "") in " ".join(part[0])]
    if not chosen:
        raise ValueError(f"no table under {wanted.get('section', 'any heading')!r}")
    out: list[str] = []
    for above, table in chosen:
        lines = [*above, ""] if above and wanted.get("headings") != "no" else []
        out += [*([""] if out else []), *lines, *selected(table, wanted)]
    return "\n".join(out) + "\n"


def filled(document: str) -> str:
    def fill(block: re.Match[str]) -> str:
        wanted = dict(re.findall(r'(\w+)="([^"]*)"', block["wanted"]))
        try:
            return block[1] + tables_of((ROOT / block["file"]).read_text("utf-8"), wanted) + block[4]
        except ValueError as error:
            raise SystemExit(f"{block['file']}: {error}") from None

    return BLOCK.sub(fill, document)


if __name__ == "__main__":
    differ = []
    for path in documents():
        before = path.read_text("utf-8")
        after = filled(before)
        if after != before:
            differ.append(path.relative_to(ROOT))
            if "--check" not in sys.argv[1:]:
                path.write_text(after, "utf-8")
    for name in differ:
        print(name)
    if "--check" in sys.argv[1:]:
        sys.exit(bool(differ))
