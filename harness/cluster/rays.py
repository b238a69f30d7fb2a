"""Ray, and nothing else of this room knows it: nodes, workers in their own processes, and what those send.

Ray itself retries nothing: a generator that it replayed would send messages twice, and some that were never made.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.cluster.host import Host, Message
from harness.cluster.request import LOCAL
from harness.common.cores import usable_cores
from harness.common.errors import UserError, in_one_line, say

ANSWERS_IN = 20.0  # seconds that a cluster has to answer
OBJECT_STORE = 150 << 20  # bytes on this machine for `--ray local`: records under way, of 10 to 100 kB each
ASKS_EVERY = 2.0  # seconds after which Ray's server is asked whether it is there
GONE_FOR = 0.7  # of the time that Ray waits for it
FETCHED_IN = 60.0  # seconds that a message may be on its way
INSTALL = "--ray needs Ray: pip install 'draft-tree-harness[ray]'"


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster, as Ray describes it. `host`: its name; several nodes may be on one."""

    id: str
    host: str
    cpus: int
    gpus: int
    memory: int  # bytes that Ray shares out

    @property
    def name(self) -> str:
        return f"{self.host} ({self.id[:6]})"


class End(NamedTuple):
    """A call is over."""


class Lost(NamedTuple):
    """A worker is no more."""

    why: str


class Rays:
    """A cluster that is connected. A worker has one call at a time."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._calls: dict[Any, Any] = {}  # what a call sends -> its worker

    def nodes(self) -> list[Node]:
        """Those that are alive."""
        return [
            Node(n["NodeID"], n["NodeManagerHostname"], int(has.get("CPU", 0)), int(has.get("GPU", 0)), int(has.get("memory", 0)))
            for n in self._ray.nodes() if n["Alive"] for has in [n["Resources"]]
        ]  # fmt: skip

    def start(self, node: Node, *, cpus: int = 0, gpus: int = 0, memory: int = 0) -> Any:
        """A worker on a node, in a process of its own, with so many cores and GPUs of it. All of them are of one node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        made = self._ray.remote(Host).options(
            num_cpus=cpus, num_gpus=gpus, memory=memory or None, max_restarts=0, max_task_retries=0,
            scheduling_strategy=On(node_id=node.id, soft=False),
        )  # fmt: skip
        return made.remote()

    def call(self, worker: Any, function: str, *given: Any) -> None:
        """Have a worker run a function of `Host`; `events` gives what it sends."""
        sent = getattr(worker, function).options(num_returns="streaming").remote(*given)
        self._calls[sent] = worker

    def events(self, timeout: float) -> list[tuple[Any, Message | End | Lost]]:
        """What came from workers, each with its worker; empty after `timeout` seconds without anything."""
        if not self._calls:
            time.sleep(timeout)
            return []
        self._ray.wait(list(self._calls), num_returns=1, timeout=timeout)
        ready, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        return [(self._calls[sent], self._next(sent)) for sent in ready]

    def _next(self, sent: Any) -> Message | End | Lost:
        found: Message | End | Lost
        try:
            found = self._ray.get(next(sent), timeout=FETCHED_IN)
        except StopIteration:
            found = End()
        except self._ray.exceptions.RayError as e:
            found = Lost(why_lost(e))
        if not isinstance(found, Message):
            self._calls.pop(sent)
        return found

    def kill(self, worker: Any) -> None:
        """End a worker's process; nothing of it comes any more."""
        self._calls = {sent: of for sent, of in self._calls.items() if of is not worker}
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker, no_restart=True)


def why_lost(error: BaseException) -> str:
    """What Ray's error says of a worker's end, in a few words: the text itself is many lines, with hints for every cause."""
    text = re.sub(r"\x1b\[\d+m", "", str(error))
    if "low on memory" in text:
        return "its node ran low on memory, and Ray ended it"
    if found := re.search(r"The actor is dead because (?:it|its) (.+?)\.(?:\s|$)", text):
        return f"its {found[1]}" if found[0].startswith("The actor is dead because its") else f"it {found[1]}"
    if type(error).__name__ == "ActorUnavailableError":
        return "nothing comes from it any more"
    if "raised in its creation task" in text:  # a traceback; its last error is the cause
        errors = [line for line in text.splitlines() if re.match(r"[\w.]+: ", line)]
        return in_one_line(RuntimeError(errors[-1])).removeprefix("RuntimeError: ") if errors else "it could not be made"
    return in_one_line(error)


