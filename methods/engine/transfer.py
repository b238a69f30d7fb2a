"""Small things that a step needs on the device of a model, and what it must not wait for.

On a GPU a step may read back twice: the tree once it is grown, and what was drawn at its nodes. Whatever else goes over is sent
without waiting: from ordinary memory such a copy is staged at once, so its source may be let go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def sent(values: Sequence[Any] | Tensor, device: torch.device) -> Tensor:
    """Whole numbers or flags on a device, without waiting for it."""
    here = values if isinstance(values, Tensor) else torch.tensor(values)
    return here if here.device == device else here.to(device, non_blocking=True)


def at_once(device: torch.device) -> bool:
    """Whether reading a number back stops the device, so that all are to be read at once, even those that may not be needed."""
    return device.type != "cpu"
