"""The driver: it finds out what nodes can do the work, starts workers there, gives them shards, and takes their messages.

Whatever a worker dies of, its item is given to another, at most `MOST_DEATHS` times.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.cluster.facts import Asked, Facts, differences
from harness.cluster.host import CRASHED, FACTS, FAILED, LINE, OPENED, REFUSED, Message
from harness.cluster.rays import End, Lost, Node
from harness.cluster.shares import Share
from harness.common.errors import UserError, duration, say

MOST_DEATHS = 3
LOADS_IN = 1800.0  # seconds in which a worker must have begun
SAYS_IN = 300.0  # seconds in which a node must have told what it is
NOT_HERE = object()  # in place of an item with what a worker needs: another machine has to do it
LOOKS_AGAIN = 5.0  # seconds after which nodes are looked for anew


class Cluster(Protocol):
    """`harness.cluster.rays.Rays`."""

    def nodes(self) -> list[Node]: ...
    def start(self, node: Node, *, cpus: int = 0, gpus: int = 0, memory: int = 0) -> Any: ...
    def call(self, worker: Any, function: str, *given: Any) -> None: ...
    def events(self, timeout: float) -> list[tuple[Any, Message | End | Lost]]: ...
    def kill(self, worker: Any) -> None: ...


class Desk(Protocol):
    """Whose work it is: takes what workers send, and says what they are given."""

    timeout: float  # seconds without a message after which a worker counts as hung

    def opened(self, told: Any) -> str | None:
        """What a worker's bench tells when it is made -> why the worker cannot be used, if so."""
        ...

    def setup(self) -> Any:
        """What the next bench is made of."""
        ...

    def begin(self) -> Any:
        """What a worker does first; None where nothing."""
        ...

    def given(self, item: Any, told: Any) -> Any:
        """An item with all that a worker needs to do it; None where nothing of it is to be done, `NOT_HERE` where not by this
        worker's machine. told: by the worker's bench."""
        ...

    def took(self, item: Any, message: Message) -> None: ...

    def ended(self, item: Any) -> Any:
        """It is done; -> what of it another machine has to do, or None."""
        ...

    def unplaced(self, item: Any) -> None:
        """It is not for any machine of the cluster."""
        ...

    def lost(self, item: Any) -> None:
        """Its worker died: it is given again."""
        ...

    def gave_up(self, item: Any, why: str) -> Any:
        """It is not given again; -> what is left of it to do, or None."""
        ...

    def shards(self, shards: Sequence[Share]) -> None:
        """Something of their states changed."""
        ...


@dataclass(frozen=True, slots=True)
class Needs:
    """What workers are to have. `gpus`: asked for; None: as many as `gpus_of` says for the bytes free on a node's, None where it
    does not fit. `memory`: bytes of a worker on a CPU. `env`: variables of the environment that decide what it does."""

    maker: str
    threads: int
    memory: int
    gpus: int | None
    gpus_of: Callable[[Sequence[int]], int | None]
    asked: Asked
    env: Mapping[str, str]


@dataclass(slots=True)
class _Place:
    """A node. `room`: how many workers at once; None before that is known."""

    node: Node
    room: int | None = None
    gpus: int = 0
    free: list[int] = field(default_factory=list)  # numbers of slots on its machine
    deaths: int = 0  # of workers in a row that could not begin
    why: str = ""  # it is not used


@dataclass(slots=True)
class _Worker:
    place: _Place
    actor: Any
    slot: int = -1  # a scout has none
    doing: str = "hello"  # then open, begin, idle, do
    told: Any = None
    shard: Share | None = None
    item: Any = None
    heard: float = field(default_factory=time.monotonic)


