"""`harness run`: methods on tasks, measured where they are not measured yet, and the table of what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.options import (
    PATH,
    budget_option,
    changes_option,
    cluster_options,
    cluster_request,
    dtype_option,
    examples,
    head_option,
    include_all,
    include_option,
    json_option,
    limit_option,
    model_option,
    option,
    preset_option,
    prompts_option,
    repeats_option,
    row_invariant_option,
    seed_option,
    shard_option,
    source_option,
    threads_option,
    trees_option,
)
from harness.common.errors import UserError, say

if TYPE_CHECKING:
    from harness.cluster.request import ClusterRequest
    from harness.load.config import ModelConfig
    from harness.run.request import RunRequest


@click.command(
    "run",
    epilog=examples(
        "harness run --method eagle2 --task gsm8k --limit 5",
        "harness run --method all --task all --temperature 0 --temperature 1 --out results/mine",
    ),
)
@option("--method", "methods", multiple=True, required=True, metavar="NAME|all", help="Repeatable; all = the exact ones.")
@option("--task", "tasks", multiple=True, required=True, metavar="NAME|all", help="Repeatable; all = every task for the model.")
@model_option
@option("--temperature", "temperatures", type=float, multiple=True, default=(0.0,), help="Repeatable; 0 is greedy (default: 0).")
@option("--top-p", type=float, default=1.0, help="Keep the likeliest tokens of this mass, at a temperature over 0.")
@limit_option
@shard_option
@budget_option
@source_option
@prompts_option
@preset_option
@changes_option
@option("--beside", multiple=True, metavar="METHOD[+PRESET][+KEY=VALUE]...",
        help="Another setting of a method, timed along; repeatable.")  # fmt: skip
@dtype_option
@threads_option
@seed_option
@repeats_option
@option("--no-baseline", "baseline", is_flag=True, flag_value=False, default=True, help="Do not measure vanilla along.")
@trees_option
@option(
    "--on-overflow",
    type=click.Choice(["error", "skip"]),
    default="error",
    help="What a prompt too long for the model is; later turns are counted with answers of the whole budget.",
)
@head_option
@row_invariant_option
@option("--dry-run", is_flag=True, help="Print cells, time, memory and what is missing; measure nothing.")
@option("--out", type=PATH, default=Path("results/runs"), help="The ledger's folder.")
@json_option
@cluster_options
@include_option
def command(
    temperatures: tuple[float, ...], beside: tuple[str, ...], shard: str | None, dry_run: bool, as_json: bool,
    includes: tuple[Path, ...], **options: Any,
) -> int:  # fmt: skip
    """Measure methods on tasks, vanilla interleaved prompt by prompt, and print the table.

    Exit status 3: all is recorded, but an exact method's greedy output differs from vanilla's in float64.
    """
    from harness.load.config import model_config
    from harness.run.request import MoreTrees, RunRequest, Shard

    options["shard"] = Shard.parsed(shard) if shard is not None else Shard()
    over = cluster_request(options, includes)
    if dry_run and over is not None:
        raise UserError("--dry-run measures nothing: leave --ray out")
    options["beside"] = tuple(MoreTrees.parsed(text) for text in beside)
    given = [(t, 1.0 if t == 0 and any(temperatures) else options["top_p"]) for t in dict.fromkeys(temperatures)]
    if any(p != options["top_p"] for _, p in given):
        say(f"--top-p {options['top_p']:g} does not touch T = 0, which takes the likeliest token")
    requests = [RunRequest(temperature=t, **options | {"top_p": p}) for t, p in given]
    include_all(includes)
    config = model_config(requests[0].model)
    if dry_run:
        from harness.run.dry_run import dry_run_lines

        for request in requests:
            for line in dry_run_lines(config, request):
                click.echo(line)
        return 0
    return measure_and_show(config, requests, as_json, over)


def measure_and_show(config: ModelConfig, requests: list[RunRequest], as_json: bool, over: ClusterRequest | None) -> int:
    """-> the exit status: 3, after all is recorded, where an exact method is not lossless in float64.

    Raises:
        UserError: generations failed; they are recorded.
    """
    from harness.ledger.ledger import RECORDS
    from harness.metrics import cells
    from harness.run.lossless_now import tell_differences
    from harness.run.session import carry_out, tell_failures
    from harness.run.tuned import tell_predictions
    from harness.show.tables.run import print_run_table

    done = carry_out(config, requests, over)
    summaries = cells.summarise(done.records)
    print_run_table(summaries)
    for request in requests:
        tell_predictions(config, request, summaries)
    path = str(requests[0].out / RECORDS)
    say(f"records: {path}")
    if as_json:
        shown = {r["method"] for r in done.records if r["cell"] in done.asked}
        values = [s.to_json(path) for s in summaries if s.method in shown]
        click.echo(json.dumps(values[0] if len(values) == 1 else values))
    status = tell_differences(done.records, requests[0].model, requests[0].out)
    tell_failures(done.n_failed)
    return status
