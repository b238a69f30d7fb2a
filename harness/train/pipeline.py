"""`harness train KIND`: prompts -> answers and features -> drafter, in a work folder; it can be interrupted at any point.

The data is the same for every kind of drafter and is made once. What is trained has a folder of its own beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch

import tasks
from harness.common.cores import usable_cores
from harness.common.errors import UserError, say
from harness.common.files import cache_dir, sha256_file, whole_file
from harness.common.hints import hinted
from harness.common.machine import keep_freed_memory
from harness.common.plain_names import made_plain, place
from harness.ledger.record import canonical_hash
from harness.load.config import model_config
from harness.load.model import Loaded, load
from harness.train.data import (
    SHARD_TEXTS,
    Conversation,
    add_states,
    aux_suffix,
    frequent_tokens,
    make_shards,
    make_text_shards,
    read_shards,
    restore_features,
)
from harness.train.features import Part, keeps_features, tokens_to_keep
from harness.train.generate import FeaturesOf, features_of
from harness.train.given import Text, read_given, write_answers
from harness.train.held_out import calibration
from harness.train.loop import train
from harness.train.processes import started
from harness.train.request import TrainRequest
from harness.train.save import save_drafter
from harness.train.texts import Lengths, exchange_ids, held_out_texts, judged_on, lengths_of, prompt_ids, training_texts
from methods.engine.llama import is_plain_llama
from methods.engine.target import HFTarget
from tasks import sharegpt
from tasks.overlap import checked_prompts, evaluation_prompts

SLOTS, MOST_SLOTS = 64, 512  # conversations answered side by side: a thread of a CPU; on a GPU at most
SHARD_PROMPTS = 1024  # their answers have about 130,000 tokens, where an answer has at most 256
FEW, FEW_PROMPTS = 50_000, 32  # answer tokens up to which shards are small, and how small


def train_drafter(request: TrainRequest) -> None:
    """Train a drafter and write it to `request.out`, in this process or in all that were started together.

    Raises:
        UserError: a model that drafters cannot be trained for, sizes that cannot be, a work folder that was begun with other
            settings, or one that another process trains in.
    """
    trainer, settings = request.trainer, request.settings
    keep_freed_memory()
    config = model_config(request.model)
    tasks.check_reads_text(config.name, "harness train")
    lengths = lengths_of(config, request.max_new_tokens)
    processes = started()
    tell = say if processes.is_main else _quiet
    threads = request.threads or max(1, usable_cores() // processes.count)
    torch.set_num_threads(threads)
    work = request.work or place(cache_dir() / "train", "model", config.name)
    request.out.mkdir(parents=True, exist_ok=True)
    loaded = load(config, "bfloat16", drafters=(), on_one_gpu=processes.count > 1)
    where = loaded.target.device
    if len(loaded.target.devices) > 1:
        raise UserError(
            f"{config.name} lies on {len(loaded.target.devices)} GPUs; drafters are trained for targets that fit on one"
        )
    if where.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"{torch.cuda.get_device_name(where)} has no bfloat16, which drafters are trained in")
    if not is_plain_llama(loaded.target.model):
        raise UserError(
            f"model {config.name}: drafters can be trained for plain LLaMA models only (no biases, SiLU, fixed rotary table)"
        )
    head = trainer.new(loaded.target.model.config, settings)  # sizes that cannot be are found out before hours of answering

    checked = evaluation_prompts()
    evaluation = checked_prompts(checked)
    dialogues = sharegpt.split(sharegpt.conversations())
    texts = texts_of(loaded, dialogues, evaluation, request, work, lengths, tell)
    hidden = loaded.target.embedding.shape[1]
    aux_layers = trainer.aux_layers(head)
    n_states = sum(tokens_to_keep(part, aux_suffix(aux_layers)) for part in texts.parts) * len(aux_layers)
    n_tokens = sum(map(tokens_to_keep, texts.parts))
    keep = processes.once(lambda: keeps_features(request.features, n_tokens, hidden, work, n_states=n_states))
    make_answers(loaded, texts, request.seed, slots(loaded.target, threads, lengths), keep, tell, aux_layers)
    if request.write_answers is not None and processes.is_main:
        n = write_answers(request.write_answers, read_shards(texts.parts[1].folder, hidden, _no_features), config.name)
        tell(f"answers: {n:,} written to {request.write_answers}, as token ids with a mask")
    if settings.tokens == 0:
        tell("no training was asked for (--tokens 0): done")
        processes.finish()
        return
    folder = work / trainer.subfolder
    if texts.data:  # a training on other data does not go on from here
        folder = place(folder, "data", texts.parts[-1].folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    one_trainer = filelock.FileLock(folder / "train.lock")
    processes.once(lambda: _alone_in(one_trainer, folder))
    processes.once(lambda: complete_shards(loaded, texts, keep, aux_layers))
    compute = None if keep else features_of(loaded.target.model, aux_layers)
    answers, given, held = training_data(texts, hidden, compute, aux_layers)
    pool, held = [*answers, *given], held[: settings.held_out]
    embedding, lm_head = (w.detach().to(torch.bfloat16) for w in (loaded.target.embedding, loaded.target.lm_head.weight))
    n_kept = sum(len(c.ids) for c in pool)
    what = trainer.drafter.train_makes
    by = f"; {processes.count} processes share each batch" if processes.count > 1 else ""
    tell(f"training {what}: {len(pool):,} conversations, {n_kept:,} tokens; {len(held)} answers held out{by}")
    curve = train(trainer, head, embedding, lm_head, pool, held, settings, folder, processes=processes, say=tell)
    if processes.is_main:
        save_drafter(
            trainer, head, request.out, loaded.target_sha, curve,
            {
                "model": config.name,
                "kind": request.kind,
                "answer_tokens": sum(len(c.ids) - c.n_prompt for c in answers),
                "split": "dialogues",
                "text_tokens": sum(len(c.ids) - c.n_prompt for c in given) if request.data else request.n_text_tokens,
                **({"data": texts.data} if request.data else {}),
                "max_new_tokens": lengths.answer,
                "overlap_checked_against": {name: len(prompts) for name, prompts in checked.items()},
                **{k: v for k, v in asdict(settings).items() if k not in trainer.unused},
                "conversations": len(pool),
                "distinct_tokens": n_kept,
                "parameters": sum(p.numel() for p in head.parameters()),
            },
            calibrated=calibration(trainer, head, embedding, lm_head, held, depth=min(4, trainer.n_levels(head))),
            frequent=frequent_tokens(answers or given, len(embedding)) if trainer.lists_frequent else None,
            figures=trainer.figures(head, embedding, lm_head, held),
        )  # fmt: skip
        use = hinted("run", "--model", config.given, "--head", request.out, "--method", "all", "--task", "all")
        say(f"written to {request.out}: {what}; to use it: {use}")
    processes.finish()


def _no_features(texts: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """In place of what computes features, where ids alone are read."""
    raise NotImplementedError


def _quiet(text: str) -> None:
    """Say nothing: the main process has."""


def _alone_in(lock: filelock.BaseFileLock, folder: Path) -> None:
    """
    Raises:
        UserError: another training has the folder's lock.
    """
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"another process trains in {folder}; what this one was asked to generate is done") from None


def slots(target: HFTarget, threads: int, lengths: Lengths) -> int:
    """How many conversations are answered side by side: on a GPU as many as half of its free memory holds the keys of."""
    if target.device.type != "cuda":
        return SLOTS * threads
    c, cache = target.model.config, target.cache
    longest = lengths.prompt + lengths.answer
    of_one = 2 * c.num_hidden_layers * cache.kv_heads * cache.head_dim * longest * 2  # keys and values, two bytes each
    free = torch.cuda.mem_get_info(target.device)[0]
    return max(1, min(MOST_SLOTS, free // 2 // of_one))


@dataclass(frozen=True, slots=True)
class Texts:
    """What a training is made from, as token ids, and the folders of its shards.

    held_out, answered: prompts; given: ShareGPT's own exchanges, (ids, tokens of the prompt). parts: the same as shards, in this
    order; given texts have none where none are asked for. asked: of each given text, which tokens are to be predicted; None: all
    after its prompt. data: of each file of `--data` its sha256 and what was left out of it.
    """

    held_out: list[list[int]]
    answered: list[list[int]]
    given: list[tuple[list[int], int]]
    lengths: Lengths
    parts: tuple[Part, ...]
    asked: list[list[bool]] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


def texts_of(
    loaded: Loaded, dialogues: sharegpt.Split, evaluation: Sequence[str], request: TrainRequest, work: Path, lengths: Lengths,
    say: Callable[[str], None] = say,
) -> Texts:  # fmt: skip
    """The texts of a training; `work` keeps what they are made from.

    Raises:
        UserError: `work` was begun with other texts.
    """
    kept, n_dropped = training_texts(dialogues, request.seed, evaluation)
    what = f"one of {len(evaluation):,} task prompts or a held-out one"
    say(f"{len(kept):,} training prompts; {n_dropped} dropped for overlap with {what}")
    held = held_out_texts(dialogues, request.seed, evaluation)
    # shards are the same whatever their number, so more may be added; but to the same prompts only
    made_from = {"prompts": canonical_hash(kept), "held_out": canonical_hash(held), "max_new_tokens": lengths.answer}
    _same_work(work, {"model": loaded.config.name, "seed": request.seed, **made_from, "longest_prompt": lengths.prompt})
    held_out, answered = (prompt_ids(loaded, texts, lengths.prompt) for texts in (held, kept))
    given, asked, data = _given(loaded, dialogues, evaluation, request, lengths, say)
    folder = answers_folder(work, request.answer_tokens)
    assumed = lengths.answer // 2  # of answers to come: they end where the target ends them
    each = [[(len(ids), assumed) for ids in prompts] for prompts in (held_out, answered)]
    parts = [
        Part(work / "held_out", each[0], lengths.answer * len(held_out), SHARD_PROMPTS),
        Part(folder, each[1], request.answer_tokens, SHARD_PROMPTS if folder.name == "answers" else FEW_PROMPTS),
    ]
    if request.n_text_tokens:
        of_texts = [(n, len(ids) - n) for ids, n in given]
        where = (
            work / "texts"
            if not data
            else place(work, "texts", f"texts-{canonical_hash([data, lengths.prompt, lengths.answer])}")
        )
        parts.append(Part(where, of_texts, request.n_text_tokens, SHARD_TEXTS))
    return Texts(held_out, answered, given, lengths, tuple(parts), asked, data)


def _given(
    loaded: Loaded, dialogues: sharegpt.Split, evaluation: Sequence[str], request: TrainRequest, lengths: Lengths,
    say: Callable[[str], None],
) -> tuple[list[tuple[list[int], int]], list[list[bool]] | None, dict[str, Any]]:  # fmt: skip
    """(given texts as (ids, tokens of the prompt); of each which tokens are to be predicted, None for all after the prompt; of
    each file of `--data` its sha256 and what was left out of it)."""
    if not request.data:
        use = request.n_text_tokens > 0
        return (exchange_ids(loaded, dialogues, request.seed, evaluation, lengths) if use else []), None, {}
    judged, texts, data = judged_on(dialogues, request.seed, evaluation), list[Text](), dict[str, Any]()
    for path in request.data:
        found = read_given(path, loaded, judged, lengths)
        out = {"rows": found.n_rows, "overlap": found.n_overlap, "nothing_to_predict": found.n_empty}
        say(f"{path}: {found.n_rows:,} rows; {found.n_overlap:,} left out for overlap with a task's prompt or a held-out one, "
            f"{found.n_empty:,} for a prompt over {lengths.prompt} tokens or nothing to predict")  # fmt: skip
        if found.n_odd:
            say(f"warning: {found.n_odd:,} rows of {path} are not in the template of {loaded.config.name}: whether they overlap "
                "is checked with their own template's words around their prompts, which hide short ones")  # fmt: skip
            out["other_template"] = found.n_odd
        texts += found.texts
        data[made_plain(path.name)] = {"sha256": sha256_file(path), **out}
    if not texts:
        raise UserError(f"nothing of {', '.join(map(str, request.data))} can be trained on")
    return [(text.ids, text.n_prompt) for text in texts], [text.asked for text in texts], data


def make_answers(
    loaded: Loaded, texts: Texts, seed: int, n_slots: int, keep_features: bool, say: Callable[[str], None] = say,
    aux_layers: Sequence[int] = (),
) -> None:  # fmt: skip
    """Have the target answer the held-out prompts and, up to the tokens asked for, the training prompts. aux_layers: other hidden
    states that are kept with the features."""
    for part, prompts in zip(texts.parts[:2], (texts.held_out, texts.answered), strict=True):
        make_shards(
            part.folder, loaded.target.model, prompts, stop_ids=set(loaded.config.stop_ids), n_tokens=part.n_tokens,
            max_new_tokens=texts.lengths.answer, shard_prompts=part.per_shard, n_slots=n_slots, seed=seed,
            keep_features=keep_features, aux_layers=aux_layers, say=say,
        )  # fmt: skip


def answers_folder(work: Path, n_tokens: int) -> Path:
    """Where the answers to train on are. Few tokens are made in small shards, apart from the whole ones of larger requests."""
    if n_tokens == 0:
        return work / "no_answers"
    whole = work / "answers"
    return whole if n_tokens > FEW or any(whole.glob("shard-?????.npz")) else work / "few_answers"


def complete_shards(loaded: Loaded, texts: Texts, keep_features: bool, aux_layers: Sequence[int] = ()) -> None:
    """Make the shards of given texts and, where features are kept, those that are missing, other hidden states among them."""
    for part in texts.parts[2:]:
        make_text_shards(
            part.folder, loaded.target.model, texts.given, n_tokens=part.n_tokens, shard_texts=part.per_shard,
            keep_features=keep_features, asked=texts.asked, aux_layers=aux_layers,
        )  # fmt: skip
    for part in texts.parts if keep_features else ():
        restore_features(part.folder, loaded.target.model)
        if aux_layers:
            add_states(part.folder, loaded.target.model, aux_layers)


def training_data(
    texts: Texts, hidden: int, compute: FeaturesOf | None, aux_layers: Sequence[int] = ()
) -> tuple[list[Conversation], list[Conversation], list[Conversation]]:
    """(the target's answers, ShareGPT's own texts, the held-out answers), with their features, kept or computed by `compute`, and
    with those other hidden states.

    Raises:
        UserError: nothing is held out.
    """
    held, answers, *given = (read_shards(part.folder, hidden, compute, aux_layers) for part in texts.parts)
    if not held:
        raise UserError("no dialogue of the training data is held out: there are too few of them to judge a drafter by")
    return answers, [c for part in given for c in part], held


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
                hint = " or give --max-new-tokens" if key == "max_new_tokens" else ""
                raise UserError(f"{work} was begun with {key}={before.get(key)}, not {value}: choose another --work folder{hint}")
    work.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as tmp:
        tmp.write_text(json.dumps(made_from) + "\n")
