"""HTTP as engines speak it: a JSON value asked for, and an answer streamed as server-sent events. Standard library alone."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from harness.common.errors import UserError
from methods.servers.answer import BadAnswer, EngineGone

LOOPBACK = {"localhost": "127.0.0.1", "::1": "127.0.0.1"}
PORTS = {"http": 80, "https": 443}
MOST_LINE = 1 << 24  # bytes of one event


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine is reached. `engine`: whose it is, or `auto`; `model`: the id to ask for, empty for its only one;
    `timeout`: seconds that one answer may take."""

    url: str
    engine: str = "auto"
    model: str = ""
    timeout: float = 120.0

    @property
    def parts(self) -> tuple[str, str, int, str]:
        """(scheme, host, port, path before the API's own)."""
        split = urlsplit(self.url)
        path = re.sub(r"(/v1)?/*$", "", split.path)
        return split.scheme, split.hostname or "", split.port or PORTS[split.scheme], path

    def is_same_place(self, other: Address) -> bool:
        """Whether both lead to one engine, as far as names tell."""
        (scheme, host, port, path), theirs = self.parts, other.parts
        return (scheme, LOOPBACK.get(host, host), port, path) == (theirs[0], LOOPBACK.get(theirs[1], theirs[1]), *theirs[2:])


def check_url(option: str, url: str) -> None:
    """Raises UserError where an option is no URL that an engine can be reached at."""
    need = f"{option} takes the engine's address, such as {option}=http://127.0.0.1:8000"
    if not url:
        raise UserError(f"{option} is missing: {need}")
    try:
        split = urlsplit(url)
        is_right = split.scheme in PORTS and bool(split.hostname) and not split.query and not split.fragment
        is_right = is_right and (split.port is None or split.port > 0) and split.username is None
    except ValueError:
        is_right = False
    if not is_right:
        raise UserError(f"{option} is {url!r}: {need}")


def get(address: Address, path: str) -> Any:
    """What is there: a JSON value, or else the text; None where there is nothing (404).

    Raises:
        EngineGone: nobody answers, or with an error.
    """
    with _Line(address) as line:
        status, answer = line.request("GET", path, None)
        text = line.body(answer)
    if status in (404, 405, 501):
        return None
    if status != 200:
        raise EngineGone(f"{address.url}{path} answers with status {status}: {_said(text)}")
    try:
        return json.loads(text)
    except ValueError:
        return text


def stream(
    address: Address, path: str, body: dict[str, Any], *, is_streamed: bool = True
) -> Iterator[tuple[float, dict[str, Any]]]:
    """The events of a streamed answer, each with the seconds since the request was sent; else the one that the body is.

    Raises:
        EngineGone: nobody answers, or not within the time limit.
        BadAnswer: the request was refused, or failed in an engine that still answers; or an event is no JSON object, or tells of
            an error.
    """
    with _Line(address) as line:
        status, answer = line.request("POST", path, json.dumps(body).encode())
        if status != 200:
            said = f"{address.url}{path} answers with status {status}: {_said(line.body(answer))}"
            raise (BadAnswer if 400 <= status < 500 or _is_there(address) else EngineGone)(said)
        whole = None if is_streamed else iter([line.body(answer).encode(), None])
        while (data := line.event(answer) if whole is None else next(whole)) is not None:
            took = line.seconds
            try:
                event = json.loads(data)
            except ValueError:
                raise BadAnswer(f"{address.url} streamed what is no JSON: {data[:60].decode(errors='replace')!r}") from None
            if not isinstance(event, dict):
                raise BadAnswer(f"{address.url} streamed what is no object: {data[:60].decode(errors='replace')!r}")
            if event.get("error"):
                raise BadAnswer(f"{address.url} answers with an error: {_said(json.dumps(event['error']))}")
            yield took, event


def post(address: Address, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """An answer that is not streamed. Raises as `stream` does."""
    (found, *_) = [event for _, event in stream(address, path, body, is_streamed=False)]
    return found


def _is_there(address: Address) -> bool:
    try:
        return get(address, "/v1/models") is not None
    except EngineGone:
        return False


class _Line:
    """One connection for one request. Every wait is cut short where the time limit is reached."""

    def __init__(self, address: Address) -> None:
        self._address = address
        scheme, host, port, self._path = address.parts
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        self._connection = kind(host, port, timeout=address.timeout)
        self._socket: socket.socket | None = None
        self._sent = 0.0

    def __enter__(self) -> _Line:
        try:
            self._connection.connect()
        except TimeoutError:
            raise self._slow() from None
        except OSError as e:
            raise EngineGone(f"no engine answers at {self._address.url} ({e.strerror or e})") from None
        self._socket = self._connection.sock  # an answer that closes the connection takes it away from there
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        if self._socket is not None:
            self._socket.close()

    @property
    def seconds(self) -> float:
        """Since the request was sent."""
        return perf_counter() - self._sent

    def request(self, method: str, path: str, body: bytes | None) -> tuple[int, http.client.HTTPResponse]:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream" if body else "application/json"}
        self._sent = perf_counter()
        try:
            self._connection.request(method, self._path + path, body, headers)
            answer = self._connection.getresponse()
        except TimeoutError:
            raise self._slow() from None
        except (OSError, http.client.HTTPException) as e:
            raise self._broken(e) from None
        return answer.status, answer

    def body(self, answer: http.client.HTTPResponse) -> str:
        """The whole of an answer that is not streamed."""
        parts = list[bytes]()
        while part := self._read(answer, answer.read1):
            parts.append(part)
        if answer.length:
            raise self._broken(http.client.IncompleteRead(b"".join(parts), answer.length))
        return b"".join(parts).decode(errors="replace")

    def event(self, answer: http.client.HTTPResponse) -> bytes | None:
        """The data of the next event, its lines joined; None at the end. Events without data are left out."""
        data = list[bytes]()
        while line := self._read(answer, partial(answer.readline, MOST_LINE)):
            if line.startswith(b"data:"):
                data.append(line[len(b"data:") :].strip())
            elif not line.strip() and any(data):
                break
        whole = b"\n".join(data).strip()
        return None if whole in (b"", b"[DONE]") else whole

    def _read(self, answer: http.client.HTTPResponse, read: Callable[[], bytes]) -> bytes:
        if answer.isclosed():
            return b""
        left = self._address.timeout - self.seconds
        if left <= 0:
            raise self._slow()
        assert self._socket is not None
        self._socket.settimeout(left)
        try:
            return read()
        except TimeoutError:
            raise self._slow() from None
        except (OSError, http.client.HTTPException) as e:
            raise self._broken(e) from None

    def _slow(self) -> EngineGone:
        return EngineGone(f"{self._address.url} gave no whole answer within {self._address.timeout:g} s (--set timeout=SECONDS)")

    def _broken(self, error: Exception) -> EngineGone:
        return EngineGone(f"{self._address.url} broke off its answer ({type(error).__name__}: {error})")


def _said(text: str) -> str:
    """An error's text, short: the message where it is JSON with one."""
    try:
        value = json.loads(text)
        value = value.get("error", value) if isinstance(value, dict) else value
        text = value.get("message", text) if isinstance(value, dict) else str(value)
    except ValueError:
        pass
    return " ".join(str(text).split())[:200] or "nothing"


def total(metrics: object, name: str) -> float | None:
    """A counter of Prometheus's text format, summed over its labels; None where it is not there."""
    found = re.findall(rf"^{re.escape(name)}(?:\{{[^}}\n]*\}})? +([-+0-9.eE]+)\s*$", str(metrics), re.MULTILINE)
    return sum(map(float, found)) if found else None
