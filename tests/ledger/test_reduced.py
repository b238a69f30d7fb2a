"""Reduced records: what tables take from them is what whole ones say; and the quick parser reads what `json` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_ledger import FOLDER, METHODS, base_record, output_of, target_output

from harness.ledger.checked import _quickly_read, record_of
from harness.ledger.ledger import RECORDS, Ledger, read
from harness.ledger.record import Record
from harness.ledger.reduced import Reducer, Steps, steps_of
from harness.metrics.cells import summarise
from harness.metrics.divergences import divergences
from harness.metrics.steps import acceptance_by_depth


def test_reduced_records_give_the_numbers_of_whole_ones() -> None:
    whole, reduced = read(FOLDER), read(FOLDER, reduced=True)
    assert summarise(reduced) == summarise(whole) and divergences(reduced) == divergences(whole)
    assert acceptance_by_depth(reduced, intervals=True) == acceptance_by_depth(whole, intervals=True)
    assert reduced.footnotes == whole.footnotes


def test_a_reduced_record_is_the_whole_one_without_its_trace_and_text() -> None:
    for whole, reduced in zip(read(FOLDER), read(FOLDER, reduced=True), strict=True):
        plain: dict[str, Any] = dict(reduced) | {"token_ids": list(reduced["token_ids"])}
        assert plain.pop("steps") == steps_of(whole)
        assert plain == {name: value for name, value in whole.items() if name not in ("trace", "text")}


@given(st.lists(st.integers(0, 2**31), max_size=30))
def test_token_ids_stay_what_they_are_in_two_bytes_or_four(ids: list[int]) -> None:
    record = output_of(METHODS["eagle2"], base_record(METHODS["eagle2"], "gsm8k", 0.0), [1]) | {"token_ids": ids}
    assert list(Reducer()(cast(Record, record))["token_ids"]) == ids


def test_token_ids_of_the_same_bytes_in_another_width_stay_apart() -> None:
    reduce, base = Reducer(), output_of(METHODS["eagle2"], base_record(METHODS["eagle2"], "gsm8k", 0.0), [1])
    found = [list(reduce(cast(Record, base | {"token_ids": ids}))["token_ids"]) for ids in ([0, 1], [1 << 16])]
    assert found == [[0, 1], [1 << 16]]


@given(st.lists(st.integers(0, 6), max_size=30))
def test_steps_are_those_counted_forward_by_forward(accepted: list[int]) -> None:
    sizes, seconds = [2 * n + 1 for n in accepted], [0.1 * n for n in accepted]
    steps = Steps.of({"tree_size": sizes, "accepted": accepted, "draft_s": seconds, "verify_s": seconds, "target_s": seconds,
                      "drafter_s": seconds})  # fmt: skip
    assert (steps.forwards, steps.drafted, steps.nodes) == (len(accepted), sum(accepted), sum(sizes))
    assert steps.most_nodes == max(sizes, default=0) and steps.target_s == steps.drafter_s == sum(seconds)
    assert [n for n, count in enumerate(steps.accepted) for _ in range(count)] == sorted(accepted)


def test_an_open_ledger_holds_what_is_read_from_it_and_what_is_added(tmp_path: Path) -> None:
    method = METHODS["eagle2"]
    made = [output_of(method, base_record(method, "gsm8k", 0.0, sample_id=str(i)), target_output(i)) for i in range(3)]
    with Ledger(tmp_path) as ledger:
        ledger.append(made[0])
    with Ledger(tmp_path) as ledger:
        for record in made[1:]:
            ledger.append(record)
        held = [{name: value for name, value in r.items() if name != "text"} for r in ledger.records]
        assert [r["text"] for r in ledger.records] == [r["text"] for r in made]
    assert held == read(tmp_path, reduced=True)


# ---- the quick parser -----------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4), max_leaves=12,
)  # fmt: skip


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=4), JSON, min_size=1, max_size=5), st.booleans(), st.booleans())
def test_what_is_read_quickly_is_what_json_reads(record: dict[str, Any], tight: bool, ascii_only: bool) -> None:
    line = json.dumps(record, separators=(",", ":") if tight else None, ensure_ascii=ascii_only)
    quick = _quickly_read(line.encode(errors="surrogatepass"))
    assert quick is None or json.dumps(quick) == json.dumps(record)  # texts: 1, 1.0 and true are three values


@pytest.mark.parametrize(
    "line",
    [
        '{"a": 1, "a": 1}', '{"a":1,"a":1}', '{"a" : 1, "b": 2, "b": 2}', '{"a"\t:1, "b": 2, "b": 2}',
        '{"a\\\\": 1, "b": 2, "b": 2}', '{"o": {"a": 1, "a": 2}}', '{"a": "\\\\\\": ", "b": 1, "b": 2}',
        '{"a\\"": "x", "a\\"": "y"}', '{"x": [{"a": 1, "a": 1}]}', '{"a": NaN}', '{"a": Infinity}', '{"a": "\x01"}', "[1]", "7",
        '{"a": 1} x', "", "{}",
    ],
)  # fmt: skip
def test_a_name_that_stands_twice_is_never_read_quickly_nor_what_is_no_object(line: str) -> None:
    assert not _quickly_read(line.encode())


def test_a_records_line_is_read_quickly() -> None:
    lines = (FOLDER / RECORDS).read_bytes().splitlines()
    assert all(_quickly_read(line) == json.loads(line) for line in lines)
    altered = lines[0].replace(b'"turn": 1', b'"turn": 1, "turn": 1')
    with pytest.raises(ValueError, match="'turn' stands in it twice"):
        record_of(altered, False)


def test_a_text_that_reads_like_options_is_not_taken_for_them() -> None:
    record = dict(read(FOLDER)[0])
    reduced = Reducer()(cast(Record, {**record, "category": repr(record["options"])}))
    assert reduced["options"] == record["options"] and type(reduced["options"]) is dict
