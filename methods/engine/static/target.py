"""`LlamaTarget` with steps of fixed shapes: rows in buckets, keys in a few widths, positions and masks made on the device.

A row that fills a bucket up sees the context and itself, and what it computes is dropped. Its keys and values lie behind those
that are kept, where the next forward writes. Prompts, and trees of more rows than the largest bucket, run as on `LlamaTarget`.
Layers on several devices are a recording a device: what they share is made or sent once on each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine.layer import Attend
from methods.engine.llama import LlamaTarget
from methods.engine.static.replay import Replayer, bucket
from methods.engine.tree import Tree

ROWS = (1, 8, 16, 32, 64, 128)
PATHS = (8, 16)  # nodes that are kept of a tree, filled up to so many
# Keys are read in multiples of `KEYS`, beyond `MANY` in those of `FAR`. Each width is a recording for every bucket of rows: a
# context of 4,096 tokens has 12 of them and not 16, and there at most a quarter more keys are read than there are.
KEYS, MANY, FAR = 256, 2048, 512


def keys_read(n: int, capacity: int) -> int:
    """How many keys a forward reads, of a cache of so many, where the last of its rows writes the n-th."""
    width = KEYS if n <= MANY else FAR
    return min(-(-n // width) * width, capacity)


def widths(rows: int, tokens: int, capacity: int) -> dict[int, int]:
    """What `keys_read` may be for these rows behind 1 to `tokens` tokens -> for each a number of tokens at which it is."""
    return {keys_read(n + rows, capacity): n for n in range(tokens, 0, -1)}


def visible(sees: Tensor, length: Tensor, keys: int) -> Tensor:
    """[rows, keys] bool: all of the `length` first keys, and of the rows behind them those that `sees` [rows, rows] says."""
    own = torch.arange(keys, device=sees.device) - length  # which row's key it is, from 0 on
    rows = sees.shape[1]
    inside = (own >= 0) & (own < rows)
    return (own < 0)[None] | (sees[:, own.clamp(0, rows - 1)] & inside[None])


def additive(seen: Tensor, dtype: torch.dtype, group: int) -> Tensor:
    """seen [rows, keys] bool -> the mask that attention adds, rows repeated for the heads of a group."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
    return mask.repeat(group, 1)


