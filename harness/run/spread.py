"""A run shared out over a cluster: workers measure, this process counts and alone writes. It loads no model.

What workers hand out is a conversation with all its methods and temperatures. Its records are written when a temperature's part
of it is whole: what is timed against each other was then measured in one process, and on one machine.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from harness.cluster.facts import facts_here
from harness.cluster.host import Message
from harness.cluster.needs import needs_of
from harness.cluster.pool import LOADS_IN, NOT_HERE, Pool
from harness.cluster.rays import connected
from harness.cluster.request import ClusterRequest
from harness.cluster.shares import PER_WORKER, Share, cut
from harness.common.errors import UserError, duration, say
from harness.common.stopping import draining
from harness.ledger.ledger import Ledger
from harness.ledger.planned import Part, add_cells, set_parts
from harness.ledger.record import Record
from harness.load.config import ModelConfig
from harness.run.bench import BEGINS, ENV, RATES, RECORD, TREES, WHOLE, Job, Opened, Setup, WarmUp, Whole
from harness.run.plan import Plan, Recorded, RunSpec, Talk, Wanted, conversations, drafters_of
from harness.run.progress import Progress, Work, progress
from harness.run.request import RunRequest
from harness.run.session import Check, tell_apart

BENCH = "harness.run.bench:RunBench"
SLOWEST = 20  # times the warm-up's pace, at which a generation of the whole budget counts as hung
LEAST_TIMEOUT = 600.0


class Item(NamedTuple):
    """What a worker is given at once: a conversation, in some of the specs."""

    talk: Talk
    specs: tuple[int, ...]


class RunDesk:
    """The driver's side of a run: what is missing, what workers are told of it, and the ledger."""

    def __init__(
        self, config: ModelConfig, request: RunRequest, specs: Sequence[RunSpec], over: ClusterRequest, ledger: Ledger,
        work: ExitStack, check: Check | None = None,
    ) -> None:  # fmt: skip
        self._check = check
        self.n_failed = self.n_elsewhere = 0
        self.plans: list[Plan] = []
        self.timeout = over.worker_timeout or LOADS_IN
        self._has_timeout = over.worker_timeout is not None
        self._config, self._specs, self._ledger, self._work = config, list(specs), ledger, work
        briefs = {(r["target_id"], r["method"], r["task"], r["code_sha"]): r
                  for r in ledger.records if r["model"] == config.name}  # fmt: skip
        self._setup = Setup(
            over.includes, pickle.dumps((config, list(specs))), request.dtype, request.head and request.head.resolve(),
            ledger.folder, tuple(briefs.values()),
        )  # fmt: skip
        self._opened: Opened | None = None
        self._of: dict[tuple[str, str], list[Record]] = defaultdict(list)  # the ledger's, by task and conversation
        for record in ledger.records:
            self._remember(record)
        self._pieces: dict[int, str] = {}
        self._trees = ledger.trees(self._pieces.__getitem__) if any(spec.trees for spec in specs) else None
        with_trees = self._trees.keys if self._trees else None
        self.recorded = [Recorded.of(ledger.records, spec, with_trees if spec.trees else None) for spec in specs]
        treeless = {key for recorded in self.recorded for key in recorded.treeless}
        self._whole = ledger.whole(treeless) if treeless else {}
        self._known = ledger.keys()
        self._turns = {(ps.task, p.id): len(p.turns) for spec in specs for ps in spec.prompt_sets for p in ps.prompts}
        self._missing: list[dict[str, int]] = []
        self._progress: Progress | None = None
        self._parts: dict[str, Part] = {}
        set_parts(ledger.folder, ())  # an earlier driver's
        self._held: dict[Item, list[Message]] = {}  # of the part under way
        self._left: dict[Item, list[int]] = {}  # specs of an item under way that are not done
        self._elsewhere: dict[Item, list[int]] = {}  # and those that another machine began

    # ---- what workers are told ----

    def setup(self) -> Setup:
        return self._setup

    def opened(self, told: Opened) -> str | None:
        if self._opened is None:
            if self._check is not None:
                self._check(told.shown)
            self._opened = told
            self._setup = replace(self._setup, dtype=told.dtype)
            self.plans = [Plan.with_keys(spec, *keys) for spec, keys in zip(self._specs, told.keys, strict=True)]
            planned: set[Wanted] = set()
            self._missing = [p.missing(r, planned) for p, r in zip(self.plans, self.recorded, strict=True)]
            add_cells(self._ledger.folder, [one for plan in self.plans for one in plan.told(self._config.name)])
            tell_apart(self.plans, self.recorded, self._missing)
            if total := sum(sum(m.values()) for m in self._missing):
                say(f"{total} generations to measure in {told.dtype}; each worker warms up each method ...")
            else:
                say("everything asked for is in the ledger already: nothing to measure")
        if told.keys != self._opened.keys:
            return "its cells are not the first worker's: weights, tokenizer, prompt format, engine or a drafter are others there"
        return None

    def begin(self) -> WarmUp | None:
        specs = tuple(i for i, m in enumerate(self._missing) if any(m.values()))
        return WarmUp(specs) if specs else None

    def given(self, item: Item, told: Opened) -> Job | object | None:
        specs = [i for i in item.specs if self._lacks(i, item.talk)]
        records = self._of[item.talk.task, item.talk.sample_id]
        elsewhere = [i for i in specs if self._is_elsewhere(i, records, item.talk, told.machine)]
        specs = [i for i in specs if i not in elsewhere]
        if not specs:
            return NOT_HERE if elsewhere else None
        self._held[item], self._left[item], self._elsewhere[item] = [], specs, elsewhere
        keys = {r["key"] for r in records}
        with_trees = frozenset(keys & self._trees.keys) if self._trees else frozenset()
        whole = {key: self._whole[key] for key in keys & self._whole.keys()}
        return Job(item.talk, tuple(specs), tuple(records), whole, with_trees)

    def _lacks(self, i: int, talk: Talk) -> bool:
        """Whether anything of a conversation is to be measured, or decoded again for its trees, in a spec."""
        plan, recorded = self.plans[i], self.recorded[i]
        cells = [cell for cell in plan.cells if cell.prompts.task == talk.task]
        turns = self._turns[talk.task, talk.sample_id]
        wanted = {Wanted(cell.key, talk.sample_id, turn, talk.repeat) for cell in cells for turn in range(1, turns + 1)}
        return not wanted <= recorded.done or any(
            Wanted(r["cell"], r["sample_id"], r["turn"], r["repeat"]) in wanted for r in recorded.treeless.values()
        )

    def _is_elsewhere(self, i: int, records: Sequence[Record], talk: Talk, machine: str) -> bool:
        """Whether another machine than the worker's has measured a part of a conversation in a spec."""
        cells = {cell.key for cell in self.plans[i].cells}
        there = (self._ledger.machine_of(r) for r in records if r["cell"] in cells and r["repeat"] == talk.repeat)
        return any(label not in (None, machine) for label in there)

    # ---- what comes from them ----

    def took(self, item: Item | None, message: Message) -> None:
        kind, body = message
        if kind == ENV:
            self._ledger.write_env(body)
        elif kind == RATES:
            self._take_rates(body)
        elif kind == WHOLE:
            assert item is not None
            self._take_part(item, body)
        elif kind == RECORD and body["is_warmup"]:
            self._ledger.append(body)
        else:
            assert item is not None
            self._held[item].append(message)

    def ended(self, item: Item) -> Item | None:
        del self._held[item], self._left[item]
        elsewhere = self._elsewhere.pop(item)
        return Item(item.talk, tuple(elsewhere)) if elsewhere else None

    def unplaced(self, item: Item) -> None:
        self.n_elsewhere += 1

    def lost(self, item: Item) -> None:
        """What there is of the part under way is measured anew; `gave_up` may still want it."""

    def gave_up(self, item: Item, why: str) -> Item | None:
        """Write what the last worker made of the part, and an error for whatever else of it was begun."""
        if not self._left[item]:  # it was done but for the end
            return self.ended(item)
        i, *left = self._left[item]
        before = len(self._known)
        self._write(item)
        begun = [record for kind, records in self._held[item] if kind == BEGINS for record in records]
        failed = [r for r in {r["key"]: r for r in begun}.values() if r["key"] not in self._known]
        self._add([{**record, "status": "error", "error": why} for record in failed])
        self.n_failed += max(len(failed), 1)
        where = f"{item.talk.task} {item.talk.sample_id}, T = {self._specs[i].temperature:g}"
        say(f"{where}: given up: {why}; {len(failed)} generations are recorded with status 'error', "
            f"{len(self._known) - before} were measured")  # fmt: skip
        left += self._elsewhere[item]
        self.ended(item)
        return Item(item.talk, tuple(left)) if left else None

    def shards(self, shards: Sequence[Share]) -> None:
        """`harness status` tells of them."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for share in shards:
            old = self._parts.get(share.name)
            if old is None or (old.state, old.machine) != (share.state, share.where):
                said = f"{share.n} conversations" + (f", {share.n_given_up} of them given up" if share.n_given_up else "")
                self._parts[share.name] = Part(f"shard {share.name}", share.state, share.where, now, said)
        set_parts(self._ledger.folder, self._parts.values())

    def _take_rates(self, rates: dict[int, dict[str, float]]) -> None:
        """The first worker's tell how long everything takes."""
        budget = {i: self._specs[i].max_new_tokens for i in rates}
        slowest = max((rate * budget[i] for i, own in rates.items() for rate in own.values()), default=0.0)
        if not self._has_timeout:
            self.timeout = max(LEAST_TIMEOUT, SLOWEST * slowest, self.timeout if self._progress else 0.0)
        if self._progress is not None:
            return
        cost: dict[Work, float] = {(i, name): rates.get(i, {}).get(name, 0.0) * budget.get(i, 0)
                                   for i, m in enumerate(self._missing) for name in m}  # fmt: skip
        work = {(i, name): n for i, m in enumerate(self._missing) for name, n in m.items()}
        one = sum(cost[key] * n for key, n in work.items())
        say(f"about {duration(one)} of one worker if every answer uses its tokens")
        self._progress = self._work.enter_context(progress(sum(work.values()), cost, work))

    def _take_part(self, item: Item, part: Whole) -> None:
        self._write(item)
        self._held[item].clear()
        self._left[item].remove(part.spec)
        self.n_failed += part.n_failed
        if self._progress is not None:
            tick, advance = self._progress
            tick(f"{item.talk.task} {item.talk.sample_id}")
            for name in part.measured:
                advance((part.spec, name))

    def _write(self, item: Item) -> None:
        """The part of a conversation that is whole now, at once: trees first, then all records or none."""
        records = dict[str, dict[str, Any]]()
        for kind, body in self._held[item]:
            if kind == TREES and self._trees is not None:
                cell, key, token_ids, trees, pieces = body
                if key not in self._trees.keys:
                    self._pieces.update(pieces)
                    self._trees.add(cell, key, token_ids, trees)
                    self._pieces.clear()
                for recorded in self.recorded:
                    recorded.treeless.pop(key, None)
            elif kind == RECORD and body["key"] not in self._known:
                records[body["key"]] = body
        self._add(list(records.values()))

    def _add(self, records: Sequence[dict[str, Any]]) -> None:
        if not records:
            return
        self._ledger.extend(records)
        for added in self._ledger.records[-len(records) :]:
            self._remember(added)
            for recorded in self.recorded:
                recorded.add(added)
            if added["status"] in ("ok", "skipped"):
                self._known.add(added["key"])

    def _remember(self, record: Record) -> None:
        if record["model"] == self._config.name and not record["is_warmup"]:
            self._of[record["task"], record["sample_id"]].append(record)


