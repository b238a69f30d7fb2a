"""A ledger as one HTML page that opens from disk: a headline, tables, plots, losslessness, claims, a viewer of drafted trees.

The page holds everything: images and numbers as data, and its few scripts. A content security policy lets it load nothing. The
template escapes what comes from models and prompts (autoescape, `tojson`).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from harness import __version__
from harness.common.bounds import bounded
from harness.common.errors import UserError, say
from harness.common.files import read_text, write_file
from harness.common.names import task_order
from harness.common.progress import showing_progress
from harness.forms.table import NOTHING, Table, one_line, write_forms
from harness.ledger.audit_words import AUDIT, audits_of
from harness.ledger.record import Record
from harness.metrics.pairing import measured, setting_of, titles
from harness.show.contents import Contents, read_contents
from harness.show.headline import headlines
from harness.show.plots.all import DrawnPlot, drawn_plots, write_drawn_plots
from harness.show.tables.all import LedgerTable, made_tables
from harness.show.viewer import opens_on, viewer_data

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
    caption: str = ""


@dataclass(frozen=True, slots=True)
class PageSection:
    """One of the page's parts; it is left out where it has no blocks."""

    id: str
    title: str
    lead: str
    blocks: list[Block]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A folder's contents with the tables and plots made of them."""

    contents: Contents
    tables: list[tuple[LedgerTable, Table]]
    plots: list[DrawnPlot]


def drawn(folder: Path, *, strict: bool = False) -> Drawn:
    """Read a folder once and make all that is shown of it.

    Raises:
        UserError: no records, a file beside them that cannot be read, or `strict` and a line that cannot be read.
    """
    with showing_progress("report") as progress:
        contents = read_contents(folder, progress, strict)
        return Drawn(contents, made_tables(contents, progress), drawn_plots(contents, progress))


def write_drawn(folder: Path, made: Drawn) -> list[Path]:
    """Write the tables and plots into a folder's `tables` and `plots`; -> the files."""
    tables = [path for _, table in made.tables for path in write_forms(table, folder / "tables")]
    return [*tables, *write_drawn_plots(made.plots, folder / "plots")]


def write_report(
    folder: Path, out: Path | None = None, generations: int = 24, prompts_dir: Path | None = None, *, strict: bool = False,
    made: Drawn | None = None,
) -> Path:  # fmt: skip
    """Write the page of a folder's records to `out` (default: `report.html` in the folder).

    generations: how many the viewer holds, spread over methods and tasks. prompts_dir: the folder of the paper's prompt files,
    whose texts are then shown. Bundled prompts are always shown, others never. made: what is drawn of the folder already.

    Raises:
        UserError: no records, a file beside them that cannot be read, `out` cannot be written, or `strict` and a line that
            cannot be read.
    """
    bounded("--generations", generations, least=0)
    if prompts_dir is not None and not prompts_dir.is_dir():
        raise UserError(f"--prompts {prompts_dir}: no such folder")
    out = out or Path(folder) / "report.html"
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the page's file name, such as {out / 'report.html'}")
    return write_file(out, page(folder, generations, prompts_dir, strict, made))


