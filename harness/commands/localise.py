"""`harness localise`: which operator gives a row other bits when more rows are computed at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from harness.commands.options import (
    PATH,
    dtype_option,
    examples,
    include_all,
    include_option,
    model_option,
    option,
    threads_option,
)
from harness.common.bounds import bounded
from harness.common.errors import UserError
from harness.localise import ENGINES, ROW_INVARIANT
from harness.run.request import DTYPES, one_of

CHOICES = (*ENGINES, ROW_INVARIANT, "all")
PRINTED = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocaliseRequest:
    """What one `harness localise` asks for. rows: of a forward, ascending.

    Raises:
        UserError: a value that cannot be.
    """

    model: str
    rows: tuple[int, ...]
    engine: str
    dtype: str
    threads: int | None

    def __post_init__(self) -> None:
        for n in self.rows:
            bounded("--rows", n)
        one_of("engine", self.engine, CHOICES)
        one_of("dtype", self.dtype, DTYPES)
        bounded("--threads", self.threads)


def _rows(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and len(word) <= 12 for word in words):
        raise UserError(f"--rows is {text[:100]!r}; it must be whole numbers of at least 1, with commas between, such as 1,2,5")
    return tuple(sorted({int(word) for word in words}))


@click.command("localise", epilog=examples("harness localise", "harness localise --engine module --dtype float32 --rows 1,8,64"))
@model_option
@option("--rows", default="1,2,5,26,60", metavar="N,N,..", help="Rows of a forward.")
@option("--engine", default="all", metavar="|".join(CHOICES), help="Which forward is looked into; all: those this model has.")
@dtype_option
@threads_option
@option("--json", "json_to", type=PATH, is_flag=False, flag_value=PRINTED, default=None, metavar="[FILE]",
        help="Write the results as one JSON value to FILE; without FILE print it on the last line.")  # fmt: skip
@include_option
def command(
    model: str, rows: str, engine: str, dtype: str, threads: int | None, json_to: Path | None, includes: tuple[Path, ...]
) -> None:
    """Find the operator whose result for a row changes with the number of rows: which layer's, by how many ulp, with what end."""
    import json

    from harness.common.files import write_file
    from harness.forms.terminal import print_table
    from harness.localise.localise import localise

    request = LocaliseRequest(model=model, rows=_rows(rows), engine=engine, dtype=dtype, threads=threads)
    include_all(includes)
    found = localise(request.model, rows=request.rows, engine=request.engine, dtype=request.dtype, threads=request.threads)
    for i, one in enumerate(found.tables):
        click.echo() if i else None
        print_table(one)
    if json_to is not None:
        text = json.dumps(found.value)
        click.echo(text) if str(json_to) == PRINTED else write_file(json_to, text + "\n")
