"""The one trainer of all drafters: batches of cached conversations, the loss, the loop, held-out figures. What differs between
drafters is a small module each (`eagle`, `heads`, `lm`), which registers three functions for its weights:

- `predicted_features`: what the weights predict of the target's features, level by level, as they would when drafting;
- `initialise`: how they begin;
- `plain_head`: the weights as they are shipped.

The loss of a level: smooth-L1 on features (EAGLE only) and soft cross-entropy on the target's distribution, which is what a
feature says through the LM head. Departures from published recipes, as training here is counted in minutes on two cores:
- the cross-entropy runs over the frequent rows of the vocabulary plus every token of the batch, not over all 49,152;
- the pair (last prompt feature, first answer token), which every first draft uses and the reference never trains, is trained.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import UserError, say
from harness.train.data import Conversation
from methods.engine.heads import ResidualHeads

CHECK_EVERY = 600.0  # seconds between two looks at the held-out answers, which cost most of a minute
TEMPLATE_TOKENS = 24  # the system prompt opens every conversation: nothing to learn there


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What decides the result besides the data.

    `tokens`: positions put through the first level; `first_pair`: whether (last prompt feature, first answer token) is
    trained, which the reference never does; `ce_share`: of the trained positions, those whose cross-entropy is computed,
    which is half of a step's work; `muon`: matrices by Muon (Jordan et al. 2024, updates scaled to AdamW's size as in arXiv
    2502.16982), the rest by AdamW; `cooldown`: the last share of a training, in which the rate falls to 0, constant before
    (so a training can be made longer, from the checkpoint before its cooldown); `unroll`: levels trained: passes of an EAGLE
    head, the number of Medusa's and Hydra's heads; `unroll_from`: the share of the training with one level only before the others
    come in; `unroll_decay`: weight of a level's loss over that of the level before; `intermediate_size`: of the MLPs, 0 for the
    kind's own default; `linear_start` (EAGLE): `fc` begins as the least-squares map to the next feature; `width`, `layers`: of a
    draft LM.
    """

    tokens: int = 5_000_000
    batch_tokens: int = 2048
    learning_rate: float = 8e-4
    cooldown: float = 0.55
    warmup_steps: int = 200
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    ce_weight: float = 0.5
    ce_share: float = 1.0
    feature_weight: float = 1.0
    noise: float = 0.1
    unroll: int = 2
    unroll_from: float = 0.75
    unroll_decay: float = 1.0
    prompt_share: float = 0.2
    first_pair: bool = True
    frequent_rows: int = 6144
    max_length: int = 1280
    held_out: int = 96
    muon: bool = False
    intermediate_size: int = 0
    linear_start: bool = True
    width: int = 256
    layers: int = 3
    seed: int = 0


def batches(items: list[Conversation], settings: TrainSettings, epoch: int) -> list[list[int]]:
    """Indices of conversations of similar length, about `batch_tokens` padded positions a batch, order seeded by epoch."""
    rng = np.random.default_rng([settings.seed, epoch])
    lengths = np.array([min(len(c.ids), settings.max_length) for c in items])
    order = np.argsort(lengths + rng.uniform(0, 24, len(lengths)))
    out: list[list[int]] = []
    current: list[int] = []
    for i in order:
        if current and max(lengths[i], max(lengths[current])) * (len(current) + 1) > settings.batch_tokens:
            out.append(current)
            current = []
        current.append(int(i))
    out.append(current)
    rng.shuffle(out)
    return out


@dataclass(slots=True)
class Batch:
    """ids [b, n] int64, features [b, n, hidden], bf16; trained [b, n-1]: pair i is trained iff token i+1 is the answer's;
    prompt [b, n-1]: pairs before those, a share of which is trained as well."""

    ids: Tensor
    features: Tensor
    trained: Tensor
    prompt: Tensor


