"""`harness verify`: audits methods, or plants faults, and prints what came of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.options import (
    PATH,
    changes_option,
    cluster_options,
    cluster_request,
    examples,
    head_option,
    include_all,
    include_option,
    model_option,
    prompts_option,
    row_invariant_option,
)
from harness.common.errors import UserError
from harness.common.files_written import files_written
from harness.common.names import SERVER

if TYPE_CHECKING:
    from harness.audit.audit import Report
    from harness.audit.request import AuditRequest, FaultsRequest
    from harness.cluster.request import ClusterRequest


@click.command("verify", epilog=examples("harness verify --method eagle2", "harness verify --method mine --include my_method.py"))
@model_option
@click.option(
    "--method", "names", multiple=True, default=("all",), metavar="NAME|all",
    help="Repeatable (default: all, inexact ones and other loops too).",
)  # fmt: skip
@click.option("--level", default="quick", show_default=True, metavar="quick|full", help="How much is checked.")
@click.option(
    "--dtype", "dtypes", multiple=True, metavar="float64|float32|bfloat16|float16", help="Repeatable (default: the level's)."
)
@click.option(
    "--results", multiple=True, type=PATH, metavar="DIR",
    help="A ledger; its differences from plain decoding are explained too. Repeatable.",
)  # fmt: skip
@prompts_option
@changes_option
@head_option
@row_invariant_option
@click.option("--threads", type=int, default=None, help="CPU threads (default: the cores this process may use).")
@click.option("--out", type=PATH, default=Path("results/audit"), show_default=True, help="Where findings go.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as one JSON value on the last line.")
@click.option("--record", is_flag=True, help="Keep each method's tau beside the head; later audits compare with it.")
@click.option("--mutants", "plant", is_flag=True, help="Instead, plant known faults and see which layer notices each.")
@cluster_options
@include_option
def command(
    model: str, names: tuple[str, ...], level: str, dtypes: tuple[str, ...], results: tuple[Path, ...],
    prompts_dir: Path | None, changes: tuple[str, ...], head: Path | None, threads: int | None, out: Path, as_json: bool,
    record: bool, plant: bool, includes: tuple[Path, ...], **cluster: Any,
) -> int:  # fmt: skip
    """Audit whether methods leave the output's distribution as it is, in layers: exact laws, logits, greedy ids, statistics.

    Of `server`, an engine elsewhere, layers 3 and 4: of records (--results), or of an engine that is asked (--set url=URL
    --set baseline_url=URL).
    """
    import methods
    from harness.audit.request import AuditRequest, FaultsRequest

    over = cluster_request(cluster, includes)
    include_all(includes)
    request = AuditRequest(
        model=model, methods=names, level=level, dtypes=dtypes, ledgers=results, prompts_dir=prompts_dir, out=out, head=head,
        threads=threads, record=record, includes=includes,
    )  # fmt: skip
    served = [name for name in names if name not in ("all", *methods.GROUPS) and methods.get(name).served]
    if served and not plant:
        _check_served(names, dtypes, record)
        if over is not None:
            raise UserError("an engine over HTTP is one machine: leave --ray out")
        return _audit_served(request, changes, as_json)
    if changes:
        raise UserError(f"--set {changes[0]} is for --method {SERVER}: other methods are audited at the options that tables show")
    if not plant:
        return _audit(request, as_json, over)
    if over is not None:
        raise UserError("--mutants plants its faults in one process: leave --ray out")
    if names != ("all",) or dtypes or results or record:
        raise UserError("--mutants plants its own methods in float32: no --method, --dtype, --results or --record with it")
    return _plant(FaultsRequest(model=model, level=level, out=out, head=head, threads=threads), as_json)


def _audit(request: AuditRequest, as_json: bool, over: ClusterRequest | None) -> int:
    """Print the verdicts; tables and figures lie beside the findings. -> the exit status, 0: there is no other way to it.

    Raises:
        UserError: bad input, or a method did not pass (after everything was checked and printed).
    """
    from harness.audit import page
    from harness.audit.audit import audit, audit_over

    report = audit(request) if over is None else audit_over(request, over)
    return _told(report, page.plain(report.rows, report.title, report.level), as_json)


def _told(report: Report, table: str, as_json: bool) -> int:
    """Print what an audit came to.

    Raises:
        UserError: it does not hold.
    """
    click.echo(table)
    click.echo(files_written(report.written))
    if as_json:
        click.echo(json.dumps([asdict(v) for v in report.rows]))
    if report.problems:
        raise UserError("; ".join(report.problems))
    return 0


def _check_served(names: tuple[str, ...], dtypes: tuple[str, ...], record: bool) -> None:
    """
    Raises:
        UserError: what is asked for along with an engine elsewhere does not go with one.
    """
    if names != (SERVER,):
        raise UserError(f"{', '.join(names)}: --method {SERVER} is judged beside its own baseline, by a command of its own")
    if dtypes or record:
        option = "--dtype" if dtypes else "--record"
        raise UserError(f"{option} is for methods that run here; --method {SERVER} is an engine elsewhere")


def _audit_served(request: AuditRequest, changes: tuple[str, ...], as_json: bool) -> int:
    """The same of an engine elsewhere: asked first, where it is named; then judged by its records.

    Raises:
        UserError: bad input, an engine that does not answer, or a layer that does not hold.
    """
    from harness.audit.served import audit_served, shown
    from harness.ledger.ledger import has_records
    from harness.load.config import model_config
    from harness.run.engines import audit_requests
    from harness.run.session import carry_out, tell_failures

    if not changes and not request.ledgers:
        either = "--set url=URL --set baseline_url=URL, or --results DIR"
        raise UserError(f"--method {SERVER} needs an engine or its records: {either}")
    if changes and request.ledgers:
        raise UserError(f"--results judges records, and --set {changes[0]} asks an engine: one of the two")
    if changes:
        ledger = next(
            f for n in count(1) if not has_records(f := request.out / f"served-{n}")
        )  # what was asked before is not now
        asked = audit_requests(request.level, request.model, changes, ledger)
        tell_failures(carry_out(model_config(request.model), asked).n_failed)
        request = replace(request, ledgers=(ledger,))
    report = audit_served(request)
    return _told(report, shown(report), as_json)


def _plant(request: FaultsRequest, as_json: bool) -> int:
    """Print which layers noticed each fault.

    Raises:
        UserError: bad input, a fault that was not noticed, or an equivalent change that was flagged.
    """
    from harness.audit.faults.bench import plant
    from harness.forms.table import plain

    planted = plant(request)
    click.echo(plain(planted.table))
    click.echo(planted.score)
    if as_json:
        click.echo(json.dumps([asdict(o) for o in planted.outcomes]))
    if planted.survived:
        raise UserError(f"survived or wrongly flagged: {'; '.join(planted.survived)}")
    return 0
