"""What a run says at its end of greedy outputs that are not vanilla's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

import methods
from harness.common.errors import say
from harness.common.hints import hinted
from harness.common.names import SERVER, SERVER_PLAIN, VANILLA, method_order
from harness.ledger.record import Record
from harness.metrics.divergences import divergences
from harness.metrics.pairing import is_row_invariant, measured

DIFFERS = 3
"""Exit status of `harness run` where an exact method's greedy output in float64, or on a row-invariant engine, differs."""

USUAL = "near ties do that to about half of all outputs (883 of 1,680 of 64 tokens in bfloat16 in results/smollm2-135m-claims)"


def tell_differences(records: Sequence[Record], model: str, out: Path) -> int:
    """Say which exact methods' greedy outputs differ from vanilla's and which command tells why; -> the exit status.

    In float64 rounding is no excuse, nor is it on a row-invariant engine. Elsewhere a near tie may be one in float32, and in 16
    bits it usually is. Other people's loops are left out: they draw with code of their own. Of an engine elsewhere it is said,
    too: its baseline is itself without speculation.
    """
    _tell_served(records, model, out)
    mine = [r for r in measured(records) if r["temperature"] == 0 and r["exact"] and not methods.is_external(r["method"])]
    status = 0
    for dtype, has_bits in dict.fromkeys((r["dtype"], is_row_invariant(r)) for r in mine):
        here = [r for r in mine if (r["dtype"], is_row_invariant(r)) == (dtype, has_bits)]
        names = sorted({d.method for d in divergences(here)}, key=method_order)
        n, n_outputs = len(divergences(here)), sum(r["method"] != VANILLA for r in here)
        if not names:
            continue
        differs = f"{n} of {n_outputs} greedy outputs in {dtype} differ from vanilla's ({', '.join(names)})"
        why = f"{hinted('verify', '--model', model, '--results', out)} tells why"
        if dtype == "float64" or has_bits:
            cause = "; the method or the engine is at fault: rows of this engine have plain decoding's bits" if has_bits else ""
            click.secho(f"NOT LOSSLESS: {differs}{cause}; {why}", fg="red", err=True)
            status = DIFFERS
        elif dtype == "float32":
            click.secho(f"warning: {differs}; only near ties may; {why}", fg="red", err=True)
        else:
            say(f"{differs}; {USUAL}; {why}")
    return status


def _tell_served(records: Sequence[Record], model: str, out: Path) -> None:
    """Say how many greedy outputs of an engine elsewhere are not the plain engine's, and which command tells why."""
    mine = [r for r in measured(records) if r["temperature"] == 0 and methods.is_served(r["method"])]
    n, n_outputs = len(divergences(mine)), sum(r["method"] == SERVER for r in mine)
    if n:
        why = hinted("verify", "--model", model, "--method", SERVER, "--results", out)
        say(f"{n} of {n_outputs} greedy outputs of {SERVER} differ from {SERVER_PLAIN}'s; {why} tells why")