def collate(items: list[Conversation], max_length: int, hidden: int) -> Batch:
    n = min(max(len(c.ids) for c in items), max_length)
    ids = torch.zeros(len(items), n, dtype=torch.long)
    features = torch.zeros(len(items), n, hidden, dtype=torch.bfloat16)
    trained = torch.zeros(len(items), n - 1, dtype=torch.bool)
    prompt = torch.zeros(len(items), n - 1, dtype=torch.bool)
    for row, c in enumerate(items):
        m = min(len(c.ids), n)
        ids[row, :m] = torch.from_numpy(c.ids[:m].astype(np.int64))
        features[row, :m] = torch.from_numpy(np.array(c.features[:m]).view(np.int16)).view(torch.bfloat16)
        trained[row, c.n_prompt - 1 : m - 1] = True
        prompt[row, TEMPLATE_TOKENS : c.n_prompt - 1] = True
    return Batch(ids, features, trained, prompt)


@singledispatch
def predicted_features(
    head: nn.Module, embedding: Tensor, batch: Batch, levels: int, noise: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (predicted features [b, n-1, hidden], zero where not valid, which are valid [b, n-1]) for level 1 .. `levels`.

    Entry j of level s predicts f_{j+1} as a draft would that was begun at the pair (f_{j-s+1}, t_{j-s+2}): no feature of the
    target's after that is seen, drafted tokens are the text's. Valid where all of these pairs are trained.
    """
    raise TypeError(f"there is no trainer for {type(head).__name__}")


@singledispatch
def initialise(head: nn.Module, embedding: Tensor, pool: list[Conversation], settings: TrainSettings) -> None:
    """Give untrained weights their first values, in place."""
    raise TypeError(f"there is no trainer for {type(head).__name__}")


def n_levels(head: nn.Module) -> int:
    """How many levels these weights can draft: one a head, as many as one likes where there is a single one."""
    return len(head.heads) if isinstance(head, ResidualHeads) else 1000


@singledispatch
def plain_head(head: nn.Module) -> nn.Module:
    """The weights as they are shipped."""
    return head


def shifted(x: Tensor, m: int) -> Tensor:
    """Entry i becomes what entry i-m was, along dim -2; the first m are zero."""
    return x if m == 0 else F.pad(x, (0, 0, m, 0))[..., : x.shape[-2], :]


def next_valid(valid: Tensor) -> Tensor:
    """The entries of the next level: those that are valid, and the one before as well. valid [b, n-1]."""
    return valid & shifted(valid[..., None], 1)[..., 0]


def placed(rows: Tensor, valid: Tensor) -> Tensor:
    """Rows [m, hidden] of the m valid entries back in their places [b, n-1, hidden], zero elsewhere."""
    here = valid.flatten().nonzero()[:, 0]
    return rows.new_zeros(valid.numel(), rows.shape[-1]).index_copy(0, here, rows).unflatten(0, valid.shape)


ROUND_ROWS = 1024
LOSS_ROWS = 256  # positions whose logits are in the cache at once


class SoftCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of softmax(predicted @ lm_rows.T) against `wanted`; predicted [m, hidden], lm_rows [rows, hidden],
    wanted [m, rows], all bf16. The gradient is made with the loss, a few positions at a time, so no logits are kept."""

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, lm_rows: Tensor, wanted: Tensor) -> Tensor:
        loss = torch.zeros(())
        gradient = torch.empty_like(predicted)
        for i in range(0, len(predicted), LOSS_ROWS):
            here = slice(i, i + LOSS_ROWS)
            log_p = F.linear(predicted[here], lm_rows).float().log_softmax(-1)
            loss -= torch.dot(log_p.flatten(), wanted[here].flatten().float())
            gradient[here] = log_p.exp_().sub_(wanted[here]).to(lm_rows.dtype) @ lm_rows
        ctx.save_for_backward(gradient)
        return loss / len(predicted)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (above / len(gradient)), None, None


@torch.no_grad()
def wanted_of(features: Tensor, lm_rows: Tensor) -> Tensor:
    """The target's distribution over the rows [m, rows], bf16, for its features [m, hidden]."""
    parts = [F.linear(part, lm_rows).float().softmax(-1).to(lm_rows.dtype) for part in features.split(LOSS_ROWS)]
    return torch.cat(parts)


