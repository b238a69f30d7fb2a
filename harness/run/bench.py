"""What measures in a worker of a cluster: the model loaded once, and a runner for each spec, as a run has them on one machine.

Its ledger is a stand-in: it is given what is known of a conversation, and what is added to it goes to the driver.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from harness.cluster.host import Send
from harness.common.machine import keep_freed_memory
from harness.ledger.ledger import env_name, machine_label
from harness.ledger.record import Record
from harness.load.config import ModelConfig
from harness.run.plan import RunSpec, Talk, drafters_of

if TYPE_CHECKING:
    from methods.base import DraftedTree

ENV, RECORD, TREES, BEGINS, RATES, WHOLE = "env", "record", "trees", "begins", "rates", "whole"
"""Kinds of messages: an environment, a record, a generation's trees, the records that follow without their numbers, seconds a
token by method (a mapping a spec), and that a conversation's part of one spec is whole."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a bench is made of. `includes`: the user's files, loaded before `work` is unpickled, for methods may be theirs.
    `briefs`: one of the ledger's records for each model and code, for what a run says of changes. `dtype`: resolved once."""

    includes: tuple[Path, ...]
    work: bytes  # ModelConfig, list[RunSpec]
    dtype: str
    head: Path | None
    folder: Path
    briefs: tuple[Record, ...]


class Opened(NamedTuple):
    """What a worker's bench tells. `keys`: of the cells of each spec, and of the cells of its answers, by task. `shown`: see
    `Runner`."""

    keys: tuple[tuple[tuple[str, ...], Mapping[str, str]], ...]
    dtype: str
    machine: str
    shown: Mapping[str | None, Mapping[str, Any]] = {}


class Job(NamedTuple):
    """A conversation, what is known of it, and in which specs it is to be measured. `whole`: records with their traces whose
    trees alone are missing; `with_trees`: keys of those whose trees are there."""

    talk: Talk
    specs: tuple[int, ...]
    records: tuple[Record, ...]
    whole: Mapping[str, Record]
    with_trees: frozenset[str]


class WarmUp(NamedTuple):
    """For the specs of which anything is missing, before anything is timed."""

    specs: tuple[int, ...]


class Whole(NamedTuple):
    """What a spec's part of a conversation came to: the methods measured, and how many generations failed."""

    spec: int
    measured: tuple[str, ...]
    n_failed: int


@dataclass
class StandIn:
    """A `Sink` in a worker: what is known of the conversation under way, and a way to the driver."""

    folder: Path
    records: list[Record]
    send: Send
    traced: dict[str, Record] = field(default_factory=dict)
    with_trees: set[str] = field(default_factory=set)

    def append(self, record: Mapping[str, Any]) -> None:
        self.send(RECORD, dict(record))
        if not record["is_warmup"]:
            self.records.append(cast(Record, record))
            self.traced[record["key"]] = cast(Record, record)  # another spec of the job may want its trees

    def write_env(self, env: Mapping[str, Any]) -> str:
        self.send(ENV, dict(env))
        return env_name(env)

    def check_machine(self, cell: str, env: Mapping[str, Any]) -> None:
        """The driver sees to it."""

    def trees(self, piece: Callable[[int], str]) -> StandInTrees:
        return StandInTrees(self, piece)

    def whole(self, keys: Collection[str]) -> dict[str, Record]:
        return {key: record for key, record in self.traced.items() if key in keys}


@dataclass
class StandInTrees:
    """A `TreeSink` in a worker."""

    of: StandIn
    piece: Callable[[int], str]

    @property
    def keys(self) -> set[str]:
        return self.of.with_trees

    def add(self, cell: str, key: str, token_ids: Sequence[int], trees: Sequence[DraftedTree]) -> None:
        pieces = {t: self.piece(t) for t in {*token_ids, *(t for tree in trees for t in tree.tokens)}}
        self.of.with_trees.add(key)
        self.of.send(TREES, (cell, key, list(token_ids), list(trees), pieces))


class RunBench:
    """Measures conversations with the runners of a run."""

    def __init__(self, setup: Setup) -> None:
        import torch

        from harness.load.model import load
        from harness.run.runner import Runner
        from harness.watch.include import include_all

        include_all(setup.includes)
        config: ModelConfig
        specs: list[RunSpec]
        config, specs = pickle.loads(setup.work)
        keep_freed_memory()
        torch.set_num_threads(specs[0].threads)
        loaded = load(config, setup.dtype, head=setup.head, drafters=drafters_of(specs))
        self._sent: list[tuple[str, Any]] = []  # before there is anybody to send to
        self._sink = StandIn(setup.folder, list(setup.briefs), lambda kind, body: self._sent.append((kind, body)))
        self._runners = [Runner(loaded, spec, self._sink) for spec in specs]
        keys = tuple(
            (tuple(cell.key for cell in run.plan.cells), {task: cell.key for task, cell in run.plan.answer_cells.items()})
            for run in self._runners
        )
        self.opened = Opened(keys, loaded.dtype, machine_label(self._runners[0].env), self._runners[0].shown)

    def do(self, job: Job | WarmUp, send: Send) -> None:
        sink = self._sink
        sink.send = send
        for kind, body in self._sent:
            send(kind, body)
        self._sent.clear()
        if isinstance(job, WarmUp):
            for i in job.specs:
                self._runners[i].check_prompts()
            send(RATES, {i: self._runners[i].warm_up() for i in job.specs})
            return
        sink.records, sink.traced, sink.with_trees = list(job.records), dict(job.whole), set(job.with_trees)
        for i in job.specs:
            measured: list[str] = []
            n_failed = self._runners[i].run(lambda _: None, measured.append, {job.talk}, lambda records: send(BEGINS, records))
            send(WHOLE, Whole(i, tuple(measured), n_failed))
