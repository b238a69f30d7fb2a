"""The control: what the target alone shows over a text, which is what rounding does here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.audit.probe.replay import Replayed, same_bits
from harness.load.model import Loaded
from methods.engine.tree import chain


@dataclass(frozen=True, slots=True)
class Noise:
    """What the target alone shows over one text.

    `differences`: of single rows and of many rows from the plain forward. `gaps`: how far the gap between the reference's two
    best tokens moves between any two of these three. `flipped`: whether many rows anywhere name another token than a single row
    does. `exposed`: positions up to the first of those; as with outputs, nothing after it is compared. On a row-invariant engine
    many rows and one are the same: there it is the plain forward, of transformers' module, that may name another token.

    `other_bits`: positions that some row among many gives other bits than a single row does; empty where `one` holds no logits.
    """

    differences: list[float]
    gaps: list[float]
    flipped: bool
    exposed: int
    other_bits: list[int]


@torch.inference_mode()
def control(loaded: Loaded, one: Replayed, width: int, per_position: int) -> Noise:
    """The target alone over a finished greedy text, without a drafter.

    It scores chains of the next `width` tokens, one every `width / per_position` tokens. So each position is scored
    `per_position` times, in different rows. If `one` holds no logits of its own (a text from a ledger), its ids stand for the
    argmaxes of single rows.
    """
    target, text = loaded.target, [*one.prompt, *one.ids]
    n, stride, has_own = len(one.ids), max(1, width // per_position), one.used is not one.reference
    best = one.reference.double().topk(2, dim=-1).indices

    def gap(rows: Tensor, at: Tensor) -> Tensor:
        own = rows.cpu().double().gather(-1, best[at])
        return own[:, 0] - own[:, 1]

    here = torch.arange(n)
    alone, plain = gap(one.used, here), gap(one.reference, here)
    differences = list(one.differences) if has_own else []
    gaps = (alone - plain).abs().tolist() if has_own else []
    ids, differs, other_bits = torch.tensor(one.ids), torch.zeros(n, dtype=torch.bool), set[int]()
    scored = 1  # the first token comes from the prefill in every arm
    target.prefill(one.prompt, n + width)
    for first in range(0, n - 1, stride):
        # row i of the chain is before output token first + i + 1; the text may end before the chain does
        tokens = text[len(one.prompt) + first :][:width]
        _, rows = target.verify(chain(tokens[0], tokens[1:]))
        at = torch.arange(first + 1, min(first + 1 + len(tokens), n))
        rows = rows[: len(at)].cpu()
        many = gap(rows, at)
        if has_own:
            other_bits |= {int(i) for i, same in zip(at, same_bits(rows, one.used[at]), strict=True) if not same}
        differences += (rows.double() - one.reference[at].double()).abs().amax(-1).tolist()
        gaps += torch.maximum((many - alone[at]).abs(), (many - plain[at]).abs()).tolist()
        fresh = at >= scored  # of two scorings of a position only the first counts: they are not two trials
        differs[at[fresh]] = rows.max(-1).indices[fresh] != ids[at[fresh]]
        scored = max(scored, int(at[-1]) + 1)
        target.commit(list(range(min(stride, len(tokens)))))
    if target.is_row_invariant:
        differs = one.reference.max(-1).indices != ids
    flips = differs.nonzero().flatten().tolist()
    return Noise(differences, gaps, bool(flips), flips[0] + 1 if flips else n, sorted(other_bits))