def measure_over(
    config: ModelConfig, request: RunRequest, specs: Sequence[RunSpec], over: ClusterRequest, ledger: Ledger,
    check: Check | None = None,
) -> tuple[list[Plan], int]:  # fmt: skip
    """Measure everything missing on a cluster; -> the plans, and the number of generations that failed. check: as `carry_out`.

    Raises:
        UserError: no cluster, no node that can do it, or the ledger cannot be written.
    """
    items: dict[Talk, list[int]] = {}
    for i, spec in enumerate(specs):
        for prompts, prompt, repeat in conversations(spec):
            items.setdefault(Talk(prompts.task, prompt.id, repeat), []).append(i)
    with connected(over.address) as cluster, ExitStack() as work:
        desk = RunDesk(config, request, specs, over, ledger, work, check)
        needs = needs_of(BENCH, config, over, threads=specs[0].threads, dtype=request.dtype, head=request.head,
                         kinds=drafters_of(specs))  # fmt: skip
        stops = "stopping: conversations under way are finished and written; again drops them"
        is_draining = work.enter_context(draining(stops))
        pool = Pool(cluster, needs, desk, facts_here(needs.asked), is_draining)
        say(f"{pool.survey()} workers of {specs[0].threads} threads at once")
        n_shards = over.shards or PER_WORKER * pool.room
        pool.work(cut([Item(talk, tuple(i)) for talk, i in items.items()], n_shards, lambda item: item.talk[:2]))
    if desk.n_elsewhere:
        raise UserError(f"{desk.n_elsewhere} conversations were begun on a machine that is not in this cluster, and stay as they "
                        "are: measure them there, or choose another --out")  # fmt: skip
    return desk.plans, desk.n_failed