class Pool:
    """Does shards on a cluster. here: the driver's facts. is_draining: whether no new item is to be given."""

    def __init__(self, cluster: Cluster, needs: Needs, desk: Desk, here: Facts, is_draining: Callable[[], bool]) -> None:
        self._cluster, self._needs, self._desk, self._here, self._is_draining = cluster, needs, desk, here, is_draining
        self._places: dict[str, _Place] = {}
        self._workers: dict[Any, _Worker] = {}
        self._waiting: deque[Share] = deque()
        self._shards: list[Share] = []
        self._n_slots: dict[str, int] = {}  # by machine
        self._looked = 0.0
        self._has_opened = False
        self._told: set[str] = set()

    @property
    def room(self) -> int:
        """Workers at once, on all nodes that can do the work."""
        return sum(place.room or 0 for place in self._places.values() if not place.why)

    def survey(self) -> int:
        """Look at every node; -> how many workers there can be.

        Raises:
            UserError: none, and why.
        """
        self._look()
        while any(place.room is None and not place.why for place in self._places.values()):
            if self._is_draining():
                return 0
            self._turn()
            self._look()
        self._check_any()
        return self.room

    def first(self) -> None:
        """Start the first worker and wait until it has begun: what its bench tells is known then.

        Raises:
            UserError: as `work`.
        """
        while not self._has_opened and not self._is_draining():
            self._staff(1)
            self._turn()

    def work(self, shards: Sequence[Share]) -> None:
        """Do all shards, in this order.

        Raises:
            UserError: the work cannot be done, or no node is left that could.
        """
        self._shards = list(shards)
        self._waiting.extend(shards)
        self._desk.shards(self._shards)
        try:
            while self._is_busy() or (self._waiting and not self._is_draining()):
                self._staff()
                self._turn()
        finally:
            for worker in list(self._workers.values()):
                self._end(worker)
            self._desk.shards(self._shards)

    # ---- nodes ----

    def _look(self) -> None:
        """Nodes that came, and nodes that went."""
        if self._places and time.monotonic() - self._looked < LOOKS_AGAIN:
            return
        self._looked = time.monotonic()
        there = {node.id: node for node in self._cluster.nodes()}
        for node in there.values():
            if node.id not in self._places:
                place = self._places[node.id] = _Place(node)
                self._start(place, "hello", self._needs.asked)
        for place in self._places.values():
            if place.node.id not in there and place.why != "it is gone":
                self._refuse(place, "it is gone")

    def _take_facts(self, place: _Place, facts: Facts) -> None:
        node, needs = place.node, self._needs
        for why in differences(facts, self._here):
            return self._refuse(place, why)
        wanted = needs.gpus
        if wanted is None:
            wanted = 0 if not node.gpus else needs.gpus_of(facts.gpus[: node.gpus]) if facts.gpus else 1
        if wanted is None:
            return self._refuse(place, f"the model does not fit on its {node.gpus} GPUs")
        rooms = {f"{wanted} GPUs a worker, and it has {node.gpus}": node.gpus // wanted} if wanted else {}
        rooms[f"{needs.threads} cores a worker (--threads), and it has {node.cpus}"] = node.cpus // needs.threads
        if needs.memory and not wanted:
            of = f"{needs.memory / 1e9:.1f} GB a worker, and Ray shares out {node.memory / 1e9:.1f} GB there"
            rooms[of] = node.memory // needs.memory
        least = min(rooms, key=lambda why: rooms[why])
        if not rooms[least]:
            return self._refuse(place, f"it takes {least}")
        if wanted and self._has_opened and not any(p.gpus for p in self._places.values()):
            return self._refuse(place, "it came to a run on CPUs, and has GPUs: on those a model has other cells")
        place.room, place.gpus = rooms[least], wanted
        first = self._n_slots.get(facts.host, 0)
        self._n_slots[facts.host] = first + place.room
        place.free = list(range(first, first + place.room))
        if any(p.gpus for p in self._places.values()):  # on a CPU a model has other cells
            for other in self._places.values():
                if other.room and not other.gpus:
                    self._refuse(other, "it has no GPU, and others do")
        return None

    def _refuse(self, place: _Place, why: str) -> None:
        place.why, place.room = why, 0
        say(f"node {place.node.name} is left out: {why}")
        for worker in [w for w in self._workers.values() if w.place is place]:
            self._lose(worker, f"node {place.node.name} is left out: {why}", is_counted=False)

    def _check_any(self) -> None:
        if not self._is_busy() and all(place.why for place in self._places.values()):
            whys = "; ".join(f"{p.node.name}: {p.why}" for p in self._places.values())
            raise UserError(f"no node of the cluster can do this: {whys or 'it has none'}")

    # ---- workers ----

    def _staff(self, n: int = 0) -> None:
        """Workers for the shards that wait, and `n` more. The first of all begins alone: what it finds holds for the others."""
        self._look()
        self._check_any()
        self._drop_unplaced()
        begun = [w for w in self._workers.values() if w.slot >= 0]
        idle = [w for w in begun if w.doing == "idle"]
        for worker in idle:
            self._give(worker)
        n += len(self._waiting) - sum(w.doing in ("open", "begin") for w in begun)  # who idles may do none of those
        if self._is_draining() or (not self._has_opened and begun):
            return
        while n > 0 and (free := [place for place in self._places.values() if place.free and self._is_for(place)]):
            n, place, needs = n - 1, max(free, key=lambda place: len(place.free)), self._needs
            # Ray leaves a worker without GPUs those of its node: several would be timed on one
            env = {**needs.env, **({} if place.gpus else {"CUDA_VISIBLE_DEVICES": ""})}
            self._start(place, "open", needs.maker, self._desk.setup(), place.free[0], needs.threads, env)
            if not self._has_opened:
                return

    def _is_for(self, place: _Place) -> bool:
        """Whether a worker there may have something to do."""
        return not place.why and (not self._waiting or any(place.node.id not in share.not_on for share in self._waiting))

    def _drop_unplaced(self) -> None:
        """Shards of which every node said that what is left is not for it."""
        usable = {id for id, place in self._places.items() if not place.why}
        for share in [share for share in self._waiting if share.items and usable <= share.not_on]:
            self._waiting.remove(share)
            for item in share.items:
                self._desk.unplaced(item)
            share.n_given_up += len(share.items)
            share.items.clear()
            self._mark(share, "failed", "")

    def _start(self, place: _Place, function: str, *given: Any) -> None:
        has = {"cpus": self._needs.threads, "gpus": place.gpus, "memory": 0 if place.gpus else self._needs.memory}
        actor = self._cluster.start(place.node, **(has if function == "open" else {}))
        slot = place.free.pop(0) if function == "open" else -1
        self._workers[actor] = _Worker(place, actor, slot, function)
        self._cluster.call(actor, function, *given)

    def _give(self, worker: _Worker) -> None:
        """The next item of its shard, or of the next shard."""
        worker.doing, worker.item = "idle", None
        while not self._is_draining():
            if worker.shard is None:
                worker.shard = next((share for share in self._waiting if worker.place.node.id not in share.not_on), None)
                if worker.shard is None:
                    return
                self._waiting.remove(worker.shard)
                self._mark(worker.shard, "running", worker.place.node.name)
            while worker.shard.items:
                item = worker.shard.items.popleft()
                given = self._desk.given(item, worker.told)
                if given is NOT_HERE:
                    worker.shard.aside.append(item)
                elif given is not None:
                    worker.item, worker.doing, worker.heard = item, "do", time.monotonic()
                    self._cluster.call(worker.actor, "do", given)
                    return
            shard, worker.shard = worker.shard, None
            if shard.aside:
                shard.not_on.add(worker.place.node.id)
                self._put_back(shard)
            else:
                self._mark(shard, "failed" if shard.n_given_up else "done", worker.place.node.name)

    def _turn(self) -> None:
        """Take what came, and end workers that hang."""
        for actor, event in self._cluster.events(0.5):
            worker = self._workers.get(actor)
            if worker is None:
                continue
            worker.heard = time.monotonic()
            if isinstance(event, Lost):
                self._lose(worker, event.why)
            elif isinstance(event, Message):
                self._take(worker, event)
            elif worker.doing == "hello":
                self._end(worker)
            elif worker.doing == "open" and (job := self._desk.begin()) is not None:
                worker.doing = "begin"
                self._cluster.call(actor, "do", job)
            elif worker.doing in ("open", "begin"):
                worker.place.deaths, worker.doing = 0, "idle"
            elif worker.doing == "do":
                if (left := self._desk.ended(worker.item)) is not None and worker.shard is not None:
                    worker.shard.items.append(left)
                self._give(worker)
        now = time.monotonic()
        for worker in list(self._workers.values()):
            allowed, of = SAYS_IN if worker.doing == "hello" else LOADS_IN, ""
            if worker.doing == "do":
                allowed, of = self._desk.timeout, " (--worker-timeout)"
            if worker.doing != "idle" and now - worker.heard > allowed:
                self._lose(worker, f"no message in {duration(allowed)}{of}")

    def _take(self, worker: _Worker, message: Message) -> None:
        kind, body = message
        if kind == LINE:
            if body not in self._told:  # every worker says what it loads
                self._told.add(body)
                say(body)
        elif kind == FACTS:
            self._take_facts(worker.place, body)
        elif kind == OPENED:
            why = self._desk.opened(body)
            if why is not None:
                return self._refuse(worker.place, why)
            self._has_opened, worker.told = True, body
        elif kind == REFUSED:
            self._refuse(worker.place, body)
        elif kind == FAILED:
            raise UserError(body)
        elif kind == CRASHED:
            self._lose(worker, body)
        else:
            self._desk.took(worker.item, message)
        return None

    def _lose(self, worker: _Worker, why: str, is_counted: bool = True) -> None:
        """A worker is no more: another gets its item."""
        self._end(worker)
        place, shard, item = worker.place, worker.shard, worker.item
        is_gone = all(node.id != place.node.id for node in self._cluster.nodes())
        if shard is None or item is None:
            if worker.doing != "idle" and not place.why and not is_gone:
                place.deaths += 1
                say(f"a worker on node {place.node.name} could not begin: {why}")
                if place.deaths == MOST_DEATHS:
                    self._refuse(place, f"{MOST_DEATHS} workers could not begin there; the last: {why}")
                elif worker.doing == "hello":
                    self._start(place, "hello", self._needs.asked)
        else:
            self._desk.lost(item)
            shard.deaths[item] += is_counted and not is_gone
            if shard.deaths[item] < MOST_DEATHS:
                say(f"shard {shard.name} is given again: its worker on node {place.node.name} is lost ({why})")
                shard.items.appendleft(item)
            else:
                shard.n_given_up += 1
                left = self._desk.gave_up(item, f"{MOST_DEATHS} workers died at it; the last: {why}")
                if left is not None:
                    shard.items.appendleft(left)
        if shard is not None:
            self._put_back(shard)

    def _put_back(self, shard: Share) -> None:
        """First in line, with whatever it has left."""
        shard.items.extend(shard.aside)
        shard.aside.clear()
        self._waiting.appendleft(shard)
        self._mark(shard, "waiting", "")

    def _end(self, worker: _Worker) -> None:
        self._cluster.kill(worker.actor)
        if self._workers.pop(worker.actor, None) and worker.slot >= 0:
            worker.place.free.append(worker.slot)

    def _is_busy(self) -> bool:
        return any(w.doing == "do" for w in self._workers.values())

    def _mark(self, shard: Share, state: str, where: str) -> None:
        shard.state, shard.where = state, where
        self._desk.shards(self._shards)
