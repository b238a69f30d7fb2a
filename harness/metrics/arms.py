"""Records grouped by setting and variant, each group found once for all that is computed from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

from harness.common.names import BASELINES
from harness.ledger.record import Record
from harness.metrics.pairing import Setting, Side, Variant, setting_of, side_of, variant_of


class Arms(Sequence[Record]):
    """Records in their order, and the arms that they belong to.

    `settings`: setting -> variant -> its records, each in the order in which it comes first. `baseline`: the baselines' measured
    records of all settings, by what pairs them: vanilla's, and of an engine elsewhere its own without speculation.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = tuple(records)
        self.means: dict[tuple[Setting, Variant], Any] = {}  # what `cells.means_of` found
        self._sides: dict[tuple[Setting, Variant | None], Side] = {}
        self.settings: dict[Setting, dict[Variant, list[Record]]] = {}
        for record in self._records:
            self.settings.setdefault(setting_of(record), {}).setdefault(variant_of(record), []).append(record)
        self.baseline = side_of(r for r in self._records if r["method"] in BASELINES)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Arms:
        """The records as arms; arms as they are."""
        return records if isinstance(records, Arms) else cls(records)

    def side(self, setting: Setting, variant: Variant) -> Side:
        """An arm's measured records, by what pairs them."""
        key = setting, variant
        if key not in self._sides:
            self._sides[key] = side_of(self.settings[setting][variant])
        return self._sides[key]

    def base(self, setting: Setting) -> Side:
        """The baseline's measured records in a setting."""
        key = setting, None
        if key not in self._sides:
            vanilla = (own for variant, own in self.settings.get(setting, {}).items() if variant[0] in BASELINES)
            self._sides[key] = side_of(r for own in vanilla for r in own)
        return self._sides[key]

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)
