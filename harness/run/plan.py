"""The plan of a run: what is to be measured, in what order, and what of it is there already. Nothing is run here."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import methods
from harness.common.names import BASELINES
from harness.ledger.planned import PlannedCell
from harness.ledger.record import Record, cell_key
from harness.ledger.reduced import steps_of
from harness.load.model import Loaded
from harness.run.arms import baseline_arm
from harness.run.request import Shard
from methods import Arm
from tasks import Prompt, PromptSet


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What one run measures: a request with its methods, options and prompts found. `trees`: keep every drafted tree. `shard`: of
    the prompts, which stand here whole, those that this run measures (`conversations`).
    `base`: what speeds are measured against, and whose greedy answers later turns hold."""

    arms: tuple[Arm, ...]
    prompt_sets: tuple[PromptSet, ...]
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    repeats: int
    threads: int
    baseline: bool
    on_overflow: str  # error | skip
    trees: bool = False
    shard: Shard = Shard()
    base: Arm = field(default_factory=baseline_arm)

    @property
    def is_served(self) -> bool:
        """Whether an engine elsewhere decodes: then all its methods are such."""
        return any(arm.method.served for arm in self.arms)

    def conversations(self, prompts: PromptSet) -> Sequence[Prompt]:
        """Those of a task that this run measures."""
        return self.shard.of_all(prompts.prompts)

    def measured_arms(self) -> tuple[Arm, ...]:
        """The methods asked for and, unless the run has no baseline, that first."""
        has_base = any(arm.name == self.base.name for arm in self.arms)
        return self.arms if has_base or not self.baseline else (self.base, *self.arms)


@dataclass(frozen=True, slots=True)
class Cell:
    """An arm on a task at a temperature: what one cell key names."""

    arm: Arm
    prompts: PromptSet
    temperature: float
    key: str


class Step(NamedTuple):
    """One prompt and turn: every cell decodes it, in this order."""

    cells: tuple[Cell, ...]
    answers: Cell  # whose greedy answers later turns are built from
    prompts: PromptSet
    prompt: Prompt
    repeat: int
    turn: int


class Talk(NamedTuple):
    """A conversation and its repeat: what one process measures whole, for its methods' times are paired."""

    task: str
    sample_id: str
    repeat: int


