"""The command line: thin click commands, each one call. User errors are one line and exit 2; Ctrl-C exits 130."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

import harness
from harness.common.errors import UserError
from harness.common.machine import usable_cores
from harness.load.kinds import KINDS

# torch, transformers and pandas are imported inside the commands: `--help` and bad options answer at once


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(harness.__version__, prog_name="harness")
def cli() -> None:
    """Decoding methods x tasks x models: timed against plain decoding on one budget, checked, recorded."""


CONTEXTS, TREES = (128, 512, 1024, 2048, 4096), (8, 16, 32, 60, 120)


def model_option(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--model", default="smollm2-135m", show_default=True, metavar="NAME|YAML", help="Target model.")(f)


def prompts_option(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--prompts", "prompts_dir", type=click.Path(path_type=Path), default=None, help="Folder of the paper's prompt files."
    )(f)


def include_option(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--include", "includes", multiple=True, type=click.Path(path_type=Path), metavar="PATH",
        help="A file or folder of your own methods, tasks (.py) or models (.yaml); repeatable.",
    )(f)  # fmt: skip


def head_option(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--head",
        type=click.Path(path_type=Path),
        default=None,
        help="A drafter's folder, instead of the model's own of that kind.",
    )(f)


def trees_option(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--trees", is_flag=True, help="Keep every drafted tree (DIR/trees): for calibration, positions and the report's viewer."
    )(f)


def results_option(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--results", required=True, type=click.Path(path_type=Path), metavar="DIR", help="A folder with records.jsonl."
    )(f)


@cli.command()
@click.option("--method", "names", multiple=True, required=True, metavar="NAME|all", help="Repeatable; all = the exact ones.")
@click.option("--task", "task_names", multiple=True, required=True, metavar="NAME|all", help="Repeatable.")
@model_option
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy decoding.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--limit", type=int, default=None, help="Prompts a task (default: the model's).")
@click.option("--max-new-tokens", type=int, default=None, help="One budget for every method (default: the model's).")
@click.option(
    "--source",
    default="auto",
    show_default=True,
    metavar="paper|hub|pypi|bundled|auto",
    help="Where prompts come from.",
)
@prompts_option
@click.option("--preset", default="paper", show_default=True, help="A named set of options.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one option; repeatable.")
@click.option("--dtype", default="auto", show_default=True, metavar="auto|float64|float32|bfloat16|float16")
@click.option("--threads", type=int, default=None, help="CPU threads (default: the cores).")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--repeats", type=int, default=1, show_default=True)
@click.option("--no-baseline", is_flag=True, help="Do not measure vanilla along.")
@trees_option
@click.option(
    "--on-overflow", type=click.Choice(["error", "skip"]), default="error", show_default=True, help="A prompt too long."
)
@head_option
@click.option("--dry-run", is_flag=True, help="Print cells, time, memory and what is missing; measure nothing.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/runs"), show_default=True, help="Ledger folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON value on the last line.")
@include_option
def run(**options: Any) -> None:
    """Measure methods on tasks, vanilla interleaved prompt by prompt, and print the table."""
    from harness.commands.run import run_command

    run_command(**options)


@cli.command()
@click.option("--tier", default="default", show_default=True, metavar="quick|default|claims|full", help="What ./run_all.sh runs.")
@model_option
@click.option("--limit", type=int, default=None, help="Prompts a task (default: the tier's).")
@click.option("--max-new-tokens", type=int, default=None, help="Length budget (default: the tier's, else the model's).")
@click.option("--source", default=None, metavar="paper|hub|pypi|bundled|auto", help="Where prompts come from (default: auto).")
@prompts_option
@click.option("--dtype", default=None, metavar="auto|float64|float32|bfloat16|float16")
@click.option("--threads", type=int, default=None, help="CPU threads (default: the cores).")
@click.option("--preset", default=None, help="A named set of options (default: paper).")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one option; repeatable.")
@click.option("--seed", type=int, default=None)
@click.option("--repeats", type=int, default=None)
@head_option
@trees_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Ledger folder.")
@include_option
def matrix(tier: str, **options: Any) -> None:
    """Measure a whole tier: methods x tasks x temperatures, in one process, resumable."""
    from harness.commands.matrix import matrix_command

    matrix_command(tier, **options)


@cli.command()
@click.option("--table", "tables", multiple=True, metavar="1|2|3", help="A table of the paper; repeatable (default: all of it).")
@click.option("--figure", "figures", multiple=True, metavar="1|2|5|6", help="A figure of the paper; repeatable.")
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="One of the paper's (default: all of the item's), or a stand-in."
)
@click.option("--limit", type=int, default=None, help="Prompts a task (default: the model's).")
@click.option("--max-new-tokens", type=int, default=None, help="Length budget (default: the model's).")
@click.option(
    "--source", default="paper", show_default=True, metavar="paper|hub|pypi|bundled|auto", help="Where prompts come from."
)
@prompts_option
@click.option("--dtype", default=None, metavar="auto|float64|float32|bfloat16|float16")
@click.option("--threads", type=int, default=None, help="CPU threads (default: the cores).")
@head_option
@click.option("--dry-run", is_flag=True, help="List every cell with hours and memory; measure nothing.")
@click.option("--no-run", is_flag=True, help="Measure nothing: report what the folder holds.")
@click.option(
    "--results", type=click.Path(path_type=Path), default=Path("results/reproduce"), show_default=True, help="Ledger folder."
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Where tables go (default: RESULTS/tables).")
@click.option("--json", "as_json", is_flag=True, help="Print all rows as one JSON array on the last line.")
@include_option
def reproduce(**options: Any) -> None:
    """Measure what is missing of the paper's tables and figures; print ours, the paper's, others' and a verdict."""
    from harness.commands.reproduce import reproduce_command

    reproduce_command(**options)


