"""The hub's own client, made to wait no longer than its own `HF_HUB_DOWNLOAD_TIMEOUT` (10 s unless set) for anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.common.errors import in_one_line


def limited_session() -> Any:
    """The HTTP session that the hub's client, and `datasets` through it, share: it asks some things without a limit of time.

    A limit of 100 s or of none, which the client sets for a request, becomes ours.
    """
    import huggingface_hub

    session = huggingface_hub.get_session()
    hooks = session.event_hooks
    if _limit not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _limit]}
    return session


def _limit(request: Any) -> None:
    from huggingface_hub import constants

    most = constants.HF_HUB_DOWNLOAD_TIMEOUT
    asked = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {
        phase: most if asked.get(phase) is None else min(most, asked[phase]) for phase in ("connect", "read", "write", "pool")
    }


def http_error() -> type[Exception]:
    """What every error of the client's HTTP library is: httpx or its successor, by the client's version."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def in_words(error: Exception) -> str:
    """What an error of that library comes to, in a line."""
    from huggingface_hub import constants

    if "Timeout" in type(error).__name__:
        return f"no answer in {constants.HF_HUB_DOWNLOAD_TIMEOUT:g} s (HF_HUB_DOWNLOAD_TIMEOUT sets another limit)"
    return in_one_line(error)


def is_web_page(response: Any) -> bool:
    """Whether a login page, a proxy or a filter answers in place of the hub."""
    return "html" in response.headers.get("content-type", "").lower()


WEB_PAGE = "a web page came in place of it (a login page, a proxy, a filter?)"


def refused_token(response: Any) -> str | None:
    """Why the hub does not take the token that was shown to it; None where that is not what a response says.

    The hub says 401 for what is not to be seen without a token, too, and its client calls both a repository that is not found.
    """
    if response.status_code != 401 or "authorization" not in response.request.headers:
        return None
    said = response.headers.get("x-error-message", "").strip() or "HTTP 401"
    return (
        f"the hub does not take the token in use ({said}): it has expired, was revoked or is mistyped; log in anew with "
        "`hf auth login`, or set HF_TOKEN to a valid one"
    )


def unreachable(path: str) -> str | None:
    """Why the hub does not answer, asked once for `path` behind its address; None where it does, or its client is offline."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        response = limited_session().get(f"{constants.ENDPOINT}/{path}", headers=build_hf_headers())
    except http_error() as e:
        return in_words(e)
    return WEB_PAGE if is_web_page(response) else refused_token(response)


@contextmanager
def offline() -> Iterator[None]:
    """In the block the hub's client and `datasets` ask nobody: what is in their caches is used."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