class Wanted(NamedTuple):
    """A generation, by what is known of it before its prompt is: a later turn's prompt holds an answer."""

    cell: str
    sample_id: str
    turn: int
    repeat: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A spec on a loaded model. `cells`: in the order of the tasks, then of the methods."""

    spec: RunSpec
    cells: tuple[Cell, ...]
    answer_cells: dict[str, Cell]  # by task

    @classmethod
    def of(cls, spec: RunSpec, loaded: Loaded) -> Plan:
        cells = (_cell(spec, loaded, arm, ps, spec.temperature) for ps in spec.prompt_sets for arm in spec.measured_arms())
        # at any temperature, and without a baseline too
        answers = {ps.task: _cell(spec, loaded, spec.base, ps, 0.0) for ps in spec.prompt_sets}
        return cls(spec, tuple(cells), answers)

    @classmethod
    def with_keys(cls, spec: RunSpec, keys: Sequence[str], answer_keys: Mapping[str, str]) -> Plan:
        """The same without a model, where it is known what keys its cells have: in the order of `cells`, and by task."""
        arms = ((ps, arm) for ps in spec.prompt_sets for arm in spec.measured_arms())
        cells = tuple(Cell(arm, ps, spec.temperature, key) for (ps, arm), key in zip(arms, keys, strict=True))
        answers = {ps.task: Cell(spec.base, ps, 0.0, answer_keys[ps.task]) for ps in spec.prompt_sets}
        return cls(spec, cells, answers)

    def cells_written(self) -> list[Cell]:
        """Every cell that the run may add records to."""
        several_turns = [ps.task for ps in self.spec.prompt_sets if any(len(p.turns) > 1 for p in self.spec.conversations(ps))]
        return [*self.cells, *(self.answer_cells[task] for task in several_turns)]

    def steps(self, only: Collection[Talk] | None = None) -> Iterator[Step]:
        """Conversation by conversation; only: these.

        The methods' order is drawn from the seed and the prompt, not from what was measured before or by another shard.
        """
        for prompts, prompt, repeat in conversations(self.spec):
            if only is not None and Talk(prompts.task, prompt.id, repeat) not in only:
                continue
            mine = [cell for cell in self.cells if cell.prompts is prompts]
            for turn in range(1, len(prompt.turns) + 1):
                order = list(mine)
                random.Random(f"{self.spec.seed} {prompts.task} {prompt.id} {turn} {repeat}").shuffle(order)
                yield Step(tuple(order), self.answer_cells[prompts.task], prompts, prompt, repeat, turn)

    def wanted(self, cell: Cell) -> set[Wanted]:
        """All generations of a cell."""
        repeats = range(self.spec.repeats)
        own = self.spec.conversations(cell.prompts)
        return {Wanted(cell.key, p.id, turn, n) for p in own for turn in range(1, len(p.turns) + 1) for n in repeats}

    def told(self, model: str) -> list[PlannedCell]:
        """What the run was asked for, as `plan.json` has it."""
        return [
            PlannedCell(cell.key, model, cell.arm.name, cell.arm.preset, cell.prompts.task, cell.prompts.source, cell.temperature,
                        len(self.wanted(cell)), str(self.spec.shard))
            for cell in self.cells
        ]  # fmt: skip

    def missing(self, recorded: Recorded, planned: set[Wanted]) -> dict[str, int]:
        """Generations still to be made, by method.

        planned: those that another run of this process makes before this one. This one's are added to it.
        """
        missing: dict[str, int] = {}
        for cell in self.cells:
            wanted = self.wanted(cell)
            todo = wanted - recorded.done - planned
            planned |= todo
            again = sum(Wanted(r["cell"], r["sample_id"], r["turn"], r["repeat"]) in wanted for r in recorded.treeless.values())
            missing[cell.arm.name] = missing.get(cell.arm.name, 0) + len(todo) + again
        return missing

    def n_treeless(self, recorded: Recorded, method: str) -> int:
        """Generations of a method whose trees alone are missing."""
        keys = {cell.key for cell in self.cells if cell.arm.name == method}
        return sum(r["cell"] in keys for r in recorded.treeless.values())


def conversations(spec: RunSpec) -> Iterator[tuple[PromptSet, Prompt, int]]:
    """Prompt by prompt, repeat by repeat; later repeats have the prompts in an order drawn from the seed."""
    for prompts in spec.prompt_sets:
        for repeat in range(spec.repeats):
            ordered = list(spec.conversations(prompts))
            if repeat:
                random.Random(f"{spec.seed} {prompts.task} {repeat}").shuffle(ordered)
            yield from ((prompts, prompt, repeat) for prompt in ordered)


@dataclass(slots=True)
class Recorded:
    """What a ledger holds that need not be measured again.

    `keys`: of the generations; `done`: the same by what is known before a prompt is; `answers`: a baseline's, which later turns
    are built from; `treeless`: generations measured without keeping their trees, by key, where trees are asked for.
    """

    skipped_counts: bool  # whether a prompt that was skipped need not be tried again
    keys: set[str] = field(default_factory=set)
    done: set[Wanted] = field(default_factory=set)
    answers: dict[str, Record] = field(default_factory=dict)
    treeless: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record], spec: RunSpec, with_trees: set[str] | None) -> Recorded:
        """with_trees: the keys of generations whose trees are kept; None where trees are not asked for."""
        found = cls(skipped_counts=spec.on_overflow == "skip")
        for record in records:
            found.add(record)
            if with_trees is not None and _drafted(record) and record["key"] not in with_trees:
                found.treeless[record["key"]] = record
        return found

    def add(self, record: Record) -> None:
        """Take in one record; an error does not count, and a warm-up is none."""
        if record["is_warmup"] or record["status"] not in (("ok", "skipped") if self.skipped_counts else ("ok",)):
            return
        self.keys.add(record["key"])
        # after a turn that was skipped there is nothing to build the next one from
        last = record["turn"] if record["status"] == "ok" else record["n_turns"]
        for turn in range(record["turn"], last + 1):
            self.done.add(Wanted(record["cell"], record["sample_id"], turn, record["repeat"]))
        if record["method"] in BASELINES and record["turn"] < record["n_turns"] and record["status"] == "ok":
            self.answers[record["key"]] = record


def _drafted(record: Record) -> bool:
    steps = steps_of(record)
    return record["status"] == "ok" and not record["is_warmup"] and steps is not None and steps.nodes > 0


def head_sha(loaded: Loaded, arm: Arm) -> str | None:
    """Of the weights that an arm drafts with; with the list of frequent tokens where it is used."""
    kind = arm.method.drafter
    sha, frequent = loaded.sha_of(kind), loaded.frequent_sha_of(kind)
    return hashlib.sha256(f"{sha} {frequent}".encode()).hexdigest() if arm.method.needs_frequent and frequent else sha


def head_id(loaded: Loaded, arm: Arm) -> str | None:
    """Of all that decides what an arm's drafter drafts; None without one. Of an engine elsewhere, of what it tells of that."""
    if arm.method.served:
        return loaded.target.drafting_id(arm.name)  # type: ignore[attr-defined]
    return loaded.drafter_id(arm.method.drafter, with_frequent=arm.method.needs_frequent)


def _cell(spec: RunSpec, loaded: Loaded, arm: Arm, prompts: PromptSet, temperature: float) -> Cell:
    key = cell_key(
        model=loaded.config.name, target_id=loaded.identity.id, head_id=head_id(loaded, arm), code_sha=methods.code_sha(arm.name),
        prompts_sha=prompts.sha256, task=prompts.task, method=arm.name, options=arm.told, preset=arm.preset,
        source=prompts.source, temperature=temperature, top_p=spec.top_p, dtype=loaded.dtype, threads=spec.threads,
        max_new_tokens=spec.max_new_tokens, seed=spec.seed,
    )  # fmt: skip
    return Cell(arm, prompts, temperature, key)


def drafters_of(specs: Sequence[RunSpec]) -> set[str]:
    """The kinds of drafters that runs need."""
    return {arm.method.drafter for spec in specs for arm in spec.arms if arm.method.drafter is not None}
