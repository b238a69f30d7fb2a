"""Whose forward measured records, in a table's footnote: the engine of our loops, and others' loops beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import methods
from harness.common.names import SERVER_PLAIN, method_order
from harness.ledger.record import Record
from harness.metrics.cells import CellSummary
from harness.metrics.pairing import engine_of, is_row_invariant

BESIDE = " ‡"
"""After the name of another's loop, where the other rows are of a row-invariant engine."""
SERVED = " ‖"
"""After the name of an engine elsewhere."""
LOSSY = "lossy"
LOSSY_NOTE = (
    "lossy: on a row-invariant engine every row has plain decoding's bits. So an exact method's output at T = 0 that is not "
    "vanilla's is an error of the method or of the engine; it is no rounding."
)


def served_note(ran: Iterable[tuple[str, str]]) -> list[str]:
    """What the mark of engines elsewhere means, with their names; none where there are none. ran: (method, engine) each."""
    engines = sorted({engine or "an engine that is not known" for method, engine in ran if methods.is_served(method)})
    if not engines:
        return []
    return [f"‖ external: an engine elsewhere ({'; '.join(engines)}), its own weights, kernels and drafter, timed by its stream. "
            f"Where a table says vanilla, its baseline is {SERVER_PLAIN}: the same engine with speculation off. τ is by the "
            "engine's own counters. The machine named is the one that asked."]  # fmt: skip


class Ran(NamedTuple):
    """What ran where. `engine`: whose forward, in words; empty where that is not known."""

    method: str
    dtype: str
    engine: str
    is_row_invariant: bool


def of_cells(summaries: Iterable[CellSummary]) -> list[Ran]:
    return [Ran(s.method, s.dtype, s.engine, s.is_row_invariant) for s in summaries]


def of_records(records: Iterable[Record]) -> list[Ran]:
    return [Ran(r["method"], r["dtype"], engine_of(r), is_row_invariant(r)) for r in records if not r["is_warmup"]]


def engine_notes(ran: Iterable[Ran]) -> tuple[str, ...]:
    """The footnotes: one on the engine of our loops, one on others' loops beside it. None where no engine is known."""
    known = {one for one in ran if one.engine and not methods.is_served(one.method)}
    dtypes: dict[tuple[str, bool], set[str]] = {}
    for one in known:
        dtypes.setdefault((one.engine, one.is_row_invariant), set()).add(one.dtype)
    if not dtypes:
        return ()
    named = (
        f"{engine} ({', '.join(sorted(names))}{', row-invariant' if is_row_invariant else ''})"
        for (engine, is_row_invariant), names in sorted(dtypes.items())
    )
    notes = [f"Engine of our loops: {'; '.join(named)}."]
    beside = {one for one in known if methods.is_external(one.method) and not one.engine.startswith("transformers ")}
    if beside:
        mark = f"{BESIDE.strip()} " if any(one.is_row_invariant for one in beside) else ""
        names = ", ".join(sorted({one.method for one in beside}, key=method_order))
        notes.append(f"{mark}{names}: others' loops, on transformers' own module and not on this engine.")
    return tuple(notes)