def scored_rows(frequent: Tensor, ids: Tensor, vocab: int) -> Tensor:
    """The tokens a batch's cross-entropy is over: frequent ones, those of the batch, and others at random up to a multiple of
    ROUND_ROWS, so that blocks and kernels of one size serve all batches."""
    wanted = torch.zeros(vocab, dtype=torch.bool)
    wanted[frequent] = True
    wanted[ids.flatten()] = True
    n = int(wanted.sum())
    others = (~wanted).nonzero()[:, 0]
    wanted[others[torch.randperm(len(others))[: -n % ROUND_ROWS]]] = True
    return wanted.nonzero()[:, 0]


class NormalisedInput(nn.Module):
    """The head's `fc` while it is trained: a linear map of (input - mean) / std, which is a linear map of the input.

    Embeddings are twenty times smaller than features, and a few dimensions of a feature are ten times larger than the rest:
    gradient steps on the plain weights would go almost wholly into those. Without a bias the mean stays where it is.
    """

    def __init__(self, fc: nn.Linear, mean: Tensor, std: Tensor):
        """fc: of normalised inputs; mean, std: [inputs]."""
        super().__init__()
        self.weight, self.bias = fc.weight, fc.bias
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def plain(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the same map of inputs as they are."""
        weight = self.weight / self.std
        return weight, None if self.bias is None else self.bias - torch.mv(weight, self.mean)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.plain())


STATISTICS_OVER = 40_000  # pairs


@torch.no_grad()
def some_pairs(embedding: Tensor, pool: list[Conversation], settings: TrainSettings) -> tuple[Tensor, Tensor]:
    """(inputs [m, 2 * hidden]: token's embedding and feature, truth [m, hidden]: the next feature) of some of the pool."""
    chosen = np.random.default_rng(settings.seed).permutation(len(pool))
    inputs, truth, n = [], [], 0
    for i in chosen:
        batch = collate([pool[i]], settings.max_length, embedding.shape[1])
        rows = (batch.trained | batch.prompt)[0]
        pair = torch.cat([F.embedding(batch.ids[0, 1:], embedding), batch.features[0, :-1]], dim=-1)
        inputs.append(pair[rows].float())
        truth.append(batch.features[0, 1:][rows].float())
        n += len(inputs[-1])
        if n >= STATISTICS_OVER:
            break
    return torch.cat(inputs), torch.cat(truth)


def spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of the columns of x [m, inputs]."""
    return x.mean(0), x.std(0).clamp_min(1e-3)


MOST_HELD_OUT = 1024  # tokens of a held-out conversation that are looked at
KINDS = {"short": 100, "medium": 400, "long": 10**9}  # prompts of fewer tokens, template included; long ones are articles


def held_out_batches(items: list[Conversation], hidden: int) -> Iterator[tuple[slice, Batch]]:
    """(which of the items in order of length, their batch): batches of one length waste no room."""
    items = sorted(items, key=lambda c: len(c.ids))
    for first in range(0, len(items), 8):
        here = slice(first, first + 8)
        yield here, collate(items[here], MOST_HELD_OUT, hidden)


def target_tokens(batch: Batch, lm_head: Tensor) -> Tensor:
    """The target's argmax after each pair [b, n-1], 0 where the pair is not trained."""
    target = torch.zeros(batch.trained.shape, dtype=torch.long)
    target[batch.trained] = F.linear(batch.features[:, 1:][batch.trained], lm_head).max(-1).indices
    return target


@torch.no_grad()
def held_out_acceptance(
    head: nn.Module,
    embedding: Tensor,
    lm_head: Tensor,
    items: list[Conversation],
    depth: int = 4,
) -> dict[str, float]:
    """Teacher-forced agreement on held-out conversations over the whole vocabulary.

    `top1`, `top10`: share of pairs whose target argmax is the head's argmax / among its ten best (pass 1);
    `chain_tau`: 1 + sum over d <= depth of P(a greedy chain's first d tokens are all the target's argmax), and the same
    for prompts of each of `KINDS` that occurs.
    """
    n, top1, top10, chained = (np.zeros(len(items)) for _ in range(4))  # by conversation
    for here, batch in held_out_batches(items, embedding.shape[1]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            target = target_tokens(batch, lm_head)
            right = batch.trained  # where the chain's tokens so far are all the target's
            for s, (out, valid) in enumerate(predicted_features(head, embedding, batch, depth)):
                asked = valid if s == 0 else valid & shifted(right[..., None], 1)[..., 0]
                logits, wanted = F.linear(out[asked].to(torch.bfloat16), lm_head), target[asked][:, None]
                right = torch.zeros_like(valid)
                right[asked] = logits.max(-1).indices == wanted[:, 0]
                chained[here] += right.sum(-1).numpy()
                if s == 0:
                    among = torch.zeros_like(valid)
                    among[asked] = (logits > logits.gather(1, wanted)).sum(-1) < 10
                    n[here], top1[here], top10[here] = (x.sum(-1).numpy() for x in (valid, right, among))
    found = {"top1": top1.sum() / n.sum(), "top10": top10.sum() / n.sum(), "chain_tau": 1 + chained.sum() / n.sum()}
    lengths, least = np.array([c.n_prompt for c in sorted(items, key=lambda c: len(c.ids))]), 0
    for kind, most in KINDS.items():
        mine = (lengths >= least) & (lengths < most)
        if n[mine].sum():
            found[f"chain_tau_{kind}"] = 1 + chained[mine].sum() / n[mine].sum()
        least = most
    return {name: float(value) for name, value in found.items()}


@torch.no_grad()
def calibration(
    head: nn.Module,
    embedding: Tensor,
    lm_head: Tensor,
    items: list[Conversation],
    *,
    top_k: int = 10,
    depth: int = 4,
    n_bins: int = 10,
) -> list[dict[str, float]]:
    """The head's confidence against what happens, on held-out conversations: EAGLE-2's value rests on their agreement.

    One row a depth and confidence bin: `n` children (the head's top_k at each pair), their mean `confidence`, `accepted`: the
    share that is the target's argmax, `sampled`: the target's mean probability of them (acceptance at T = 1). Depth s > 1:
    the head runs on its own features, the s - 1 tokens before being the answer's.
    """
    sums = np.zeros((depth, n_bins, 4))
    for _, batch in held_out_batches(items, embedding.shape[1]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for s, (out, valid) in enumerate(predicted_features(head, embedding, batch, depth)):
                p = F.linear(out[valid].to(torch.bfloat16), lm_head).float().softmax(-1)
                target = F.linear(batch.features[:, 1:][valid], lm_head).float()
                best = p.topk(top_k)
                hit = best.indices == target.max(-1).indices[:, None]
                mass = target.softmax(-1).gather(1, best.indices)
                bins = (best.values * n_bins).long().clamp_(max=n_bins - 1).flatten().numpy()
                for column, values in enumerate((torch.ones_like(mass), best.values, hit.float(), mass)):
                    sums[s, :, column] += np.bincount(bins, weights=values.flatten().double().numpy(), minlength=n_bins)
    return [
        {"depth": s + 1, "bin": round(b / n_bins, 3), "n": int(n), "confidence": round(c / n, 4), "accepted": round(a / n, 4),
         "sampled": round(m / n, 4)}
        for s in range(depth) for b, (n, c, a, m) in enumerate(sums[s]) if n > 0
    ]  # fmt: skip


def frequent_tokens(items: list[Conversation], vocab: int, most: int = 32_768) -> np.ndarray:
    """Token ids by how often they occur in answers, most frequent first, ties to the lower id; only those that occur."""
    counts = np.bincount(np.concatenate([c.ids[c.n_prompt :] for c in items]), minlength=vocab)
    order = np.argsort(-counts, kind="stable")
    return order[: min(most, int((counts > 0).sum()))].astype(np.int32)


def train(
    head: nn.Module,
    embedding: Tensor,
    lm_head: Tensor,
    pool: list[Conversation],
    held: list[Conversation],
    settings: TrainSettings,
    folder: Path,
    *,
    say: Callable[[str], None] = say,
) -> list[dict]:
    """Train `head` (its `fc` becomes a `NormalisedInput`) on `pool` to `settings.tokens`; returns the learning curve.

    Checks on `held` by the way; resumes from `folder/checkpoint.pt`, with a new epoch where the pool has grown. embedding,
    lm_head: [vocab, hidden] bf16, frozen. Deterministic for given settings, data and thread count. Conversations of which
    `max_length` leaves nothing to train are left out.

    In a row of the curve, `loss` and `train_top1` are means over the steps since the row before, `train_top1` of the first 256
    positions scored in each: with noise on, some of prompts, among the rows of the cross-entropy. So it lies beside `top1` (held
    out, at this step, over the whole vocabulary) as a hint, not as the other side of a difference.

    Raises:
        UserError: nothing is left to train, the checkpoint is of other settings or data, or a gradient is not finite.
    """
    untrained = 0 if settings.first_pair else 1  # pairs of an answer
    pool = [c for c in pool if min(len(c.ids), settings.max_length) - c.n_prompt > untrained]
    if not pool:
        raise UserError(
            f"nothing to train on: at max_length {settings.max_length} no conversation has a token of its answer left"
        )
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    initialise(head, embedding, pool, settings)
    counts = np.bincount(np.concatenate([c.ids for c in pool]), minlength=len(embedding))
    frequent = torch.from_numpy(np.argsort(-counts, kind="stable")[: settings.frequent_rows].copy())
    optimizers = make_optimizers(head, settings)
    state: dict[str, Any] = {"step": 0, "seen": 0, "epoch": 0, "at": 0, "curve": [], "seconds": 0.0, "cooled": False}
    begun_with = json.loads(json.dumps(asdict(settings)))
    pool_tokens = int(counts.sum())
    checkpoint, before_cooldown = folder / "checkpoint.pt", folder / "before-cooldown.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        defaults = json.loads(json.dumps(asdict(TrainSettings())))
        saved["settings"] = defaults | saved["settings"]  # a setting added since has its default
        longer = saved["settings"] | {"tokens": settings.tokens}
        cooled = saved["state"]["cooled"]
        if longer != begun_with or saved["pool_tokens"] > pool_tokens or (saved["settings"] != begun_with and cooled):
            raise UserError(
                f"{checkpoint} was made with other settings or data; move it away, or choose another --work folder (more "
                f"positions: put {before_cooldown.name}, if there is one, in its place)"
            )
        head.load_state_dict(saved["head"])
        for optimizer, its in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        state = saved["state"]
        if saved["pool_tokens"] < pool_tokens:
            state["epoch"], state["at"] = state["epoch"] + 1, 0
            say(f"the data has grown from {saved['pool_tokens']:,} to {pool_tokens:,} tokens: a new epoch begins")
        say(f"resuming at step {state['step']}, {state['seen']:,} tokens seen")
    started = time.monotonic() - state["seconds"]
    recent: list[tuple[float, float]] = []

    def save(file: Path = checkpoint) -> None:
        state["seconds"] = time.monotonic() - started
        torch.save(
            {"head": head.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "state": state,
             "settings": begun_with, "pool_tokens": pool_tokens},
            file.with_suffix(".part"),
        )  # fmt: skip
        file.with_suffix(".part").replace(file)

    last_save = last_check = time.monotonic()
    order = batches(pool, settings, state["epoch"])
    while state["seen"] < settings.tokens:
        if state["at"] >= len(order):
            state["epoch"] += 1
            state["at"] = 0
            order = batches(pool, settings, state["epoch"])
        batch = collate([pool[i] for i in order[state["at"]]], settings.max_length, embedding.shape[1])
        done = state["seen"] / settings.tokens
        warm = min(1.0, (state["step"] + 1) / settings.warmup_steps)
        cool = min(1.0, (1 - done) / settings.cooldown)
        if cool < 1 and not state["cooled"]:  # by the state: a file that is there may be an earlier training's
            save(before_cooldown)
        state["cooled"] = cool < 1
        for g in (group for optimizer in optimizers for group in optimizer.param_groups):
            g["lr"] = warm * cool * settings.learning_rate
        torch.manual_seed(settings.seed * 7_919 + state["step"])  # noise: the same after a resume
        if not settings.first_pair:
            first = batch.trained.int().argmax(-1)
            batch.trained[torch.arange(len(first)), first] = False
        batch.trained |= batch.prompt & (torch.rand(batch.prompt.shape) < settings.prompt_share)
        lm_rows = lm_head[scored_rows(frequent, batch.ids, len(lm_head))]
        levels = settings.unroll if done >= settings.unroll_from else 1
        head.zero_grad(set_to_none=True)
        total = torch.zeros(())
        truth = batch.features[:, 1:]
        scored = batch.trained & (torch.rand(batch.trained.shape) < settings.ce_share)
        scored = scored if scored.any() else batch.trained  # a small share of a small batch may be none
        wanted = wanted_of(truth[scored], lm_rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for s, (out, valid) in enumerate(predicted_features(head, embedding, batch, levels, settings.noise)):
                here = valid & scored
                if not here.any():
                    continue  # a mean over nothing would spoil the weights
                loss = torch.zeros(())
                if settings.feature_weight:
                    loss = F.smooth_l1_loss(out[valid].float(), truth[valid].float()) * settings.feature_weight
                if settings.ce_weight:
                    rows_here = wanted if s == 0 else wanted[here[scored]]
                    loss = loss + settings.ce_weight * SoftCrossEntropy.apply(out[here].to(lm_rows.dtype), lm_rows, rows_here)
                if s == 0:
                    few = F.linear(out[here][:256].to(lm_rows.dtype), lm_rows).max(-1).indices
                    agree = float((few == wanted[:256].max(-1).indices).float().mean())
                total = total + loss * settings.unroll_decay**s / sum(settings.unroll_decay**r for r in range(levels))
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(head.parameters(), settings.clip_norm)
        if not torch.isfinite(norm):  # one such step would spoil the weights, and the checkpoint with them
            raise UserError(f"the gradient at step {state['step']} is not finite; a lower learning_rate may help (the last "
                            f"checkpoint is of at most two minutes ago)")  # fmt: skip
        for optimizer in optimizers:
            optimizer.step()
        recent.append((float(total.detach()), agree))
        state["step"] += 1
        state["at"] += 1
        state["seen"] += int((batch.ids[:, 1:] != 0).sum())
        now = time.monotonic()
        if now - last_check > CHECK_EVERY or state["seen"] >= settings.tokens:
            check = held_out_acceptance(head, embedding, lm_head, held, min(4, n_levels(head)))
            spent = now - started
            row = {"step": state["step"], "tokens": state["seen"], "epoch": state["epoch"], "seconds": round(spent, 1),
                   "held_out": len(held), "loss": round(float(np.mean([r[0] for r in recent])), 4),
                   "train_top1": round(float(np.mean([r[1] for r in recent])), 4),
                   **{k: round(v, 4) for k, v in check.items()}}  # fmt: skip
            state["curve"].append(row)
            rate = state["seen"] / max(spent, 1e-9)
            left = max(settings.tokens - state["seen"], 0) / rate / 60
            say(f"{json.dumps(row)}  {rate:.0f} tokens/s, {left:.0f} min left")
            recent.clear()
            last_check = time.monotonic()
        if now - last_save > 120:
            save()
            last_save = time.monotonic()
    save()
    return state["curve"]


def make_optimizers(head: nn.Module, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices and AdamW for the rest."""
    matrices = [p for p in head.parameters() if p.dim() == 2] if settings.muon else []
    others = [p for p in head.parameters() if not settings.muon or p.dim() != 2]
    lr, decay = settings.learning_rate, settings.weight_decay
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=lr, betas=settings.betas, weight_decay=decay, fused=True)]
    if matrices:
        made.append(torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return made
