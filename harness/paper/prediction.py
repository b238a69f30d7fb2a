"""What the paper's tau would give on a machine whose costs were measured: a speedup for each cell of its tables.

    decode speedup = tau / (c_verify + c_draft + c_other)

The costs are of one step, in steps of plain decoding (EAGLE-2, arXiv 2406.16858, reports tau and speedup, not costs). tau is
of the target and the text and hardly of the machine; costs are of the machine alone. So a published speedup is consistent with
a machine where its tau and the machine's costs give it. Where they do not, the paper's machine had another cost of a step,
which tau over speedup tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import methods
from harness.common.errors import UserError
from harness.costs.price import Range, StepCosts, step_costs
from harness.costs.step import StepWork
from harness.costs.table import CostTable
from harness.costs.work import work_of
from harness.load.config import ModelConfig, model_config, paper_models
from harness.paper.published import ITEMS, Item, PaperCell, cells, numbers

ANSWER = 256  # tokens
# Mean tokens of the paper's prompts, template included, by SmolLM2's tokenizer: results/smollm2-135m-claims, the first 40 of each
# task; of mt_bench both turns, with a first answer of at most 64 tokens.
PROMPTS = {"mt_bench": 128, "humaneval": 174, "gsm8k": 95, "alpaca": 41, "cnn_dm": 774, "natural_questions": 42}
WITHIN = 0.05  # a published speedup so near to the predicted one, or within its interval, is consistent


@dataclass(frozen=True, slots=True)
class Predicted:
    """A cell of the paper's tables, and what its tau gives here. `costs`, `decode`, `end_to_end`: None where `why` says."""

    item: Item
    cell: PaperCell
    machine: str
    tau: float
    published: float | None
    costs: StepCosts | None = None
    decode: Range | None = None
    end_to_end: float | None = None
    why: str = ""

    @property
    def needed(self) -> float | None:
        """What a step must have cost on the paper's machine: tau over speedup."""
        return self.tau / self.published if self.published else None

    @property
    def verdict(self) -> str:
        """Whether tau and this machine's costs give the published speedup."""
        if self.decode is None:
            return f"not predicted: {self.why}"
        if self.published is None:
            return "no published speedup"
        off = self.published / self.decode.value - 1
        if abs(off) <= WITHIN or self.decode.low <= self.published <= self.decode.high:
            return "consistent"
        return f"published is {abs(off):.0%} {'higher' if off > 0 else 'lower'}"


Predictions = Mapping[tuple[str, str, str, float], Predicted]
"""By our model, the paper's method and task, and temperature."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a prompt, and of an answer."""

    prompt: int
    answer: int

    @property
    def context(self) -> int:
        """The mean context of a step."""
        return self.prompt + self.answer // 2


def lengths_of(prompt_tokens: int | None = None, answer_tokens: int | None = None) -> tuple[dict[str, Lengths], Lengths]:
    """(by task, where it is none of them): the lengths given, or each task's mean prompt and ANSWER."""
    answer, mean = answer_tokens or ANSWER, round(sum(PROMPTS.values()) / len(PROMPTS))
    return {task: Lengths(prompt_tokens or n, answer) for task, n in PROMPTS.items()}, Lengths(prompt_tokens or mean, answer)


def paper_config(model: str) -> ModelConfig | None:
    """A target of the paper, by our name; None where it is none of them."""
    return model_config(model) if model in paper_models().values() else None


def of_the_paper(tables: Iterable[CostTable]) -> list[tuple[CostTable, ModelConfig]]:
    """Tables of the paper's targets, with the whole of their EAGLE's vocabulary, at T = 0."""
    return [(t, config) for t in tables if t.frequent is None and not t.temperature and (config := paper_config(t.model))]


def predictions_of(tables: Iterable[CostTable]) -> Predictions:
    """Of every target of the paper that tables of costs are of. Those with a head over frequent tokens alone are not its EAGLE's.

    Raises:
        UserError: two tables are of one target.
    """
    found, of_target = {}, dict[str, str]()
    for table, config in of_the_paper(tables):
        if other := of_target.get(table.model):
            raise UserError(f"--costs has two tables of {table.model}: on {other}; on {table.machine.label}: name one file")
        of_target[table.model] = table.machine.label
        for p in predict(table, config, *lengths_of()):
            found[table.model, p.cell.method, p.cell.task, p.cell.temperature] = p
    return found


def predict(table: CostTable, config: ModelConfig, lengths: Mapping[str, Lengths], default: Lengths) -> list[Predicted]:
    """Every cell of Tables 1 to 3 that the paper has for a target. lengths: by task; `default` where it is none of them."""
    found = []
    for item in ITEMS:
        if item.kind == "table":
            for cell in cells(item):
                if cell.model == config.paper and cell.tau:
                    found.append(_predicted(item, cell, table, config, lengths.get(cell.task_here, default)))
    return found


