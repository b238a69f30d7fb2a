"""How much of a target an audit runs in each dtype: the whole, its first layers, or nothing. Memory decides, before it is loaded.

What a method does wrong with rows, masks, positions and caches it does on a target of any depth, so float64 and float32 may be
judged on the first layers. The dtype in which runs measure the model is judged on the whole target or not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.audit.levels import Level
from harness.load import placement, preflight
from harness.load.architecture import Architecture
from harness.load.config import ModelConfig
from harness.load.dtype import device
from harness.load.kinds import kind_of
from harness.load.placement import BYTES, WORKSPACE, Need, gb
from harness.load.weights import drafter_folders

LAW_COPIES = 10  # of [tokens, vocabulary] in float64 that the score test's six functions hold at once
SCORE_COPIES = 3  # of [heads, tokens, tokens] that attention holds in float64, for which no fused kernel is


@dataclass(frozen=True, slots=True)
class Fit:
    """In a dtype the target's first `layers` of `of` are run; 0: it is not judged. `needed`, `least`: bytes that the whole takes,
    and its first layer alone, each with the drafters. `free`: bytes that are free. `may_cut`: whether a part would do."""

    layers: int
    of: int
    needed: int
    least: int
    free: int
    may_cut: bool = True

    @property
    def is_cut(self) -> bool:
        return 0 < self.layers < self.of

    @property
    def words(self) -> str:
        """What a row says of it; empty for the whole target."""
        if self.layers == self.of:
            return ""
        whole = f"the whole would need {gb(self.needed)} of {gb(self.free)} free"
        if self.layers:
            return f"on the first {self.layers} of {self.of} layers: {whole}"
        if self.may_cut:
            return f"not even one of {self.of} layers fits: it would need {gb(self.least)} of {gb(self.free)} free"
        return f"{whole}; a dtype in which runs measure the model is not judged on a part of it"


@dataclass(frozen=True, slots=True)
class Room:
    """How much of a target is run in a dtype, and the tokens that there is room for."""

    fit: Fit
    context: int


def fit(what: Need, room: Sequence[int], *, may_cut: bool) -> Fit:
    """The choice, from bytes needed and bytes free on each device.

    A part has a power of two of layers: with a little more or less free, a resumed audit makes the same choice and finds what it
    made.
    """
    n, of = placement.layers_that_fit(what, list(room)), what.n_layers
    layers = n if n == of else (1 << n.bit_length()) // 2 if may_cut else 0
    return Fit(layers, of, what.total, replace(what, n_layers=1).total, max(sum(room), 0), may_cut)


def rooms_for(
    config: ModelConfig, sizes: Architecture, dtypes: Iterable[str], *, level: Level, kinds: Collection[str] = (),
    head: Path | None = None, measured: Collection[str] = (), ledgers: Collection[str] = (),
) -> dict[str, Room]:  # fmt: skip
    """dtype -> how much of a target of these sizes is run in it on this machine, while nothing else is loaded.

    kinds: of the drafters that are loaded beside it, if it has them. head: a drafter's folder, in place of the model's own of
    that kind. measured: the dtypes in which runs measure the model. ledgers: those of ledgers, whose texts are run too.
    """
    on_cpu = device().type == "cpu"
    room = [preflight.free_memory() - WORKSPACE] if on_cpu else placement.free_on_gpus()
    drafters = {kind: folder for kind, folder in drafter_folders(config, head).items() if kind in kinds}
    found = {}
    for dtype in dtypes:
        context = text_length(config, level, in_ledger=dtype in ledgers)
        what = needed(sizes, dtype, context, level, drafters, on_cpu=on_cpu)
        found[dtype] = Room(fit(what, room, may_cut=dtype not in measured), context)
    return found


def text_length(config: ModelConfig, level: Level, *, in_ledger: bool) -> int:
    """The most tokens of a text that an audit runs. A ledger's may be as long as the context."""
    return config.context_length if in_ledger else min(level.longest, config.context_length)


def needed(
    sizes: Architecture, dtype: str, context: int, level: Level, drafters: Mapping[str, Path], *, on_cpu: bool
) -> Need:  # fmt: skip
    """What a target takes in an audit: weights, drafters, caches over `context` tokens, and the rows that layers 2 and 4 hold.

    drafters: kind -> its folder.
    """
    beside = sum(kind_of(kind).memory_bytes(folder, sizes, dtype, context) for kind, folder in drafters.items())
    laws = LAW_COPIES * BYTES["float64"] * sizes.vocab_size * max(level.most_tokens, level.width)
    attention = SCORE_COPIES * BYTES[dtype] * sizes.num_attention_heads * context**2 if dtype == "float64" else 0
    return placement.need(sizes, dtype, context, beside + laws + attention, on_cpu=on_cpu)
