"""Files from the hub: resumed where an earlier try stopped, in this run or in one before, and hashed while they arrive.

The hub's own client begins a file anew in each run and does not compare it with its hash.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.common.digests import hasher, remember
from harness.common.errors import UserError, say
from harness.common.hub_client import WEB_PAGE, http_error, in_words, is_web_page, limited_session
from harness.common.plain_names import place
from harness.common.progress import showing_progress
from harness.load.hub_cache import HubFile, put

ATTEMPTS = 5  # tries in a row that bring nothing new
PAUSE_S = 1.0  # the wait after the first of them; it is doubled after each
LEAST = 1 << 20  # bytes that are something new
SLOW_BYTES, SLOW_S = 1 << 16, 60.0  # fewer bytes in so long are a stall
AT_ONCE = 4  # files
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # statuses that pass
STEP = 100_000_000  # bytes of a step of progress


class GaveUp(UserError):
    """The last try failed; the message says why."""


class Tries:
    """Counts tries in a row that bring nothing new. stop: no more is tried, nor waited for, once it is set."""

    def __init__(self, what: str, attempts: int | None = None, stop: threading.Event | None = None):
        self.what, self.attempts, self.failed, self.had = what, attempts or ATTEMPTS, 0, 0
        self.stop = stop or threading.Event()

    def go_on(self) -> None:
        """
        Raises:
            GaveUp: it is to stop.
        """
        if self.stop.is_set():
            raise GaveUp(f"{self.what}: stopped")

    def again(self, why: str, has: int = 0) -> None:
        """Wait for the next try. has: bytes there are by now.

        Raises:
            GaveUp: that was the last one, or it is to stop.
        """
        self.go_on()
        self.failed, self.had = (1, has) if has >= self.had + LEAST else (self.failed + 1, self.had)
        if self.failed >= self.attempts:
            raise GaveUp(f"{self.what}: {why}, {self.attempts} time{'s' * (self.attempts != 1)} in a row")
        wait_s = PAUSE_S * 2 ** (self.failed - 1)
        say(f"{self.what}: {why}; trying again in {wait_s:g} s ({self.failed} of {self.attempts})")
        self.stop.wait(wait_s)
        self.go_on()


def ask(path: str, *, attempts: int = 3) -> Any:
    """The JSON that the hub answers. path: behind its address.

    Raises:
        GaveUp: no answer, or none that is JSON.
        HfHubHTTPError: the hub refuses.
    """
    tries = Tries(f"the hub ({_endpoint()})", attempts)
    while True:
        try:
            with _opened(f"{_endpoint()}/{path}") as response:
                return json.loads(response.read())
        except _Passing as e:
            why = str(e)
        except ValueError:
            raise GaveUp(f"the hub ({_endpoint()}) answers with something else than JSON") from None
        tries.again(why)


def fetch_files(repo: str, commit: str, files: Sequence[HubFile], root: Path) -> None:
    """Bring files of a repository into its folder of the cache, each checked; those that are there are not asked for.

    Raises:
        GaveUp: a transfer that broke or stalled for good, or twice brought something else; what arrived whole or in part is kept.
        HfHubHTTPError: the hub refuses.
        OSError: the cache cannot be written.
    """
    blobs, stop = root / "blobs", threading.Event()
    blobs.mkdir(parents=True, exist_ok=True)
    with showing_progress(f"fetching {repo}") as progress:
        by_hash: dict[str, list[HubFile]] = {}
        for file in files:
            by_hash.setdefault(file.hash, []).append(file)
        progress.expect(sum(1 + (file.size or 0) // STEP for file, *_ in by_hash.values()))

        def bring(file: HubFile, *others: HubFile) -> None:
            blob = place(blobs, "blob", file.hash)
            progress.step(file.path)
            if not blob.is_file():
                part = place(blobs, "blob", file.hash, suffix=".part")
                url = f"{_endpoint()}/{repo}/resolve/{commit}/{quote(file.path)}"
                _fetch(url, part, file, stop, lambda: progress.step(file.path))
                part.replace(blob)
                remember(blob.resolve(), file.kind, file.hash)
            for one in (file, *others):
                put(root, commit, one, blob)

        _at_once([partial(bring, *same) for same in by_hash.values()], stop)


def _at_once(jobs: Sequence[Callable[[], object]], stop: threading.Event) -> None:
    """Do the jobs in `AT_ONCE` threads. The first error ends it all: `stop` is set, and the others end at their next block.

    Ctrl-C waits for no thread, as each may hang in a read for as long as the client's limit; so they are daemons.
    """
    waiting: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def work() -> None:
        while not stop.is_set():
            try:
                waiting.get_nowait()()
                ended.put(None)
            except queue.Empty:
                return
            except BaseException as e:
                ended.put(e)

    threads = [threading.Thread(target=work, daemon=True) for _ in jobs[:AT_ONCE]]
    try:
        for thread in threads:
            thread.start()
        for _ in jobs:
            if (error := ended.get()) is not None:
                raise error
    except Exception:
        stop.set()
        for thread in threads:
            thread.join()
        raise
    finally:
        stop.set()


def _fetch(url: str, part: Path, file: HubFile, stop: threading.Event, step: Callable[[], object]) -> None:
    """Make `part` the whole file. What arrives altered is fetched once more."""
    for is_last in (False, True):
        got = _resume(url, part, file, stop, step)
        if got == file.hash:
            return
        part.unlink()
        what = f"{file.path} arrived altered (hash {got}, expected {file.hash})"
        if is_last:
            raise GaveUp(f"{what}, twice: something between here and the hub changes it")
        say(f"{what}; fetching it once more")


def _resume(url: str, part: Path, file: HubFile, stop: threading.Event, step: Callable[[], object]) -> str:
    """Fetch what `part` lacks of a file; -> the hash of the whole."""
    size, tries, began_anew = file.size or 0, Tries(file.path, stop=stop), False
    with part.open("a+b") as out:
        if out.seek(0, 2) > size:
            out.truncate(0)
        digest = hasher(file.kind, size)
        out.seek(0)
        while block := out.read(1 << 22):
            digest.update(block)
        tries.had = out.tell()
        while (start := out.tell()) < size:
            tries.go_on()
            why = "the connection ended early"
            try:
                with _opened(url, start) as response:
                    if start and response.status_code != 206:  # the server begins at the beginning
                        out.seek(0)
                        out.truncate()
                        digest, tries.had = hasher(file.kind, size), 0
                    since, there = time.monotonic(), out.tell()
                    for block in response.iter_raw():
                        tries.go_on()
                        digest.update(block)
                        if out.tell() // STEP < (out.tell() + len(block)) // STEP:
                            step()
                        out.write(block)
                        if out.tell() > size:
                            break
                        if time.monotonic() - since > SLOW_S:
                            if out.tell() - there < SLOW_BYTES:
                                raise _Passing(f"under {SLOW_BYTES} bytes came in {SLOW_S:g} s")
                            since, there = time.monotonic(), out.tell()
            except _Passing as e:
                why = str(e)
                if isinstance(e, _NoSuchRange) and not began_anew:
                    say(f"{file.path}: {why}; beginning anew")
                    out.truncate(0)
                    out.seek(0)
                    digest, tries.had, began_anew = hasher(file.kind, size), 0, True
                    continue
            if out.tell() < size:
                out.flush()
                kept = f" ({out.tell()} of {size} bytes are here and kept)" if out.tell() else ""
                tries.again(f"{why}{kept}", out.tell())
    return str(digest.hexdigest())


class _Passing(Exception):
    """A failure that may pass: the message says which."""


class _NoSuchRange(_Passing):
    """The server has nothing from the byte on that was asked for."""


@contextmanager
def _opened(url: str, start: int = 0) -> Iterator[Any]:
    """The hub's response from byte `start` on, its head read and approved."""
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with limited_session().stream("GET", url, headers=headers) as response:
            if response.status_code in AGAIN:
                raise _Passing(f"HTTP {response.status_code} {response.reason_phrase}".strip())
            if start and response.status_code == 416:
                raise _NoSuchRange(f"HTTP 416 from byte {start} on")
            hf_raise_for_status(response)
            if is_web_page(response):
                raise _Passing(WEB_PAGE)
            yield response
    except http_error() as e:
        if hasattr(e, "server_message"):  # the hub's own word, which no repetition changes
            raise
        raise _Passing(in_words(e)) from None


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
