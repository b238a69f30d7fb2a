"""A replay shared out over a cluster: workers draft and replay conversations, this process writes pools and replays. It loads no
model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from harness.audit.probe.ledger_pairs import LedgerPrompts
from harness.cluster.facts import facts_here
from harness.cluster.host import Message, Send
from harness.cluster.needs import needs_of
from harness.cluster.pool import LOADS_IN, Pool
from harness.cluster.rays import connected
from harness.cluster.request import ClusterRequest
from harness.cluster.shares import PER_WORKER, Share, cut
from harness.common.errors import UserError, say
from harness.common.files import write_file
from harness.common.machine import keep_freed_memory
from harness.common.names import VANILLA
from harness.common.progress import Progress, showing_progress
from harness.common.stopping import draining
from harness.ledger.record import Record
from harness.load.config import ModelConfig
from harness.load.model import load
from harness.replay import record
from harness.replay.price import Prices
from harness.replay.record import Replay
from harness.replay.session import Ready, ReplayRequest, Told, of_answer, of_one_kind, ready_for
from harness.replay.store import FOLDER
from harness.replay.texts import answered
from harness.run.arms import tell_other_heads
from harness.watch.include import include_all
from methods import Arm

BENCH = "harness.replay.spread:ReplayBench"
ANSWER, TOLD = "answer", "told"
"""Kinds of messages: an answer's replays with the files of rows that are new, and what a conversation took."""

Talk = tuple[str, str]  # the task, and the conversation


class Setup(NamedTuple):
    """What a bench is made of; `work` is unpickled there once the user's files are loaded, for methods may be theirs."""

    includes: tuple[Path, ...]
    work: bytes  # ModelConfig, ReplayRequest, arms by temperature, kinds of heads
    threads: int


class Given(NamedTuple):
    """A conversation: vanilla's records, the replays that are there, and the rows, by path within the folder."""

    records: tuple[Record, ...]
    done: tuple[Replay, ...]
    pools: dict[str, bytes]


class ReplayBench:
    """Replays conversations with one model, in a folder that ends with each of them."""

    def __init__(self, setup: Setup) -> None:
        import pickle

        import torch

        include_all(setup.includes)
        config: ModelConfig
        self._request: ReplayRequest
        self._arms: dict[float, list[Arm]]
        config, self._request, self._arms, kinds = pickle.loads(setup.work)
        keep_freed_memory()
        torch.set_num_threads(setup.threads)
        self._loaded = load(config, self._request.dtype, head=self._request.head, drafters=kinds)
        self._prompts = LedgerPrompts(self._request.prompts_dir)
        tell_other_heads([arm for arms in self._arms.values() for arm in arms], self._loaded)
        self.opened = (self._loaded.identity.id, *(self._loaded.drafter_id(kind) for kind in sorted(kinds)))

    def do(self, item: Given, send: Send) -> None:
        told, done = Told(), {r.key: r for r in item.done}
        with tempfile.TemporaryDirectory() as own:
            folder = Path(own)
            for path, content in item.pools.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            request = replace(self._request, out=folder)
            for answer in answered(item.records, self._loaded):
                arms = self._arms.get(answer.record["temperature"])
                if arms is None:
                    continue
                found = of_answer(self._loaded, answer, arms, done, self._prompts, request, told)
                made = {path: (folder / path).read_bytes() for path in _pools_of(folder, answer.record["key"])}
                new = {path: content for path, content in made.items() if item.pools.get(path) != content}
                send(ANSWER, (answer.record["key"], found, new))
        send(TOLD, told)


def _pools_of(folder: Path, key: str) -> list[str]:
    """The files of an answer's rows, as paths within the folder."""
    return [str(path.relative_to(folder)) for path in sorted((folder / FOLDER).glob(f"*/{key}.safetensors"))]