@cli.command()
@click.option(
    "--method", "names", multiple=True, default=("eagle2",), show_default=True, metavar="NAME|all",
    help="Whose options to tune; repeatable; all = the exact ones that were not tuned here yet.",
)  # fmt: skip
@model_option
@click.option("--temperature", "temperatures", type=float, multiple=True, help="Repeatable; 0 by default.")
@click.option("--conversations", type=int, default=16, show_default=True, help="Held-out training prompts to tune on.")
@click.option("--max-new-tokens", type=int, default=None, help="Length budget (default: the model's).")
@click.option("--dtype", default="auto", show_default=True, metavar="auto|float64|float32|bfloat16|float16")
@click.option("--threads", type=int, default=None, help="CPU threads (default: the cores).")
@head_option
@click.option("--save", type=click.Path(path_type=Path), default=None, help="Where to save it (default: the cache folder).")
@include_option
def tune(**options: Any) -> None:
    """Find the options that pay best on this machine, and save them as `--preset tuned`."""
    from harness.commands.tune import tune_command

    tune_command(**options)


@cli.command()
@click.option("--method", "names", multiple=True, default=("eagle1", "eagle2"), metavar="NAME", help="Repeatable.")
@model_option
@click.option("--temperature", type=float, default=0.0, show_default=True)
@click.option("--limit", type=int, default=1, show_default=True, help="Bundled prompts a task.")
@click.option("--max-new-tokens", type=int, default=None, help="Length budget (default: the model's; --sweep: 32).")
@click.option("--preset", default="paper", show_default=True, help="A named set of options.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one option; repeatable.")
@click.option("--dtype", default="auto", show_default=True, metavar="auto|float64|float32|bfloat16|float16")
@click.option("--threads", type=int, default=None, help="CPU threads (default: the cores).")
@head_option
@click.option("--sweep", is_flag=True, help="Instead: speed by context and tree size (vanilla, eagle2).")
@click.option("--context", "contexts", type=int, multiple=True, default=CONTEXTS, help="Tokens, for --sweep; repeatable.")
@click.option("--tree", "trees", type=int, multiple=True, default=TREES, help="Nodes, for --sweep; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/profile"), show_default=True)
@include_option
def profile(**options: Any) -> None:
    """Where a step's time goes, with the ceilings beside it; with --sweep, speed by context and tree size.

    --sweep measures vanilla and eagle2 at `paper` but for the tree's size; --method, --set and --preset do not touch it.
    """
    from harness.commands.profile import profile_command

    profile_command(**options)


@cli.command()
@click.option("--results", type=click.Path(path_type=Path), metavar="DIR", default=None, help="A folder with records.jsonl.")
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="DIR_A DIR_B",
    default=None,
    help="What changed from A to B.",
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Where to write (default: DIR/tables).")
def table(results: Path | None, compare: tuple[Path, Path] | None, out: Path | None) -> None:
    """Write the tables of a ledger (Markdown, CSV, LaTeX), or compare two ledgers."""
    from harness.forms.table import markdown
    from harness.show.tables.all import write_tables
    from harness.show.tables.two_folders import compare as compare_of_two_folders

    if (results is None) == (compare is None):
        raise UserError("give either --results DIR or --compare DIR_A DIR_B")
    if compare is not None:
        click.echo(markdown(compare_of_two_folders(*compare)))
        return
    assert results is not None
    from harness.exchange import imported as foreign
    from harness.show.tables import acceptance

    write = foreign.write_report if foreign.holds_import(results) else write_tables
    for path in (*write(results, out), *acceptance.write(results, out)):
        click.echo(path)


