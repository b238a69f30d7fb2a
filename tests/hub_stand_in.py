"""A stand-in for the model hub on this machine: repositories by their real names, and every fault that a network has."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from harness.load import transfer

COMMIT = "c0ffee" * 6 + "beef"
LARGE = (".safetensors", ".bin", ".pt", ".model")


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def flipped(data: bytes, at: int = -1) -> bytes:
    """The same with one bit changed."""
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@dataclass
class Asked:
    path: str
    start: int
    has_token: bool


@dataclass
class Faults:
    """What goes wrong with a path; each list is used up from its front, one entry a request."""

    flip: int = 0  # so many answers have a bit flipped
    stop_after: list[int] = field(default_factory=list)  # the connection ends after so many bytes
    stall_after: list[int] = field(default_factory=list)  # nothing comes after so many bytes
    html: int = 0  # so many answers are web pages
    status: list[tuple[int, dict[str, str]]] = field(default_factory=list)


class StandIn(ThreadingHTTPServer):
    """repositories: name -> path -> bytes. refusal: the answer to every request. silent: none is ever answered."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.faults: dict[str, Faults] = {}
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.silent = False
        self.page_for_listing = False
        self.takes_ranges = True
        self.no_ranges = 0  # so many answers from a later byte on are HTTP 416
        self.asked: list[Asked] = []
        self.over = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what is tested."""

    def hold(self, name: str, folder: Path) -> dict[str, bytes]:
        """A repository with the files of a folder."""
        self.repositories[name] = {
            p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
        }
        return self.repositories[name]

    def starts(self, path: str) -> list[int]:
        """From which byte on a file was asked for, request by request."""
        return [asked.start for asked in self.asked if asked.path.endswith(f"/{path}")]


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if path == "/api/agent-harnesses":  # the client's own question, once a day
            return self._answer(404, b"{}")
        self.server.asked.append(Asked(path, start, "Authorization" in self.headers))
        if self.server.silent:
            return self._wait()
        if self.server.refusal is not None:
            return self._answer(self.server.refusal[0], b"{}", **self.server.refusal[1])
        if path.startswith("/api/models/"):
            return self._list(path.removeprefix("/api/models/").partition("/revision/")[0])
        name, _, rest = path[1:].partition("/resolve/")
        return self._file(name, rest.partition("/")[2], start)

    def _list(self, name: str) -> None:
        if self.server.page_for_listing:
            return self._answer(200, b"<html>log in</html>", **{"Content-Type": "text/html"})
        if name not in self.server.repositories:
            return self._answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
        rows = []
        for path, data in self.server.repositories[name].items():
            row: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": git_sha1(data)}
            if path.endswith(LARGE):
                row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            rows.append(row)
        body = json.dumps({"id": name, "sha": COMMIT, "siblings": rows}).encode()
        return self._answer(200, body, **{"Content-Type": "application/json"})

    def _file(self, name: str, path: str, start: int) -> None:
        data, faults = self.server.repositories[name][path], self.server.faults.setdefault(path, Faults())
        if faults.status:
            status, headers = faults.status.pop(0)
            return self._answer(status, b"{}", **headers)
        if start and self.server.no_ranges:
            self.server.no_ranges -= 1
            return self._answer(416, b"{}")
        if faults.html:
            faults.html -= 1
            return self._answer(200, b"<html>log in</html>", **{"Content-Type": "text/html; charset=utf-8"})
        if faults.flip:
            faults.flip -= 1
            data = flipped(data)
        status = 206 if start and self.server.takes_ranges else 200
        body = data[start:] if status == 206 else data
        self._head(status, len(body))
        if faults.stop_after:
            self.wfile.write(body[: faults.stop_after.pop(0)])
            self.close_connection = True
        elif faults.stall_after:
            self.wfile.write(body[: faults.stall_after.pop(0)])
            self.wfile.flush()
            self._wait()
        else:
            self.wfile.write(body)

    def _wait(self) -> None:
        self.server.over.wait(30)
        self.close_connection = True

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self._head(status, len(body), **headers)
        self.wfile.write(body)

    def _head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A hub that the client asks instead of the real one, and short waits."""
    import huggingface_hub

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(transfer, "PAUSE_S", 0.001)
    monkeypatch.setattr(transfer, "AT_ONCE", 1)  # one file after the other, as it lists them
    with StandIn() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.over.set()
            running.shutdown()
            thread.join()
            huggingface_hub.close_session()
