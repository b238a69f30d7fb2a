"""Logits -> probabilities -> token. T = 0 is argmax exactly; T > 0 is inverse CDF with uniforms keyed by position.

A uniform depends on (stream key, purpose, position) only, never on what was drawn before: results are the same under
resume, reordering and sharding, and every walking method draws vanilla's tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.base import SamplerParams
from methods.engine.transfer import at_once, sent

BLOCK = 256  # entries of the vocabulary that drawing without replacement looks at together


def stream_key(seed: int, sample_id: str, turn: int, repeat: int) -> int:
    """The 63-bit key of one generation's random stream."""
    text = f"{seed}\x1f{sample_id}\x1f{turn}\x1f{repeat}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def uniform(key: int, purpose: bytes, position: int, attempt: int = 0) -> float:
    """A number in [0, 1) with 53 random bits."""
    digest = hashlib.blake2b(struct.pack(">QQQ", key, position, attempt) + purpose, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def argmax(logits: Tensor) -> int:
    """The one argmax of the harness: lowest index on ties (torch.max's documented choice). logits: [vocab]."""
    if logits.device.type == "cpu" and logits.dtype != torch.bfloat16:
        return int(logits.numpy().argmax())  # the first of equals, too, in a tenth of the time
    return int(logits.max(-1).indices)


def probabilities(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """logits [..., vocab] -> processed probabilities, float64, same shape. temperature must be > 0.

    Top-p keeps the smallest set of most probable tokens whose mass reaches `top_p` (ties: lower index first).
    """
    wide = logits.double()
    return _cut(torch.softmax(wide if temperature == 1 else wide / temperature, dim=-1), top_p)


def draft_probabilities(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """`probabilities` of a draft, in a fifth of the time: exponentials in the logits' own precision.

    Sampled drafts keep the target's law for every q, if they are drawn from the very q that they are verified with; so what is
    rounded in q costs nothing but acceptance. It sums to 1 in float64.
    """
    if logits.dtype == torch.float64:
        return probabilities(logits, temperature, top_p)
    p = torch.softmax(logits.float() / temperature, dim=-1).double()
    return _cut(p / p.sum(-1, keepdim=True), top_p)


def _cut(p: Tensor, top_p: float) -> Tensor:
    if top_p < 1.0:
        ordered, index = p.sort(dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p
        p = p.masked_fill(torch.zeros_like(p, dtype=torch.bool).scatter(-1, index, beyond), 0.0)
        p = p / p.sum(-1, keepdim=True)
    return p


def inverse_cdf(p: Tensor, u: float) -> int:
    """The token whose interval of the cumulated probabilities holds u. p: [vocab] float64; a zero is never drawn."""
    cdf = p.cumsum(-1)
    total = float(cdf[-1])
    token = int(torch.searchsorted(cdf, torch.tensor(u * total, dtype=cdf.dtype, device=cdf.device), right=True))
    if token >= len(p) or p[token] <= 0:  # u * total rounded up to the end: the last token with any mass
        token = int(p.nonzero()[-1])
    return token


def inverse_cdfs(p: Tensor, u: Tensor) -> Tensor:
    """`inverse_cdf` of many rows, without reading anything back: p [n, vocab] and u [n] float64 -> tokens [n]."""
    cdf = p.cumsum(-1)
    found = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)
    last = p.shape[-1] - 1 - (p > 0).flip(-1).max(-1, keepdim=True).indices  # the last with any mass
    beyond = found > last  # u * total rounded up to the end
    found = torch.where(beyond, last, found)
    return torch.where(p.gather(-1, found) > 0, found, last)[:, 0]


def draws(q: Tensor, u: Tensor) -> Tensor:
    """`Chooser.children` of many rows at once, without reading anything back: q [m, vocab] and u [m, k] float64 -> tokens [m, k].

    The j-th of a row is the token whose interval of what is left of q holds u[:, j]; -1 where nothing is left.
    """
    left = torch.zeros(len(q), -(-q.shape[1] // BLOCK), BLOCK, dtype=q.dtype, device=q.device)
    left.flatten(1)[:, : q.shape[1]] = q
    sums, rows = left.sum(-1), torch.arange(len(q), device=q.device)
    drawn = []
    for one in u.split(1, dim=1):
        ends = sums.cumsum(-1)
        at = one * ends[:, -1:]
        block = _last_with_mass(sums, torch.searchsorted(ends, at, right=True))
        before = ends.gather(1, block) - sums.gather(1, block)
        own = left[rows, block[:, 0]]
        token = _last_with_mass(own, torch.searchsorted(own.cumsum(-1), at - before, right=True))
        own = own.scatter(1, token, 0.0)
        left[rows, block[:, 0]] = own
        sums = sums.scatter(1, block, own.sum(-1, keepdim=True))
        drawn.append(torch.where(ends[:, -1:] > 0, block * BLOCK + token, -1))
    return torch.cat(drawn, dim=1)


def drawn_children(logits: Tensor, u: Tensor, params: SamplerParams) -> tuple[Tensor, Any]:
    """Children of a level's nodes, drawn without replacement: logits [m, vocab], u [m, k] -> (tokens [m, k], laws).

    laws[row] [vocab] float64: what the row's were drawn from. Tokens are as `draws` has them.
    """
    q = draft_probabilities(logits, params.temperature, params.top_p)
    if at_once(q.device):
        return draws(q, u), q
    # on a CPU one after the other takes less time
    urns = map(_Urn, q)
    return torch.tensor([[urn.draw(one) for one in row] for urn, row in zip(urns, u.tolist(), strict=True)]), q


class DraftLaws(Mapping[int, Tensor]):
    """`Tree.q`: a node's law is made when it is asked for. of_nodes: node -> (laws of its level, its row of them)."""

    def __init__(self, of_nodes: dict[int, tuple[Any, int]]):
        self._of_nodes = of_nodes

    def __getitem__(self, node: int) -> Tensor:
        laws, row = self._of_nodes[node]
        law: Tensor = laws[row]
        return law

    def __contains__(self, node: object) -> bool:
        return node in self._of_nodes  # the inherited one makes the law

    def __iter__(self) -> Iterator[int]:
        return iter(self._of_nodes)

    def __len__(self) -> int:
        return len(self._of_nodes)


def _last_with_mass(masses: Tensor, i: Tensor) -> Tensor:
    """`_Urn._last_with_mass` of many rows: masses [m, n], i [m, 1] -> [m, 1]."""
    has = masses > 0
    places = torch.arange(masses.shape[1], device=masses.device)
    last = torch.where(has & (places <= i), places, -1).amax(-1, keepdim=True)
    return torch.where(last >= 0, last, has.max(-1, keepdim=True).indices)


class _Urn:
    """Tokens drawn one after another, none twice, with the probabilities that are left. q: [vocab] float64.

    By inverse CDF in two steps, the block and the token in it: a draw touches two short rows, not the vocabulary.
    """

    def __init__(self, q: Tensor):
        self.left = np.zeros(-(-len(q) // BLOCK) * BLOCK)
        self.left[: len(q)] = q.numpy(force=True)
        self.blocks = self.left.reshape(-1, BLOCK)
        self.sums = self.blocks.sum(1)

    def draw(self, u: float) -> int:
        """The token whose interval of what is left holds u, and take it out; -1 where nothing is left."""
        ends = self.sums.cumsum()
        if ends[-1] <= 0:
            return -1
        at = u * ends[-1]
        block = self._last_with_mass(self.sums, int(np.searchsorted(ends, at, side="right")))
        before = ends[block] - self.sums[block]
        own = self.blocks[block]
        token = self._last_with_mass(own, int(np.searchsorted(own.cumsum(), at - before, side="right")))
        own[token] = 0.0
        self.sums[block] = own.sum()
        return block * BLOCK + token

    @staticmethod
    def _last_with_mass(masses: np.ndarray, i: int) -> int:
        """i, or where rounding led to the end or to nothing, the last before it that has mass; else the first after it."""
        if i < len(masses) and masses[i] > 0:
            return i
        there = masses.nonzero()[0]
        below = there[there < i]
        return int(below[-1] if len(below) else there[0])


@dataclass(slots=True)
class Chooser:
    """All the randomness of one generation. The audit puts one in its place that walks every branch."""

    params: SamplerParams

    @classmethod
    def of(cls, params: SamplerParams) -> Chooser:
        """The chooser of a generation: the one its params bring, else the keyed one."""
        made: Chooser = params.chooser(params) if params.chooser is not None else cls(params)
        return made

    @property
    def greedy(self) -> bool:
        return self.params.temperature <= 0

    def law(self, logits: Tensor) -> Tensor:
        """The distribution tokens are drawn from at T > 0: [vocab] float64."""
        return probabilities(logits, self.params.temperature, self.params.top_p)

    def draft_law(self, logits: Tensor) -> Tensor:
        """The distribution that drafts are drawn from at T > 0: [..., vocab] float64."""
        return draft_probabilities(logits, self.params.temperature, self.params.top_p)

    def token(self, logits: Tensor, position: int) -> int:
        """The target's token at output position `position` (0 = first new token). logits: [vocab]."""
        if self.greedy:
            return argmax(logits)
        if type(self) is Chooser and at_once(logits.device):
            return self.tokens(logits[None], [position])[0]
        return self.draw(self.law(logits), position)

    def tokens(self, logits: Tensor, positions: Sequence[int]) -> list[int]:
        """The target's token at the output position of each row, read from the device once. logits: [n, vocab]."""
        if self.greedy:
            return logits.max(-1).indices.tolist()
        u = torch.tensor([self.uniform_of_token(position) for position in positions], dtype=torch.float64)
        return inverse_cdfs(self.law(logits), sent(u, logits.device)).tolist()

    def draw(self, p: Tensor, position: int) -> int:
        return inverse_cdf(p, self.uniform_of_token(position))

    def uniform_of_token(self, position: int) -> float:
        """The number in [0, 1) that decides the token at an output position, whoever draws it."""
        return uniform(self.params.key, b"token", position)

    def accept(self, probability: float, position: int, attempt: int) -> bool:
        """A Bernoulli draw; its stream is apart from that of tokens and drafts."""
        return uniform(self.params.key, b"accept", position, attempt) < probability

    def children(self, q: Tensor, k: int, position: int, node: int) -> list[int]:
        """Up to k distinct tokens drawn from q [vocab] without replacement, in order of draw; a zero is never drawn.

        Each has a uniform of its own, so fewer are the first of more.
        """
        urn = _Urn(q)
        drawn = (urn.draw(self.uniform_of_child(position, node, rank)) for rank in range(k))
        return list(itertools.takewhile(lambda token: token >= 0, drawn))

    def uniform_of_child(self, position: int, node: int, rank: int) -> float:
        """The number in [0, 1) that decides which token a node's child of a rank is, whoever draws it."""
        return uniform(self.params.key, b"draft", position, node + (rank << 32))

    def uniforms_of_children(self, position: int, nodes: Sequence[int], n_children: Sequence[int]) -> Tensor:
        """Those of several nodes' children: [nodes, ranks] float64; 0 where a node has none of a rank."""
        ranks = range(max(n_children))
        return torch.tensor(
            [[self.uniform_of_child(position, node, rank) if rank < n else 0.0 for rank in ranks]
             for node, n in zip(nodes, n_children, strict=True)],
            dtype=torch.float64,
        )  # fmt: skip
