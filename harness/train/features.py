"""Whether the target's features are kept on the disk, or computed again for each batch.

Kept, each token takes 2 * hidden bytes: 8 KB for a 7B target, 16 GB for two million tokens. Computed again, each step takes one
more forward of the target over its batch, and the disk holds token ids alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.common.errors import UserError, say
from harness.load.placement import gb

CHOICES = ("auto", "keep", "recompute")
MOST_OF_DISK = 0.8  # of what is free, that `auto` fills: answers to come may be longer than is assumed


@dataclass(frozen=True, slots=True)
class Part:
    """The shards of a folder, there or to come.

    lengths: tokens of each prompt, and of its answer; of answers to come, what is assumed. n_tokens: of answers, that are asked
    for. per_shard: conversations.
    """

    folder: Path
    lengths: Sequence[tuple[int, int]]
    n_tokens: int
    per_shard: int


def tokens_to_keep(part: Part, suffix: str = ".features") -> int:
    """Tokens whose features are not on the disk: of shards that lack them, and of shards to come until `n_tokens` are there.
    suffix: of the files that hold them."""
    missing = answered = 0
    there = set()
    for meta in sorted(part.folder.glob("shard-?????.npz")):
        with np.load(meta) as shard:
            n, n_prompts = int(shard["offsets"][-1]), int(shard["n_prompt"].sum())
        there.add(meta.name)
        answered += n - n_prompts
        missing += 0 if meta.with_suffix(suffix).exists() else n
    for number, first in enumerate(range(0, len(part.lengths), part.per_shard)):
        if answered >= part.n_tokens:
            break
        if f"shard-{number:05d}.npz" not in there:
            here = part.lengths[first : first + part.per_shard]
            answered += sum(answer for _, answer in here)
            missing += sum(map(sum, here))
    return missing


def keeps_features(
    asked: str, n_tokens: int, hidden: int, work: Path, say: Callable[[str], None] = say, n_states: int = 0
) -> bool:  # fmt: skip
    """Whether features are kept, by what was asked for and by the room on the disk; one line says which, and why.

    n_tokens: whose features are not on the disk yet; n_states: other hidden states that are not.

    Raises:
        UserError: they are to be kept, and the disk has no room for them.
    """
    needed, free = 2 * hidden * (n_tokens + n_states), shutil.disk_usage(work).free
    if asked == "recompute":
        say("features: computed again for each batch, as asked for; the disk holds token ids alone")
        return False
    what = f"{n_tokens:,} tokens" + (f" and {n_states:,} hidden states" if n_states else "")
    room = f"{what} take about {gb(needed)}, and {gb(free)} are free in {work}"
    if asked == "keep" and needed > free:
        raise UserError(f"--features keep: {room}; --features recompute needs none, --work takes another folder")
    keep = asked == "keep" or needed <= MOST_OF_DISK * free
    why = room if needed else "all are there"
    say(f"features: kept on the disk: {why}" if keep else f"features: computed again for each batch, not kept: {room}")
    return keep
