"""Trains the EAGLE head on cached features: smooth-L1 on features plus soft cross-entropy on the target's distribution.

Departures from the reference recipe, each because training here is counted in minutes on two cores:
- the cross-entropy runs over the frequent rows of the vocabulary plus every token of the batch, not over all 49,152;
- the pair (last prompt feature, first answer token), which every first draft uses and the reference never trains, is trained;
- `unroll` passes feed the head its own features, as drafting does (the idea of HASS, arXiv 2408.15766, and of EAGLE-3's
  training-time test, arXiv 2503.01840): in pass s the last s-1 positions carry features and keys the head made itself.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import UserError, say
from harness.train.data import Conversation
from methods.engine.draft_head import EagleHead

CHECK_EVERY = 600.0  # seconds between two looks at the held-out answers, which cost most of a minute
TEMPLATE_TOKENS = 24  # the system prompt opens every conversation: nothing to learn there


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What decides the result besides the data.

    `tokens`: positions put through the first pass; `first_pair`: whether (last prompt feature, first answer token) is
    trained, which the reference never does; `ce_share`: of the trained positions, those whose cross-entropy is computed,
    which is half of a step's work; `muon`: matrices by Muon (Jordan et al. 2024, updates scaled to AdamW's size as in arXiv
    2502.16982), the rest by AdamW; `intermediate_size`: of the head's MLP, 0 for the target's; `from_target`: begin with the
    target's last layer, not with noise.
    """

    tokens: int = 5_000_000
    batch_tokens: int = 4096
    learning_rate: float = 1.5e-3
    final_learning_rate: float = 2e-5
    warmup_steps: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    ce_weight: float = 0.5
    ce_share: float = 1.0
    feature_weight: float = 1.0
    noise: float = 0.1
    unroll: int = 2
    unroll_from: float = 0.6
    prompt_share: float = 0.2
    first_pair: bool = True
    frequent_rows: int = 6144
    max_length: int = 1280
    held_out: int = 96
    muon: bool = False
    intermediate_size: int = 0
    from_target: bool = False
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