def attend_in(keys: Tensor, values: Tensor, at: Tensor, n_keys: int, mask: Tensor) -> Attend:
    """An `Attend` that writes its rows' keys and values at the places `at` [rows] of the buffers, and attends by the mask."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys.index_copy_(1, at, k)
        values.index_copy_(1, at, v)
        grouped = q.reshape(1, keys.shape[0], -1, q.shape[-1])  # heads of a group as rows of one query
        out = F.scaled_dot_product_attention(grouped, keys[None, :, :n_keys], values[None, :, :n_keys], attn_mask=mask)
        return out.reshape(q.shape).transpose(0, 1).reshape(len(at), -1)

    return attend


class _Inputs:
    """What recordings read on one device: `length`, of the text; of a bucket's rows their depths [rows] and which of them each
    attends to, `sees` [rows, rows]; `x` [rows, hidden], from the device before; `path`, which rows are kept."""

    def __init__(self, device: torch.device, hidden: int, dtype: torch.dtype):
        self.device = device
        self.length = torch.zeros((), dtype=torch.long, device=device)
        self.depths = {rows: torch.zeros(rows, dtype=torch.long, device=device) for rows in ROWS}
        self.sees = {rows: torch.eye(rows, dtype=torch.bool, device=device) for rows in ROWS}
        self.x = torch.zeros(max(ROWS), hidden, dtype=dtype, device=device)
        self.path = torch.arange(max(PATHS), device=device)


class StaticTarget(LlamaTarget):
    """The target, whose steps GPUs replay as graphs. What it gives is overwritten by its next forward."""

    def __init__(self, model: Any):
        super().__init__(model, packed=False)
        if [i for device in self.devices for i, own in self._placed if own == device] != [i for i, _ in self._placed]:
            raise ValueError("layers go to and fro between devices; steps of fixed shapes take each device once")
        self.replayer = Replayer(self.device)
        self._others = {device: Replayer(device, self.replayer) for device in self.devices[1:]}
        hidden, last = self.embedding.shape[1], self.devices[-1]
        self._inputs = {device: _Inputs(device, hidden, self.dtype) for device in self.devices}
        self._ids = {rows: torch.zeros(rows, dtype=torch.long, device=self.device) for rows in ROWS}
        # outside the recordings' pool: what was drawn of them and what is kept is asked for after other replays
        self._features = torch.zeros(max(ROWS), hidden, dtype=self.dtype, device=last)
        self._row_logits = torch.zeros(max(ROWS), self.lm_head.weight.shape[0], dtype=self.dtype, device=last)
        self._states: dict[int, Tensor] = {}  # of `aux_layers`, each on the device where it arises
        self.begin()

    @classmethod
    def engine_in(cls, model: Any, dtype: torch.dtype) -> str:
        return "lean static"

    @property
    def mode(self) -> Literal["eager", "graphs"]:  # type: ignore[override]
        return "graphs" if self.replayer.records else "eager"

    @property
    def engine_facts(self) -> dict[str, Any]:
        return super().engine_facts | {"mode": self.mode}

    def begin(self) -> None:
        """Forget what was asked for so far: what `prepare` records is then what is asked for from now on."""
        self._most_rows, self._most_room = 1, 0
        self._asked: dict[tuple[int, ...], None] = {}  # the `aux_layers` of prefills

    @torch.inference_mode()
    def prepare(self, tokens: int) -> None:
        """Record what steps may replay behind texts of up to so many tokens, where anything is recorded.

        In buckets of up to as many rows as any forward had since `begin`, and with as much room behind the tokens as any prefill
        asked for: who decodes first and prepares then records what is needed, in buffers that need not grow.
        """
        if not self.replayer.records:
            return
        self._reserve(tokens + self._most_room + max(ROWS))
        self._make_tables()
        self._fill_length()
        for asked in self._asked or [()]:
            self._observe(asked)
            for rows in (n for n in ROWS if n <= self._most_rows):
                for keys in widths(rows, tokens, self.cache.capacity):
                    for replayer, key, compute, _ in self._parts(rows, keys):
                        replayer.prepare(key, compute)
        if self._most_rows > 1:
            for rows in PATHS:
                self._prepare_commit(rows)

    def _reserve(self, capacity: int) -> None:
        before = self.cache.capacity
        self.cache.reserve(capacity)
        if self.cache.capacity > before:
            for device in self.devices:
                self._replayer_of(device).forget()

    def _replayer_of(self, device: torch.device) -> Replayer:
        return self.replayer if device == self.device else self._others[device]

    @torch.inference_mode()
    def prefill(self, prompt_ids: list[int], room: int, aux_layers: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        self._most_room = max(self._most_room, room)
        self._reserve(len(prompt_ids) + room + max(ROWS))
        return super().prefill(prompt_ids, room + max(ROWS), aux_layers)

    def _observe(self, aux_layers: Sequence[int]) -> None:
        super()._observe(aux_layers)
        self._asked[self.aux_layers] = None
        where = [*(device for _, device in self._placed), self.devices[-1]]
        for i in self.aux_layers:
            if i not in self._states:
                self._states[i] = torch.zeros_like(self._inputs[where[i]].x)

    @torch.inference_mode()
    def step(self, token: int) -> Tensor:
        self._ids[1].fill_(token)
        with self._clock:
            _, logits = self._replayed(1)
        self.cache.append(1)
        return logits[0]

    @torch.inference_mode()
    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        n, rows = len(tree), bucket(len(tree), ROWS)
        if rows is None or self.cache.length + rows > self.cache.capacity:
            return super().verify(tree)
        self._fill(tree, rows)
        with self._clock:
            features, logits = self._replayed(rows)
        self._n_pending = n
        if self.aux_layers:
            features = torch.cat([self._states[i][:n].to(features.device) for i in self.aux_layers], dim=-1)
        return features[:n], logits[:n]

    def _fill(self, tree: Tree, rows: int) -> None:
        """A tree, and behind it rows that see only themselves: once to each device."""
        n = len(tree)
        ids, depths = (torch.zeros(rows, dtype=torch.long) for _ in range(2))
        sees = torch.eye(rows, dtype=torch.bool)
        ids[:n], depths[:n], sees[:n, :n] = torch.tensor(tree.tokens), torch.tensor(tree.depths()), tree.ancestors()
        self._ids[rows].copy_(ids, non_blocking=True)
        for here in self._inputs.values():
            here.depths[rows].copy_(depths, non_blocking=True)
            here.sees[rows].copy_(sees, non_blocking=True)

    def _fill_length(self) -> None:
        for here in self._inputs.values():
            here.length.fill_(self.cache.length)

    def _replayed(self, rows: int) -> tuple[Tensor, Tensor]:
        self._most_rows = max(self._most_rows, rows)
        self._fill_length()
        x: Any = None
        for replayer, key, compute, here in self._parts(rows, keys_read(self.cache.length + rows, self.cache.capacity)):
            if x is not None:
                here.x[:rows].copy_(x, non_blocking=True)
            x = replayer(key, compute)
        features, logits = x
        return features, logits

    def _parts(self, rows: int, keys: int) -> Iterator[tuple[Replayer, tuple[Any, ...], Callable[[], Any], _Inputs]]:
        """A forward over a bucket of rows, device after device: who replays it, its key, what it does, and its inputs."""
        for device in self.devices:
            layers = tuple(i for i, own in self._placed if own == device)
            compute = partial(self._through, self._inputs[device], layers, rows, keys)
            yield self._replayer_of(device), (layers, rows, keys, self.aux_layers), compute, self._inputs[device]

    def _through(self, here: _Inputs, layers: tuple[int, ...], rows: int, keys: int) -> Any:
        """The layers of one device; keys and values are written behind those of the text. -> x [rows, hidden], and on the last
        one features [rows, hidden] and logits [rows, vocab]."""
        at = here.length + torch.arange(rows, device=here.device)
        places = here.length + here.depths[rows]
        mask = additive(visible(here.sees[rows], here.length, keys), self.dtype, self._group)
        cos, sin = self._tables[here.device]
        rotary = cos[places], sin[places]
        x = F.embedding(self._ids[rows], self.embedding) if here.device == self.device else here.x[:rows]
        for number, (layer, (i, _)) in enumerate(zip(self._layers, self._placed, strict=True)):
            if i in layers:
                if number in self.aux_layers:
                    self._states[number][:rows].copy_(x)
                x = layer(x, rotary, attend_in(*self.cache.of_layer(i), at, keys, mask))
        if here.device != self.devices[-1]:
            return x
        features, logits = self._features[:rows], self._row_logits[:rows]
        features.copy_(self._norm(x))
        if len(self._layers) in self.aux_layers:
            self._states[len(self._layers)][:rows].copy_(features)
        logits.copy_(self.lm_head(features))
        return features, logits

    def _keep(self, path: list[int]) -> None:
        rows = bucket(len(path), PATHS)
        if path == list(range(len(path))) or rows is None or self.cache.length + rows > self.cache.capacity:
            return super()._keep(path)
        self._prepare_commit(rows)
        self._fill_length()
        filled = torch.tensor([*path, *range(len(path), rows)])
        for device, here in self._inputs.items():
            here.path[:rows].copy_(filled, non_blocking=True)
            self._replayer_of(device)(("commit", rows), partial(self._moved, here, rows))
        self.cache.append(len(path))

    def _prepare_commit(self, rows: int) -> None:
        """A recording is run first, and what moves rows must not be run twice: so with a path that moves none."""
        for device, here in self._inputs.items():
            if not self._replayer_of(device).knows(("commit", rows)):
                here.path.copy_(torch.arange(max(PATHS)))
                self._replayer_of(device).prepare(("commit", rows), partial(self._moved, here, rows))

    def _moved(self, here: _Inputs, rows: int) -> None:
        at, found = here.length + torch.arange(rows, device=here.device), here.length + here.path[:rows]
        for buffer in self.cache.on(here.device):
            buffer.index_copy_(3, at, buffer.index_select(3, found))
