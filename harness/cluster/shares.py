"""Work cut into shards: each is done by one worker, item by item."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

PER_WORKER = 4  # shards: while one worker does its last, little is left to the others


@dataclass(slots=True, eq=False)
class Share:
    """`items`: those that no worker has yet, of `n`; `where`: the node that has it, or had it. `aside`: items that are not for
    the machine of the worker that has it; `not_on`: ids of the nodes that all items left are not for."""

    name: str
    items: deque[Any]
    n: int
    state: str = "waiting"  # then running, done or, with items given up, failed
    where: str = ""
    n_given_up: int = 0
    aside: list[Any] = field(default_factory=list)
    not_on: set[str] = field(default_factory=set)
    deaths: Counter[Any] = field(default_factory=Counter)  # of workers, by the item that they were at


def cut(items: Iterable[Any], n: int, together: Callable[[Any], Hashable]) -> list[Share]:
    """At most `n` shards, or one, none of them empty. Items of one `together` stay in one; neighbours go to different ones."""
    groups: dict[Hashable, int] = {}
    shares: list[list[Any]] = [[] for _ in range(max(n, 1))]
    for item in items:
        shares[groups.setdefault(together(item), len(groups)) % len(shares)].append(item)
    full = [share for share in shares if share]
    return [Share(f"{i}/{len(full)}", deque(share), len(share)) for i, share in enumerate(full, start=1)]
