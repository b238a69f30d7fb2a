"""`harness tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.commands.options import (
    PATH,
    dtype_option,
    examples,
    head_option,
    include_all,
    include_option,
    model_option,
    option,
    threads_option,
)


@click.command(
    "tune",
    epilog=examples(
        "harness tune --method eagle2 --conversations 9 --max-new-tokens 96",
        "harness tune --method all --temperature 0 --temperature 1",
    ),
)
@option(
    "--method", "methods", multiple=True, default=("eagle2",), metavar="NAME|all",
    help="Whose options to tune; repeatable; all = the exact ones that were not tuned here yet (default: eagle2).",
)  # fmt: skip
@model_option
@option("--temperature", "temperatures", type=float, multiple=True, default=(0.0,), help="Repeatable (default: 0).")
@option(
    "--conversations", type=int, default=20,
    help="Held-out training prompts: a quarter to rank on, a quarter to choose on, half to measure on.",
)  # fmt: skip
@option("--max-new-tokens", type=int, default=None, help="Length budget (default: the model's).")
@dtype_option
@threads_option
@head_option
@option("--costs", type=PATH, default=None, metavar="DIR|FILE", help="Tables of `harness costs` (default: it measures).")
@option("--save", type=PATH, default=None, help="Where to save it (default: the cache folder).")
@include_option
def command(includes: tuple[Path, ...], **options: Any) -> None:
    """Find the options that pay best on this machine, and save them as `--preset tuned`.

    Settings are ranked, the best five are raced on other conversations, and what a race on others again measures is saved.
    """
    from harness.load.config import model_config
    from harness.replay.tune import TuneRequest, tune

    request = TuneRequest(**options)
    include_all(includes)
    tune(model_config(request.model), request, click.echo)
