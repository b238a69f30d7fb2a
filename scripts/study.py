"""Short trainings that differ in one setting each: what matters for the draft head, on the shards of a `--work` folder.

    python scripts/study.py --work ~/.cache/draft-tree-harness/train/smollm2-135m --out results/head-study

All see the same data in the same order, the same held-out answers and as many positions; with `--start` all go on from the
weights (and AdamW's moments) of one checkpoint of a training. Rows are appended to `study.csv` as they are done; a variant
already there is not run again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch

from harness.common.errors import UserError
from harness.common.files import whole_file
from harness.common.machine import keep_freed_memory
from harness.load.config import model_config
from harness.load.model import load
from harness.train.checkpoint import CHECKPOINT, Progress
from harness.train.data import Conversation, has_features, make_text_shards, read_shards
from harness.train.generate import features_of
from harness.train.loop import train
from harness.train.request import training_settings
from harness.train.settings import TrainSettings
from harness.train.texts import exchange_ids
from harness.train.trainers import EAGLE
from tasks import sharegpt
from tasks.overlap import checked_prompts

# name, settings, share of positions that are ShareGPT's own text instead of the target's answers
VARIANTS: list[tuple[str, tuple[str, ...], float]] = [
    ("base", (), 0.0),
    ("unroll 2", ("unroll=2",), 0.0),
    ("unroll 3", ("unroll=3",), 0.0),
    ("unroll 3, weights 1, 0.7, 0.49", ("unroll=3", "unroll_decay=0.7"), 0.0),
    ("cross-entropy 2", ("ce_weight=2",), 0.0),
    ("cross-entropy alone", ("feature_weight=0", "ce_weight=1"), 0.0),
    ("cross-entropy 0.1 (the reference's)", ("ce_weight=0.1",), 0.0),
    ("prompts trained as answers", ("prompt_share=1",), 0.0),
    ("prompts not trained", ("prompt_share=0",), 0.0),
    ("no feature noise", ("noise=0",), 0.0),
    ("noise x 5", ("noise=0.5",), 0.0),
    ("rate x 2", ("learning_rate=0.0012",), 0.0),
    ("rate / 2", ("learning_rate=0.0003",), 0.0),
    ("twice the batch", ("batch_tokens=4096",), 0.0),
    ("cross-entropy on a third", ("ce_share=0.33",), 0.0),
    ("loss over 2,048 frequent rows", ("frequent_rows=2048",), 0.0),
    ("no first pair (the reference)", ("first_pair=false",), 0.0),
    ("weight decay 0.1", ("weight_decay=0.1",), 0.0),
    ("another seed", ("seed=1",), 0.0),
    ("half text", (), 0.5),
    ("text alone", (), 1.0),
]


@click.command()
@click.option("--work", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--tokens", default=400_000, show_default=True, help="Positions of each training.")
@click.option("--conversations", default=2400, show_default=True, help="How many answers to train on.")
@click.option("--only", multiple=True, help="Names of variants; all otherwise.")
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="A checkpoint.pt to go on from.")
@click.option("--held-out", default=96, show_default=True, help="Answers every variant is judged on.")
@click.option("--threads", default=2, show_default=True)
@click.option("--set", "extra", multiple=True, help="Settings of every variant, before its own.")
def main(
    work: Path,
    out: Path,
    model: str,
    tokens: int,
    conversations: int,
    only: tuple[str, ...],
    start: Path | None,
    held_out: int,
    threads: int,
    extra: tuple[str, ...],
) -> None:
    keep_freed_memory()
    torch.set_num_threads(threads)
    loaded = load(model_config(model), "bfloat16", drafters=())
    hidden = loaded.target.embedding.shape[1]

    def stored(name: str) -> list[Conversation]:
        """A folder's texts; a training keeps no features where they do not fit on the disk."""
        folder = work / name
        return read_shards(folder, hidden, None if has_features(folder) else features_of(loaded.target.model))

    answers = stored("answers")[:conversations]
    if len(answers) < conversations:
        raise UserError(f"{work} holds {len(answers)} answers, fewer than --conversations {conversations}")
    file = out / "study.csv"
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    chosen = [v for v in VARIANTS if not only or v[0] in only]
    embedding, lm_head = (w.detach().to(torch.bfloat16) for w in (loaded.target.embedding, loaded.target.lm_head.weight))
    for name, changes, text_share in chosen:
        if any(row["variant"] == name for row in rows):
            continue
        settings = training_settings((*extra, *changes), tokens=tokens)
        pool, held = answers, stored("held_out")[:held_out]
        if text_share:
            texts = exchange_ids(loaded, sharegpt.split(sharegpt.conversations()), 0, checked_prompts())
            make_text_shards(work / "study-texts", loaded.target.model, texts, n_tokens=tokens // 3)
            pool = mixed(pool, stored("study-texts"), text_share)
        folder = work / f"study-{os.getpid()}"
        if start:
            _go_on(start, folder, settings)
        head, started = EAGLE.new(loaded.target.model.config, settings), time.monotonic()
        curve = train(EAGLE, head, embedding, lm_head, pool, held, settings, folder, say=lambda text: None)
        shutil.rmtree(folder)
        row = {"variant": name, "settings": " ".join([*extra, *changes]) or "-", "text_share": text_share, "positions": tokens,
               "minutes": round((time.monotonic() - started) / 60, 2),
               **{k: v for k, v in curve[-1].items() if k.startswith(("top", "chain", "train"))}}  # fmt: skip
        rows = pd.read_csv(file).to_dict("records") if file.exists() else []  # another process may have added to it
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
        out.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as tmp:
            pd.DataFrame(rows).to_csv(tmp, index=False)


def _go_on(start: Path, folder: Path, settings: TrainSettings) -> None:
    """Make `folder` that of a training about to begin with the weights of the checkpoint `start`."""
    saved = torch.load(start, weights_only=False)
    saved["state"] = asdict(Progress())
    saved["settings"], saved["pool_tokens"] = json.loads(json.dumps(asdict(settings))), 0
    for group in saved["optimizers"][0]["param_groups"]:
        group |= {"betas": settings.betas, "weight_decay": settings.weight_decay}
    folder.mkdir(parents=True)
    torch.save(saved, folder / CHECKPOINT)


def mixed(answers: list[Conversation], texts: list[Conversation], share: float) -> list[Conversation]:
    """As many positions as `answers`, `share` of them texts."""
    total = sum(len(c.ids) for c in answers)
    out: list[Conversation] = []
    for items, wanted in ((texts, share * total), (answers, (1 - share) * total)):
        ends = np.cumsum([len(c.ids) for c in items])
        out += items[: int(np.searchsorted(ends, wanted))]
    return out


if __name__ == "__main__":
    main()