@cli.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--baseline", type=click.Path(path_type=Path), default=None, metavar="FILE", help="The plain decoding's answers.")
@click.option("--tokenizer", default=None, metavar="DIR|MODEL|HUB_ID", help="Counts texts again, for the official formula.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A ledger folder of its own.")
def import_(file: Path, baseline: Path | None, tokenizer: str | None, out: Path) -> None:
    """Read an answer file of EAGLE or Spec-Bench into records and print what it shows."""
    from harness.exchange.imported import import_command

    click.echo(import_command(file, baseline, tokenizer, out))


@cli.command()
@results_option
@click.option("--format", "format_", default="eagle", show_default=True, metavar="eagle|spec-bench")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where to write: a file a cell.")
def export(results: Path, format_: str, out: Path) -> None:
    """Write a ledger as answer files of EAGLE or Spec-Bench, with the counts that their loops would have booked."""
    from harness.exchange.export import export as export_answers

    for path in export_answers(results, out, format_):
        click.echo(path)


@cli.command()
@results_option
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Where to write (default: DIR/plots).")
def plot(results: Path, out: Path | None) -> None:
    """Draw the plots of a ledger (PNG, PDF, and a CSV of the numbers drawn)."""
    from harness.show.plots import all as plots

    for path in plots.write_plots(results, out):
        click.echo(path)


@cli.command()
@results_option
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Where to write (default: DIR/claims).")
@click.option("--json", "as_json", is_flag=True, help="Print all rows as one JSON array on the last line.")
def claims(results: Path, out: Path | None, as_json: bool) -> None:
    """Test every claim of the paper on what a ledger holds: effect, paired interval, verdict (Markdown, CSV, LaTeX)."""
    from harness.forms.table import plain, write_forms
    from harness.paper import claims as ledger

    table = ledger.report(results)
    click.echo(plain(table))
    for path in write_forms(table, out or results / "claims"):
        click.echo(path, err=True)
    if as_json:
        click.echo(ledger.to_json(table))


@cli.command()
@results_option
@click.option("--out", type=click.Path(path_type=Path), default=None, metavar="FILE", help="The page (default: DIR/report.html).")
@click.option("--generations", type=int, default=24, show_default=True, help="How many the viewer of drafted trees holds.")
@click.option(
    "--prompts",
    "prompts_dir",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the paper's prompt files: shows these prompts in the page, too.",
)
def report(results: Path, out: Path | None, generations: int, prompts_dir: Path | None) -> None:
    """Write a ledger as one HTML page: tables, plots, losslessness, claims, and a viewer of drafted trees; opens from disk."""
    from harness.show.page import write_report

    click.echo(write_report(results, out, generations, prompts_dir))


@cli.command()
@model_option
@click.option("--method", "names", multiple=True, default=("all",), metavar="NAME|all", help="Repeatable.")
@click.option("--level", default="quick", show_default=True, metavar="quick|full", help="How much is checked.")
@click.option(
    "--dtype", "dtypes", multiple=True, metavar="float64|float32|bfloat16|float16", help="Repeatable (default: the level's)."
)
@click.option(
    "--results", multiple=True, type=click.Path(path_type=Path), help="A ledger whose divergences are explained too; repeatable."
)
@prompts_option
@head_option
@click.option("--threads", type=int, default=None, help="CPU threads (default: the cores).")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("results/audit"), show_default=True, help="Where findings go."
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as one JSON value on the last line.")
@click.option("--record", is_flag=True, help="Keep each method's tau beside the head: later audits are compared with it.")
@click.option("--mutants", "plant", is_flag=True, help="Plant known faults and see which layer notices each.")
@include_option
def verify(includes: tuple[Path, ...], threads: int | None, **options: Any) -> None:
    """Audit losslessness in layers: exact law, logit replay, greedy equality, sampling statistics; or plant faults."""
    from harness.audit.faults.bench import mutants
    from harness.commands.options import DTYPES, include_all
    from harness.commands.verify import verify as audit
    from harness.common.errors import unknown

    include_all(includes)
    for dtype in options["dtypes"]:
        if dtype not in DTYPES[1:]:
            raise unknown("dtype", dtype, DTYPES[1:])
    if threads is not None and threads < 1:
        raise UserError(f"--threads is {threads}; it must be at least 1")
    threads = threads or usable_cores()
    if options.pop("plant"):
        if options["names"] != ("all",) or options["dtypes"] or options["results"] or options["record"]:
            raise UserError("--mutants plants its own methods in float32: no --method, --dtype, --results or --record with it")
        mutants(threads=threads, **{k: options[k] for k in ("model", "level", "out", "head", "as_json")})
    else:
        audit(threads=threads, **options)


