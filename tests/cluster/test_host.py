"""What runs in a worker's process, without Ray; what it tells of itself; and how a driver is stopped."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harness.cluster.facts import Asked, differences, facts_here
from harness.cluster.host import CRASHED, FACTS, FAILED, LINE, OPENED, REFUSED, Host, Message, Send
from harness.common.errors import UserError
from harness.common.stopping import draining


class ABench:
    """Does what it is told; `setup` may be an error, raised when it is made."""

    sent_at: list[float] = []

    def __init__(self, setup: Any) -> None:
        if isinstance(setup, Exception):
            raise setup
        self.opened = f"opened with {setup}, {len(os.sched_getaffinity(0))} cores, OMP {os.environ['OMP_NUM_THREADS']}"

    def do(self, item: Any, send: Send) -> None:
        if isinstance(item, BaseException):
            raise item
        for i in range(item):
            print("doing", i, file=sys.stderr)
            send("did", i)
            self.sent_at.append(time.monotonic())


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    return Host()


MAKER = f"{__name__}:ABench"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[ABench.__module__])


def opened(host: Host, setup: Any = "this", slot: int = 0) -> list[Message]:
    return list(host.open(MAKER, setup, slot, 1, {}))


def test_messages_come_in_order_with_what_is_printed_and_one_at_a_time(host: Host) -> None:
    assert opened(host) == [Message(OPENED, "opened with this, 1 cores, OMP 1")]
    ABench.sent_at.clear()
    got = []
    for message in host.do(2):
        got.append(message)
        time.sleep(0.05)  # whoever takes messages is slow: the work waits
        if message.kind == "did":
            assert len(ABench.sent_at) == message.body, "it went on before its message was taken"
    assert got == [Message(LINE, "doing 0"), Message("did", 0), Message(LINE, "doing 1"), Message("did", 1)]


def test_whoever_takes_messages_may_print_meanwhile(host: Host) -> None:
    opened(host)
    got: list[Message] = []

    def take() -> None:
        for message in host.do(1):
            print("a finaliser, say, of what was sent", file=sys.stderr)
            got.append(message)

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    taker.join(10)
    assert got == [Message(LINE, "doing 0"), Message("did", 0)], "it waits for itself"


def test_errors_are_messages(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    assert opened(host, UserError("no weights")) == [Message(REFUSED, "no weights")]
    opened(host)
    assert list(host.do(UserError("no such prompt"))) == [Message(FAILED, "no such prompt")]
    assert list(host.do(IndexError("it"))) == [Message(CRASHED, "IndexError: it")]
    assert list(host.do(SystemExit(0))) == [Message(CRASHED, "SystemExit: 0")]
    assert [message.body for message in host.do(1)][-1] == 0, "it can be asked again"


def test_workers_of_a_machine_keep_to_cores_of_their_own() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from harness.cluster.host import pin

    def pinned(slot: int) -> set[int]:
        pin(slot, 1)
        return os.sched_getaffinity(0)

    both = []
    for slot in range(2):
        with ThreadPoolExecutor(1) as thread:  # a new one: what is pinned is a thread
            both.append(thread.submit(pinned, slot).result())
    assert all(len(cores) == 1 for cores in both)
    assert both[0] != both[1] or len(os.sched_getaffinity(0)) == 1


def test_a_process_tells_what_it_can_read_and_what_is_another_file(host: Host, tmp_path: Path) -> None:
    mine, other = tmp_path / "method.py", tmp_path / "gone.yaml"
    mine.write_text("x = 1\n")
    asked = Asked((str(other),), (str(mine),))
    here = facts_here(asked)
    assert list(differences(here, here)) == [f"it cannot read {other}"]
    mine.write_text("x = 2\n")
    (there,) = (message.body for message in host.hello(asked) if message.kind == FACTS)
    assert list(differences(there, here)) == [f"it cannot read {other}", f"its {mine} is another file than the driver's"]
    mine.unlink()
    assert f"it cannot read {mine}" in list(differences(facts_here(asked), here))


def test_the_first_signal_is_noted_and_the_second_stops(capfd: pytest.CaptureFixture[str]) -> None:
    ended = []
    with pytest.raises(KeyboardInterrupt):
        with draining("stopping") as is_draining:
            assert not is_draining()
            os.kill(os.getpid(), signal.SIGINT)
            assert is_draining()
            ended.append("the block")
    assert ended and capfd.readouterr().err == "stopping\n"
    with pytest.raises(KeyboardInterrupt):
        with draining("stopping"):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            ended.append("not reached")
    assert ended == ["the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
