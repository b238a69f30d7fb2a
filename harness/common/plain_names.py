"""Names that form paths: `place` makes every path that has a name in it, so no name leads out of its folder.

A name comes from a YAML, a user's file, a record or an answer file. What it is written into (a path, a table, a command line)
must not take a part of it for something else.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from harness.common.errors import UserError

MOST = 100  # characters; file systems take 255 bytes, and endings and hashes are added
_PLAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.+=,@-]*[A-Za-z0-9_+=@-])?")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # Windows takes them for devices


def why_not_plain(name: object) -> str | None:
    """Why something is no plain name; None where it is one."""
    if not isinstance(name, str):
        return f"a name is a text, not {type(name).__name__}"
    if not name:
        return "it is empty"
    if len(name) > MOST:
        return f"it has {len(name)} characters, and a name has at most {MOST}"
    if not _PLAIN.fullmatch(name) or ".." in name:
        return "a name has letters (a-z), digits and _ . + = , @ - in it, begins with a letter, a digit or _, and has no '..'"
    if _RESERVED.fullmatch(name):
        return "some systems reserve it"
    return None


def plain_name(kind: str, name: object) -> str:
    """The name, if it is plain.

    Raises:
        UserError: names the kind ("model", "task"), the value and the rule.
    """
    why = why_not_plain(name)
    if why is not None or not isinstance(name, str):
        shown = repr(name)
        raise UserError(f"{kind} name {shown if len(shown) <= 2 * MOST else shown[: 2 * MOST] + '...'} is no plain name: {why}")
    return name


def place(folder: Path, kind: str, *names: object, suffix: str = "") -> Path:
    """`folder/name/../name + suffix` of plain names; -> a path inside `folder`, which is made nowhere.

    Raises:
        UserError: one of the names, which are of `kind`, is not plain.
    """
    path = folder.joinpath(*(plain_name(kind, name) for name in names))
    return path.with_name(path.name + suffix)


HASH = 12  # digits of a hash that a name ends in


def split_hash(text: str) -> tuple[str, str]:
    """`NAME@HASH` -> (name, hash); any other text -> (text, ""). A file's path may have `@` in it, too."""
    found = re.fullmatch(rf"(.+)@([0-9a-f]{{{HASH}}})", text, re.DOTALL)
    return (found[1], found[2]) if found else (text, "")


def made_plain(text: str) -> str:
    """A plain name that resembles a text: other characters become `_`, and what is long ends in a hash of the whole."""
    name = re.sub(r"(?:\.\.+|[^A-Za-z0-9_.+=,@-])+", "_", text)
    name = name if why_not_plain(name) is None or len(name) > MOST else f"_{name}_"
    return name if len(name) <= MOST else f"{name[: MOST - 9]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def plain_parts(kind: str, name: object, most: int = 8) -> tuple[str, ...]:
    """The parts of a name that may have slashes, each a plain name: a hub's `owner/name`, a branch, a file in an archive.

    Raises:
        UserError: a part is not plain, or there are over `most`.
    """
    parts = name.split("/") if isinstance(name, str) else [name]
    wrong = next((why for part in parts if (why := why_not_plain(part))), None)
    if wrong is not None or len(parts) > most:
        raise UserError(f"{kind} {str(name)[: 2 * MOST]!r} is not plain names between slashes: {wrong or 'too many parts'}")
    return tuple(str(part) for part in parts)
