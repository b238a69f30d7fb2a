"""`EagleDrafter` with runs of fixed shapes, so that a GPU replays a whole draft as one graph.

How many pairs were observed stands in a number on the device, from which places and masks are made. A level of drafted nodes
has as many rows as the tree is wide, and as many entries before it as the levels above had: both are the same in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.engine.draft_head import EagleDrafter, EagleHead, LMHead
from methods.engine.grow import best_children
from methods.engine.static.replay import Replayer, bucket
from methods.engine.static.target import additive, attend_in, keys_read, visible, widths
from methods.engine.transfer import sent

OBSERVED = (8, 16)  # accepted tokens of a step, filled up to so many
ENTRIES = 256  # that a draft may have, at most

T = TypeVar("T")


class StaticEagleDrafter(EagleDrafter):
    """An EAGLE head on one device. Its logits are overwritten by its next run of the same shape."""

    def __init__(
        self, head: EagleHead, embedding: Tensor, lm_head: LMHead, frequent: Tensor | None = None, beside: Replayer | None = None
    ):  # fmt: skip
        """beside: the target's."""
        super().__init__(head, embedding, lm_head, frequent, packed=False)
        self.replayer = Replayer(self.device, beside)
        self._pairs = torch.zeros((), dtype=torch.long, device=self.device)
        self._rows = {
            rows: (torch.zeros(rows, dtype=torch.long, device=self.device),
                   torch.zeros(rows, head.config.hidden_size, dtype=self.dtype, device=self.device)) for rows in OBSERVED
        }  # fmt: skip
        self._last = torch.zeros(1, dtype=torch.long, device=self.device)
        self._all_hidden = torch.zeros(1 + ENTRIES, head.config.hidden_size, dtype=self.dtype, device=self.device)
        self._recording = False
        self._over: int | None = None  # frequent tokens that logits are over: others are other operations
        self.begin()

    def begin(self) -> None:
        """Forget what was asked for so far: what `prepare` records is then what is asked for from now on."""
        # with the frequent tokens that it is over
        self._roots: set[int | None] = set()
        self._drafts: dict[tuple[Hashable, int | None], Callable[[Any], Any]] = {}
        self._most_room = 0

    def start(self, room: int, frequent: int | None = None, first: int | None = None) -> None:
        before, self._over, self._most_room = self._capacity, frequent, max(self._most_room, room)
        super().start(room + max(OBSERVED) + ENTRIES, frequent, first)
        if self._capacity > before:
            self.replayer.forget()

    @torch.inference_mode()
    def prepare(self, tokens: int) -> None:
        """Record what was asked for since `begin` for texts of up to so many tokens, where anything is recorded. The buffers have
        as much room behind the tokens as any `start` asked for."""
        if not self.replayer.records:
            return
        room = tokens + self._most_room
        self._last.zero_()  # of the last step, which may have observed more rows than are recorded first
        self.start(room)
        for rows in OBSERVED:
            for n in widths(rows, tokens, self._capacity).values():
                self._n_pairs = n
                self._note_pairs()
                self.replayer.prepare(*self._observation(rows))
        for over in self._roots:
            self.start(room, over)
            self.replayer.prepare(*self._root())
        for (key, over), draft in self._drafts.items():
            self.start(room, over)
            for n in widths(ENTRIES, tokens, self._capacity).values():
                self._n_pairs = n
                self._note_pairs()
                self.replayer.prepare(*self._whole(key, draft))

    @torch.inference_mode()
    def observe(self, tokens: list[int], features: Tensor) -> None:
        m, rows = len(tokens), bucket(len(tokens), OBSERVED)
        if rows is None:
            super().observe(tokens, features)
        else:
            ids, given = self._rows[rows]
            ids[:m].copy_(sent(tokens, self.device))
            given[:m].copy_(features)
            self._last.fill_(m - 1)
            self._pairs.fill_(self._n_pairs)
            with self._clock:
                self._hidden = self.replayer(*self._observation(rows))
            self._n_pairs, self._n_entries, self._level = self._n_pairs + m, 0, 0
        self._all_hidden[:1].copy_(self._hidden)
        self._pairs.fill_(self._n_pairs)

    def _observation(self, rows: int) -> tuple[Hashable, Callable[[], Tensor]]:
        ids, given = self._rows[rows]
        keys = self._keys_read(rows)
        return ("observe", rows, keys), lambda: self._observed(ids, given, keys)

    def _observed(self, ids: Tensor, given: Tensor, keys: int) -> Tensor:
        rows = len(ids)
        own = torch.arange(rows, device=self.device)
        causal = own[:, None] >= own[None]
        out = self._through(ids, given, self._pairs + own, self._pairs + own, visible(causal, self._pairs, keys), keys)
        return out.index_select(0, self._last)

    def _note_pairs(self) -> None:
        """Tell the device how many pairs there are. Not while recording: it would be told the same each time."""
        if not self._recording:
            self._pairs.fill_(self._n_pairs)

    def _keys_read(self, rows: int) -> int:
        return keys_read(self._n_pairs + rows, self._capacity)

    def _through(self, tokens: Tensor, features: Tensor, places: Tensor, at: Tensor, seen: Tensor, keys: int) -> Tensor:
        """tokens [m], features [m, hidden], places [m], seen [m, keys] -> predicted features [m, hidden]; keys go to `at` [m]."""
        x = self._fc(torch.cat([F.embedding(tokens, self.embedding), features], dim=-1))
        attend = attend_in(self._keys, self._values, at, keys, additive(seen, self.dtype, self._group))
        return self._layer(x, (self._cos[places], self._sin[places]), attend)

    @torch.inference_mode()
    def root_logits(self) -> Tensor:
        self._n_entries = self._level = 0
        self._note_pairs()
        key, compute = self._root()
        if self._recording:
            return compute()
        self._roots.add(self._over)
        with self._clock:
            return self.replayer(key, compute)

    def _root(self) -> tuple[Hashable, Callable[[], Tensor]]:
        return ("root", self._over), lambda: self._logits(self._all_hidden[:1])

    @torch.inference_mode()
    def expand(self, tokens: Tensor, parents: Tensor, sees: Tensor) -> Tensor:
        m, before, level = len(tokens), self._n_entries, self._level
        if before + m > ENTRIES:
            raise ValueError(f"a draft of {before + m} entries; at most {ENTRIES} are provided for")
        keys = self._keys_read(ENTRIES)
        self._note_pairs()
        given = tuple(sent(x, self.device) for x in (tokens, parents, sees))

        def run() -> Tensor:
            ids, above, own = given
            rows = torch.arange(m, device=self.device)
            wide = torch.zeros(m, before + m, dtype=torch.bool, device=self.device)
            wide[:, : own.shape[1]] = own
            at = self._pairs + before + rows
            places = (self._pairs + level).expand(m)  # a whole level shares one position
            features = self._all_hidden.index_select(0, above + 1)
            out = self._through(ids, features, places, at, visible(wide, self._pairs, keys), keys)
            self._all_hidden[1 + before : 1 + before + m] = out
            return self._logits(out)

        # its inputs are others each time: only as a part of a whole draft is it recorded
        if self._recording:
            logits = run()
        else:
            with self._clock:
                logits = run()
        self._n_entries, self._level = before + m, level + 1
        return logits

    def best_children(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return best_children(logits, k) if self._recording else super().best_children(logits, k)

    @torch.inference_mode()
    def drafted(self, key: Hashable, draft: Callable[[Any], T]) -> T:
        """What a whole draft gives, as one graph. draft: a function of this drafter, the same for the same key, that reads
        nothing back; its results are overwritten by the next one."""
        self._drafts[key, self._over] = draft
        self._note_pairs()
        with self._clock:
            return self.replayer(*self._whole(key, draft))

    def _whole(self, key: Hashable, draft: Callable[[Any], T]) -> tuple[Hashable, Callable[[], T]]:
        def recorded() -> T:
            self._recording = True
            try:
                return draft(self)
            finally:
                self._recording = False

        return ("draft", key, self._over, self._keys_read(ENTRIES)), recorded
