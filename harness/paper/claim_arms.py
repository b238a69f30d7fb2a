"""The arms of a ledger that the paper's claims are about."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from harness.common.names import VANILLA
from harness.ledger.record import Record
from harness.ledger.reduced import steps_of
from harness.metrics.pairing import Side, one_environment, one_source, side_of
from harness.paper import published

DYNAMIC, STATIC, NO_VALUE, NO_RERANK = "eagle2", "eagle1", "eagle2-no-value", "eagle2-no-rerank"
LIKELIEST = "eagle1-top"  # EAGLE-1's tree with EAGLE-2's drafts: at T > 0 EAGLE-1 samples its own

BEST = "tuned"  # the preset of `harness tune`


class ClaimArms:
    """One model's records as arms, by method, temperature and preset.

    `nodes`: draft nodes of EAGLE-1's and of EAGLE-2's tree. `presets`: those of EAGLE-2 with as many nodes as EAGLE-1.

    Raises:
        UserError: they were measured in several environments; names the key.
    """

    def __init__(self, records: Iterable[Record], where: object):
        tested = {VANILLA, LIKELIEST, *published.METHODS.values()}
        found = [r for r in records if r["method"] in tested]
        others = [r for r in found if r["preset"] != "paper" and r["method"] == DYNAMIC]
        published_trees = [r for r in found if r["preset"] == "paper"]
        budget = _most_nodes(r for r in published_trees if r["method"] == STATIC)
        presets = {r["preset"] for r in others}
        same = {p for p in presets if _most_nodes(r for r in others if r["preset"] == p) == budget}
        matched = [r for r in others if r["preset"] in same]
        tuned = [r for r in found if r["preset"] == BEST and (r["method"] != DYNAMIC or BEST not in same)]
        self.records = one_source(one_environment([*published_trees, *matched, *tuned], where))
        self.nodes = budget, _most_nodes(r for r in published_trees if r["method"] == DYNAMIC)
        self.presets = sorted(same)
        self.temperatures = sorted({r["temperature"] for r in self.records})
        arms: dict[tuple[str, float, str], list[Record]] = defaultdict(list)
        for r in self.records:
            arms[r["method"], r["temperature"], r["preset"]].append(r)
        self._sides = {arm: side_of(own) for arm, own in arms.items()}

    def side_of(self, method: str, temperature: float, preset: str = "paper") -> Side:
        return self._sides.get((method, temperature, preset), {})

    def best(self, method: str, temperature: float) -> Side:
        """The arm at tuned options where the folder has them, else at the paper's.

        The paper's may be the best ones: a tier measures equal options only once.
        """
        return self.side_of(method, temperature, BEST) or self.side_of(method, temperature)

    @property
    def is_tuned(self) -> bool:
        return any(r["preset"] == BEST for r in self.records)


def _most_nodes(records: Iterable[Record]) -> int | None:
    """Draft nodes of the largest tree, root excluded. Trees are smaller where the context ends."""
    return max((steps.most_nodes for r in records if (steps := steps_of(r))), default=None)
