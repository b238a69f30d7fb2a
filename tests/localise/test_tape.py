"""What watches forwards: rows found by shape, values kept once, rows compared and put right."""

from __future__ import annotations

import pytest
import torch

from harness.localise.tape import Comparer, Operator, Recorder, Shapes, by_row, not_by_row

A, B = Operator(0, "a"), Operator(0, "b")


@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 8), (4, 1, 2), (1, 4, 1, 2)])
@pytest.mark.parametrize("n", [1, 3, 4])
def test_rows_are_found_wherever_they_stand(shape: tuple[int, ...], n: int) -> None:
    dim = {(1, 1, 8): 1, (1, 8): 0, (4, 1, 2): 1, (1, 4, 1, 2): 2}[shape]
    parts = [torch.rand(shape) for _ in range(n)]
    made = torch.cat(parts, dim=dim)
    rows = by_row(made, torch.Size(shape), n)
    assert rows is not None and torch.equal(rows, torch.stack(parts))
    rows[n - 1] = 0  # a view: what is written to it is written to what was made
    assert made.select(dim, n - 1).count_nonzero() == 0


def test_what_does_not_make_one_row_for_each_row_is_not_compared() -> None:
    assert by_row(torch.rand(5, 8), torch.Size((1, 8)), 3) is None  # other tokens than the rows
    assert by_row(torch.rand(3, 9), torch.Size((1, 8)), 3) is None  # another width
    assert by_row(torch.rand(3, 8), torch.Size((1, 1, 8)), 3) is None
    assert by_row(torch.rand(2, 8), torch.Size((1, 8)), 1) is None
    compared = Comparer([{A: torch.rand(1, 8), B: torch.rand(1, 8)}, {A: torch.rand(1, 8)}], correct=True)
    compared(A, torch.rand(5, 8))
    compared(B, torch.rand(2, 8))  # of one row alone there is a plain step
    assert compared.found == {} and compared.not_compared == {A, B}


def test_what_is_called_for_other_rows_or_at_other_times_is_known_beforehand_and_not_kept() -> None:
    one, many, expert = Shapes(), Shapes(), Operator(1, "expert")
    for tape, n, sent in ((one, 1, [1]), (many, 3, [3, 2])):  # the first of its calls could be taken for all rows in order
        tape(A, torch.rand(1, n, 8))
        for rows in sent:
            tape(expert, torch.rand(rows, 8))
        tape(B, torch.rand(n, 8))
    assert not_by_row(one.shapes, many.shapes, 3) == {expert}
    record = Recorder({expert})
    for operator in (A, expert, expert):
        record(operator, torch.rand(1, 8))
    assert list(record.values) == [A]


def test_a_value_that_is_passed_on_is_kept_once_and_a_changed_one_again() -> None:
    record, made = Recorder(), torch.rand(1, 8)
    record(A, made)
    record(B, made)
    record(Operator(0, "ids"), torch.tensor([[3]]))  # no floating numbers
    assert list(record.values) == [A]
    made += 1
    record(B, made)
    assert list(record.values) == [A, Operator(0, "b", 2)] and not torch.equal(*record.values.values())


def test_rows_are_compared_and_where_asked_put_right_in_place() -> None:
    one, two = torch.rand(1, 8), torch.rand(1, 8)
    for correct in (True, False):
        made = torch.cat([one, two])
        made[1, 3] += 1
        spoilt = made.clone()
        compared = Comparer([{A: one}, {A: two}], correct=correct)
        compared(A, made)
        assert compared.found[A].differs.tolist() == [False, True]
        assert torch.equal(made, torch.cat([one, two]) if correct else spoilt)


def test_an_operator_that_is_called_twice_is_compared_with_its_own_call() -> None:
    record, first, second = Recorder(), torch.rand(1, 8), torch.rand(1, 8)
    record(A, first)
    record(A, second)
    compared = Comparer([record.values], correct=False)
    compared(A, first.clone())
    compared(A, second.clone())
    assert [str(operator) for operator in compared.found] == ["layer 0's a", "layer 0's a, call 2"]
    assert not any(found.differs.any() for found in compared.found.values())
