"""What a record says of an engine elsewhere is checked when it is read, and by the schema, and is left out by neither."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from made_up_records import measured

from harness.ledger.checked import record_of
from harness.ledger.record import validate
from harness.ledger.reduced import Reducer, forwards_of
from harness.metrics.definitions import point, tau
from harness.metrics.pairing import side_of

SERVED = {"first_s": 0.1, "n_first": 1, "prompt_as": "ids", "ids_from": "engine", "n_cached": 0, "steps": 4, "drafted": 12,
          "accepted": 3, "counter": "timings", "why": None}  # fmt: skip
Change = Callable[[dict[str, Any]], Any]


def record(**changes: Any) -> dict[str, Any]:
    """Eight tokens in four steps after the prefill, as an engine elsewhere counted them."""
    made: dict[str, Any] = dict(measured("eagle2", 0, [0, 1, 2, 0]))
    return made | {"trace": None, "served": {**SERVED, **changes}}


def read(made: dict[str, Any]) -> Any:
    return record_of(json.dumps(made).encode(), imported=False)


def test_a_served_record_is_read_and_passes_the_schema_and_its_steps_give_tau() -> None:
    made = record()
    validate(made)
    kept = read(made)
    assert kept["served"] == SERVED and forwards_of(kept) == 4 and forwards_of(Reducer()(kept)) == 4
    assert point([side_of([kept])], tau) == 7 / 4
    untold = read(record(steps=None, why="its timings have no draft_n", counter=None))
    assert forwards_of(untold) is None and point([side_of([untold])], tau) is None
    assert point([side_of([kept, {**untold, "sample_id": "1"}])], tau) == 7 / 4  # no step is made up for the other


BOTH: list[tuple[str, Change]] = [
    ("served is", lambda r: r | {"served": {"steps": 1}}),
    ("served is", lambda r: r | {"served": {**r["served"], "more": 1}}),
    ("served.first_s is -1", lambda r: r | {"served": {**r["served"], "first_s": -1}}),
    ("served.steps is 1.5", lambda r: r | {"served": {**r["served"], "steps": 1.5}}),
    ("served.prompt_as is 'ID'", lambda r: r | {"served": {**r["served"], "prompt_as": "ID"}}),
    ("it has a trace and is served", lambda r: r | {"trace": measured("eagle2", 0, [0, 1, 2, 0])["trace"]}),
]
READING: list[tuple[str, Change]] = [
    ("served.steps is 8, and after the prefill's token there are 7", lambda r: r | {"served": {**r["served"], "steps": 8}}),
    ("served.steps is 0", lambda r: r | {"served": {**r["served"], "steps": 0}}),
    ("served.why is to say", lambda r: r | {"served": {**r["served"], "why": "for no reason"}}),
    ("served.why is to say", lambda r: r | {"served": {**r["served"], "steps": None}}),
    ("served.accepted is 13 of 12 drafted", lambda r: r | {"served": {**r["served"], "accepted": 13}}),
    ("served.first_s is 2, and wall_s is 1", lambda r: r | {"served": {**r["served"], "first_s": 2}}),
]


@pytest.mark.parametrize(("said", "change"), [*BOTH, *READING])
def test_what_contradicts_itself_is_left_out(said: str, change: Change) -> None:
    with pytest.raises(ValueError, match=said):
        read(change(record()))


@pytest.mark.parametrize(("said", "change"), BOTH)
def test_what_is_of_another_form_fails_the_schema_too(said: str, change: Change) -> None:
    with pytest.raises(ValueError):
        validate(change(record()))
