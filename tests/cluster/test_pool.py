"""The driver on a pretended cluster: who is used, who is refused, and what is given again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from harness.cluster import pool as pools
from harness.cluster.facts import Asked, Facts
from harness.cluster.host import CRASHED, FACTS, FAILED, OPENED, REFUSED, Message
from harness.cluster.pool import NOT_HERE, Needs, Pool
from harness.cluster.rays import End, Lost, Node
from harness.cluster.request import ClusterRequest
from harness.cluster.shares import Share, cut
from harness.common.errors import UserError

HERE = Facts("driver", "3.11", (("torch", "2.13"), ("transformers", "5.23")), "code", (), ())
Event = Message | End | Lost


@dataclass
class Pretended:
    """A cluster whose workers do items at once, but for what `at` makes of one: events in place of its message and its end."""

    given: list[Node]
    facts: dict[str, Facts] = field(default_factory=dict)
    silent: tuple[str, ...] = ()  # nodes that never tell what they are
    at: Callable[[int, Any], list[Event] | None] = lambda worker, item: None
    opens: Callable[[int], list[Event]] = lambda worker: [Message(OPENED, "keys"), End()]
    started: list[tuple[str, int, int]] = field(default_factory=list)  # node, cores, GPUs
    slots: list[int] = field(default_factory=list)
    envs: list[dict[str, str]] = field(default_factory=list)
    calls: dict[int, Iterator[Event]] = field(default_factory=dict)
    killed: list[int] = field(default_factory=list)

    def nodes(self) -> list[Node]:
        return list(self.given)

    def start(self, node: Node, *, cpus: int = 0, gpus: int = 0, memory: int = 0) -> int:
        self.started.append((node.id, cpus, gpus))
        return len(self.started) - 1

    def call(self, worker: int, function: str, *given: Any) -> None:
        node = self.started[worker][0]
        if function == "hello":
            tells: list[Event] = [Message(FACTS, self.facts.get(node, replace(HERE, host=node))), End()]
            events = [] if node in self.silent else tells
        elif function == "open":
            self.slots.append(given[2])
            self.envs.append(given[4])
            events = self.opens(worker)
        else:
            odd = self.at(worker, given[0])
            events = [Message("did", given[0]), End()] if odd is None else odd
        self.calls[worker] = iter(events)

    def events(self, timeout: float) -> list[tuple[int, Event]]:
        found = []
        for worker, events in list(self.calls.items()):
            event = next(events, None)
            if event is None:
                continue
            if not isinstance(event, Message):
                self.calls.pop(worker)
            found.append((worker, event))
        return found

    def kill(self, worker: int) -> None:
        self.killed.append(worker)
        self.calls.pop(worker, None)


@dataclass
class Counter:
    """A desk that notes what it is told."""

    timeout: float = 100.0
    did: list[Any] = field(default_factory=list)
    given_up: list[tuple[Any, str]] = field(default_factory=list)
    n_lost: int = 0
    refuses: str | None = None
    nowhere: list[Any] = field(default_factory=list)

    def opened(self, told: Any) -> str | None:
        return self.refuses

    def setup(self) -> Any:
        return "setup"

    def begin(self) -> Any:
        return None

    def given(self, item: Any, told: Any) -> Any:
        return item

    def took(self, item: Any, message: Message) -> None:
        self.did.append(message.body)

    def ended(self, item: Any) -> Any:
        return None

    def unplaced(self, item: Any) -> None:
        self.nowhere.append(item)

    def lost(self, item: Any) -> None:
        self.n_lost += 1

    def gave_up(self, item: Any, why: str) -> Any:
        self.given_up.append((item, why))

    def shards(self, shards: Sequence[Share]) -> None:
        self.states = [(share.state, share.n_given_up) for share in shards]


NEEDS = Needs("m:f", 2, 0, None, lambda free: 1, Asked(), {})
TWO = [Node("a", "a", 4, 0, 0), Node("b", "b", 4, 0, 0)]


def done(cluster: Pretended, items: int = 10, n_shards: int = 4, needs: Needs = NEEDS, desk: Counter | None = None,
         is_draining: Callable[[], bool] = lambda: False) -> Counter:  # fmt: skip
    desk = desk or Counter()
    pool = Pool(cluster, needs, desk, HERE, is_draining)
    pool.survey()
    pool.work(cut(range(items), n_shards, lambda item: item))
    return desk


def test_every_item_is_done_once_by_workers_on_cores_of_their_own() -> None:
    cluster = Pretended(TWO)
    desk = done(cluster, n_shards=4)
    assert sorted(desk.did) == list(range(10)) and desk.states == [("done", 0)] * 4
    assert {cores for _, cores, _ in cluster.started} == {0, 2}, "scouts take none"
    assert sorted(cluster.slots) == [0, 0, 1, 1] or len(cluster.slots) <= 4
    assert sorted(set(cluster.killed)) == list(range(len(cluster.started))), "none is left"


def test_two_nodes_on_one_machine_have_different_cores() -> None:
    on_one = {name: replace(HERE, host="same") for name in "ab"}
    cluster = Pretended(TWO, on_one, at=lambda worker, item: None)
    pool = Pool(cluster, NEEDS, Counter(), HERE, lambda: False)
    assert pool.survey() == 4
    assert sorted(slot for place in pool._places.values() for slot in place.free) == [0, 1, 2, 3]


def test_cutting_leaves_nothing_out_and_keeps_together_what_belongs_together() -> None:
    items = [(talk, repeat) for repeat in range(2) for talk in range(7)]
    for n in (1, 3, 50):
        shares = cut(items, n, lambda item: item[0])
        assert sorted(i for share in shares for i in share.items) == sorted(items) and len(shares) == min(n, 7)
        where = {item: share.name for share in shares for item in share.items}
        assert all(where[talk, 0] == where[talk, 1] for talk in range(7))


@pytest.mark.parametrize("end", [Lost("killed"), Message(CRASHED, "IndexError: it")], ids=["dies", "crashes"])
def test_an_item_is_given_three_times_and_then_given_up(end: Event) -> None:
    tries: list[int] = []

    def at(worker: int, item: Any) -> list[Event] | None:
        if item != 3:
            return None
        tries.append(worker)
        return [end]

    desk = done(Pretended(TWO, at=at))
    assert len(tries) == 3 == len(set(tries)) == desk.n_lost
    assert sorted(desk.did) == [0, 1, 2, *range(4, 10)]
    assert [item for item, _ in desk.given_up] == [3] and "3 workers died at it" in desk.given_up[0][1]
    assert sorted(desk.states) == [("done", 0)] * 3 + [("failed", 1)]


def test_a_worker_that_says_nothing_is_ended_and_its_item_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr(pools.time, "monotonic", clock)
    hung: list[int] = []

    def at(worker: int, item: Any) -> list[Event] | None:
        if item == 5 and not hung:
            hung.append(worker)
            return []
        return None

    cluster = Pretended(TWO, at=at)
    desk = done(cluster)
    assert sorted(desk.did) == list(range(10)) and desk.n_lost == 1 and hung[0] in cluster.killed


def test_a_worker_that_never_begins_is_ended_by_no_option_of_the_users(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    clock = iter(range(10**6))
    monkeypatch.setattr(pools.time, "monotonic", lambda: float(next(clock)))
    with pytest.raises(UserError, match="3 workers could not begin there; the last: no message in 30 min$"):
        done(Pretended(TWO[:1], opens=lambda worker: []))
    assert "--worker-timeout" not in capsys.readouterr().err


def test_a_node_that_never_says_what_it_is_holds_the_others_up_for_minutes_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    clock = iter(range(10**6))
    monkeypatch.setattr(pools.time, "monotonic", lambda: float(next(clock)))
    desk = done(Pretended(list(TWO), silent=(TWO[1].id,)))
    assert sorted(desk.did) == list(range(10)) and "no message in 5 min" in capsys.readouterr().err


def test_a_node_that_goes_costs_no_item_a_try() -> None:
    cluster = Pretended(list(TWO))

    def at(worker: int, item: Any) -> list[Event] | None:
        if cluster.started[worker][0] == "b":
            cluster.given = TWO[:1]
            return [Lost("its node is gone")]
        return None

    cluster.at = at
    desk = done(cluster, items=40, n_shards=8)
    assert sorted(desk.did) == list(range(40)) and not desk.given_up


def test_a_node_that_goes_before_it_told_what_it_is_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "LOOKS_AGAIN", 0.0)

    @dataclass
    class Going(Pretended):
        def call(self, worker: int, function: str, *given: Any) -> None:
            super().call(worker, function, *given)
            if function == "hello" and self.started[worker][0] == "b":
                self.given = TWO[:1]
                self.calls[worker] = iter([Lost("its node is gone")])

    cluster, asked = Going(list(TWO)), iter(range(100))
    assert sorted(done(cluster, is_draining=lambda: next(asked) < 0).did) == list(range(10))


def test_draining_gives_nothing_more() -> None:
    desk = Counter()
    done(Pretended(TWO), items=40, desk=desk, is_draining=lambda: len(desk.did) >= 3)
    assert 3 <= len(desk.did) < 10


def test_an_error_of_the_work_ends_it_and_every_worker() -> None:
    cluster = Pretended(TWO, at=lambda worker, item: [Message(FAILED, "prompt 7 does not fit"), End()] if item == 7 else None)
    with pytest.raises(UserError, match="prompt 7 does not fit"):
        done(cluster)
    assert sorted(set(cluster.killed)) == list(range(len(cluster.started)))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"python": "3.14"}, "it has Python 3.14, the driver 3.11"),
        ({"packages": (("torch", "2.13"), ("transformers", "4"))}, "it has transformers 4, the driver 5.23"),
        ({"code": "other"}, "its code of this harness is other, the driver's code"),
        ({"unreadable": ("/models/x.yaml",)}, "it cannot read /models/x.yaml"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_node_that_differs_is_refused_by_name_and_the_others_go_on(
    facts: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    cluster = Pretended(TWO, {"b": replace(HERE, host="b", **facts)})
    assert sorted(done(cluster).did) == list(range(10))
    assert f"node b (b) is left out: {words}" in capsys.readouterr().err
    assert all(node == "a" for node, cores, _ in cluster.started if cores)
    with pytest.raises(UserError, match="no node of the cluster can do this") as refused:
        done(Pretended(TWO[1:], {"b": replace(HERE, host="b", **facts)}))
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_who_cannot_begin_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Pretended(TWO[:1], opens=lambda worker: [Message(REFUSED, "weights are missing"), End()])
    with pytest.raises(UserError, match="weights are missing"):
        done(cluster)
    cluster = Pretended(TWO[:1], opens=lambda worker: [Lost("out of memory")])
    with pytest.raises(UserError, match="3 workers could not begin there; the last: out of memory"):
        done(cluster)
    assert capsys.readouterr().err.count("could not begin: out of memory") == 3
    with pytest.raises(UserError, match="its cells are others"):
        done(Pretended(TWO[:1]), desk=Counter(refuses="its cells are others"))


def test_gpus_are_as_many_as_the_model_needs_on_that_node() -> None:
    both = [Node("a", "a", 16, 0, 0), Node("b", "b", 16, 4, 0)]
    facts = {"b": replace(HERE, host="b", gpus=(80, 80, 80, 80))}
    cluster = Pretended(both, facts)
    done(cluster, needs=replace(NEEDS, gpus_of=lambda free: 2 if sum(free[:2]) >= 160 else None))
    assert {place for place in cluster.started if place[1]} == {("b", 2, 2)}, "a node without GPUs is left out beside one with"
    assert all("CUDA_VISIBLE_DEVICES" not in env for env in cluster.envs), "Ray says which"
    on_cpu = Pretended(both[1:], facts)
    done(on_cpu, needs=replace(NEEDS, gpus=0, env={"MINE": "1"}))
    assert on_cpu.envs and all(env == {"MINE": "1", "CUDA_VISIBLE_DEVICES": ""} for env in on_cpu.envs), "--gpus 0 is on a CPU"
    with pytest.raises(UserError, match="the model does not fit on its 4 GPUs"):
        done(Pretended(both[1:], facts), needs=replace(NEEDS, gpus_of=lambda free: None))
    with pytest.raises(UserError, match="it takes 8 GPUs a worker, and it has 4"):
        done(Pretended(both[1:], facts), needs=replace(NEEDS, gpus=8))


class Choosy(Counter):
    """Has items that begin with a node's name for that node alone; an item `ab` has a part for each."""

    def opened(self, told: Any) -> str | None:
        return None

    def given(self, item: Any, told: Any) -> Any:
        return item if item.startswith(told) else NOT_HERE

    def ended(self, item: Any) -> Any:
        return item[1:] if item == "ab" else None


