"""What a speed is not told by its number alone: signs before it in tables, and the sentence that each stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import methods
from harness.ledger.record import Record

EARLY, DRAWN = "§", "¶"
NOTES = {
    EARLY: "§ drafted without the levels that could not change the tree, which the paper's code drafts: the speed is better by "
    "that, also in comparisons with plain decoding and EAGLE-1. Records from before the option `stop_early`; EAGLE-2's ablations "
    "were drafted whole.",
    DRAWN: "¶ at T > 0 its drafts are drawn at random in host code of ours, which takes up to 14 % of EAGLE-1's step on two "
    "CPUs and up to 8 % of SpS's, in newer records about 5 %, p/q acceptance included: the speed is worse by that.",
}
UNLIKE = "eagle2 drafted fewer levels than its ablation here (records from before the option stop_early)"

_STOPPED = ("eagle2", "eagle2-fr")  # what stopped early unasked
_ABLATIONS = ("eagle2-no-value", "eagle2-no-rerank", "eagle2-no-both")  # and what did not
_OPTIONS = {"top_k", "depth", "total"}  # of that time


def signs_of(method: str, options: Mapping[str, Any], machine: str, temperature: float) -> str:
    """The signs that a speed of these records has; empty where it is what it seems."""
    return EARLY * stopped_unasked(method, options, machine) + DRAWN * (temperature > 0 and methods.samples_drafts(method))


def stopped_unasked(method: str, options: Mapping[str, Any], machine: str) -> bool:
    """Whether drafts stopped early though no option says so: on CPUs, before there was one, where the tree left room for it."""
    if method not in _STOPPED or options.keys() - {"frequent"} != _OPTIONS or ", CUDA " in machine:
        return False
    top_k, depth, total = (options[name] for name in ("top_k", "depth", "total"))
    if {type(top_k), type(depth), type(total)} != {int}:
        return False  # no method ran with such options
    return depth > 1 and top_k + (depth - 2) * top_k * top_k > total  # a drop needs more nodes than are kept, and a level to go


def signs_of_records(records: Iterable[Record]) -> str:
    """All signs that speeds of these records have, in a fixed order. An arm's records have one set of options."""
    arms = {(r["method"], r["preset"], r["temperature"]): r for r in records}
    return joined(signs_of(r["method"], r["options"], r.get("machine", ""), r["temperature"]) for r in arms.values())


def joined(signs: Iterable[str]) -> str:
    """Each sign once, in a fixed order."""
    found = set("".join(signs))
    return "".join(sign for sign in NOTES if sign in found)


def without_signs(mark: str) -> str:
    """A mark without the signs of how drafts were made: of a target's forward, which they do not touch."""
    return "".join(sign for sign in mark if sign not in NOTES)


def notes(signs: str) -> list[str]:
    """The sentences of these signs."""
    return [note for sign, note in NOTES.items() if sign in signs]


def drafted_unlike(a: Iterable[Record], b: Iterable[Record]) -> bool:
    """Whether one side of a comparison is EAGLE-2 whose drafts stopped early unasked, and the other an ablation of it."""
    a, b = list(a), list(b)
    return any(
        EARLY in signs_of_records(one) and any(r["method"] in _ABLATIONS for r in other) for one, other in ((a, b), (b, a))
    )
