"""What `--ray` and the options beside it ask for, checked before anything is connected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.common.bounds import bounded
from harness.common.errors import UserError

LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRequest:
    """Where the work is shared out. `address`: `local`, or HOST:PORT of a cluster that is there, or `auto`.

    shards: in how many pieces the work is cut (None: four for each worker). gpus: how many a worker holds (None: as many as the
    model needs there, as a dry run says). worker_timeout: seconds without a message after which a worker counts as hung
    (None: of the budget and the speed that the warm-up finds). includes: the user's files, which workers load too.

    Raises:
        UserError: a value that cannot be.
    """

    address: str
    shards: int | None = None
    gpus: int | None = None
    worker_timeout: float | None = None
    includes: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        bounded("--shards", self.shards)
        bounded("--gpus", self.gpus, least=0)
        if self.worker_timeout is not None and not self.worker_timeout > 0:
            raise UserError(f"--worker-timeout is {self.worker_timeout:g}; it must be seconds, over 0")
        host, _, port = self.address.rpartition(":")
        if "://" in self.address:
            raise UserError(f"--ray {self.address}: a Ray Client sends nothing before it is done; join the cluster "
                            "(`ray start --address=HOST:6379 --num-cpus=0`) and give HOST:6379")  # fmt: skip
        if self.address not in (LOCAL, "auto") and not (host and port.isdecimal()):
            raise UserError(f"--ray {self.address}: it takes local, auto or HOST:PORT")
