"""A ledger as one HTML page that opens from disk: tables, plots, losslessness, claims, and a viewer of drafted trees.

Everything is inside the page: images and numbers as data, its few scripts inline, and a content security policy that lets it
load nothing. What comes from models and prompts is escaped by the template (autoescape, `tojson`).
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from harness import __version__
from harness.common.errors import UserError
from harness.common.files import write_file
from harness.ledger.audit_words import AUDIT, audits_of
from harness.ledger.ledger import read
from harness.ledger.record import Record
from harness.ledger.trees import Drafts, read_drafts, read_pieces
from harness.metrics import acceptance
from harness.metrics.cells import summarise
from harness.metrics.pairing import measured, setting_of
from harness.show.plots.all import write_plots
from harness.show.tables.acceptance import report
from harness.show.tables.cells import cell_report, mt_bench_by_category, official_report
from harness.show.tables.main import main_report, mean_report
from harness.show.tables.paired import divergence_report, paired_report
from harness.show.viewer import viewer_data

TEMPLATE = "page.html.j2"
_SAID = {"True": "holds", "False": "FAILS", "": "not judged"}
_AUDIT_COLUMNS = {"layer": "layer", "method": "method", "checked": "checked", "worst": "worst", "threshold": "threshold",
                  "detectable": "smallest detectable", "verdict": "verdict", "why": "why"}  # fmt: skip
# How a cell of a column of verdicts begins.
_GOOD = re.compile(r"(holds|shown|lossless)\b")
_BAD = re.compile(r"(fails|not shown|not so|the opposite is shown)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the page: a heading, lines of facts, and tables or figures below."""

    title: str
    facts: tuple[str, ...] = ()
    columns: tuple[tuple[str, str], ...] = ()  # (heading, class)
    rows: tuple[tuple[tuple[str, str], ...], ...] = ()  # (text, class) a cell
    figures: tuple[Figure, ...] = ()
    text: str = ""  # shown as it stands
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    title: str
    png: str  # data URIs
    csv: str
    csv_name: str


def write_report(folder: Path, out: Path | None = None, generations: int = 24, prompts_dir: Path | None = None) -> Path:
    """Write the page of a folder's records to `out` (default: `report.html` in the folder).

    generations: how many the viewer holds, spread over methods and tasks. prompts_dir: the paper's prompt files, whose texts are
    then shown; bundled prompts always are, others never.

    Raises:
        UserError: no records, a file beside them that cannot be read, or `out` cannot be written.
    """
    if generations < 0:
        raise UserError(f"--generations is {generations}; it must be at least 0")
    if prompts_dir is not None and not prompts_dir.is_dir():
        raise UserError(f"--prompts {prompts_dir}: no such folder")
    out = out or Path(folder) / "report.html"
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the page's file name, such as {out / 'report.html'}")
    return write_file(out, page(folder, generations, prompts_dir))


