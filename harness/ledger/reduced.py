"""Records as tables need them: a hundred thousand fit into some 300 MB, where whole ones take over 2 GB."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple, cast

from harness.ledger.record import Record, StoredRecord, StoredTrace


class Steps(NamedTuple):
    """What tables need of a trace."""

    forwards: int  # target forwards after prefill
    accepted: tuple[int, ...]  # how many of them accepted 0, 1, 2 ... drafts, up to the most that one accepted
    nodes: int  # draft nodes of all trees together, roots left out
    most_nodes: int  # of the largest tree
    target_s: float  # seconds inside the target's forwards
    drafter_s: float  # and inside the drafter's

    @classmethod
    def of(cls, trace: StoredTrace) -> Steps:
        accepted, sizes = trace["accepted"], trace["tree_size"]
        counts = tuple(map(accepted.count, range(max(accepted, default=-1) + 1)))
        return cls(len(accepted), counts, sum(sizes), max(sizes, default=0), sum(trace["target_s"]), sum(trace["drafter_s"]))

    @property
    def drafted(self) -> int:
        """Draft tokens accepted, before cutting."""
        return sum(n * count for n, count in enumerate(self.accepted))


def steps_of(record: Mapping[str, Any]) -> Steps | None:
    """A record's steps, whole or reduced; None where it has no trace."""
    if "steps" in record:
        return cast("Steps | None", record["steps"])
    trace = record["trace"]
    return Steps.of(trace) if trace else None


def forwards_of(record: Mapping[str, Any]) -> int | None:
    """Target forwards after the prefill: of the trace, or as an engine elsewhere counted them; None where neither is there."""
    if steps := steps_of(record):
        return steps.forwards
    served = record.get("served")
    return served["steps"] if served else None


_LEFT_OUT = frozenset({"trace", "text"})
_KEPT = tuple(name for name in StoredRecord.__annotations__ if name not in _LEFT_OUT)
_OPTIONAL = ("cpu_s", "load", "n_special", "machine", "system", "target_parts", "row_invariant", "served")
_OWN = frozenset({"key"})  # no two records have the same


class Reducer:
    """Makes records small: `steps` in place of `trace`, `token_ids` as an array, equal values held once, no `text`.

    Each call takes a checked record, and leaves it as it is. with_text: the text stays.
    """

    def __init__(self, *, with_text: bool = False) -> None:
        self.with_text = with_text
        self._kept = (*_KEPT, "text") if with_text else _KEPT
        # texts; token ids by their width and hash; options by a tuple of their text: none is another's key
        self._held: dict[Any, Any] = {}

    def __call__(self, record: Record) -> Record:
        hold = self._held.setdefault
        whole = cast("dict[str, Any]", record)
        small = {name: hold(value, value) if type(value := whole[name]) is str and name not in _OWN else value
                 for name in self._kept}  # fmt: skip
        small |= {name: whole[name] for name in _OPTIONAL if name in whole}
        ids, options = _compact(record["token_ids"]), record["options"]
        by = ids.typecode, blake2b(ids.tobytes(), digest_size=16).digest()  # two narrow ids may have the bytes of a wide one
        small["token_ids"] = hold(by, ids)  # greedy outputs are mostly vanilla's own
        small["options"] = hold((repr(options),), options) if type(options) is dict else options
        small["steps"] = steps_of(record)
        return cast(Record, small)


def _compact(ids: list[int]) -> array[int]:
    """Token ids as 2 bytes each where all are below 65,536, as most vocabularies are."""
    try:
        return array("H", ids)
    except OverflowError:
        return array("I", ids)
