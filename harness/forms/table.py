"""A table, whatever is in it: sections of rows, notes and numbers; as Markdown, as CSV and for the terminal."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common.files import write_file
from harness.common.plain_names import place

NOTHING = "—"


@dataclass(frozen=True, slots=True)
class Section:
    """One setting's part of a table, as shown."""

    title: str
    facts: tuple[str, ...]  # above the rows: where the prompts come from, the machine, what was left out
    shown: pd.DataFrame  # text only
    conclusions: tuple[str, ...] = ()  # below the rows: what they mean, in sentences


@dataclass(frozen=True, slots=True)
class Table:
    """A table in all its forms: `sections` to read, `numbers` to compute with (one row a cell, never rounded)."""

    name: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    numbers: pd.DataFrame


def write_forms(table: Table, folder: Path) -> list[Path]:
    """Write one table as NAME.md and NAME.csv; -> the two files.

    Raises:
        UserError: names the folder that cannot be written.
    """
    forms = {".md": markdown(table), ".csv": csv(table)}
    return [write_file(place(folder, "table", table.name, suffix=suffix), text) for suffix, text in forms.items()]


def one_line(text: str) -> str:
    """A note that stands in several lines of code."""
    return " ".join(text.split())


def number(value: float | None, form: str = "{:.2f}") -> str:
    """The value as text, a dash where there is none."""
    return NOTHING if value is None else form.format(value)


def times(value: float | None) -> str:
    """A speedup: `1.25×`."""
    return number(value, "{:.2f}×")


def with_interval(row: Any, form: str) -> str:
    """A row's `value` as text, with `value_low` and `value_high` in brackets where the row has them."""
    if pd.isna(row.value):
        return NOTHING
    return bracketed(form.format(row.value), None if pd.isna(row.value_low) else (row.value_low, row.value_high), form)


def bracketed(text: str, ci95: tuple[float, float] | None, form: str = "{:.2f}") -> str:
    """`1.25× [1.20, 1.30]`."""
    return f"{text} [{form.format(ci95[0])}, {form.format(ci95[1])}]" if ci95 else text


# Columns of words, which stand to the left; all others hold numbers and stand to the right.
TEXT_COLUMNS = {"model", "method", "preset", "against", "task", "source", "setting", "sample", "differs", "verdict", "checked",
                 "audit",
                 "figure", "from",
                 "claim", "test", "on", "verdict, no loops",
                 "layer", "worst value", "threshold", "smallest detectable effect", "function", "what",
                 "operator", "shape", "first operator", "adjacency", "step", "cell", "the same size"}  # fmt: skip


def markdown(table: Table) -> str:
    """GitHub's dialect: a section is a heading, facts, rows and conclusions; the notes stand at the end."""
    parts = []
    for section in table.sections:
        if not len(section.shown.columns):
            parts.append("\n\n".join(filter(None, (f"### {_markdown_line(section.title)}", _markdown_lines(section.facts)))))
            continue
        header = "| " + " | ".join(map(_markdown_cell, section.shown.columns)) + " |"
        rule = "|" + "|".join(" :-- " if column in TEXT_COLUMNS else " --: " for column in section.shown.columns) + "|"
        rows = ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in section.shown.itertuples(index=False)]
        facts, conclusions = _markdown_lines(section.facts), _markdown_lines(section.conclusions)
        title = f"### {_markdown_line(section.title)}"
        parts.append("\n\n".join(filter(None, (title, facts, "\n".join([header, rule, *rows]), conclusions))))
    parts += map(_markdown_line, table.notes)
    return "\n\n".join(parts) + "\n"


def _markdown_line(text: str) -> str:
    """One line in which no name becomes HTML. Backticks stay: what the harness says itself has code in it."""
    return " ".join(text.splitlines()).replace("<", "&lt;")


def _markdown_lines(lines: Sequence[str]) -> str:
    return "  \n".join(map(_markdown_line, lines))


def _markdown_cell(text: str) -> str:
    """A name in a cell ends neither the cell nor the row, and is shown as it is."""
    return re.sub(r"([\\|`])", r"\\\1", _markdown_line(text))


def csv(table: Table) -> str:
    """The numbers to 10 digits (more would be the processor's rounding); an empty field where there is none."""
    return table.numbers.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def json_rows(tables: Iterable[Table]) -> str:
    """All rows of the tables' numbers as one JSON array; what is not there is null."""
    rows = [row for table in tables for row in json.loads(table.numbers.to_json(orient="records"))]
    return json.dumps(rows, ensure_ascii=False)


def plain(table: Table, width: int | None = None) -> str:
    """For a terminal or a log: columns aligned with spaces.

    width: characters a line. Columns of words are broken until the rows fit; facts and notes are broken at words. Without it
    every row and every note is one line.
    """
    parts = []
    for section in table.sections:
        rows = _aligned(section.shown, width) if len(section.shown.columns) else []
        title = " ".join(section.title.splitlines())
        parts.append("\n".join([title, *_wrapped(section.facts, width), *rows, *_wrapped(section.conclusions, width)]))
    return "\n\n".join([*parts, "\n".join(_wrapped(table.notes, width))])


def _wrapped(lines: Iterable[str], width: int | None) -> list[str]:
    if width is None:
        return list(lines)
    return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False)]


def _aligned(shown: pd.DataFrame, width: int | None) -> list[str]:
    rows = [[" ".join(str(cell).splitlines()) for cell in row] for row in [list(shown.columns), *shown.values.tolist()]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [column in TEXT_COLUMNS for column in shown.columns]
    if width is not None:
        longest_words = [
            max((len(word) for cell in column for word in cell.split()), default=0) for column in zip(*rows, strict=True)
        ]
        room = width - 2 * (len(widths) - 1)
        widths = _narrowed(widths, left, longest_words, room)  # between words
        widths = _narrowed(widths, left, [_NARROWEST] * len(widths), room)  # within words, where that is not enough
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, w) or [""] for cell, w in zip(row, widths, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            placed = (c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in zip(parts, widths, left, strict=True))
            lines.append("  ".join(placed).rstrip())
    return lines


_NARROWEST = 8  # characters that a column of words keeps


def _narrowed(widths: Sequence[int], may_shrink: Sequence[bool], least: Sequence[int], room: int) -> list[int]:
    """The widths, the widest made narrower until they have room or none may shrink further."""
    narrowed = list(widths)
    while sum(narrowed) > room:
        able = [i for i, w in enumerate(narrowed) if may_shrink[i] and w > least[i]]
        if not able:
            break
        narrowed[max(able, key=lambda i: narrowed[i])] -= 1
    return narrowed