def page(folder: Path, generations: int, prompts_dir: Path | None = None) -> str:
    folder = Path(folder)
    records, drafts = read(folder), read_drafts(folder)
    # what may be spoilt before what takes time
    blocks = {"lossless": _losslessness(folder), "claims": _claims(folder)}
    blocks |= {"tables": _tables(folder, records, drafts), "plots": _plots(folder)}
    ok = measured(records)
    return _template().render(
        title=f"Decoding methods on {', '.join(sorted({r['model'] for r in records}))}",
        version=__version__,
        settings=[s.title() for s in dict.fromkeys(setting_of(r) for r in ok)],
        machines=sorted({r["machine"] for r in ok}),
        counts={
            "generations": len(ok),
            **{
                what: n
                for what, n in (
                    ("with drafted trees", sum(r["key"] in drafts for r in ok)),
                    ("failed", _count(records, "error")),
                    ("skipped", _count(records, "skipped")),
                )
                if n
            },
        },  # fmt: skip
        blocks=blocks,
        viewer=viewer_data(records, drafts, read_pieces(folder), generations, prompts_dir),
        has_trees=bool(drafts),
        folder=str(folder),
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = _code
    return environment.from_string(resources.files("harness.show").joinpath(TEMPLATE).read_text(encoding="utf-8"))


def _code(text: str) -> Markup:
    """Escaped, with what stands in backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _count(records: Iterable[Record], status: str) -> int:
    return len({r["key"] for r in records if r["status"] == status and not r["is_warmup"]})


_TITLES = {
    "means": "Six-task means",
    "main": "Speedup and τ",
    "acceptance": "Acceptance in the drafted trees",
    "paired": "EAGLE-2 against the others",
    "cells": "Every cell",
    "official": "What the reference's own scripts would have printed",
    "mt_bench_by_category": "MT-bench by category",
    "divergences": "Outputs at T = 0 that differ from vanilla's",
}
_OPEN = ("means", "main", "acceptance", "paired")


def _tables(folder: Path, records: Sequence[Record], drafts: Mapping[str, Drafts]) -> list[Block]:
    summaries, audits = summarise(records), audits_of(folder)
    found = {t.name: t for t in (
        mean_report(records, summaries, audits), main_report(summaries, audits), cell_report(summaries),
        mt_bench_by_category(records), official_report(summaries), paired_report(records, summaries),
        divergence_report(records, summaries), report(acceptance.acceptance_table(records, drafts)),
    )}  # fmt: skip
    blocks = []
    for name in (n for n in _TITLES if n in found and found[n].sections):
        table = found[name]
        for i, section in enumerate(table.sections):
            last = i == len(table.sections) - 1
            blocks.append(_block(f"{_TITLES[name]}: {section.title}", section.shown, section.facts,
                                 "\n".join(table.notes) if last else "", name not in _OPEN))  # fmt: skip
    return blocks


def _block(title: str, shown: pd.DataFrame, facts: Sequence[str] = (), text: str = "", folded: bool = False) -> Block:
    shown = shown.astype(str)
    # words to the left, numbers to the right
    sides = ["words" if any(cell[:1].isalpha() for cell in shown.iloc[:, i]) else "" for i in range(shown.shape[1])]
    columns = tuple(zip(map(str, shown.columns), sides, strict=True))
    judged = [name.startswith(("verdict", "audit")) for name, _ in columns]  # a claim may itself be called `lossless`
    rows = tuple(
        tuple((cell, (is_judged and _judged(cell)) or side) for cell, side, is_judged in zip(row, sides, judged, strict=True))
        for row in shown.itertuples(index=False)
    )
    return Block(title, tuple(facts), columns, rows, text=text, folded=folded)


def _judged(cell: str) -> str:
    return "words bad" if _BAD.match(cell) else "words good" if _GOOD.match(cell) else ""


def _plots(folder: Path) -> list[Block]:
    """Drawn anew from the records, so that the page never shows an older ledger's."""
    with tempfile.TemporaryDirectory() as scratch:
        written = write_plots(folder, Path(scratch), ("png",))
        figures = [_figure(path) for path in written if path.suffix == ".png"]
    return [Block("", figures=tuple(figures))] if figures else []


def _figure(png: Path) -> Figure:
    csv = png.with_suffix(".csv")
    numbers = csv.read_bytes() if csv.is_file() else b""
    return Figure(png.stem.replace("_", " "), _data_uri(png.read_bytes(), "image/png"),
                  _data_uri(numbers, "text/csv") if numbers else "", csv.name)  # fmt: skip


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _losslessness(folder: Path) -> list[Block]:
    """What `harness verify --out DIR/audit` found (of several models: DIR/audit/MODEL): each method's word, then a table and a
    figure a layer."""
    blocks = [Block(f"Each method's word on {model}", facts=tuple(f"{method}: {word}" for method, word in said.items()))
              for model, said in audits_of(folder).items()]  # fmt: skip
    audit = folder / AUDIT.parent
    for file in (audit / "audit.csv", *sorted(audit.glob("*/audit.csv"))):
        if file.is_file():
            blocks += _layers(file, "" if file.parent == audit else f"{file.parent.name}, ")
    return blocks


def _layers(file: Path, model: str) -> list[Block]:
    verdicts = _read_csv(file)
    if missing := {*_AUDIT_COLUMNS, "passed"} - {"verdict"} - set(verdicts.columns):
        raise UserError(f"{file} is not what `harness verify` writes (no column {min(missing)}); run it again")
    verdicts["verdict"] = verdicts["passed"].map(lambda passed: _SAID.get(passed, passed))
    shown = verdicts[list(_AUDIT_COLUMNS)].rename(columns=_AUDIT_COLUMNS)
    blocks = [_block(f"{model}{layer}", rows.drop(columns=["layer", *([] if rows["why"].any() else ["why"])]))
              for layer, rows in shown.groupby("layer", sort=False)]  # fmt: skip
    return blocks + _images(file.parent)


def _claims(folder: Path) -> list[Block]:
    """What `harness claims` left: every CSV as a table, every PNG, and pages of text where there is no CSV of that name."""
    claims = folder / "claims"
    blocks = []
    for file in sorted(claims.glob("*.csv")):
        blocks.append(_block(file.stem.replace("_", " "), _read_csv(file).map(_rounded)))
    for file in sorted(claims.glob("*.md")):
        if not file.with_suffix(".csv").is_file():
            blocks.append(Block(file.stem.replace("_", " "), text=file.read_text(encoding="utf-8")))
    return blocks + _images(claims)


def _read_csv(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as CSV: {' '.join(str(error).split())}") from None


def _rounded(cell: str) -> str:
    """Numbers to four digits; the CSV has them all."""
    return f"{float(cell):.4g}" if re.fullmatch(r"-?\d+\.\d{4,}(e-?\d+)?", cell) else cell


def _images(folder: Path) -> list[Block]:
    figures = tuple(_figure(png) for png in sorted(folder.glob("*.png")))
    return [Block("", figures=figures)] if figures else []