def _predicted(item: Item, cell: PaperCell, table: CostTable, config: ModelConfig, lengths: Lengths) -> Predicted:
    tau = cell.tau[0].value
    bare = Predicted(item, cell, table.machine.label, tau, cell.speedup[0].value if cell.speedup else None)

    def lacking(why: str) -> Predicted:
        return replace(bare, why=why)

    if cell.method_here is None:
        return lacking("no method of ours")
    m = methods.get(cell.method_here)
    options = m.resolve("paper", {}, config.presets if m.needs_head else {})
    work = work_of(m, options, cell.temperature)
    if work is None:
        return lacking("what it drafts depends on the text")
    if work.depth and not table.has(work.drafter):
        return lacking(f"no {methods.DRAFTERS[work.drafter]} was measured")
    costs = step_costs(table, work, tau, lengths.context)
    whole = end_to_end(table, costs, work, tau, lengths)
    return replace(bare, costs=costs, decode=costs.speedup(tau), end_to_end=whole)


def end_to_end(table: CostTable, costs: StepCosts, work: StepWork, tau: float, lengths: Lengths) -> float:
    """The speedup of a whole answer, its prefill included: the target's and, where there is a drafter, the drafter's."""
    prefill = _per_token(table, lengths.prompt)
    both = prefill + (_per_token(table, lengths.prompt, work.drafter) if work.depth else 0.0)
    steps = max(lengths.answer - 1, 1)
    return (prefill + steps * costs.plain_ms) / (both + steps / tau * costs.total * costs.plain_ms)


def _per_token(table: CostTable, tokens: int, kind: str | None = None) -> float:
    """Milliseconds of a prefill of so many tokens, the target's or a drafter's; outside the contexts measured, in proportion."""
    known = {c.tokens: (d.prefill if (d := c.of(kind or "")) else c.prefill).ms for c in table.contexts}
    least, most = min(known), max(known)
    if tokens <= least:
        return known[least] * tokens / least
    if tokens >= most:
        return known[most] * tokens / most
    below, above = max(t for t in known if t <= tokens), min(t for t in known if t >= tokens)
    if below == above:
        return known[below]
    return known[below] + (known[above] - known[below]) * (tokens - below) / (above - below)


@dataclass(frozen=True, slots=True)
class Deeper:
    """One level more of a chain: what it adds to tau, what it may cost to pay and what it costs here, both in plain steps.

    `draft`: the part of `costs` in the draft head. `tau`, `speedup`: of the chain with this level as its last.
    """

    depth: int
    gain: float
    pays_under: float
    costs: float
    draft: float
    tau: float
    speedup: float

    @property
    def break_even(self) -> float:
        """What the draft head's part may cost at most, as the rest of the level costs here."""
        return self.pays_under - (self.costs - self.draft)

    @property
    def pays(self) -> bool:
        return self.costs < self.pays_under


def deeper_levels(table: CostTable, rates: Sequence[float], context: int) -> list[Deeper]:
    """Of a chain of drafts with these acceptance rates by depth: what each level may cost to pay, and what it costs here.

    With d levels tau is 1 + a1 + a1 a2 + ... and a step costs C; with none it is plain decoding. A further level pays where what
    it adds to C, over C, is less than what it adds to tau, over tau.
    """
    found, tau, reached, before, drafted = [], 1.0, 1.0, 1.0, 0.0
    for depth, rate in enumerate(rates, start=1):
        reached *= rate
        costs = step_costs(table, StepWork(depth + 1, (1,) * (depth - 1), 1), tau + reached, context)
        after, tau_after = costs.total, tau + reached
        pays_under = before * reached / tau
        found.append(
            Deeper(depth, reached, pays_under, after - before, costs.draft - drafted, tau_after, tau_after / after)
        )  # fmt: skip
        tau, before, drafted = tau_after, after, costs.draft
    return found


class Chain(NamedTuple):
    """Acceptance rates by depth of a chain of drafts, as the paper of EAGLE-1 reports them of a target."""

    model: str
    task: str  # in the paper's words
    temperature: float
    rates: tuple[float, ...]

    @property
    def title(self) -> str:
        return f"{self.model}, {self.task}, T = {self.temperature:g}"


def chain_rates(config: ModelConfig) -> list[Chain]:
    """What EAGLE-1's paper reports of a target."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for n in numbers():
        if n.model == config.paper and n.metric.endswith("-alpha"):
            found.setdefault((n.model, n.task, n.temperature), {})[n.metric] = n.value
    return [Chain(model, task, float(temperature), tuple(rates[key] for key in sorted(rates)))
            for (model, task, temperature), rates in found.items()]  # fmt: skip


def published_trees(chain: Chain, levels: Sequence[Deeper], cells: Iterable[Predicted]) -> list[tuple[str, float]]:
    """(a draft whose acceptance is published for what a chain's is, its predicted decode speedup), the one that pays most first:
    the chain at each depth, and the trees of EAGLE-1 and EAGLE-2 by their tau."""
    found = {f"a chain of {d.depth}": d.speedup for d in levels}
    for p in cells:
        of = p.cell.task, p.cell.temperature
        if p.decode and p.costs and of == (chain.task, chain.temperature) and p.cell.method_here in ("eagle1", "eagle2"):
            found[f"{p.cell.method}'s tree"] = p.decode.value
    return sorted(found.items(), key=lambda one: -one[1])