def page(
    folder: Path, generations: int, prompts_dir: Path | None = None, strict: bool = False, made: Drawn | None = None
) -> str:  # fmt: skip
    """The page as HTML; see `write_report`."""
    folder = Path(folder)
    # what may be spoilt before what takes time
    lossless, claims, predicted, trees = _losslessness(folder), _claims(folder), _predictions(folder), _which_tree(folder)
    made = made or drawn(folder, strict=strict)
    contents, tables, plots = made.contents, _tables(made.tables), _plots(made.plots)
    records, counts = contents.records, contents.counts
    ok = measured(records)
    if prompts_dir is not None and not any(r["source"] == "paper" for r in records):
        say(f"note: --prompts {prompts_dir} is not read: no record of {folder} is of the paper's prompts")
    shown = viewer_data(folder, records, counts, generations, prompts_dir)
    sections = [
        PageSection("tables", "Tables", "", tables),
        PageSection("plots", "Plots", "", plots),
        PageSection("lossless", "Losslessness", "Does a method leave the distribution of the generated text as it is? What "
                    "`harness verify` found, layer by layer.", lossless),
        PageSection("claims", "Claims", "The paper's claims, each with its test and verdict on what was measured here.", claims),
        PageSection("predicted", "The paper's speedups, predicted", _PREDICTED, predicted),
        PageSection("trees", "Which tree pays", _TREES, trees),
    ]  # fmt: skip
    return _template().render(
        title=f"Decoding methods on {', '.join(sorted({r['model'] for r in records}))}",
        version=__version__,
        headlines=[(h.title, _block("", h.rows), h.conclusions) for h in headlines(contents)],
        claims_counted=_claims_counted(folder),
        settings=list(titles(setting_of(r) for r in ok).values()),
        machines=sorted({r["machine"] for r in ok}),
        counts={what: n for what, n in (
            ("generations", len(ok)), ("with drafted trees", sum(r["key"] in counts for r in ok)),
            ("failed", _count(records, "error")), ("skipped", _count(records, "skipped")),
        ) if n},
        footnotes=contents.footnotes,
        sections=[section for section in sections if section.blocks],
        absent=_absent(bool(lossless), bool(claims), bool(predicted), bool(counts), sorted({r["model"] for r in records})),
        viewer=shown,
        opens_on=opens_on(shown),
        folder=str(folder),
    )  # fmt: skip


def _absent(has_audit: bool, has_claims: bool, has_predictions: bool, has_trees: bool, models: Sequence[str]) -> str:
    """One line on what this folder lacks and which commands add it; empty where it lacks nothing."""
    model = models[0] if len(models) == 1 else "MODEL"
    where = "DIR/audit" if len(models) == 1 else "DIR/audit/MODEL"
    lacking = [
        text
        for is_there, text in (
            (has_audit, f"the audit (`harness verify --model {model} --results DIR --out {where}`)"),
            (has_claims, "the claims (`harness claims --results DIR`)"),
            (has_predictions, "what the paper's τ would give here (`harness predict --out DIR/predict`)"),
            (has_trees, "drafted trees (the same `harness run` or `harness matrix` command with --trees)"),
        )
        if not is_there
    ]
    return f"Not in this page: {', '.join(lacking)}." if lacking else ""


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = _code
    return environment.from_string(resources.files("harness.show").joinpath(TEMPLATE).read_text(encoding="utf-8"))


