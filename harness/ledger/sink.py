"""What a run writes to, and what it reads there of earlier ones: a ledger, or what stands in for one elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.ledger.record import Record

if TYPE_CHECKING:
    from methods.base import DraftedTree


class TreeSink(Protocol):
    """Takes drafted trees; `keys`: of the generations whose trees are there. `harness.ledger.trees.TreeStore` is one."""

    @property
    def keys(self) -> set[str]: ...

    def add(self, cell: str, key: str, token_ids: Sequence[int], trees: Sequence[DraftedTree]) -> None: ...


class Sink(Protocol):
    """Takes records. `folder`: the ledger's, for messages; `records`: what is there, reduced but for texts.

    `harness.ledger.ledger.Ledger` is one, which documents each function.
    """

    @property
    def folder(self) -> Path: ...

    @property
    def records(self) -> list[Record]: ...

    def append(self, record: Mapping[str, Any]) -> None: ...

    def write_env(self, env: Mapping[str, Any]) -> str: ...

    def check_machine(self, cell: str, env: Mapping[str, Any]) -> None: ...

    def trees(self, piece: Callable[[int], str]) -> TreeSink: ...

    def whole(self, keys: Collection[str]) -> dict[str, Record]: ...
