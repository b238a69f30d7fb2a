"""How far two tensors of one dtype are apart, row by row: by their bits, and in ulp."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RowDifferences(NamedTuple):
    """Of each of n rows: whether any bit of it differs [n], and by how many ulp at most [n], float64."""

    differs: Tensor
    ulp: Tensor


def same_bits(found: Tensor, wanted: Tensor) -> Tensor:
    """Element by element, of two tensors of one shape and one floating dtype. -0.0 and 0.0 have other bits."""
    integer = _INTEGER[found.element_size()]
    return found.view(integer) == wanted.view(integer)


def row_differences(found: Tensor, wanted: Tensor) -> RowDifferences:
    """found, wanted [n, ..] of one floating dtype.

    An ulp is the spacing of the dtype's numbers at `wanted`; where `wanted` is smaller than the root mean square of its row, at
    that. For a sum's error goes with its terms: where they cancel, to something near zero, its own spacing says nothing.
    """
    n = len(wanted)
    others = ~same_bits(found, wanted).reshape(n, -1)
    differs, most = others.any(dim=1), torch.zeros(n, dtype=torch.float64, device=wanted.device)
    if differs.any():
        row, column = others.nonzero(as_tuple=True)
        flat = wanted.reshape(n, -1)
        a, b = found.reshape(n, -1)[row, column].double(), flat[row, column].double()
        least = flat.double().square().mean(dim=1).sqrt()[row]
        ulp = (a - b).abs() / spacing(torch.maximum(b.abs(), least), wanted.dtype)
        most.scatter_reduce_(0, row, ulp.nan_to_num(nan=torch.inf, posinf=torch.inf), "amax")
    return RowDifferences(differs.cpu(), most.cpu())


def spacing(size: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance from numbers of these sizes (float64, none negative) to the next larger of `dtype`."""
    limits = torch.finfo(dtype)
    exponent = torch.frexp(size.clamp_min(limits.tiny))[1]  # size is in [2^(exponent - 1), 2^exponent)
    return limits.eps * torch.pow(2.0, exponent.double() - 1)
