"""The training set on disk: shards of conversations with their features. They are made once, and making them can be resumed.

A shard is two files. `shard-00000.npz` has the ids of all conversations end to end, offsets, prompt lengths and greedy flags; of
texts with a mask also that.
`shard-00000.features` has a row a token, as bf16 bits, and is memory-mapped. A shard exists whole or not at all. Where only its
features are missing, they are computed again from its ids: so the ids alone are enough to repeat a training. Where features do
not fit on the disk, they are never written, and computed for each batch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import filelock
import numpy as np
from transformers import LlamaForCausalLM

from harness.common.errors import UserError, say
from harness.train.generate import Answer, FeaturesOf, answers, text_features

WAIT = 5.0  # seconds between two looks at shards that other processes are at
SHARD_TEXTS = 256  # given texts in a shard


@dataclass(frozen=True, slots=True)
class Conversation:
    """`ids` [n] int32; `features` [n, hidden], bf16 bits, or what computes them, the same for all that share a batch; the answer
    begins at `n_prompt`; `greedy`: it is the target's own at T = 0. `aux` [n, states * hidden]: other hidden states of the
    target, where a drafter reads them and they are kept; what computes features gives them behind these. `asked` [n]: which
    tokens are to be predicted, where that is not each one from `n_prompt` on."""

    ids: np.ndarray
    features: np.ndarray | FeaturesOf
    n_prompt: int
    greedy: bool = False
    aux: np.ndarray | None = None
    asked: np.ndarray | None = None


def make_shards(
    folder: Path,
    model: LlamaForCausalLM,
    prompts: list[list[int]],
    *,
    stop_ids: set[int],
    n_tokens: int,
    max_new_tokens: int = 256,
    shard_prompts: int = 1024,
    n_slots: int = 128,
    greedy_share: float = 0.5,
    seed: int = 0,
    keep_features: bool = True,
    aux_layers: Sequence[int] = (),
    say: Callable[[str], None] = say,
) -> int:
    """Answer prompts (token ids) until `n_tokens` answer tokens are held, or the prompts run out -> the answer tokens held.

    A shard is `shard_prompts` prompts in the given order, and does not depend on other shards. So interruptions change nothing,
    and several processes may fill one folder: a shard belongs to the process that holds its lock. aux_layers: other hidden states
    that are kept beside the features; `add_states` makes those of shards that are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started, fresh, made = time.monotonic(), 0, 0
    tokens: dict[int, int] = {}  # answer tokens of each whole shard

    def tick(n: int) -> None:
        nonlocal made, fresh
        if (made + n) // 10_000 > made // 10_000:
            held, rate = sum(tokens.values()) + made + n, (fresh + n) / (time.monotonic() - started)
            if held < n_tokens:
                left = (n_tokens - held) / max(rate, 1e-9) / 60
                say(f"answers: {held:,} of {n_tokens:,} tokens, {rate:.0f} tokens/s, {left:.0f} min left")
            else:
                say(f"answers: {held:,} tokens, all that were asked for and what completes the shard, {rate:.0f} tokens/s")
        made, fresh = made + n, fresh + n

    n_shards = -(-len(prompts) // shard_prompts)
    while True:
        elsewhere = 0  # shards that other processes are at
        for number in range(n_shards):
            meta = folder / f"shard-{number:05d}.npz"
            if number not in tokens and not meta.exists():
                # what others are at will be as large as the shards so far
                expected = sum(tokens.values()) + elsewhere * sum(tokens.values()) // max(len(tokens), 1)
                lock = filelock.FileLock(meta.with_suffix(".lock"))
                if expected >= n_tokens:
                    break
                try:
                    with lock.acquire(timeout=0):
                        if not meta.exists():
                            made, first = 0, number * shard_prompts
                            done = answers(
                                model, prompts[first : first + shard_prompts], stop_ids=stop_ids, max_new_tokens=max_new_tokens,
                                n_slots=n_slots, greedy_share=greedy_share, seed=seed * 1_000_003 + number, progress=tick,
                                keep_features=keep_features, aux_layers=aux_layers,
                            )  # fmt: skip
                            _write_shard(meta, sorted(done, key=lambda a: a.index), keep_features, aux_layers)
                            made = 0
                except filelock.Timeout:
                    elsewhere += 1
            if meta.exists() and number not in tokens:
                with np.load(meta) as shard:
                    tokens[number] = int((np.diff(shard["offsets"]) - shard["n_prompt"]).sum())
        held = sum(tokens.values())
        if held >= n_tokens or not elsewhere:
            say(f"answers: {held:,} tokens in {folder}")
            return held
        time.sleep(WAIT)


def make_text_shards(
    folder: Path,
    model: LlamaForCausalLM,
    texts: list[tuple[list[int], int]],
    *,
    n_tokens: int,
    shard_texts: int = SHARD_TEXTS,
    keep_features: bool = True,
    asked: Sequence[Sequence[bool]] | None = None,
    aux_layers: Sequence[int] = (),
    say: Callable[[str], None] = say,
) -> int:
    """The same for given texts `(ids, n_prompt)`, until `n_tokens` tokens after prompts are held -> the tokens held.

    asked: of each text, which tokens are to be predicted; None: all after its prompt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held, started, fresh = 0, time.monotonic(), 0
    for number, first in enumerate(range(0, len(texts), shard_texts)):
        if held >= n_tokens:
            break
        meta = folder / f"shard-{number:05d}.npz"
        if not meta.exists():
            chunk = texts[first : first + shard_texts]
            made = text_features(model, chunk, aux_layers=aux_layers)
            done = list(made) if keep_features else [_bare(i, *text) for i, text in enumerate(chunk)]
            fresh += sum(len(a.ids) for a in done)
            own = None if asked is None else asked[first : first + shard_texts]
            _write_shard(meta, done, keep_features, aux_layers, own)
            say(f"texts: {held:,} of {n_tokens:,} tokens, {fresh / (time.monotonic() - started):.0f} tokens/s")
        with np.load(meta) as shard:
            held += int((np.diff(shard["offsets"]) - shard["n_prompt"]).sum())
    return held


def restore_features(folder: Path, model: LlamaForCausalLM, say: Callable[[str], None] = say) -> None:
    """Compute the features of shards of which only the ids are there."""
    for meta in sorted(folder.glob("shard-?????.npz")):
        if not meta.with_suffix(".features").exists():
            say(f"{meta.name}: computing the features of its stored ids ...")
            _write_rows(meta.with_suffix(".features"), (a.features for a in text_features(model, _stored_texts(meta))))


def aux_suffix(aux_layers: Sequence[int]) -> str:
    """Of the file beside a shard that holds those hidden states of the target, a row a token: `.states-2-15-27`."""
    return f".states-{'-'.join(map(str, aux_layers))}"


def add_states(folder: Path, model: LlamaForCausalLM, aux_layers: Sequence[int], say: Callable[[str], None] = say) -> None:
    """Compute hidden states of the stored ids of every shard that lacks them."""
    for meta in sorted(folder.glob("shard-?????.npz")):
        if not meta.with_suffix(aux_suffix(aux_layers)).exists():
            say(f"{meta.name}: computing the hidden states {', '.join(map(str, aux_layers))} of its stored ids ...")
            hidden = model.config.hidden_size
            done = text_features(model, _stored_texts(meta), aux_layers=aux_layers)
            _write_rows(meta.with_suffix(aux_suffix(aux_layers)), (a.features[:, hidden:] for a in done))


def _bare(index: int, ids: list[int], n_prompt: int) -> Answer:
    """A text without features."""
    return Answer(index, np.array(ids, dtype=np.int32), np.zeros((0, 0), dtype=np.uint16), n_prompt, False)


def _stored_texts(meta: Path) -> list[tuple[list[int], int]]:
    with np.load(meta) as shard:
        ids, offsets, n_prompt = shard["ids"], shard["offsets"], shard["n_prompt"]
    return [(ids[a:b].tolist(), int(n)) for a, b, n in zip(offsets[:-1], offsets[1:], n_prompt, strict=True)]


def _write_rows(file: Path, parts: Iterable[np.ndarray]) -> None:
    tmp = file.with_suffix(f"{file.suffix}.part")
    with tmp.open("wb") as f:
        for part in parts:
            f.write(part.tobytes())
    os.replace(tmp, file)


def _write_shard(
    meta: Path, done: list[Answer], keep_features: bool, aux_layers: Sequence[int] = (),
    asked: Sequence[Sequence[bool]] | None = None,
) -> None:  # fmt: skip
    for stale in (meta.with_suffix(".features"), *meta.parent.glob(f"{meta.stem}.states-*")):
        stale.unlink(missing_ok=True)  # of a shard that was begun and never whole: its answers may have been others
    if keep_features:
        hidden = done[0].features.shape[1] // (1 + len(aux_layers))
        _write_rows(meta.with_suffix(".features"), (a.features[:, :hidden] for a in done))
        if aux_layers:
            _write_rows(meta.with_suffix(aux_suffix(aux_layers)), (a.features[:, hidden:] for a in done))
    tmp = meta.with_suffix(".part.npz")
    columns: dict[str, Any] = {
        "ids": np.concatenate([a.ids for a in done]),
        "offsets": np.cumsum([0, *[len(a.ids) for a in done]]),
        "n_prompt": np.array([a.n_prompt for a in done]),
        "greedy": np.array([a.greedy for a in done]),
    }
    if asked is not None:
        columns["asked"] = np.concatenate([np.array(mask, dtype=bool) for mask in asked])
    np.savez_compressed(tmp, **columns)
    os.replace(tmp, meta)  # last: its presence says the shard is whole


def has_features(folder: Path) -> bool:
    """Whether the features of all shards of a folder were kept: else they are to be computed."""
    return all(meta.with_suffix(".features").exists() for meta in folder.glob("shard-?????.npz"))


def read_shards(
    folder: Path, hidden: int, compute: FeaturesOf | None = None, aux_layers: Sequence[int] = ()
) -> list[Conversation]:
    """All conversations of a folder, with their features memory-mapped, or computed by `compute` when they are asked for.

    aux_layers: of other hidden states that are memory-mapped, too.

    Raises:
        UserError: a file of features or states has another size than the shard's ids take.
    """
    out = []
    for meta in sorted(folder.glob("shard-?????.npz")):
        with np.load(meta) as shard:
            ids, offsets, n_prompt, greedy = shard["ids"], shard["offsets"], shard["n_prompt"], shard["greedy"]
            asked = shard["asked"] if "asked" in shard else None
        kept = states = None
        if not compute:
            kept = _rows_of(meta.with_suffix(".features"), len(ids), hidden)
            if aux_layers:
                states = _rows_of(meta.with_suffix(aux_suffix(aux_layers)), len(ids), len(aux_layers) * hidden)
        for i, (a, b) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
            features, aux = compute or cast("np.ndarray", kept)[a:b], None if states is None else states[a:b]
            mask = None if asked is None else asked[a:b]
            out.append(Conversation(ids[a:b], features, int(n_prompt[i]), bool(greedy[i]), aux, mask))
    return out


def _rows_of(file: Path, n: int, width: int) -> np.ndarray:
    """bf16 bits [n, width], memory-mapped.

    Raises:
        UserError: the file has another size.
    """
    if (size := file.stat().st_size) != n * width * 2:
        raise UserError(f"{file} has {size:,} bytes, and {n:,} tokens take {n * width * 2:,}: it is cut off, or of other texts; "
                        "delete it, and the same command makes it again")  # fmt: skip
    return np.memmap(file, dtype=np.uint16, mode="r").reshape(n, width)


def frequent_tokens(items: list[Conversation], vocab: int, most: int = 32_768) -> np.ndarray:
    """The token ids that occur in answers [n], most frequent first, ties to the lower id; at most `most`."""
    told = [c.ids[c.n_prompt :] if c.asked is None else c.ids[c.asked] for c in items]
    counts = np.bincount(np.concatenate(told), minlength=vocab)
    order = np.argsort(-counts, kind="stable")
    return order[: min(most, int((counts > 0).sum()))].astype(np.int32)