@cli.command("list")
@click.argument("what", type=click.Choice(["methods", "tasks", "models"]))
@include_option
def list_(what: str, includes: tuple[Path, ...]) -> None:
    """Show what is registered, a line each."""
    from harness.commands.list import list_lines
    from harness.commands.options import include_all

    include_all(includes)
    for line in list_lines(what):
        click.echo(line)


@cli.command()
@model_option
@click.option("--source", default="auto", show_default=True, help="Prompt source to obtain where a task has it.")
@include_option
def fetch(model: str, source: str, includes: tuple[Path, ...]) -> None:
    """Obtain a model's weights and the prompts, so that runs need no network."""
    from harness.commands.fetch import fetch_command

    fetch_command(model, source, includes)


@cli.group()
def data() -> None:
    """Prompt data."""


@data.command()
@click.option("--dest", type=click.Path(path_type=Path), default=None, help="Folder (default: the cache).")
@click.option("--base-url", default=None, help="Another place that serves the same files.")
def pull(dest: Path | None, base_url: str | None) -> None:
    """Download the paper's six prompt files from the reference repository, pinned and checked."""
    from tasks import paper_files as prompts_data

    kwargs: dict[str, Any] = {} if base_url is None else {"base_url": base_url}
    click.echo(prompts_data.pull(dest, **kwargs))


@cli.group()
def train() -> None:
    """Train drafters. All kinds of them learn from the same data, made once a work folder."""


def _train_command(kind: str, about: str) -> None:
    @train.command(kind, help=f"Train {about} for a model: prompts, answers, features, training; goes on where it was stopped.")
    @model_option
    @click.option(
        "--out", required=True, type=click.Path(path_type=Path), help="Folder for the weights, settings and learning curve."
    )
    @click.option(
        "--work", type=click.Path(path_type=Path), default=None, help="Folder for features and checkpoints (default: the cache)."
    )
    @click.option("--answer-tokens", type=int, default=200_000, show_default=True, help="On-policy tokens to generate.")
    @click.option("--text-tokens", type=int, default=190_000, show_default=True, help="Tokens of ShareGPT's own answers.")
    @click.option(
        "--tokens", type=int, default=5_000_000, show_default=True,
        help="Positions to train on, all epochs together; 0: only generate.",
    )  # fmt: skip
    @click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a training setting; repeatable.")
    @click.option("--seed", type=int, default=0, show_default=True)
    @click.option("--threads", type=int, default=None)
    def command(**options: Any) -> None:
        from harness.train.pipeline import train_drafter
        from harness.train.request import TrainRequest

        train_drafter(TrainRequest(kind, **options))


for _kind in KINDS.values():
    if _kind.train_command is not None:
        _train_command(_kind.train_command, _kind.train_makes)


def main() -> None:
    """Entry point of `harness`."""
    try:
        # not standalone: click would end a Ctrl-C with status 1
        sys.exit(cli.main(prog_name="harness", standalone_mode=False) or 0)
    except UserError as e:
        _fail(str(e), 2)
    except click.exceptions.NoArgsIsHelpError as e:  # `harness` alone: its message is the help
        e.show()
        sys.exit(e.exit_code)
    except click.UsageError as e:
        _fail(f"{e.format_message()} (`{e.ctx.command_path if e.ctx else 'harness'} -h` shows what there is)", e.exit_code)
    except click.ClickException as e:
        _fail(e.format_message(), e.exit_code)
    except OSError as e:  # a full disk, a folder that cannot be written: nothing a traceback would explain better
        _fail(f"{e.strerror or e}{f': {e.filename}' if e.filename else ''}", 2)
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("interrupted: the records written are whole; the same command goes on from here", err=True)
        sys.exit(130)


def _fail(message: str, code: int) -> NoReturn:
    """One line, whatever the message: scripts that run this look for a line that begins with `error:`."""
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
