"""`harness matrix`: a whole tier in one process."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import click

from harness.commands.options import (
    DTYPES,
    PATH,
    changes_option,
    cluster_options,
    cluster_request,
    examples,
    head_option,
    include_all,
    include_option,
    model_option,
    option,
    prompts_option,
    row_invariant_option,
    shard_option,
    threads_option,
    trees_option,
)
from harness.run.request import RunRequest, Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixRequest:
    """A tier with changes to each of its runs; None leaves the tier's own value."""

    model: str
    out: Path
    limit: int | None
    max_new_tokens: int | None
    source: str | None
    prompts_dir: Path | None
    dtype: str | None
    threads: int | None
    preset: str | None
    changes: tuple[str, ...] | None
    seed: int | None
    repeats: int | None
    head: Path | None
    trees: bool | None
    shard: Shard | None

    def applied_to(self, request: RunRequest) -> RunRequest:
        """One of the tier's runs, changed."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(request, **{name: value for name, value in given.items() if value is not None})


@click.command(
    "matrix",
    epilog=examples(
        "harness matrix --tier quick --out results/quick",
        "harness matrix --tier claims --trees --max-new-tokens 64 --out results/claims",
    ),
)
@option("--tier", default="default", metavar="quick|default|claims|full", help="What ./run_all.sh runs.")
@model_option
@option("--limit", type=int, default=None, help="Prompts a task (default: the tier's).")
@shard_option
@option("--max-new-tokens", type=int, default=None, help="Length budget (default: the tier's, else the model's).")
@option("--source", default=None, metavar="paper|hub|pypi|bundled|auto", help="Where prompts come from (default: auto).")
@prompts_option
@option("--dtype", default=None, metavar=DTYPES, help="Dtype of the weights (default: auto).")
@threads_option
@option("--preset", default=None, help="A named set of the methods' options (default: paper).")
@changes_option
@option("--seed", type=int, default=None, help="Seed of sampling and of the methods' order (default: 0).")
@option("--repeats", type=int, default=None, help="Generations of each prompt (default: 1).")
@head_option
@row_invariant_option
@trees_option
@option("--out", type=PATH, required=True, help="The ledger's folder.")
@cluster_options
@include_option
def command(tier: str, shard: str | None, includes: tuple[Path, ...], **options: Any) -> None:
    """Measure a whole tier: methods x tasks x temperatures, in one process, resumable."""
    from harness.load.config import model_config
    from harness.metrics import cells
    from harness.run.session import carry_out, tell_failures
    from harness.run.tiers import requests_of
    from harness.run.tuned import tell_predictions

    over = cluster_request(options, includes)
    include_all(includes)
    asked = MatrixRequest(shard=Shard.parsed(shard) if shard is not None else None, **options)
    requests = [asked.applied_to(request) for request in requests_of(tier)]
    config = model_config(asked.model)
    done = carry_out(config, requests, over)
    summaries = cells.summarise(done.records)
    for request in {request.temperature: request for request in requests}.values():
        tell_predictions(config, request, summaries)
    tell_failures(done.n_failed)
