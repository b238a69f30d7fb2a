"""Logits -> probabilities -> token. T = 0 is argmax exactly; T > 0 is inverse CDF with uniforms keyed by position.

A uniform depends on (stream key, purpose, position) only, never on what was drawn before: results are the same under
resume, reordering and sharding, and every walking method draws vanilla's tokens.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from methods.base import SamplerParams


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
    p = torch.softmax(logits.double() / temperature, dim=-1)
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

    def token(self, logits: Tensor, position: int) -> int:
        """The target's token at output position `position` (0 = first new token). logits: [vocab]."""
        if self.greedy:
            return argmax(logits)
        return self.draw(self.law(logits), position)

    def draw(self, p: Tensor, position: int) -> int:
        return inverse_cdf(p, uniform(self.params.key, b"token", position))

    def accept(self, probability: float, position: int, attempt: int) -> bool:
        """A Bernoulli draw; its stream is apart from that of tokens and drafts."""
        return uniform(self.params.key, b"accept", position, attempt) < probability

    def children(self, q: Tensor, k: int, position: int, node: int) -> list[int]:
        """Up to k distinct tokens drawn from q [vocab] without replacement, in order of draw: the k first arrivals of
        exponential clocks with rates q. A single one is drawn by inverse CDF, which is cheaper."""
        if k == 1:
            return [inverse_cdf(q, uniform(self.params.key, b"draft", position, node))]
        digest = hashlib.blake2b(struct.pack(">QQQ", self.params.key, position, node) + b"draft", digest_size=16).digest()
        clocks = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big"))).standard_exponential(len(q))
        rates = q / torch.from_numpy(clocks).to(q.device)
        return rates.topk(min(k, int((q > 0).sum()))).indices.tolist()