@contextmanager
def connected(address: str) -> Iterator[Rays]:
    """A cluster: of this machine alone, begun now and ended with the block (`local`), or one that is there.

    Raises:
        UserError: Ray is not installed, or no cluster of this version of Ray and Python answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == LOCAL:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # this makes it listen on loopback alone
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # its own default here, without the warning
        os.environ.setdefault("RAY_worker_niceness", "0")  # of 15 by default: any other work would come first
    elif _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` does; a cluster without one takes it as well
    try:
        import ray
    except ImportError:
        raise UserError(INSTALL) from None
    given: dict[str, Any] = {"address": address}
    if address == LOCAL:
        given |= {"num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    else:
        _check_answers(ray, address)
    # it prints there, on stdout, what it has to say of a worker that died: the driver does that, in a line
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            ray.init(**given, log_to_driver=False, logging_level=logging.ERROR, namespace="harness")
        except Exception as e:
            said = " ".join(str(e).split()) or type(e).__name__  # it may hold a traceback
            raise UserError(f"--ray {address}: {said if len(said) <= 400 else said[:397] + '...'}") from e
        finally:
            for number, handler in handlers.items():  # it puts its own there
                signal.signal(number, handler)
        with _while_answering(ray):
            yield Rays(ray)
    finally:
        ray.shutdown()  # also of what an interrupted beginning left


def _has_token() -> bool:
    """Whether this user has a token that clusters begun by Ray itself ask for: `--ray local` makes one, too."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    with suppress(RuntimeError, OSError):  # of a user without a home, or whose home this one may not read
        return (Path(path) if path else Path.home() / ".ray" / "auth_token").is_file()
    return False


@contextmanager
def _while_answering(ray: Any) -> Iterator[None]:
    """In the block the process ends, in a line and with status 2, when Ray's server (GCS) has been gone for `GONE_FOR` of the
    time after which Ray would end it with words of its own. Calls of Ray's wait for that server without end, signals unseen, so
    that no error could be raised instead. What is written is whole, as after `kill -9`."""
    allowed = GONE_FOR * float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", 60))
    address, over = ray.get_runtime_context().gcs_address, threading.Event()
    server = ray._raylet.GcsClient(address=address)

    def watch() -> None:
        gone_at = None
        while not over.wait(ASKS_EVERY):
            asked = time.monotonic()
            try:
                server.check_alive([], timeout=2.0)
                gone_at = None
            except Exception:
                gone_at = gone_at or asked
                if time.monotonic() - gone_at > allowed:
                    say(f"error: Ray's server (GCS) at {address} is gone; what is written is whole, and the same command goes on "
                        "from here on a new cluster")  # fmt: skip
                    os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _check_answers(ray: Any, address: str) -> None:
    """
    Raises:
        UserError: no cluster is at an address.
    """
    if address == "auto":  # $RAY_ADDRESS, or where the last `ray start` here was: Ray itself waits minutes for what is gone
        try:
            address = ray._private.services.canonicalize_bootstrap_address(address)
        except Exception:
            return  # it finds none, and says so at once when it is asked to connect
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWERS_IN / 2).close()
    except (OSError, OverflowError) as e:
        raise UserError(f"--ray {address}: nothing answers there ({getattr(e, 'strerror', None) or e})") from None
    answered = threading.Event()

    def ask() -> None:
        with suppress(Exception):
            ray._raylet.GcsClient(address=address)
            answered.set()
        over.set()

    over = threading.Event()
    threading.Thread(target=ask, daemon=True).start()
    over.wait(ANSWERS_IN / 2)
    if not answered.is_set():
        raise UserError(f"--ray {address}: what listens there is no Ray cluster of version {ray.__version__} that answers in "
                        f"{ANSWERS_IN:.0f} s")  # fmt: skip
