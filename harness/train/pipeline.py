"""`harness train KIND`: prompts -> answers and features -> drafter, in a work folder; it can be interrupted at any point.

The data is the same for every kind of drafter and is made once. What is trained has a folder of its own beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock
import torch

from harness.common.errors import UserError, say
from harness.common.files import cache_dir
from harness.common.hints import hinted
from harness.common.machine import keep_freed_memory, usable_cores
from harness.common.plain_names import place
from harness.ledger.record import canonical_hash
from harness.load.config import model_config
from harness.load.model import Loaded, load
from harness.train.data import Conversation, make_shards, make_text_shards, read_shards, restore_features
from harness.train.held_out import calibration, frequent_tokens
from harness.train.loop import train
from harness.train.request import TrainRequest
from harness.train.save import save_drafter
from harness.train.texts import exchange_ids, held_out_texts, prompt_ids, training_texts
from methods.engine.llama import is_plain_llama
from methods.engine.target import HFTarget
from tasks import sharegpt
from tasks.overlap import checked_prompts, evaluation_prompts

SLOTS, MOST_SLOTS = 64, 512  # conversations answered side by side: a thread of a CPU; on a GPU at most
LONGEST = 1024  # tokens that room is made for
MAX_ANSWER = 256  # tokens of an answer
SHARD_PROMPTS = 1024  # their answers have about 130,000 tokens
FEW, FEW_PROMPTS = 50_000, 32  # answer tokens up to which shards are small, and how small


def train_drafter(request: TrainRequest) -> None:
    """Train a drafter and write it to `request.out`.

    Raises:
        UserError: a model that drafters cannot be trained for, sizes that cannot be, a work folder that was begun with other
            settings, or one that another process trains in.
    """
    trainer, settings = request.trainer, request.settings
    keep_freed_memory()
    config = model_config(request.model)
    threads = request.threads or usable_cores()
    torch.set_num_threads(threads)
    work = request.work or place(cache_dir() / "train", "model", config.name)
    request.out.mkdir(parents=True, exist_ok=True)
    loaded = load(config, "bfloat16", drafters=())
    where = loaded.target.device
    if len(loaded.target.devices) > 1:
        raise UserError(
            f"{config.name} lies on {len(loaded.target.devices)} GPUs; drafters are trained for targets that fit on one"
        )
    if where.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError(f"{torch.cuda.get_device_name(where)} has no bfloat16, which drafters are trained in")
    if not is_plain_llama(loaded.target.model):
        raise UserError(
            f"model {config.name}: drafters can be trained for plain LLaMA models only (no biases, SiLU, fixed rotary table)"
        )
    head = trainer.new(loaded.target.model.config, settings)  # sizes that cannot be are found out before hours of answering

    checked = evaluation_prompts()
    evaluation = checked_prompts(checked)
    dialogues = sharegpt.split(sharegpt.conversations())
    make_answers(loaded, dialogues, evaluation, request, work, slots(loaded.target, threads))
    if settings.tokens == 0:
        say("no training was asked for (--tokens 0): done")
        return
    folder = work / trainer.subfolder
    folder.mkdir(exist_ok=True)
    one_trainer = filelock.FileLock(folder / "train.lock")
    try:
        one_trainer.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"another process trains in {folder}; what this one was asked to generate is done") from None
    answers, texts, held = training_data(loaded, dialogues, evaluation, request, work)
    pool, held = [*answers, *texts], held[: settings.held_out]
    embedding, lm_head = (w.detach().to(torch.bfloat16) for w in (loaded.target.embedding, loaded.target.lm_head.weight))
    n_kept = sum(len(c.ids) for c in pool)
    what = trainer.drafter.train_makes
    say(f"training {what}: {len(pool):,} conversations, {n_kept:,} tokens; {len(held)} answers held out")
    curve = train(trainer, head, embedding, lm_head, pool, held, settings, folder)
    save_drafter(
        trainer, head, request.out, loaded.target_sha, curve,
        {
            "model": config.name,
            "kind": request.kind,
            "answer_tokens": sum(len(c.ids) - c.n_prompt for c in answers),
            "split": "dialogues",
            "text_tokens": request.text_tokens,
            "overlap_checked_against": {name: len(prompts) for name, prompts in checked.items()},
            **{k: v for k, v in asdict(settings).items() if k not in trainer.unused},
            "conversations": len(pool),
            "distinct_tokens": n_kept,
            "parameters": sum(p.numel() for p in head.parameters()),
        },
        calibrated=calibration(trainer, head, embedding, lm_head, held, depth=min(4, trainer.n_levels(head))),
        frequent=frequent_tokens(answers, len(embedding)) if trainer.lists_frequent else None,
        figures=trainer.figures(head, embedding, lm_head, held),
    )  # fmt: skip
    use = hinted("run", "--model", config.given, "--head", request.out, "--method", "all", "--task", "all")
    say(f"written to {request.out}: {what}; to use it: {use}")


def slots(target: HFTarget, threads: int) -> int:
    """How many conversations are answered side by side: on a GPU as many as half of its free memory holds the keys of."""
    if target.device.type != "cuda":
        return SLOTS * threads
    c, cache = target.model.config, target.cache
    of_one = 2 * c.num_hidden_layers * cache.kv_heads * cache.head_dim * LONGEST * 2  # keys and values, two bytes each
    free = torch.cuda.mem_get_info(target.device)[0]
    return max(1, min(MOST_SLOTS, free // 2 // of_one))


def make_answers(
    loaded: Loaded, dialogues: sharegpt.Split, evaluation: Sequence[str], request: TrainRequest, work: Path, n_slots: int
) -> None:  # fmt: skip
    """Have the target answer the held-out prompts and, up to `request.answer_tokens`, the training prompts.

    Raises:
        UserError: `work` was begun with other prompts.
    """
    kept, n_dropped = training_texts(dialogues, request.seed, evaluation)
    what = f"one of {len(evaluation):,} task prompts or a held-out one"
    say(f"{len(kept):,} training prompts; {n_dropped} dropped for overlap with {what}")
    held_out = held_out_texts(dialogues, request.seed, evaluation)
    # shards are the same whatever their number, so more may be added; but to the same prompts only
    made_from = {"prompts": canonical_hash(kept), "held_out": canonical_hash(held_out), "max_new_tokens": MAX_ANSWER}
    _same_work(work, {"model": loaded.config.name, "seed": request.seed, **made_from})
    folder = answers_folder(work, request.answer_tokens)
    small = folder.name != "answers"
    for part, texts, n_tokens in ((work / "held_out", held_out, None), (folder, kept, request.answer_tokens)):
        prompts = prompt_ids(loaded, texts)
        make_shards(
            part,
            loaded.target.model,
            prompts,
            stop_ids=set(loaded.config.stop_ids),
            n_tokens=n_tokens or MAX_ANSWER * len(prompts),
            max_new_tokens=MAX_ANSWER,
            shard_prompts=FEW_PROMPTS if small and part == folder else SHARD_PROMPTS,
            n_slots=n_slots,
            seed=request.seed,
        )


def answers_folder(work: Path, n_tokens: int) -> Path:
    """Where the answers to train on are. Few tokens are made in small shards, apart from the whole ones of larger requests."""
    whole = work / "answers"
    return whole if n_tokens > FEW or any(whole.glob("shard-?????.npz")) else work / "few_answers"


def training_data(
    loaded: Loaded, dialogues: sharegpt.Split, evaluation: Sequence[str], request: TrainRequest, work: Path
) -> tuple[list[Conversation], list[Conversation], list[Conversation]]:
    """(the target's answers, ShareGPT's own texts up to `request.text_tokens`, the held-out answers), with their features.

    Raises:
        UserError: nothing is held out.
    """
    answers = answers_folder(work, request.answer_tokens).name
    parts = ["held_out", answers]
    if request.text_tokens:
        parts.append("texts")
        exchanges = exchange_ids(loaded, dialogues, request.seed, evaluation)
        make_text_shards(work / "texts", loaded.target.model, exchanges, n_tokens=request.text_tokens)
    for part in parts:
        restore_features(work / part, loaded.target.model)
    hidden = loaded.target.embedding.shape[1]
    read = {part: read_shards(work / part, hidden) for part in parts}
    if not read["held_out"]:
        raise UserError("no dialogue of the training data is held out: there are too few of them to judge a drafter by")
    return read[answers], read.get("texts", []), read["held_out"]


def _same_work(work: Path, made_from: Mapping[str, Any]) -> None:
    """Note in the folder what its data is made from.

    Raises:
        UserError: it was begun with something else.
    """
    file = work / "made_from.json"
    if file.exists():
        before = json.loads(file.read_text())
        for key, value in made_from.items():
            if before.get(key) != value:
                raise UserError(f"{work} was begun with {key}={before.get(key)}, not {value}: choose another --work folder")
    work.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made_from) + "\n")