def _code(text: str) -> Markup:
    """Escaped, with what stands in backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _count(records: Iterable[Record], status: str) -> int:
    return len({r["key"] for r in records if r["status"] == status and not r["is_warmup"]})


def _tables(made: Sequence[tuple[LedgerTable, Table]]) -> list[Block]:
    blocks = []
    for entry, table in made:
        for i, section in enumerate(table.sections):
            text = "\n".join(table.notes) if i == len(table.sections) - 1 else ""  # the conclusions stand in the headline
            blocks.append(_block(f"{entry.title}: {section.title}", section.shown, section.facts, text, not entry.is_open))
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


def _plots(made: Sequence[DrawnPlot]) -> list[Block]:
    """Drawn anew from the records, so that the page never shows plots of older ones."""
    figures = tuple(
        Figure(p.title, _data_uri(p.png, "image/png"), _data_uri(p.csv, "text/csv"), f"{p.name}.csv", p.caption) for p in made
    )
    return [Block("", figures=figures)] if figures else []


def _figure(png: Path) -> Figure:
    csv = png.with_suffix(".csv")
    numbers = csv.read_bytes() if csv.is_file() else b""
    return Figure(png.stem.replace("_", " "), _data_uri(png.read_bytes(), "image/png"),
                  _data_uri(numbers, "text/csv") if numbers else "", csv.name)  # fmt: skip


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _losslessness(folder: Path) -> list[Block]:
    """What `harness verify --out DIR/audit` found (of several models: DIR/audit/MODEL): a word a method, then each layer."""
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
        blocks.append(_block(file.stem.replace("_", " "), _verdicts_first(_read_csv(file).map(_rounded))))
    for file in sorted(claims.glob("*.md")):
        if not file.with_suffix(".csv").is_file():
            blocks.append(Block(file.stem.replace("_", " "), text=read_text(file)))
    return blocks + _images(claims)


_PREDICTED = one_line("""
    Each cell: the decode speedup that the paper's τ would give on that machine / the published one. Predicted is
    τ / (c_verify + c_draft + c_other), with the costs that `harness costs` measured there. It assumes that τ is of the target and
    the text alone, and that a step costs what its parts cost apart. Green: within 5%, or within the interval of the costs.""")
_PREDICTED_COLUMNS = (
    "model", "machine", "method", "paper_method", "task", "temperature", "paper_speedup", "predicted", "verdict"
)  # fmt: skip
_TASKS = {"Mean": "six-task mean"}  # of the paper's tables


def _predictions(folder: Path) -> list[Block]:
    """What `harness predict --out DIR/predict` left: a table a target on a machine, a row a method, a column a task."""
    file = folder / "predict" / "predict.csv"
    if not file.is_file():
        return []
    cells = _read_csv(file)
    if missing := [name for name in _PREDICTED_COLUMNS if name not in cells.columns]:
        raise UserError(f"{file} is not what `harness predict` writes (no column {missing[0]}); run it again")
    cells["name"] = cells["method"].mask(cells["method"] == "", cells["paper_method"])
    return [_predicted(f"{model} on {machine}", own) for (model, machine), own in cells.groupby(["model", "machine"], sort=False)]


def _predicted(title: str, cells: pd.DataFrame) -> Block:
    there = cells[cells["predicted"] != ""]
    tasks = sorted(there["task"].unique(), key=lambda task: (task in _TASKS, task_order(task)))
    rows = []
    for (temperature, name), own in there.groupby(["temperature", "name"], sort=False):
        by_task = own.drop_duplicates("task").set_index("task")
        shown = [_pair(by_task.loc[task]) if task in by_task.index else (NOTHING, "") for task in tasks]
        rows.append(((f"{name}, T\u00a0=\u00a0{float(str(temperature)):g}", ""), *shown))
    without = cells[cells["predicted"] == ""].groupby("verdict", sort=False)["name"].unique()
    said = "; ".join(f"{', '.join(names)}: {str(why).removeprefix('not predicted: ')}" for why, names in without.items())
    facts = (f"Not predicted: {said}.",) if said else ()
    return Block(title, facts, (("", "words"), *((_TASKS.get(t, t), "") for t in tasks)) if rows else (), tuple(rows))


def _pair(cell: pd.Series) -> tuple[str, str]:
    """`1.01 / 2.66×`, and how it is set."""
    published = f"{float(cell['paper_speedup']):.2f}×" if cell["paper_speedup"] else NOTHING
    return f"{float(cell['predicted']):.2f} / {published}", "good" if cell["verdict"] == "consistent" else ""


_TREES = one_line("""
    Policies of drafted trees, replayed over vanilla's answers (`harness replay`): decode speed at the costs named, each at
    options chosen on held-out prompts, over plain decoding and over the best fixed tree. p: of being no faster than that,
    after Holm. oracle-stop knows what vanilla will say, random-stop looks at nothing: bounds, not methods.""")
_TREE_COLUMNS = ("temperature", "method", "task", "statistic", "value", "value_low", "value_high", "costs", "p")


def _which_tree(folder: Path) -> list[Block]:
    """What `harness replay --choices` left: a table a temperature and costs; and the plane of costs, if it was drawn."""
    file = folder / "tables" / "which-tree-pays.csv"
    if not file.is_file():
        return []
    cells = _read_csv(file)
    if missing := [name for name in _TREE_COLUMNS if name not in cells.columns]:
        raise UserError(f"{file} is not what `harness replay` writes (no column {missing[0]}); run it again")
    cells = cells[cells["task"] == "mean"]
    blocks = []
    for (t, costs), own in cells.groupby(["temperature", "costs"], sort=False):
        rows = []
        for method, of_method in own.groupby("method", sort=False):
            by = of_method.set_index("statistic")
            over = next((name for name in by.index if name.startswith("over ")), "")
            shown = [_bracketed(by, "speed", "×"), _bracketed(by, over), _number(by, over, "p"), _bracketed(by, "tau"),
                     _number(by, "calls a step"), _number(by, "nodes")]  # fmt: skip
            rows.append(((str(method), ""), *((text, "") for text in shown)))
        head = ("", "speed", "over the best fixed tree", "p", "τ", "calls a step", "nodes")
        blocks.append(Block(f"T = {float(str(t)):g}, {costs}", (), tuple((text, "") for text in head), tuple(rows)))
    return blocks + _images(folder / "tables", which="regions.png")


def _number(by: pd.DataFrame, name: str, column: str = "value") -> str:
    """A statistic's number; a dash where there is none."""
    text = str(by.loc[name, column]) if name in by.index else ""
    return f"{float(text):.2f}" if text else NOTHING


