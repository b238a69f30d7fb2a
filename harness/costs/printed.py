"""A table of costs as it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

import methods
from harness.costs.table import AtContext, CostTable, Figure
from harness.forms.table import NOTHING, Section, Table, one_line

_NOTE = one_line("""
    Milliseconds: medians of rounds that take everything in turn, with 95% intervals. In brackets what is in steps of plain
    decoding. A level is a forward of the draft head over so many nodes, with their best children. Observed: the head's run over
    accepted tokens.""")


def costs_table(table: CostTable) -> Table:
    """Costs by rows, a section a context, with all numbers."""
    sections = tuple(_section(table, c) for c in table.contexts)
    rows = [row for c in table.contexts for row in _numbers(c)]
    return Table("costs", sections, (_NOTE, *_notes(table)), pd.DataFrame(rows))


def _section(table: CostTable, c: AtContext) -> Section:
    rows = sorted({*c.verify, *(c.level or {}), *(c.observe or {})})
    shown = pd.DataFrame([
        {"rows": str(n), "target": _cell(c.verify.get(n), c.plain), "a level": _cell((c.level or {}).get(n), c.plain),
         "observed": _cell((c.observe or {}).get(n), c.plain)} for n in rows
    ])  # fmt: skip
    facts = [f"a plain step: {_ms(c.plain)} ms; the prefill: {c.prefill.ms:.0f} ms, {c.prefill.ms / c.tokens:.2f} ms a token"]
    if c.root is not None and c.head_prefill is not None:
        facts.append(f"the draft head's logits after the root: {_ms(c.root)} ms; its prefill: {c.head_prefill.ms:.0f} ms")
    for kind, d in c.drafters.items():
        levels = [min(level) for level in d.levels]
        level, observed = d.levels[0][levels[0]], d.observe[min(d.observe)]
        facts.append(f"{methods.DRAFTERS[kind]}: after the root {_ms(d.root)} ms, a level of {_rows(levels[0])} {_ms(level)}, "
                     f"observed {_ms(observed)}; its prefill: {d.prefill.ms:.0f} ms")  # fmt: skip
    return Section(f"{table.model}, {table.machine.label}, a context of {c.tokens:,} tokens", tuple(facts), shown)


def _notes(table: CostTable) -> Sequence[str]:
    o = table.outside
    found = [
        f"Outside both models: {o.plain:.3g} ms of a plain step; of a step with a tree {o.step:.3g} ms, {o.level:.3g} a level, "
        f"{o.row:.3g} a row of logits, {o.node:.3g} a node, {o.token:.3g} a token."
    ]
    if table.random_weights:
        found.append("The weights are random: costs do not depend on them, tau would.")
    if table.is_scaled:
        found.append(
            f"{table.layers_measured} of {table.layers} layers were measured, all and half of them. What "
            f"the other half adds is taken for what as many more would add."
        )
    if table.frequent:
        found.append(f"The draft head's logits are over {table.frequent:,} frequent tokens.")
    return found


def _rows(n: int) -> str:
    return f"{n} node" if n == 1 else f"{n} nodes"


def _ms(f: Figure) -> str:
    return f"{f.ms:.3g} [{f.low:.3g}, {f.high:.3g}]"


def _cell(f: Figure | None, plain: Figure) -> str:
    return NOTHING if f is None else f"{_ms(f)} ({f.ms / plain.ms:.2f})"


def _numbers(c: AtContext) -> list[dict[str, Any]]:
    whole: list[tuple[str, int, Figure | None]] = [
        ("plain", 1, c.plain), ("prefill", c.tokens, c.prefill), ("root", 1, c.root), ("head_prefill", c.tokens, c.head_prefill)
    ]  # fmt: skip
    parts = [("verify", c.verify), ("level", c.level or {}), ("observe", c.observe or {})]
    for kind, d in c.drafters.items():
        whole += [(f"{kind} root", 1, d.root), (f"{kind} prefill", c.tokens, d.prefill)]
        parts += [(f"{kind} level {i}", level) for i, level in enumerate(d.levels, start=1)]
        parts.append((f"{kind} observe", d.observe))
    whole += [(part, n, f) for part, figures in parts for n, f in figures.items()]
    return [
        {"context": c.tokens, "part": part, "rows": n, "ms": f.ms, "ms_low": f.low, "ms_high": f.high,
         "plain_steps": f.ms / c.plain.ms} for part, n, f in whole if f is not None
    ]  # fmt: skip
