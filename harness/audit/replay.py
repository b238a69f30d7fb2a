"""What methods really used, position by position, against one plain forward over the finished text (layers 2, 3, 4).

A `Recording` stands in for the target and keeps the logits row behind every emitted token. Afterwards transformers' own
module runs once over prompt and output, without a cache, without a tree: its rows are the reference. The no-drafter
control is the target alone: vanilla's text fed through trees of random nodes, which shows what rounding does here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.audit.scores import summands
from harness.loading import Loaded
from harness.train.eagle import Batch, predicted_features
from methods.base import Decode, SamplerParams
from methods.engine.sampling import probabilities
from methods.engine.tree import Tree


class Recording:
    """A target that keeps the logits rows tokens were drawn from: the prefill's, each step's, and those of committed nodes."""

    def __init__(self, target: Any):
        self._target = target
        self.rows: list[Tensor] = []  # [vocab] each, in the order emitted
        self.paths: list[list[int]] = []
        self._pending: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def prefill(self, prompt_ids: list[int], room: int) -> tuple[Tensor, Tensor]:
        self.rows, self.paths = [], []
        features, logits = self._target.prefill(prompt_ids, room)
        self.rows.append(logits.clone())
        return features, logits

    def step(self, token: int) -> Tensor:
        logits: Tensor = self._target.step(token)
        self.rows.append(logits.clone())
        return logits

    def verify(self, tree: Tree) -> tuple[Tensor, Tensor]:
        features, logits = self._target.verify(tree)
        self._pending = logits
        return features, logits

    def commit(self, path: list[int]) -> None:
        assert self._pending is not None
        self.rows += list(self._pending[path].clone())
        self.paths.append(path)
        self._target.commit(path)


@dataclass(frozen=True, slots=True)
class Replayed:
    """One generation: `used` [n, vocab], the logits behind its tokens; `reference` [n, vocab], the plain forward's."""

    prompt: list[int]
    ids: list[int]
    used: Tensor
    reference: Tensor
    n_offside: int  # steps whose accepted path was not the first rows: those that a wrong cache would show in


@torch.inference_mode()
def plain_logits(loaded: Loaded, prompt: Sequence[int], ids: Sequence[int]) -> Tensor:
    """[n, vocab]: the logits before each of `ids`, by one cache-free forward of transformers' own module."""
    with loaded.target.stock_attention():
        text = torch.tensor([[*prompt, *ids[:-1]]], device=loaded.target.device)
        hidden = loaded.target.model.model(text, use_cache=False).last_hidden_state[0, len(prompt) - 1 :]
        logits: Tensor = loaded.target.model.lm_head(hidden)
    return logits


def replayed(loaded: Loaded, decode: Decode, prompt: list[int], params: SamplerParams, drafter: Any) -> Replayed:
    """Run a method with its target recorded, then the plain forward over what it emitted."""
    target = Recording(loaded.target)
    made = decode(prompt, target, drafter, params)
    n = len(made.token_ids)
    if len(target.rows) < n:
        raise ValueError(f"{n} tokens were emitted but only {len(target.rows)} rows of logits were asked for")
    used = torch.stack(target.rows[:n])
    offside = sum(path != list(range(len(path))) for path in target.paths)
    return Replayed(prompt, made.token_ids, used, plain_logits(loaded, prompt, made.token_ids), offside)


@torch.inference_mode()
def control(loaded: Loaded, prompt: list[int], ids: list[int], width: int, seed: int) -> Tensor:
    """[n, vocab]: the logits before each of `ids` when the target alone verifies a random tree of `width` nodes there."""
    rng = np.random.default_rng(seed)
    target, vocab = loaded.target, len(loaded.target.embedding)
    _, first = target.prefill(prompt, len(ids) + width + 1)
    rows = [first.clone()]
    for token in ids[:-1]:
        parents = [-1, *(int(rng.integers(0, i)) for i in range(1, width))]
        _, logits = target.verify(Tree([token, *rng.integers(0, vocab, width - 1).tolist()], parents))
        rows.append(logits[0].clone())
        target.commit([0])
    return torch.stack(rows)


# ---- what is kept of it ----


def differences(used: Tensor, reference: Tensor) -> tuple[list[float], int]:
    """(largest absolute difference of the logits at each position, positions whose argmax differs)."""
    a, b = used.double(), reference.double()
    return (a - b).abs().amax(-1).tolist(), int((a.argmax(-1) != b.argmax(-1)).sum())


def gap_noise(one_row: Tensor, many_rows: Tensor, reference: Tensor) -> list[float]:
    """How much the gap between the reference's two best tokens differs between one row and many, at each position."""
    best = reference.double().topk(2, dim=-1).indices
    gaps = [x.double().gather(-1, best) for x in (one_row, many_rows)]
    return ((gaps[0][:, 0] - gaps[0][:, 1]) - (gaps[1][:, 0] - gaps[1][:, 1])).abs().tolist()


@torch.inference_mode()
def head_law(loaded: Loaded, prompt: list[int], ids: list[int], params: SamplerParams) -> np.ndarray:
    """[n, vocab]: the draft head's law before each of `ids`, teacher-forced on the target's own features."""
    drafter, target = loaded.drafter, loaded.target
    assert drafter is not None
    text = [*prompt, *ids]
    features, _ = target.prefill(text[:-1], 1)
    batch = Batch(torch.tensor([text]), torch.cat([features, features[-1:]])[None].cpu(), torch.empty(0), torch.empty(0))
    out, _ = next(predicted_features(drafter.head, drafter.embedding, batch, 1))
    # pair i (f_i, t_{i+1}) predicts what follows token i + 1; the first new token is predicted by pair n_prompt - 2
    predicted = out[0, len(prompt) - 2 : len(text) - 2].to(drafter.dtype)
    law: np.ndarray = probabilities(target.lm_head(predicted), params.temperature, params.top_p).numpy()
    return law


def score_sums(run: Replayed, q: np.ndarray, params: SamplerParams) -> tuple[list[float], list[float]]:
    """Layer 4's sums of deviations and variances, over the laws that verification itself used."""
    p = probabilities(run.used, params.temperature, params.top_p).cpu().numpy()
    deviations, variances = summands(p, q, np.array(run.ids))
    return deviations.sum(0).tolist(), variances.sum(0).tolist()
