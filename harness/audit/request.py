"""What an audit is asked for: the options of `harness verify`, typed, and checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import methods
from harness.audit.levels import LEVELS
from harness.common.bounds import bounded
from harness.common.cores import usable_cores
from harness.common.errors import UserError, unknown

DTYPES = ("float64", "float32", "bfloat16", "float16")
ALL = "all"
OUT = Path("results/audit")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRequest:
    """One audit. `methods`: names, or `all`. `dtypes`: empty for the level's and the ledgers'. `ledgers`: folders whose greedy
    outputs are judged too. `out`: the folder of the findings. `head`: a draft head's folder in place of the model's own.
    `threads`: None for all usable cores. `record`: keep each method's tau beside the head, for later audits to compare with.
    `includes`: the files of a user's that were loaded.

    Raises:
        UserError: an unknown level, dtype or method, or no thread at all.
    """

    model: str = "smollm2-135m"
    methods: tuple[str, ...] = (ALL,)
    level: str = "quick"
    dtypes: tuple[str, ...] = ()
    ledgers: tuple[Path, ...] = ()
    prompts_dir: Path | None = None
    out: Path = OUT
    head: Path | None = None
    threads: int | None = None
    record: bool = False
    includes: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        _check(self.level, self.threads)
        if self.prompts_dir is not None and not self.ledgers:
            raise UserError(f"--prompts {self.prompts_dir} is where a ledger's prompts are looked up, and no --results is given")
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise unknown("dtype", dtype, DTYPES)
        for name in self.methods:
            if name not in (ALL, *methods.GROUPS):
                methods.get(name)

    @property
    def n_threads(self) -> int:
        return self.threads or usable_cores()


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultsRequest:
    """One run of the planted faults. The fields are those of `AuditRequest`.

    Raises:
        UserError: an unknown level, or no thread at all.
    """

    model: str = "smollm2-135m"
    level: str = "quick"
    out: Path = OUT
    head: Path | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        _check(self.level, self.threads)

    @property
    def n_threads(self) -> int:
        return self.threads or usable_cores()


def _check(level: str, threads: int | None) -> None:
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    bounded("--threads", threads)
