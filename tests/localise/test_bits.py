"""Bits and ulp of rows, in every dtype."""

from __future__ import annotations

import math

import pytest
import torch

from harness.localise.bits import row_differences, spacing

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def rows(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([[1.25, -3.0, 0.5], [0.75, 2.0, -1.0]], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_number_is_one_ulp_from_the_next_and_equal_rows_are_told_apart(dtype: torch.dtype) -> None:
    wanted, found = rows(dtype), rows(dtype)
    found[1, 1] = torch.nextafter(found[1, 1], torch.tensor(math.inf, dtype=dtype))
    differs, ulp = row_differences(found, wanted)
    assert differs.tolist() == [False, True] and ulp.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_spacing_is_that_of_the_dtype(dtype: torch.dtype) -> None:
    sizes = torch.tensor([1.0, 1.5, 2.0, 0.75, torch.finfo(dtype).tiny, 0.0], dtype=torch.float64)
    following = torch.nextafter(sizes.to(dtype), torch.tensor(math.inf, dtype=dtype))
    assert spacing(sizes, dtype).tolist() == (following.double() - sizes).tolist()


def test_where_terms_cancel_the_spacing_at_the_rows_size_counts() -> None:
    wanted = torch.tensor([[4.0, 4.0, 1e-12]])
    found = torch.tensor([[4.0, 4.0, -1e-7]])  # a billion numbers away, but a fifth of the spacing at the row's size
    differs, ulp = row_differences(found, wanted)
    assert differs.tolist() == [True] and 0 < ulp.item() < 1


def test_zeros_of_two_signs_differ_and_what_is_no_number_is_infinitely_far() -> None:
    wanted = torch.tensor([[1.0, 0.0], [1.0, 1.0], [math.nan, 1.0]])
    found = torch.tensor([[1.0, -0.0], [1.0, math.nan], [math.nan, 1.0]])
    differs, ulp = row_differences(found, wanted)
    assert differs.tolist() == [True, True, False] and ulp.tolist() == [0.0, math.inf, 0.0]


def test_a_row_may_have_any_shape_and_any_strides() -> None:
    wanted = torch.arange(24.0).view(2, 3, 4).transpose(0, 1)
    found = wanted.clone()
    found[2, 1, 3] += 1
    assert row_differences(found, wanted).differs.tolist() == [False, False, True]
