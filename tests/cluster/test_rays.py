"""What is told of Ray's own errors, and when Ray does not answer."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cluster import rays
from harness.cluster.rays import why_lost
from harness.common.errors import UserError


class ActorUnavailableError(Exception):
    """As Ray has it."""


HEAD = "The actor died unexpectedly before finishing this task.\n\tclass_name: Host\n\tpid: 13973\n\tip: 127.0.0.1\n"
CREATED = "The actor died because of an error raised in its creation task, \x1b[36mray::Host.__init__()\x1b[39m (pid=1, ip=::1)\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Exception(HEAD + "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
                   "detail: ... Some common causes include: (1) the OOM killer, (2) ray stop"), "its worker process has died"),
        (Exception(HEAD + "The actor is dead because its node has died. Node Id: 0c1"), "its node has died"),
        (Exception(HEAD + "The actor is dead because it was killed by `ray.kill`.\nThe actor never ran"),
         "it was killed by `ray.kill`"),
        (Exception("Task was killed due to the node running low on memory.\nMemory on the node (IP: ::1) was 15.9GB"),
         "its node ran low on memory, and Ray ended it"),
        (ActorUnavailableError("The actor 82db is unavailable: Socket closed. The task may or may not have been executed"),
         "nothing comes from it any more"),
        (Exception(CREATED + "    ^^^^\nRuntimeError: The actor with name Host failed to import\n\n  File \"x.py\", line 38\n"
                   "ModuleNotFoundError: No module named 'harness'"), "ModuleNotFoundError: No module named 'harness'"),
        (Exception(CREATED), "it could not be made"),
        (ValueError("something else\nand more"), "ValueError: something else"),
    ],
    ids=["killed", "node", "ray.kill", "memory", "unavailable", "import", "made", "other"],
)  # fmt: skip
def test_why_a_worker_is_lost_is_a_few_words(error: Exception, words: str) -> None:
    assert why_lost(error) == words


@pytest.mark.parametrize("comes_back", [True, False], ids=["back", "gone"])
def test_a_driver_ends_by_itself_when_rays_server_stays_away(
    comes_back: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.setattr(rays, "ASKS_EVERY", 0.01)
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "0.3")
    ended, asked = threading.Event(), list[float]()

    def end(status: int) -> None:
        assert status == 2
        ended.set()

    class Server:
        def __init__(self, address: str) -> None:
            assert address == "head:6379"

        def check_alive(self, nodes: list[Any], timeout: float) -> None:
            asked.append(time.monotonic())
            if not comes_back or len(asked) % 3:
                raise RuntimeError("RPC error")

    monkeypatch.setattr(rays.os, "_exit", end)
    told = SimpleNamespace(gcs_address="head:6379")
    with rays._while_answering(SimpleNamespace(get_runtime_context=lambda: told, _raylet=SimpleNamespace(GcsClient=Server))):
        assert ended.wait(1.0) is not comes_back
    said = capsys.readouterr().err
    assert ("error: Ray's server (GCS) at head:6379 is gone" in said) is not comes_back and len(asked) > 3


def test_auto_finds_out_whether_anything_answers_where_it_leads() -> None:
    found = SimpleNamespace(canonicalize_bootstrap_address=lambda address: "127.0.0.1:9" if address == "auto" else None)
    with pytest.raises(UserError, match="--ray 127.0.0.1:9: nothing answers there"):
        rays._check_answers(SimpleNamespace(_private=SimpleNamespace(services=found)), "auto")


def test_a_ray_that_does_not_begin_is_told_of_in_a_line_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    def init(**given: Any) -> None:
        raise RuntimeError("Failed to start GCS.\n" + "  File node.py, line 996, in _init_gcs_client\n" * 99)

    stub = SimpleNamespace(init=init, shutdown=lambda: ended.append(True), _private=SimpleNamespace(worker=SimpleNamespace()))
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_worker_niceness"):
        monkeypatch.setenv(name, "0")  # what it sets is unset at the end
    monkeypatch.setitem(sys.modules, "ray", stub)
    with pytest.raises(UserError, match="--ray local: Failed to start GCS. File node.py") as told, rays.connected("local"):
        pass
    assert len(str(told.value)) < 450 and ended


def test_this_users_token_is_found_where_ray_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not rays._has_token()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch()
    assert rays._has_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / ("x" * 5000)))  # which the system refuses to look at
    assert not rays._has_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a")
    assert rays._has_token()