class ReplayDesk:
    """The driver's side of a replay."""

    def __init__(self, ready: Ready, over: ClusterRequest) -> None:
        import pickle

        request = ready.request
        head, prompts = request.head and request.head.resolve(), request.prompts_dir and request.prompts_dir.resolve()
        placed = replace(request, head=head, prompts_dir=prompts)  # a worker's folder is not the driver's
        work = pickle.dumps((ready.config, placed, dict(ready.arms), set(ready.kinds)))
        self.timeout = over.worker_timeout or LOADS_IN
        self.told, self.given_up = Told(), list[str]()
        self.progress = Progress("replay")
        self.found: dict[str, list[Replay]] = {}  # by the key of vanilla's record
        self._setup = Setup(over.includes, work, ready.threads)
        self._folder = request.folder
        self._first: object = None
        self._done = {r.key: r for r in record.read(request.folder)}
        self.of: dict[Talk, list[Record]] = {}
        for r in ready.records:
            if r["method"] == VANILLA:
                self.of.setdefault((r["task"], r["sample_id"]), []).append(r)

    def setup(self) -> Setup:
        return self._setup

    def opened(self, told: object) -> str | None:
        self._first = self._first or told
        return None if told == self._first else "its target or its heads are not the first worker's"

    def begin(self) -> None:
        return None

    def given(self, item: Talk, told: object) -> Given:
        records = tuple(self.of[item])
        keys = {r["key"] for r in records}
        done = tuple(r for r in self._done.values() if r.answer in keys)
        return Given(records, done, {p: (self._folder / p).read_bytes() for key in keys for p in _pools_of(self._folder, key)})

    def took(self, item: Talk | None, message: Message) -> None:
        if message.kind == TOLD:
            for field in fields(Told):
                setattr(self.told, field.name, getattr(self.told, field.name) + getattr(message.body, field.name))
            return
        key, found, pools = message.body
        for path, content in pools.items():
            write_file(self._folder / path, content)
        record.append(self._folder, [r for r in found if r.key not in self._done])
        self._done |= {r.key: r for r in found}
        self.found[key] = found

    def ended(self, item: Talk) -> None:
        self.progress.step(f"after {' '.join(item)}")

    def lost(self, item: Talk) -> None: ...

    def unplaced(self, item: Talk) -> None: ...

    def gave_up(self, item: Talk, why: str) -> None:
        self.given_up.append(f"{' '.join(item)}: {why}")

    def shards(self, shards: Sequence[Share]) -> None: ...


def replay_over(request: ReplayRequest, over: ClusterRequest) -> tuple[list[Replay], dict[str, Prices]]:
    """`replay` on a cluster, in the same order.

    Raises:
        UserError: as `replay`; no cluster, or no node that can do it; or conversations that were given up.
    """
    ready = ready_for(request, over)
    request = ready.request
    own = [r for r in ready.records if r["method"] == VANILLA and r["status"] == "ok"]
    of_one_kind([r for r in own if r["temperature"] in ready.asked and r["dtype"] == request.dtype], request.folder)
    with record.only_writer(request.folder):
        desk = ReplayDesk(ready, over)
        with connected(over.address) as cluster, ExitStack() as work:
            needs = needs_of(
                BENCH, ready.config, over, threads=ready.threads, dtype=request.dtype, head=request.head, kinds=ready.kinds,
                paths=[request.prompts_dir] if request.prompts_dir else [],
            )  # fmt: skip
            is_draining = work.enter_context(draining("stopping: conversations under way are finished; again drops them"))
            pool = Pool(cluster, needs, desk, facts_here(needs.asked), is_draining)
            say(f"{pool.survey()} workers of {ready.threads} threads at once")
            shares = cut(list(desk.of), over.shards or PER_WORKER * pool.room, lambda item: item)
            desk.progress = work.enter_context(showing_progress("replay"))
            desk.progress.expect(len(desk.of))
            desk.progress.step("the first conversations")
            pool.work(shares)
    for line in desk.told.lines:
        say(line)
    if desk.given_up:
        raise UserError(f"not replayed: {'; '.join(desk.given_up)}; the same command tries them again")
    return [replay for r in own for replay in desk.found.get(r["key"], ())], ready.prices
