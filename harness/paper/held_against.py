"""The cost model held against a ledger: decode speedups predicted from its tau, its trees and costs, beside the measured ones.

Of a method nothing is taken but what its records count: tokens, and the nodes of each tree. All seconds come from a table of
costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import methods
from harness.common.names import SIX_TASKS, method_order
from harness.costs.price import Prices, near
from harness.costs.step import StepWork
from harness.costs.table import CostTable
from harness.costs.work import work_of
from harness.ledger.record import Record, canonical_hash
from harness.metrics.definitions import totals

WITHIN = 0.05


@dataclass(frozen=True, slots=True)
class Held:
    """A method's decode speedup over the tasks of a ledger, measured and predicted, and each cost of a step in plain steps.

    `why`: what it was not predicted for. `verify`, `draft`, `other`: (measured, predicted).
    """

    method: str
    preset: str
    temperature: float
    tau: float
    measured: float
    predicted: float | None = None
    verify: tuple[float, float] | None = None
    draft: tuple[float, float] | None = None
    other: tuple[float, float] | None = None
    why: str = ""

    @property
    def error(self) -> float | None:
        """Of what was measured; + where the model says more."""
        return None if self.predicted is None else self.predicted / self.measured - 1

    @property
    def most_off(self) -> str:
        """The cost that is furthest off, in plain steps."""
        parts = {name: p[1] - p[0] for name in ("verify", "draft", "other") if (p := getattr(self, name)) is not None}
        if not parts:
            return ""
        name = max(parts, key=lambda n: abs(parts[n]))
        return f"c_{name} {parts[name]:+.2f}"


@dataclass(slots=True)
class _Sums:
    """Seconds and counts of a cell's steps, as a ledger's tables count them; `predicted`: milliseconds by the table, of each
    part."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    target: float = 0.0
    drafter: float = 0.0
    predicted: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, record: Record, prices: Prices, work: StepWork | None) -> None:
        trace: Any = record["trace"]
        _, _, decode_tokens, decode_seconds, _, forwards = totals(record)
        self.steps += int(forwards)
        self.tokens += int(decode_tokens)
        self.seconds += decode_seconds
        self.target += sum(trace["target_s"])
        self.drafter += sum(trace["drafter_s"])
        if work is None:
            return
        context = record["n_prompt"]
        for nodes, accepted in zip(trace["tree_size"], trace["accepted"], strict=True):
            for part, ms in zip(("verify", "draft", "other"), prices.step(work, nodes, accepted + 1, near(context)), strict=True):
                self.predicted[part] += ms
            context += accepted + 1


def against(tables: Sequence[CostTable], records: Iterable[Record]) -> list[Held]:
    """Every cell of a ledger whose records have traces, vanilla's own among them, in the order of tables.

    Tasks are pooled; each method's plain steps are vanilla's on the same prompts. tables: of one target on one machine, which
    differ in how many frequent tokens the head's logits are over.
    """
    prices = {table.frequent: Prices(table) for table in tables}
    cells: dict[tuple[float, str, str], dict[tuple[str, str, int, int], Record]] = defaultdict(dict)
    for r in records:
        if r["status"] == "ok" and not r["is_warmup"] and r["trace"] and r["trace"]["accepted"] and r["task"] in SIX_TASKS:
            cells[r["temperature"], r["method"], r["preset"]][r["task"], r["sample_id"], r["turn"], r["repeat"]] = r
    found = []
    for temperature, name, preset in sorted(cells, key=lambda cell: (cell[0], method_order(cell[1]), cell[2])):
        own = cells[temperature, name, preset]
        plain = cells.get((temperature, "vanilla", "paper"), {})
        both = own.keys() & plain.keys()
        if not both:
            continue
        several = {canonical_hash(r["options"]) for r in own.values()}
        options = next(iter(own.values()))["options"]
        work, why = _work(name, options, temperature) if len(several) == 1 else (None, "records of several options")
        own_prices = prices.get(None) or next(iter(prices.values()))
        if work and work.depth:
            over = (options or {}).get("frequent")
            fit = [p for p in prices.values() if p.table.has(work.drafter)
                   and (work.drafter != methods.EAGLE or p.table.frequent == over)]  # fmt: skip
            own_prices = fit[0] if fit else own_prices
            if not fit:
                which = methods.DRAFTERS[work.drafter] + (f" over {over:,} frequent tokens" if over else "")
                work, why = None, f"no {which} was measured"
        base, cell = _Sums(), _Sums()
        for key in both:
            base.add(plain[key], own_prices, StepWork(1, is_plain=True))
            cell.add(own[key], own_prices, work)
        found.append(_held(name, preset, temperature, base, cell, why))
    return found


def _held(name: str, preset: str, temperature: float, base: _Sums, cell: _Sums, why: str) -> Held:
    plain_s, plain_ms = base.seconds / base.tokens, sum(base.predicted.values()) / base.steps
    tau = cell.tokens / cell.steps
    measured = tau * plain_s / (cell.seconds / cell.steps)
    if why:
        return Held(name, preset, temperature, tau, measured, why=why)
    took = {"verify": cell.target, "draft": cell.drafter, "other": cell.seconds - cell.target - cell.drafter}
    verify, draft, other = (
        (s / cell.steps / plain_s, cell.predicted[part] / cell.steps / plain_ms) for part, s in took.items()
    )  # fmt: skip
    predicted = tau * plain_ms / (sum(cell.predicted.values()) / cell.steps)
    return Held(name, preset, temperature, tau, measured, predicted, verify, draft, other)


def _work(name: str, options: Any, temperature: float) -> tuple[StepWork | None, str]:
    m = next((m for m in methods.registered() if m.name == name), None)
    if m is None:
        return None, "a method that is not registered here"
    if m.drafter is None and not m.external:
        return StepWork(1, is_plain=name == "vanilla"), ""  # its rows stand in the records
    found = work_of(m, {**m.options, **dict(options or {})}, temperature)
    why = "how often it drafts depends on the text or on what its heads say of themselves, or its options' costs are not here"
    return found, "" if found else why
