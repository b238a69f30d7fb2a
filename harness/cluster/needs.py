"""What a model's workers need of a node, and which files they must find there."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from harness.cluster.facts import Asked
from harness.cluster.pool import Needs
from harness.cluster.request import ClusterRequest
from harness.load import placement
from harness.load.config import SUFFIXES, ModelConfig
from harness.load.kinds import kind_of
from harness.load.preflight import architecture
from harness.load.sources import LocalFolder
from harness.load.weights import drafter_folders
from methods.engine.native.build import VARIABLE

PROCESS = 600 << 20  # bytes of a worker before it has a model: torch and transformers


def needs_of(
    maker: str, config: ModelConfig, over: ClusterRequest, *, threads: int, dtype: str, head: Path | None, kinds: Collection[str],
    paths: Sequence[Path] = (),
) -> Needs:  # fmt: skip
    """What a worker must have. Only files that say sizes are looked at.

    kinds: of the drafters that it loads. head: as `load` takes it. paths: what else it must be able to read.
    """
    sizes, folders = architecture(config), drafter_folders(config, head)
    kinds = sorted(set(kinds) & folders.keys())
    dtype = next(d for d in (dtype, config.dtype, "bfloat16") if d != "auto")  # the least it can be, as a dry run has it

    def need(on_cpu: bool) -> placement.Need | None:
        if sizes is None:
            return None
        drafters = sum(kind_of(kind).memory_bytes(folders[kind], sizes, dtype, config.context_length) for kind in kinds)
        return placement.need(sizes, dtype, config.context_length, drafters, on_cpu=on_cpu)

    def gpus_of(free: Sequence[int]) -> int | None:
        if (what := need(on_cpu=False)) is None:
            return 1
        layers = placement.split(what, [n - placement.WORKSPACE for n in free])
        return None if layers is None else layers[-1] + 1

    on_cpu = need(on_cpu=True)
    local = [config.folder / config.weights.path] if isinstance(config.weights, LocalFolder) else []
    own = [folders[kind] for kind in kinds if config.folder in folders[kind].parents or folders[kind] == head]
    yaml = [Path(config.given)] if config.given.endswith(SUFFIXES) else []

    def named(paths: Sequence[Path]) -> tuple[str, ...]:
        return tuple(str(path.resolve()) for path in paths)

    return Needs(
        maker=maker, threads=threads, memory=on_cpu.total + PROCESS if on_cpu else 0, gpus=over.gpus, gpus_of=gpus_of,
        asked=Asked(named([*yaml, *local, *own, *paths]), named(over.includes)),
        env={VARIABLE: os.environ[VARIABLE]} if os.environ.get(VARIABLE) else {},
    )  # fmt: skip
