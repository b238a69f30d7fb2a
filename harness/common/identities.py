"""How what identifies weights is shown: short, and still telling one from another."""

from __future__ import annotations

import re

_COMMIT = re.compile(r"[0-9a-f]{40}")


def shown_id(identity: str, digits: int = 16) -> str:
    """The first `digits` of a hash. Of `owner/name@commit` the whole name and eight digits of the commit; a branch is not cut."""
    repository, at, rest = identity.partition("@")
    if not at:
        return identity[:digits]
    revision, space, more = rest.partition(" ")
    return f"{repository}@{revision[:8] if _COMMIT.fullmatch(revision) else revision}{space}{more}"
