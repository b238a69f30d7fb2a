"""`harness replay`: what any tree would accept, from vanilla's answers and one drafting pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.commands.options import (
    PATH,
    budget_option,
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
    source_option,
    threads_option,
)
from harness.common.bounds import bounded
from harness.common.errors import UserError


@click.command(
    "replay",
    epilog=examples(
        "harness replay --results results/mine --policy eagle2 --policy eagle2+total=25+depth=4",
        "harness replay --task all --limit 5 --temperature 1 --policy policies --out results/replays",
    ),
)
@option(
    "--policy", "policies", multiple=True, metavar="METHOD[+PRESET][+KEY=VALUE]...|policies|all",
    help="What to replay; repeatable.",
)  # fmt: skip
@option("--results", type=PATH, default=None, metavar="DIR", help="A ledger with vanilla's answers (default: made, in --out).")
@option("--model", default=None, metavar="NAME|YAML", help="Target model (default: the ledger's, else smollm2-135m).")
@option("--task", "tasks", multiple=True, default=("all",), metavar="NAME|all", help="Repeatable (default: all).")
@option("--temperature", "temperatures", type=float, multiple=True, help="Repeatable (default: the ledger's; 0 without one).")
@limit_option
@budget_option
@source_option
@prompts_option
@option(
    "--costs", multiple=True, metavar="NAME|FILE",
    help="Costs to weigh steps by: built-in, shipped, or a file of `harness costs`; repeatable.",
)  # fmt: skip
@option("--as-if", is_flag=True, help="Take the --costs of another target, as if they were of this one.")
@option("--choose", type=PATH, default=None, metavar="FILE", help="Instead: find policies' best options on held-out prompts.")
@option("--conversations", type=int, default=24, help="Held-out prompts that --choose takes.")
@option("--choices", type=PATH, default=None, metavar="FILE", help="Replay each policy at the options that --choose found.")
@dtype_option
@threads_option
@head_option
@option(
    "--drafter", default=None, metavar="eagle|eagle3", help="The EAGLE head that policies draft with (default: --head's kind)."
)
@option("--out", type=PATH, default=None, help="Where pools and replays go (default: beside the ledger).")
@json_option
@cluster_options
@include_option
def command(
    choose: Path | None, conversations: int, choices: Path | None, as_json: bool,
    includes: tuple[Path, ...], **options: Any,
) -> None:  # fmt: skip
    """Replay methods over known text: their trees, accept lengths and tau, without a forward of the target.

    A draft is accepted where it is the token that vanilla draws. So one drafting pass over vanilla's answers tells the steps
    of any tree, and a table of costs what they would take. With --choose, options are chosen on held-out prompts; with
    --choices, each policy is compared at its own with the best fixed tree.
    """
    bounded("--conversations", conversations)
    over = cluster_request(options, includes)
    if over is not None and choose is not None:
        raise UserError("--choose runs in one process: leave --ray out")
    include_all(includes)
    from harness.common.files_written import files_written
    from harness.forms.table import json_rows, write_forms
    from harness.forms.terminal import print_table
    from harness.ledger.ledger import read
    from harness.replay import choices as chosen
    from harness.replay.beside import beside, faults
    from harness.replay.session import ReplayRequest, choose_options, replay
    from harness.replay.spread import replay_over
    from harness.replay.tables import chosen_table, replay_table

    found_choices = tuple(chosen.read(choices)) if choices else ()
    request = ReplayRequest(choices=found_choices, **options)
    if choose is not None:
        if choices is not None:
            raise UserError("--choose makes choices, and --choices takes them: name one of both")
        click.echo(files_written([chosen.save(choose_options(request, conversations), choose)]), err=True)
        return
    found, prices = replay(request) if over is None else replay_over(request, over)
    live = {} if found_choices else beside(found, read(request.results or request.folder))
    table = chosen_table(found, found_choices, prices) if found_choices else replay_table(found, list(prices.values()), live)
    print_table(table)
    click.echo(files_written(write_forms(table, request.folder / "tables")), err=True)
    if as_json:
        click.echo(json_rows([table]))
    if wrong := faults(live):
        raise UserError(f"replays are not what was run, which is an error of the harness: {'; '.join(wrong)}")
