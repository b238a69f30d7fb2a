"""`harness replay`: what any tree would accept, from vanilla's answers and one drafting pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.commands.options import (
    PATH,
    budget_option,
    dtype_option,
    examples,
    head_option,
    include_all,
    include_option,
    json_option,
    limit_option,
    option,
    prompts_option,
    source_option,
    threads_option,
)


@click.command(
    "replay",
    epilog=examples(
        "harness replay --results results/mine --policy eagle2 --policy eagle2+total=25+depth=4",
        "harness replay --task all --limit 5 --temperature 1 --policy policies --out results/replays",
    ),
)
@option("--policy", "policies", multiple=True, required=True, metavar="METHOD[+PRESET][+KEY=VALUE]...|policies|all",
        help="What to replay; repeatable.")  # fmt: skip
@option(
    "--results",
    type=PATH,
    default=None,
    metavar="DIR",
    help="A ledger with vanilla's answers (default: they are made, in --out).",
)
@option("--model", default=None, metavar="NAME|YAML", help="Target model (default: the ledger's, else smollm2-135m).")
@option("--task", "tasks", multiple=True, default=("all",), metavar="NAME|all", help="Repeatable (default: all).")
@option("--temperature", "temperatures", type=float, multiple=True, help="Repeatable (default: the ledger's; 0 where none is).")
@limit_option
@budget_option
@source_option
@prompts_option
@option(
    "--costs", "costs", type=PATH, multiple=True, metavar="DIR|FILE", help="Tables of `harness costs`, for speeds; repeatable."
)
@dtype_option
@threads_option
@head_option
@option("--out", type=PATH, default=None, help="Where pools and replays go (default: beside the ledger).")
@json_option
@include_option
def command(costs: tuple[Path, ...], as_json: bool, includes: tuple[Path, ...], **options: Any) -> None:
    """Replay methods over known text: their trees, accept lengths and tau, without a forward of the target.

    A draft is accepted where it is the token that vanilla draws. So one drafting pass over vanilla's answers tells the steps of any
    tree, and a table of costs what they would take.
    """
    from harness.common.files_written import files_written
    from harness.costs.table import read_all
    from harness.forms.table import json_rows, write_forms
    from harness.forms.terminal import print_table
    from harness.replay.price import Prices
    from harness.replay.session import ReplayRequest, replay
    from harness.replay.tables import replay_table

    request = ReplayRequest(**options)
    include_all(includes)
    prices = [Prices(table) for where in costs for table in read_all(where) if table.has_head]
    found = replay(request)
    table = replay_table(found, prices)
    print_table(table)
    click.echo(files_written(write_forms(table, request.folder / "tables")), err=True)
    if as_json:
        click.echo(json_rows([table]))
