"""A generation that shared the machine is marked, and no claim on speed rests on it."""

from __future__ import annotations

import pytest
from made_up_records import measured, only

from harness.forms.table import markdown
from harness.ledger.record import Record
from harness.metrics.cells import summarise
from harness.metrics.clocks import SHARED, was_shared
from harness.show.tables.main import main_table


def pair(cpu: float | None, base_cpu: float | None) -> list[Record]:
    """Six prompts by vanilla and EAGLE-2, with so many CPU seconds to a wall second; None: records that tell none."""
    records = []
    for i in range(6):
        for method, share in (("vanilla", base_cpu), ("eagle2", cpu)):
            clock = {} if share is None else {"cpu_s": share, "load": 1.0}
            records.append(measured(method, i, [1, 2, 0], wall_s=1.0, **clock))
    return records


@pytest.mark.parametrize(
    ("cpu", "base_cpu", "is_shared"),
    [(0.99, 0.98, False), (None, None, False), (0.5, 0.99, True), (0.99, 0.5, True), (1 / SHARED - 0.01, 0.99, True)],
)
def test_a_speed_is_marked_where_either_side_waited_for_the_cpu(
    cpu: float | None, base_cpu: float | None, is_shared: bool
) -> None:
    records = pair(cpu, base_cpu)
    assert only(records).is_shared is is_shared
    text = markdown(main_table(summarise(records)))
    assert ("!" in text) is is_shared and ("other work shared the machine" in text) is is_shared


def test_one_short_wait_among_many_generations_marks_nothing() -> None:
    records = [measured("eagle2", i, [1], wall_s=1.0, cpu_s=0.5 if i == 0 else 0.99) for i in range(20)]
    assert not was_shared(records) and was_shared(records[:1])
