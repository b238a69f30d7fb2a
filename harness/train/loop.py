"""The training loop, one for all kinds of drafters: batches of cached conversations, the loss, steps, held-out figures.

What differs between kinds is in their `Trainer`.

The loss of a level is a smooth L1 on features (EAGLE only) plus a soft cross-entropy on the target's distribution, which a
feature gives through the LM head. Two things depart from published recipes, as training here is counted in minutes on two cores:
- the cross-entropy runs over the frequent rows of the vocabulary plus every token of the batch, not over all 49,152;
- the pair (last prompt feature, first answer token) is trained. Every first draft uses it, and the reference never trains it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.common.errors import UserError, say
from harness.train.batches import ALL, Batch, batches, collate
from harness.train.checkpoint import BEFORE_COOLDOWN, CHECKPOINT, resume, save_checkpoint
from harness.train.data import Conversation
from harness.train.held_out import held_out_acceptance
from harness.train.loss import SoftCrossEntropy, best_are_among, scored_rows, wanted_of
from harness.train.processes import ALONE, Processes
from harness.train.settings import TrainSettings
from harness.train.trainers import Trainer, W
from methods.engine.teacher_forced import next_valid

CHECK_EVERY = 600.0  # seconds between two checks on the held-out answers, which cost most of a minute
SAVE_EVERY = 120.0  # seconds between two checkpoints


def train(
    trainer: Trainer[W],
    head: W,
    embedding: Tensor,
    lm_head: Tensor,
    pool: list[Conversation],
    held: list[Conversation],
    settings: TrainSettings,
    folder: Path,
    *,
    processes: Processes = ALONE,
    say: Callable[[str], None] = say,
) -> list[dict[str, float]]:
    """Train `head` in place, on `pool`, over `settings.tokens` positions -> the learning curve, a row a check on `held`.

    It trains where `embedding` is. Deterministic for given settings, data and thread count. It goes on from
    `folder/checkpoint.pt`, with a new epoch where the pool has grown. embedding, lm_head: [vocab, hidden] bf16, frozen.
    Conversations of which `max_length` leaves nothing to train are left out. Inputs are normalised while training
    (`NormalisedInput`); `trainer.shipped` undoes that.

    Several processes take the same steps as one would, each over its conversations of a batch. The main one writes checkpoints
    and has the curve.

    In a row of the curve, `loss` and `train_top1` are means over the steps since the row before. `train_top1` is of the first
    256 positions scored in each step: with noise on, some of them of prompts, among the rows of the cross-entropy only. Beside
    `top1` (held out, at this step, over the whole vocabulary) it is a hint, not the other side of a difference.

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
    device = embedding.device
    head.to(device)
    trainer.initialise(head, embedding, pool, settings)
    if trainer.own_lm is not None:
        trainer.own_lm.begin(head, lm_head)
    counts = np.bincount(np.concatenate([c.ids for c in pool]), minlength=len(embedding))
    frequent = torch.from_numpy(np.argsort(-counts, kind="stable")[: settings.frequent_rows].copy()).to(device)
    optimizers, pool_tokens = make_optimizers(head, settings), int(counts.sum())
    progress = resume(folder, head, optimizers, settings, pool_tokens, say)
    processes.share_weights(head)
    started = time.monotonic() - progress.seconds
    recent: list[tuple[float, float]] = []  # (loss, train_top1) of the steps since the last check

    def save(name: str) -> None:
        if not processes.is_main:
            return
        progress.seconds = time.monotonic() - started
        save_checkpoint(folder / name, head, optimizers, progress, settings, pool_tokens)

    last_save = last_check = time.monotonic()
    order = batches(pool, settings, progress.epoch)
    while progress.seen < settings.tokens:
        if progress.at >= len(order):
            progress.epoch, progress.at = progress.epoch + 1, 0
            order = batches(pool, settings, progress.epoch)
        here = [pool[i] for i in order[progress.at]]
        batch = collate(here, settings.max_length, embedding.shape[1], processes.rows).to(device)
        done = progress.seen / settings.tokens
        warm = min(1.0, (progress.step + 1) / settings.warmup_steps)
        cool = min(1.0, (1 - done) / settings.cooldown)
        if cool < 1 and not progress.cooled:  # by what the checkpoint says: a file that is there may be an earlier training's
            save(BEFORE_COOLDOWN)
        progress.cooled = cool < 1
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = warm * cool * settings.learning_rate
        torch.manual_seed(settings.seed * 7_919 + progress.step)  # chance in a step: the same after a resume
        head.zero_grad(set_to_none=True)
        levels = settings.unroll if done >= settings.unroll_from else 1
        loss, agree = batch_loss(trainer, head, embedding, lm_head, frequent, batch, levels, settings, processes.rows)
        if loss.requires_grad:  # of few conversations a process may have none
            loss.backward()
        loss = processes.sum_gradients(head, loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(head.parameters(), settings.clip_norm)
        if not torch.isfinite(norm):  # one such step would spoil the weights, and the checkpoint with them
            raise UserError(f"the gradient at step {progress.step} is not finite; a lower learning_rate may help (the last "
                            f"checkpoint is of at most two minutes ago)")  # fmt: skip
        for optimizer in optimizers:
            optimizer.step()
        recent.append((float(loss), agree))
        progress.step += 1
        progress.at += 1
        progress.seen += int((batch.ids[:, 1:] != 0).sum())
        now = time.monotonic()
        if processes.is_main and (now - last_check > CHECK_EVERY or progress.seen >= settings.tokens):
            found = held_out_acceptance(trainer, head, embedding, lm_head, held, min(4, trainer.n_levels(head)))
            spent = now - started
            row = {"step": progress.step, "tokens": progress.seen, "epoch": progress.epoch, "seconds": round(spent, 1),
                   "held_out": len(held), "loss": round(float(np.mean([loss for loss, _ in recent])), 4),
                   "train_top1": round(float(np.mean([top1 for _, top1 in recent])), 4),
                   **{k: round(v, 4) for k, v in found.items()}}  # fmt: skip
            progress.curve.append(row)
            rate = progress.seen / max(spent, 1e-9)
            left = max(settings.tokens - progress.seen, 0) / rate / 60
            say(f"{json.dumps(row)}  {rate:.0f} tokens/s, {left:.0f} min left")
            recent.clear()
            last_check = time.monotonic()
        if now - last_save > SAVE_EVERY:
            save(CHECKPOINT)
            last_save = time.monotonic()
    save(CHECKPOINT)
    return progress.curve


def batch_loss(
    trainer: Trainer[W],
    head: W,
    embedding: Tensor,
    lm_head: Tensor,
    frequent: Tensor,
    batch: Batch,
    levels: int,
    settings: TrainSettings,
    rows: slice = ALL,
) -> tuple[Tensor, float]:
    """(the loss of a batch over so many levels, the share of the first 256 positions scored where the first level is right).

    frequent: token ids [rows] that every cross-entropy is over. Of an LM head of its own it is over that one's tokens, and 0
    where the target's argmax is not among them: there the level is wrong. What is trained of the batch is chosen here, in place.
    rows: the conversations whose features are here; the losses of all parts of a batch add up to its loss.
    """
    here = batch.ids.device
    if not settings.first_pair:
        first = batch.trained.int().argmax(-1)
        batch.trained[torch.arange(len(first), device=here), first] = False
    batch.trained |= batch.prompt & _some(batch.prompt, settings.prompt_share)
    own = trainer.own_lm.of(head) if trainer.own_lm else None
    lm_rows = own[0].to(lm_head.dtype) if own else lm_head[scored_rows(frequent, batch.ids, len(lm_head))]
    total, agree = torch.zeros((), device=here), 0.0
    scored = batch.trained & _some(batch.trained, settings.ce_share)
    scored = scored if scored.any() else batch.trained  # a small share of a small batch may be none
    whole, whole_scored, is_whole = batch.trained, scored, rows == ALL
    if not is_whole:
        batch, scored = batch.of(rows), scored[rows]
        torch.manual_seed(torch.initial_seed() + 1_000_003 * rows.start)  # the noise of one process is not another's
        if not len(batch.ids):
            return total, agree
    truth = batch.features[:, 1:]
    wanted, known = wanted_of(truth[scored], lm_head[own[1]] if own else lm_rows), scored
    if own:
        known = scored.masked_scatter(scored, best_are_among(own[1], truth[scored], lm_head))
    with torch.autocast(here.type, dtype=torch.bfloat16):
        for s, (out, valid) in enumerate(trainer.predicted_features(head, embedding, batch, levels, settings.noise)):
            asked, all_asked = valid & scored, whole & whole_scored
            of_valid, of_asked = (1.0, 1.0) if is_whole else (_part(valid, whole), _part(asked, all_asked))
            whole = next_valid(whole)
            if not all_asked.any():
                continue  # a mean over nothing would spoil the weights
            loss = torch.zeros((), device=here)
            if settings.feature_weight and of_valid:
                loss = F.smooth_l1_loss(out[valid].float(), truth[valid].float()) * (settings.feature_weight * of_valid)
            if s == 0 and asked.any():
                best = F.linear(out[asked][:256].to(lm_rows.dtype), lm_rows).max(-1).indices
                right = (best == wanted[asked[scored]][:256].max(-1).indices) & known[asked][:256]
                agree = float(right.float().mean())
            if own:
                of_asked *= _part(asked & known, asked)
                asked &= known
            rows_here = wanted[asked[scored]]
            if settings.ce_weight and of_asked:
                ce = SoftCrossEntropy.apply(out[asked].to(lm_rows.dtype), lm_rows, rows_here)
                loss = loss + settings.ce_weight * of_asked * ce
            total = total + loss * settings.unroll_decay**s / sum(settings.unroll_decay**r for r in range(levels))
    return total, agree


def _part(mine: Tensor, whole: Tensor) -> float:
    """Of the places of a batch, the share that lies in a part of it."""
    return int(mine.sum()) / max(int(whole.sum()), 1)


def _some(like: Tensor, share: float) -> Tensor:
    """[like's shape] bool: a share of the places, by chance of the CPU's, which is the same wherever training runs."""
    return (torch.rand(like.shape) < share).to(like.device)


def make_optimizers(head: nn.Module, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices and AdamW for the rest."""
    matrices = [p for p in head.parameters() if p.dim() == 2] if settings.muon else []
    others = [p for p in head.parameters() if not settings.muon or p.dim() != 2]
    lr, decay = settings.learning_rate, settings.weight_decay
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=lr, betas=settings.betas, weight_decay=decay, fused=True)]
    if matrices:
        made.append(torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return made