def _bracketed(by: pd.DataFrame, name: str, unit: str = "") -> str:
    """With its interval."""
    low, high = (_number(by, name, column) for column in ("value_low", "value_high"))
    return _number(by, name) + unit + (f" [{low}, {high}]" if low != NOTHING else "")


_CLAIM_COLUMNS = {"temperature": "T", "effect_no_loops": "effect, no loops", "verdict_no_loops": "verdict, no loops"}


def _verdicts_first(claims: pd.DataFrame) -> pd.DataFrame:
    """The columns of `claims.csv` for a reader: claim, verdict and effect with its interval before all others."""
    shown = claims.copy()
    for end in ("", "_no_loops"):
        effect, low, high = f"effect{end}", f"effect{end}_low", f"effect{end}_high"
        if {effect, low, high} <= set(shown.columns):
            pairs = zip(shown[effect], shown[low], shown[high], strict=True)
            shown[effect] = [f"{value} [{a}, {b}]" if a and b else value for value, a, b in pairs]
            shown = shown.drop(columns=[low, high])
    if {"verdict", "verdict_no_loops"} <= set(shown.columns):
        shown["verdict_no_loops"] = shown["verdict_no_loops"].mask(shown["verdict_no_loops"] == shown["verdict"], "the same")
    if "model" in shown and shown["model"].nunique() == 1:
        shown = shown.drop(columns="model")
    shown = shown.drop(columns="prompts_no_loops", errors="ignore").rename(columns=_CLAIM_COLUMNS)
    first = [name for name in ("claim", "verdict", "effect", "T", "on", "prompts", "test") if name in shown.columns]
    return shown[[*first, *(name for name in shown.columns if name not in first)]]


# How a verdict begins, and what it is counted as.
_COUNTED = (("shown", "shown"), ("the opposite is shown", "contradicted (the opposite is shown)"), ("not shown", "not shown"),
            ("not so", "not shown"), ("not", "not judged or not measured"))  # fmt: skip


def _claims_counted(folder: Path) -> str:
    """`Claims: 31 shown, 4 not shown, ...`; empty where `harness claims` did not run."""
    file = folder / "claims" / "claims.csv"
    if not file.is_file():
        return ""
    claims = _read_csv(file)
    counts: dict[str, int] = {}
    for verdict in claims["verdict"] if "verdict" in claims else ():
        word = next((said for begins, said in _COUNTED if verdict.startswith(begins)), "not judged or not measured")
        counts[word] = counts.get(word, 0) + 1
    order = list(dict.fromkeys(said for _, said in _COUNTED))
    return "Claims of the paper: " + ", ".join(f"{counts[word]} {word}" for word in order if word in counts) if counts else ""


def _read_csv(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as CSV: {' '.join(str(error).split())}") from None


def _rounded(cell: str) -> str:
    """Numbers to four digits; the CSV has them all."""
    return f"{float(cell):.4g}" if re.fullmatch(r"-?\d+\.\d{4,}(e-?\d+)?", cell) else cell


def _images(folder: Path, which: str = "*.png") -> list[Block]:
    figures = tuple(_figure(png) for png in sorted(folder.glob(which)))
    return [Block("", figures=figures)] if figures else []
