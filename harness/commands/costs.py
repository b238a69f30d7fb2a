"""`harness costs`: what the parts of a step cost on this machine, for a model that is here or for any of its sizes."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import (
    PATH,
    dtype_option,
    examples,
    include_all,
    include_option,
    json_option,
    model_option,
    option,
    threads_option,
)
from harness.common.bounds import bounded
from harness.common.errors import UserError
from harness.run.request import DTYPES, RunRequest, one_of

OTHER_DRAFTERS = ("lm", "medusa", "hydra")
LEAST_CONTEXT = 8  # tokens, as many as a step may accept


@click.command(
    "costs", epilog=examples("harness costs", "harness costs --model vicuna-7b --random-weights --layers 4 --context 512")
)
@model_option
@option("--random-weights", is_flag=True, help="Take random weights of the model's sizes: nothing is fetched.")
@option("--layers", type=int, default=None, help="Of random weights: layers to make (default: as many as fit).")
@option("--context", "contexts", type=int, multiple=True, help="Tokens; repeatable (128, 512, 1024).")
@option("--frequent", type=int, default=None, help="The draft head's logits over so many frequent tokens only.")
@option("--drafter", "drafters", multiple=True, metavar="lm|medusa|hydra|none",
        help="Of the drafters beside the EAGLE head only this one; repeatable (default: all).")  # fmt: skip
@option("--temperature", type=float, default=0.0, help="Of the whole decodes that tell what is outside both models.")
@option("--rounds", type=int, default=9, help="Rounds of measuring.")
@dtype_option
@threads_option
@option("--out", type=PATH, default=Path("results/costs"), help="Where the table goes: a folder a machine, a file a model.")
@json_option
@include_option
def command(
    model: str, random_weights: bool, layers: int | None, contexts: tuple[int, ...], frequent: int | None,
    drafters: tuple[str, ...], temperature: float, rounds: int, dtype: str, threads: int | None, out: Path, as_json: bool,
    includes: tuple[Path, ...],
) -> None:  # fmt: skip
    """Measure what a step's parts cost here: the target by rows, the draft head by level, the prefill, and all else.

    With --random-weights no weights are needed: the exact sizes are built, layers are cut to what fits, and the rest is scaled.
    `harness predict` reads the result.
    """
    for name, value in (("--layers", layers), ("--frequent", frequent), ("--rounds", rounds), ("--threads", threads)):
        bounded(name, value)
    for context in contexts:
        bounded("--context", context, least=LEAST_CONTEXT)
    RunRequest(temperature=temperature)  # checks
    for kind in drafters:
        one_of("drafter", kind, (*OTHER_DRAFTERS, "none"))
    one_of("dtype", dtype, DTYPES)
    if layers is not None and not random_weights:
        raise UserError("--layers is of random weights, which --random-weights asks for")
    include_all(includes)
    from harness.common.files import write_file
    from harness.common.files_written import files_written
    from harness.costs.printed import costs_table
    from harness.costs.session import Wanted, file_of, measured, text_of
    from harness.forms.table import json_rows
    from harness.forms.terminal import print_table
    from harness.load.config import model_config

    said = ["harness costs", f"--model {model}", *(["--random-weights"] if random_weights else [])]
    given = {"layers": layers, "frequent": frequent, "threads": threads}
    said += [f"--{name} {value}" for name, value in given.items() if value is not None]
    said += [f"--drafter {kind}" for kind in drafters]
    said += [f"--temperature {temperature:g}"] if temperature else []
    said += [*(f"--context {c}" for c in contexts), f"--dtype {dtype}", f"--rounds {rounds}"]
    wanted = Wanted(random_weights, layers, contexts, dtype, threads, frequent, rounds, " ".join(said), temperature,
                    drafters=drafters or None)  # fmt: skip
    table = measured(model_config(model), wanted)
    shown = costs_table(table)
    print_table(shown)
    click.echo(files_written([write_file(file_of(table, out), text_of(table))]), err=True)
    if as_json:
        click.echo(json_rows([shown]))