@pytest.mark.parametrize("n_shards", [1, 2, 7])
@pytest.mark.parametrize("dies", [False, True])
def test_what_one_machine_began_is_left_to_it(n_shards: int, dies: bool) -> None:
    cluster, desk, died = Pretended(TWO), Choosy(), list[int]()
    cluster.opens = lambda worker: [Message(OPENED, cluster.started[worker][0]), End()]

    def at(worker: int, item: Any) -> list[Event] | None:
        if dies and item == "a3" and not died:
            died.append(worker)
            return [Lost("killed")]
        return None

    cluster.at = at
    items = ["ab", *(f"{node}{i}" for i in range(6) for node in "abc")]
    pool = Pool(cluster, NEEDS, desk, HERE, lambda: False)
    pool.survey()
    pool.work(cut(items, n_shards, lambda item: item))
    assert sorted(desk.did) == sorted([*(item for item in items if item[0] != "c"), "b"])
    assert sorted(desk.nowhere) == [f"c{i}" for i in range(6)], "no node of the cluster is it"
    assert not desk.given_up and desk.n_lost == dies


def test_a_node_with_gpus_that_comes_to_a_run_on_cpus_is_the_one_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.setattr(pools, "LOOKS_AGAIN", 0.0)
    cluster, desk = Pretended(TWO[:1]), Counter()

    def at(worker: int, item: Any) -> list[Event] | None:
        cluster.given = [TWO[0], Node("b", "b", 16, 4, 0)]
        return None

    cluster.at = at
    assert sorted(done(cluster, items=40, desk=desk).did) == list(range(40)) and not desk.n_lost
    assert "node b (b) is left out: it came to a run on CPUs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("needs", "words"),
    [({"threads": 8}, r"8 cores a worker \(--threads\), and it has 4"), ({"memory": 9 * 10**9}, "9.0 GB a worker")],
    ids=["cores", "memory"],
)
def test_what_is_too_large_for_every_node_is_said_in_a_line(needs: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        done(Pretended([Node("a", "a", 4, 0, 8 * 10**9)]), needs=replace(NEEDS, **needs))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"address": "local", "shards": 0}, "--shards is 0"),
        ({"address": "local", "gpus": -1}, "--gpus is -1"),
        ({"address": "local", "worker_timeout": 0.0}, "--worker-timeout is 0"),
        ({"address": "host"}, "local, auto or HOST:PORT"),
    ],
    ids=lambda value: "" if isinstance(value, str) else list(value)[-1],
)
def test_what_cannot_be_asked_for_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ClusterRequest(**given)