def predicted_features(
    head: EagleHead, embedding: Tensor, batch: Batch, passes: int, noise: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (predicted features [b, n-1, hidden], which pairs are valid [b, n-1]) for pass 1 .. `passes`.

    Entry i of pass s predicts f_{i+1} from t_{i+1} and, for s = 1, the true f_i; for s > 1 the prediction of f_i that
    pass s-1 made, seeing keys of true features up to i-s+1 and keys of the passes 2 .. s after them.
    """
    b, n = batch.ids.shape
    embedded = F.embedding(batch.ids[:, 1:], embedding)
    rotary = head.rotary(torch.arange(n - 1), torch.float32)
    given = batch.features[:, :-1].float()
    if noise:
        given = given + torch.empty_like(given).uniform_(-noise, noise)
    heads, kv_heads = head.config.num_attention_heads, head.config.num_key_value_heads
    group, scale = heads // kv_heads, head.config.head_dim**-0.5
    distance = torch.arange(n - 1)[:, None] - torch.arange(n - 1)[None]
    keys: list[Tensor] = []
    values: list[Tensor] = []
    valid = batch.trained
    for s in range(1, passes + 1):
        x = head.fc(torch.cat([embedded, given.to(embedded.dtype)], dim=-1))
        q, k, v = head.qkv(x, rotary)
        q, k, v = q.to(x.dtype), k.to(x.dtype), v
        k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
        keys.append(k)
        values.append(v)
        if s == 1:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = torch.matmul(q, keys[0].transpose(-1, -2)).float() * scale
            scores = scores.masked_fill(distance < s - 1, -1e9)
            own = []  # scores against the last s-1 positions, whose keys the head made in passes s, s-1, .. 2
            for m in range(s - 1):
                shifted = _shift(keys[s - 1 - m], m)
                diagonal = (q * shifted).sum(-1, keepdim=True).float() * scale
                own.append(diagonal.masked_fill(torch.arange(n - 1)[:, None] < m, -1e9))
            weights = torch.cat([scores, *own], dim=-1).softmax(-1).to(x.dtype)
            attended = torch.matmul(weights[..., : n - 1], values[0])
            for m in range(s - 1):
                attended = attended + weights[..., n - 1 + m, None] * _shift(values[s - 1 - m], m)
        out = head.finish(x, attended)
        yield out, valid
        given = _shift(out, 1)
        valid = valid & _shift(valid[..., None], 1)[..., 0]


def _shift(x: Tensor, m: int) -> Tensor:
    """Entry i becomes what entry i-m was, along dim -2; the first m are zero."""
    return x if m == 0 else F.pad(x, (0, 0, m, 0))[..., : x.shape[-2], :]


def loss_of(
    predicted: Tensor, features: Tensor, lm_rows: Tensor, ce_weight: float, feature_weight: float = 1.0, ce_share: float = 1.0
) -> tuple[Tensor, float]:  # fmt: skip
    """predicted, features: [m, hidden]; lm_rows: [rows, hidden]; the cross-entropy is over a random `ce_share` of the m.

    Returns (loss, share of those with the same argmax).
    """
    regression = F.smooth_l1_loss(predicted.float(), features.float())
    if ce_share < 1:
        some = torch.randperm(len(predicted))[: max(1, round(ce_share * len(predicted)))]
        predicted, features = predicted[some], features[some]
    with torch.no_grad():
        wanted = F.linear(features.to(lm_rows.dtype), lm_rows).float().softmax(-1)
    logits = F.linear(predicted.to(lm_rows.dtype), lm_rows)
    cross = -(wanted * F.log_softmax(logits.float(), dim=-1)).sum(-1).mean()
    few = slice(0, 256)  # enough for a line in the log; over all rows it is two passes through the largest matrices there are
    agree = float((logits.detach()[few].max(-1).indices == wanted[few].max(-1).indices).float().mean())
    return feature_weight * regression + ce_weight * cross, agree


def hold_out(answers: list[Conversation], settings: TrainSettings) -> tuple[list[Conversation], list[Conversation]]:
    """(training, held-out) split of on-policy conversations, seeded."""
    order = np.random.default_rng(settings.seed).permutation(len(answers))
    shuffled = [answers[i] for i in order]
    return shuffled[settings.held_out :], shuffled[: settings.held_out]


MOST_HELD_OUT = 1024  # tokens of a held-out conversation that are looked at
KINDS = {"short": 100, "medium": 400, "long": 10**9}  # prompts of fewer tokens, template included; long ones are articles


@torch.no_grad()
def held_out_acceptance(
    head: EagleHead,
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
    items = sorted(items, key=lambda c: len(c.ids))  # batches of one length waste no room
    n, top1, top10, chained = (np.zeros(len(items)) for _ in range(4))  # by conversation
    for first in range(0, len(items), 8):
        here = slice(first, first + 8)
        batch = collate(items[here], MOST_HELD_OUT, embedding.shape[1])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            target = F.linear(batch.features[:, 1:], lm_head).max(-1).indices
            running = torch.zeros(())
            for s, (out, valid) in enumerate(predicted_features(head, embedding, batch, depth)):
                logits = F.linear(out[valid].to(torch.bfloat16), lm_head)
                right = torch.zeros_like(valid)
                right[valid] = logits.max(-1).indices == target[valid]
                if s == 0:
                    among = torch.zeros_like(valid)
                    among[valid] = (logits.topk(10).indices == target[valid][:, None]).any(-1)
                    n[here], top1[here], top10[here] = (x.sum(-1).numpy() for x in (valid, right, among))
                    running = right
                else:
                    running = right & _shift(running[..., None], 1)[..., 0]
                chained[here] += running.sum(-1).numpy()
    found = {"top1": top1.sum() / n.sum(), "top10": top10.sum() / n.sum(), "chain_tau": 1 + chained.sum() / n.sum()}
    lengths, least = np.array([c.n_prompt for c in items]), 0
    for kind, most in KINDS.items():
        mine = (lengths >= least) & (lengths < most)
        if n[mine].sum():
            found[f"chain_tau_{kind}"] = 1 + chained[mine].sum() / n[mine].sum()
        least = most
    return {name: float(value) for name, value in found.items()}


@torch.no_grad()
def calibration(
    head: EagleHead,
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
    items = sorted(items, key=lambda c: len(c.ids))
    sums = np.zeros((depth, n_bins, 4))
    for first in range(0, len(items), 8):
        batch = collate(items[first : first + 8], MOST_HELD_OUT, embedding.shape[1])
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
    head: EagleHead,
    embedding: Tensor,
    lm_head: Tensor,
    pool: list[Conversation],
    held: list[Conversation],
    settings: TrainSettings,
    folder: Path,
    *,
    say: Callable[[str], None] = say,
) -> list[dict]:
    """Train `head` on `pool` to `settings.tokens`, from noise unless `settings.from_target`; returns the learning curve.

    Checks on `held` by the way; resumes from `folder/checkpoint.pt`. embedding, lm_head: [vocab, hidden] bf16, frozen.
    Deterministic for given settings, data and thread count.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    if not settings.from_target:
        _initialise(head)
    counts = np.bincount(np.concatenate([c.ids for c in pool]), minlength=len(embedding))
    frequent = torch.from_numpy(np.argsort(-counts, kind="stable")[: settings.frequent_rows].copy())
    optimizers = make_optimizers(head, settings)
    state: dict[str, Any] = {"step": 0, "seen": 0, "epoch": 0, "at": 0, "curve": [], "seconds": 0.0}
    # the data counts as a setting: another pool is another order, and what was held out may have been trained on
    begun_with = json.loads(json.dumps(asdict(settings))) | {"conversations": len(pool), "pool_tokens": int(counts.sum())}
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        if saved["settings"] != begun_with:
            raise UserError(f"{checkpoint} was made with other settings or data; move it away, or choose another --work folder")
        head.load_state_dict(saved["head"])
        for optimizer, its in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        state = saved["state"]
        say(f"resuming at step {state['step']}, {state['seen']:,} tokens seen")
    started = time.monotonic() - state["seconds"]
    recent: list[tuple[float, float]] = []

    def save() -> None:
        state["seconds"] = time.monotonic() - started
        torch.save(
            {"head": head.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "state": state,
             "settings": begun_with},
            checkpoint.with_suffix(".part"),
        )  # fmt: skip
        checkpoint.with_suffix(".part").replace(checkpoint)

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
        cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        for g in (group for optimizer in optimizers for group in optimizer.param_groups):
            g["lr"] = warm * (settings.final_learning_rate + (settings.learning_rate - settings.final_learning_rate) * cosine)
        torch.manual_seed(settings.seed * 7_919 + state["step"])  # noise: the same after a resume
        if not settings.first_pair:
            first = batch.trained.int().argmax(-1)
            batch.trained[torch.arange(len(first)), first] = False
        batch.trained |= batch.prompt & (torch.rand(batch.prompt.shape) < settings.prompt_share)
        rows = torch.unique(torch.cat([frequent, batch.ids.flatten()]))
        lm_rows = lm_head[rows]
        passes = settings.unroll if done >= settings.unroll_from else 1
        head.zero_grad(set_to_none=True)
        total = torch.zeros(())
        agree = 0.0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for s, (out, valid) in enumerate(predicted_features(head, embedding, batch, passes, settings.noise)):
                if not valid.any():
                    continue  # a mean over nothing would spoil the weights
                loss, agreed = loss_of(
                    out[valid], batch.features[:, 1:][valid], lm_rows,
                    settings.ce_weight, settings.feature_weight, settings.ce_share,
                )  # fmt: skip
                total = total + loss / passes
                if s == 0:
                    agree = agreed
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
            check = held_out_acceptance(head, embedding, lm_head, held)
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


def make_optimizers(head: EagleHead, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices and AdamW for the rest."""
    matrices = [p for p in head.parameters() if p.dim() == 2] if settings.muon else []
    others = [p for p in head.parameters() if not settings.muon or p.dim() != 2]
    lr, decay = settings.learning_rate, settings.weight_decay
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=lr, betas=settings.betas, weight_decay=decay, fused=True)]
    if matrices:
        made.append(torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return made


def start_from(head: EagleHead, layer: torch.nn.Module) -> None:
    """Give the head the weights of one of the target's layers; `fc` passes the feature on and adds nothing to it."""
    mine = head.layer.state_dict()
    head.layer.load_state_dict({k: v.float() for k, v in layer.state_dict().items() if k in mine})
    with torch.no_grad():
        size = head.config.hidden_size
        torch.nn.init.normal_(head.fc.weight, std=0.02)
        head.fc.weight[:, size:] += torch.eye(size)
        if head.fc.bias is not None:
            torch.nn.init.zeros_(head.fc.bias)


def _initialise(head: EagleHead) -> None:
    for name, p in head.named_parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.02)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(p)
