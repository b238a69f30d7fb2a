"""Several processes that train one drafter together, each on a device of its own, as `accelerate launch` starts them.

Every process has the whole of the weights and takes its share of each batch's conversations. Their gradients are summed, so that
a step is that of one process over the whole batch. What is written, judged and told is the main process's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from harness.common.errors import ToldElsewhere, UserError

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # that processes wait for each other: while one judges, or makes features
STARTED_BY = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together. accelerator: accelerate's, None for one process alone."""

    number: int = 0
    count: int = 1
    accelerator: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.number == 0

    @property
    def rows(self) -> slice:
        """The conversations of a batch that are this process's."""
        return slice(self.number, None, self.count)

    def once(self, make: Callable[[], T]) -> T:
        """What `make` gives in the main process, told to all of them. It must be plain data.

        Raises:
            UserError: the main process's, in every process; in the others as `ToldElsewhere`.
        """
        if self.count == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        made: list[Any] = [None, None]
        if self.is_main:
            try:
                made[0] = make()
            except UserError as e:
                made[1] = str(e)
        broadcast_object_list(made)
        if made[1] is not None:
            raise (UserError if self.is_main else ToldElsewhere)(made[1])
        return cast("T", made[0])

    def share_weights(self, head: nn.Module) -> None:
        """Give every process the main process's weights, in place."""
        if self.count > 1:
            from accelerate.utils import broadcast

            broadcast([t.detach() for t in (*head.parameters(), *head.buffers())])

    def sum_gradients(self, head: nn.Module, loss: Tensor) -> Tensor:
        """Sum gradients over the processes, in place -> the sum of their losses. A weight that no process needed keeps none."""
        if self.count == 1:
            return loss
        weights = list(head.parameters())
        has = torch.tensor([p.grad is not None for p in weights], dtype=loss.dtype, device=loss.device)
        summed = self.accelerator.reduce(torch.cat([loss[None], has]), "sum")
        for p, n in zip(weights, summed[1:].tolist(), strict=True):
            if n:
                p.grad = self.accelerator.reduce(torch.zeros_like(p) if p.grad is None else p.grad, "sum")
        return cast("Tensor", summed[0])

    def finish(self) -> None:
        """Wait for all of them, and let go of each other."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()


ALONE = Processes()


def started() -> Processes:
    """The processes that this one was started among, by the variables that `accelerate launch` and `torchrun` set.

    Raises:
        UserError: accelerate is not installed, the variables are not theirs, or this process has no GPU of its own.
    """
    asked = os.environ.get("WORLD_SIZE", "1")
    if asked == "1":
        return ALONE
    how = "start them by `accelerate launch --num_processes N -m harness train ...`, or one alone without WORLD_SIZE"
    values = {name: os.environ.get(name, "") for name in STARTED_BY}
    if not asked.isdecimal() or int(asked) < 1 or not all(values.values()):
        lacking = ", ".join(name for name, value in values.items() if not value)
        raise UserError(f"WORLD_SIZE is {asked!r}{f', and {lacking} not set' if lacking else ''}: {how}")
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError:
        raise UserError(
            f"{asked} processes were started to train together, which takes the package accelerate: "
            "`pip install 'accelerate>=1.15,<2'`, or start one process"
        ) from None
    n_gpus = torch.cuda.device_count()
    if n_gpus and int(values["LOCAL_RANK"]) >= n_gpus:
        raise UserError(
            f"process {values['RANK']} of {asked} has no GPU of its own: --num_processes may be at most {n_gpus} here"
        )
    accelerator = Accelerator(cpu=not n_gpus, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    return Processes(accelerator.process_index, accelerator.num_processes, accelerator)
