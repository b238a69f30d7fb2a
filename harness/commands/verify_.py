"""`harness verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.commands.options import examples, head_option, include_all, include_option, model_option, prompts_option
from harness.common.errors import UserError
from harness.common.machine import usable_cores


@click.command("verify", epilog=examples("harness verify --method eagle2", "harness verify --method mine --include my_method.py"))
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
def command(includes: tuple[Path, ...], threads: int | None, **options: Any) -> None:
    """Audit losslessness in layers: exact law, logit replay, greedy equality, sampling statistics; or plant faults."""
    from harness.audit.faults.bench import mutants
    from harness.commands.verify import verify as audit
    from harness.common.errors import unknown
    from harness.run.request import DTYPES

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
