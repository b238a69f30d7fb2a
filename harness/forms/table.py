"""A table, whatever is in it: sections of rows, notes and numbers; written as Markdown, CSV, LaTeX and for the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.common.files import write_file

NOTHING = "—"


@dataclass(frozen=True, slots=True)
class Section:
    """One setting's part of a table, as shown."""

    title: str
    facts: tuple[str, ...]  # where the prompts come from, the machine, what was left out
    shown: pd.DataFrame  # text only


@dataclass(frozen=True, slots=True)
class Table:
    """A table in all its forms: `sections` to read, `numbers` to compute with (one row a cell, never rounded)."""

    name: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    numbers: pd.DataFrame


def write_forms(table: Table, folder: Path) -> list[Path]:
    """One table as Markdown, CSV and LaTeX; -> the files.

    Raises:
        UserError: names the folder that cannot be written.
    """
    forms = {"md": markdown(table), "csv": csv(table), "tex": latex(table)}
    return [write_file(folder / f"{table.name}.{suffix}", text) for suffix, text in forms.items()]


def number(value: float | None, form: str = "{:.2f}") -> str:
    return NOTHING if value is None else form.format(value)


def times(value: float | None) -> str:
    return number(value, "{:.2f}×")


def with_interval(row: Any, form: str) -> str:
    """A row's value as text, its interval in brackets where it has one."""
    if pd.isna(row.value):
        return NOTHING
    return bracketed(form.format(row.value), None if pd.isna(row.value_low) else (row.value_low, row.value_high), form)


def bracketed(text: str, ci95: tuple[float, float] | None, form: str = "{:.2f}") -> str:
    return f"{text} [{form.format(ci95[0])}, {form.format(ci95[1])}]" if ci95 else text


TEXT_COLUMNS = {"model", "method", "preset", "against", "task", "source", "setting", "sample", "differs", "verdict", "checked",
                 "audit",
                 "figure", "from",
                 "claim", "test", "on", "verdict, no loops",
                 "layer", "worst value", "threshold", "smallest detectable effect", "function", "what"}  # fmt: skip


def markdown(table: Table) -> str:
    """GitHub's dialect: a heading and facts a section, notes at the end."""
    parts = []
    for section in table.sections:
        header = "| " + " | ".join(map(_markdown_cell, section.shown.columns)) + " |"
        rule = "|" + "|".join(" :-- " if column in TEXT_COLUMNS else " --: " for column in section.shown.columns) + "|"
        rows = ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in section.shown.itertuples(index=False)]
        facts = "  \n".join(section.facts)
        parts.append("\n\n".join(filter(None, (f"### {section.title}", facts, "\n".join([header, rule, *rows])))))
    parts += table.notes
    return "\n\n".join(parts) + "\n"


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|")


def latex(table: Table) -> str:
    """One `table` float a section, with the facts and notes in its caption."""
    parts = ["% needs \\usepackage{booktabs}"]
    for section in table.sections:
        columns = section.shown.columns
        caption = " ".join(f"{text.rstrip('.')}." for text in (section.title, *section.facts, *table.notes))
        body = [" & ".join(map(_latex_cell, row)) + r" \\" for row in section.shown.itertuples(index=False)]
        parts += [
            r"\begin{table}",
            r"\centering\small",
            r"\begin{tabular}{" + "".join("l" if column in TEXT_COLUMNS else "r" for column in columns) + "}",
            r"\toprule",
            " & ".join(map(_latex_cell, columns)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{_latex_cell(caption)}}}",
            r"\end{table}",
        ]
    if not table.sections:
        parts += [f"% {note}" for note in table.notes]
    return "\n".join(parts) + "\n"


_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "τ": r"$\tau$", "—": "---",
    "†": r"\textsuperscript{\dag}", "‡": r"\textsuperscript{\ddag}", "≈": r"$\approx$", "→": r"$\to$",
})  # fmt: skip


def _latex_cell(text: str) -> str:
    return text.translate(_LATEX)


def csv(table: Table) -> str:
    """The numbers; an empty field where there is none. 10 digits: more would be the processor's rounding."""
    return table.numbers.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def plain(table: Table) -> str:
    """For a terminal or a log: columns aligned with spaces."""
    parts = []
    for section in table.sections:
        rows = [list(section.shown.columns), *section.shown.values.tolist()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        left = [column in TEXT_COLUMNS for column in section.shown.columns]
        lines = [
            "  ".join(c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in zip(row, widths, left, strict=True)).rstrip()
            for row in rows
        ]
        parts.append("\n".join([section.title, *section.facts, *lines]))
    return "\n\n".join([*parts, "\n".join(table.notes)])
