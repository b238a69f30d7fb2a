"""`harness reproduce`: the paper's tables and figures, measured or listed."""

from __future__ import annotations

from typing import Any

import click

from harness.commands.options import checked, include_all
from harness.common.errors import UserError, say, unknown
from harness.paper.dry_run import dry_run
from harness.paper.figures_5_6 import draft_report
from harness.paper.plan import cell_options, paper_cells, records_of, run_rows
from harness.paper.tables_1_3 import report, to_json
from harness.run.session import MATRIX_DEFAULTS, tell_failures
from tasks.sources import SOURCES


def reproduce_command(**o: Any) -> None:
    """Items of the paper, all of them unless some are named: list their cells, or measure what is missing of them and print our
    numbers beside the paper's."""
    from harness.forms import table as tables
    from harness.paper import published

    if o["source"] not in (*SOURCES, "auto"):
        raise unknown("source", o["source"], (*SOURCES, "auto"))
    named = [published.item("table", n) for n in o["tables"]] + [published.item("figure", n) for n in o["figures"]]
    checked({**MATRIX_DEFAULTS, **{k: v for k, v in o.items() if v is not None}, "temperature": 0.0})
    include_all(o["includes"])
    wanted = {item: paper_cells(item, o["models"], is_named=bool(named)) for item in named or published.ITEMS}
    wanted = {item: found for item, found in wanted.items() if found}
    configs = {c.name: c for found in wanted.values() for c, _ in found}
    if o["dry_run"]:
        dry_run(wanted, o)
        return
    failed = 0
    left_out: list[str] = []
    for config in configs.values() if not o["no_run"] else ():
        own = [(item, cell) for item, found in wanted.items() for c, cells in found if c.name == config.name for cell in cells]
        drawn = {(cell.temperature, cell.task_here) for item, cell in own if item.needs_trees}
        try:
            failed += run_rows(config, cell_options(config, [cell for _, cell in own], o, drawn), o)
        except UserError as e:  # the others are measured all the same, and this one when it is there
            left_out.append(config.name)
            say(f"{config.name} is left out: {e}")
    written, mixed = _reproduced(wanted, o)
    folder = o["out"] or o["results"] / "tables"
    for table in written:
        click.echo(tables.plain(table))
        for file in tables.write_forms(table, folder):
            say(f"written: {file}")
        if table.name in ("figure1", "figure2"):
            from harness.paper import figures_1_2 as bars

            for file in bars.draw(table.numbers, folder / table.name):
                say(f"written: {file}")
    if o["as_json"]:
        click.echo(to_json(written))
    tell_failures(failed)
    if left_out:
        raise UserError(f"not measured: {', '.join(left_out)} (why stands above); the same command goes on from here")
    if mixed:
        raise UserError(f"not judged: {', '.join(mixed)} (why stands above)")


def _reproduced(wanted: Any, o: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """A table an item, from what the folder holds now; and the models whose records cannot be judged together.

    Raises:
        UserError: that is so of all models.
    """
    from harness.ledger.trees import has_trees, read_drafts
    from harness.metrics import acceptance
    from harness.paper import verdict as r

    recorded = records_of(o["results"])
    configs = {c.name: c for found in wanted.values() for c, _ in found}
    measurements, mixed = {}, []
    for name in configs:
        try:
            measurements[name] = r.Measurements(recorded, name, o["results"])
        except UserError as e:
            if len(configs) == 1:
                raise
            mixed.append(name)
            say(f"{name} is left out: {e}")
    if not measurements:
        raise UserError(f"not judged: {', '.join(mixed)} (why stands above)")
    wanted = {item: own for item, found in wanted.items() if (own := [x for x in found if x[0].name in measurements])}
    targets = {
        name: r.reported_model(name, configs[name].paper, configs[name].max_new_tokens, m.records, m.facts())
        for name, m in measurements.items()
    }
    drafts = read_drafts(o["results"]) if any(item.needs_trees for item in wanted) and has_trees(o["results"]) else {}
    made = []
    for item, found in wanted.items():
        if item.needs_trees:
            rows = [(targets[c.name], acceptance.acceptance_table(measurements[c.name].of(own), drafts)) for c, own in found]
            made.append(draft_report(item, rows))
            continue
        judged = []
        for c, cells in found:
            ours = measurements[c.name]
            judged += [r.judge(x, targets[c.name], ours(x.method_here or x.method, x.task_here, x.temperature)) for x in cells]
        made.append(report(item, judged))
    return made, mixed
