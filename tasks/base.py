"""What a task is: types only. The registry is in `tasks/__init__.py`, where prompts come from in `tasks/sources.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.common.errors import UserError
from harness.common.plain_names import plain_name
from harness.common.pypi import WheelMember


@dataclass(frozen=True, slots=True)
class Prompt:
    """One conversation: the user's `turns` in order, without a chat template. `reference` answers are never scored."""

    id: str
    turns: tuple[str, ...]
    category: str = ""
    reference: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts of a run. `sha256` names the whole set they were cut from, in its order: no limit changes it.

    It is the file's own sha256 for a question file, and a digest of ids and turns in sampled order for pypi and hub
    (so the seed is in it).
    """

    task: str
    source: str
    prompts: list[Prompt]
    sha256: str


Row = Mapping[str, Any]
"""One example of a published data set, by column."""


@dataclass(frozen=True, slots=True)
class HubSpec:
    """A split of a Hugging Face data set. `revision` is the commit; None takes whatever the hub serves that day."""

    id: str
    config: str | None
    split: str
    revision: str | None


@dataclass(frozen=True, slots=True)
class Task:
    """One benchmark: how it is called and where its prompts come from.

    `<name>.jsonl` (FastChat questions) beside the task's file, or in `bundled/` for the tasks of this package, needs no
    declaration. `paper_folder` is the task's folder in the reference repository's data. `pypi` (JSON lines in a wheel,
    plain or .gz) and `hub` are published sets whose rows `to_prompt(row, index)` turns into prompts. `models`: the only models
    that can be asked it, which then can be asked nothing else; empty for a task of text, which is for all others.

    Raises:
        UserError: a declaration that cannot work.
    """

    name: str
    title: str
    line: str
    n_turns: int = 1
    paper_folder: str | None = None
    to_prompt: Callable[[Row, int], Prompt] | None = None
    pypi: WheelMember | None = None
    hub: HubSpec | None = None
    models: tuple[str, ...] = ()
    home: Path | None = None  # set by the registry: the file that defines the task

    def __post_init__(self) -> None:
        if plain_name("task", self.name) == "all":
            raise UserError("task name 'all' is the word for all tasks; choose another")
        if self.paper_folder is not None:
            plain_name("paper folder", self.paper_folder)
        if self.n_turns < 1:
            raise UserError(f"task {self.name!r} has n_turns={self.n_turns}; it needs at least 1")
        if isinstance(self.models, str):
            such = f"({self.models!r},)"
            raise UserError(f"task {self.name!r} has models={self.models!r}; it must be a tuple of names, such as {such}")
        if (self.pypi or self.hub) and self.to_prompt is None:
            raise UserError(f"task {self.name!r} names a pypi or hub set but no to_prompt(row, index) to read its rows")
