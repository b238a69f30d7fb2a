"""`harness train KIND`: prompts -> answers and features -> drafter, in a work folder that can be interrupted at any point.

The data is the same for every kind of drafter and is made once; what is trained has a folder of its own beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import filelock
import torch

from harness.common.errors import UserError, say
from harness.common.files import cache_dir
from harness.common.machine import keep_freed_memory, usable_cores
from harness.common.options import parse_changes
from harness.ledger.record import canonical_hash
from harness.load.config import model_config
from harness.load.model import Loaded, load
from harness.train import eagle as _eagle  # noqa: F401  (registers the EAGLE head with the trainer)
from harness.train import heads, lm
from harness.train.data import make_shards, make_text_shards, read_shards, restore_features
from harness.train.held_out import calibration, frequent_tokens
from harness.train.kinds import n_levels
from harness.train.save import save_drafter
from harness.train.settings import TrainSettings
from harness.train.trainer import train
from methods.engine.draft_head import EagleHead, HeadConfig
from methods.engine.heads import ResidualHeads
from methods.engine.llama import is_plain_llama
from tasks import sharegpt
from tasks.overlap import checked_prompts, evaluation_prompts

SLOTS = 64  # conversations answered side by side, a thread
MAX_PROMPT, MAX_ANSWER = 1100, 256  # tokens of a prompt to be answered, and of its answer
HELD_OUT = 256  # held-out prompts that are answered; a training is judged on the first `held_out` of them
N_TEXTS, MAX_TEXT_PROMPT, MAX_TEXT = 4000, 700, 400  # exchanges looked at; tokens of their prompts; of their answers


@dataclass(frozen=True, slots=True)
class Kind:
    """What is trained: `new` makes untrained weights for a target; `unused`: settings that mean nothing to it."""

    name: str
    new: Callable[[Loaded, TrainSettings], torch.nn.Module]
    defaults: TrainSettings
    unused: frozenset[str]


def new_head(loaded: Loaded, settings: TrainSettings) -> EagleHead:
    """An untrained EAGLE head for the target."""
    return EagleHead(head_config(loaded, settings.intermediate_size))


KINDS = {
    "eagle": Kind("draft head", new_head, TrainSettings(), frozenset({"width", "layers"})),
    "medusa": Kind("Medusa heads", lambda on, s: heads.new_heads(on.target.model.config, s, False), heads.DEFAULTS, heads.UNUSED),
    "hydra": Kind("Hydra heads", lambda on, s: heads.new_heads(on.target.model.config, s, True), heads.DEFAULTS, heads.UNUSED),
    "sps": Kind("draft LM", lambda on, s: lm.new_lm(on.target.model.config, s), lm.DEFAULTS, lm.UNUSED),
}


def train_drafter(
    kind: str, *, model: str, out: Path, work: Path | None, answer_tokens: int, text_tokens: int, tokens: int,
    changes: tuple[str, ...], seed: int, threads: int | None,
) -> None:  # fmt: skip
    """Train a drafter of a kind of `KINDS` for `model` and write it to `out`.

    Raises:
        UserError: a bad setting, or `work` was begun with other settings.
    """
    for name, value in (("--answer-tokens", answer_tokens), ("--text-tokens", text_tokens), ("--tokens", tokens)):
        least = 1 if name == "--answer-tokens" else 0
        if value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")
    settings = training_settings(changes, kind, tokens=tokens, seed=seed)
    keep_freed_memory()
    config, what = model_config(model), KINDS[kind].name
    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    work = work or cache_dir() / "train" / config.name
    out.mkdir(parents=True, exist_ok=True)
    loaded = load(config, "bfloat16", with_head=False)
    if not is_plain_llama(loaded.target.model):
        raise UserError(
            f"model {config.name}: drafters can be trained for plain LLaMA models only (no biases, SiLU, fixed rotary table)"
        )
    head = KINDS[kind].new(loaded, settings)  # sizes that are none are found out before hours of answering

    checked = evaluation_prompts()
    evaluation = checked_prompts(checked)
    dialogues = sharegpt.split(sharegpt.conversations())
    kept, n_dropped = sharegpt.without_overlap(sharegpt.prompts(dialogues.training, seed), evaluation)
    say(f"{len(kept):,} training prompts; {n_dropped} dropped for overlap with one of {len(evaluation):,} task prompts")
    kept = [text for text in kept if not sharegpt.is_reserved(text)]
    held_out = held_out_texts(dialogues, seed, evaluation)
    # shards are the same whatever their number, so more may be added; but to the same prompts only
    made_from = {"prompts": canonical_hash(kept), "held_out": canonical_hash(held_out), "max_new_tokens": MAX_ANSWER}
    _same_work(work, {"model": config.name, "seed": seed, **made_from})
    for part, texts, n_tokens in (("held_out", held_out, None), ("answers", kept, answer_tokens)):
        prompts = [p for p in (loaded.encode(loaded.render([("user", text)])) for text in texts) if len(p) <= MAX_PROMPT]
        make_shards(
            work / part,
            loaded.target.model,
            prompts,
            stop_ids=set(config.stop_ids),
            n_tokens=n_tokens or MAX_ANSWER * len(prompts),
            max_new_tokens=MAX_ANSWER,
            n_slots=SLOTS * threads,
            seed=seed,
        )
    if settings.tokens == 0:
        say("no training was asked for (--tokens 0): done")
        return
    folder = work if kind == "eagle" else work / kind
    folder.mkdir(exist_ok=True)
    one_trainer = filelock.FileLock(folder / "train.lock")
    try:
        one_trainer.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"another process trains in {folder}; what this one was asked to generate is done") from None
    data = [work / "held_out", work / "answers"]
    if text_tokens:
        data.append(work / "texts")
        exchanges = exchange_ids(loaded, dialogues.training, seed, evaluation)
        make_text_shards(work / "texts", loaded.target.model, exchanges, n_tokens=text_tokens)
    for shards in data:
        restore_features(shards, loaded.target.model)
    hidden = loaded.target.embedding.shape[1]
    held = read_shards(work / "held_out", hidden)[: settings.held_out]
    pool = read_shards(work / "answers", hidden)
    if not held:
        raise UserError("no dialogue of the training data is held out: there are too few of them to judge a drafter by")
    if text_tokens:
        pool += read_shards(work / "texts", hidden)
    embedding, lm_head = (w.detach().to(torch.bfloat16) for w in (loaded.target.embedding, loaded.target.lm_head.weight))
    n_kept = sum(len(c.ids) for c in pool)
    say(f"training {what}: {len(pool):,} conversations, {n_kept:,} tokens; {len(held)} answers held out")
    curve = train(head, embedding, lm_head, pool, held, settings, folder)
    answers = read_shards(work / "answers", hidden)
    save_drafter(
        head, out, loaded.target_sha, curve,
        {
            "model": config.name,
            "kind": kind,
            "answer_tokens": sum(len(c.ids) - c.n_prompt for c in answers),
            "split": "dialogues",
            "text_tokens": text_tokens,
            "overlap_checked_against": {name: len(texts) for name, texts in checked.items()},
            **{k: v for k, v in asdict(settings).items() if k not in KINDS[kind].unused},
            "conversations": len(pool),
            "distinct_tokens": n_kept,
            "parameters": sum(p.numel() for p in head.parameters()),
        },
        calibrated=calibration(head, embedding, lm_head, held, depth=min(4, n_levels(head))),
        frequent=frequent_tokens(answers, len(embedding)) if kind == "eagle" else None,
        accuracies=heads.held_out_accuracies(head, embedding, lm_head, held) if isinstance(head, ResidualHeads) else None,
    )  # fmt: skip
    say(f"{what} written to {out}; to use it: `harness run --head {out} ...`")


def training_settings(changes: tuple[str, ...], kind: str = "eagle", **given: Any) -> TrainSettings:
    """A kind's defaults, what is given, and the `--set` changes.

    Raises:
        UserError: no such setting for this kind, or a bad value.
    """
    known = {f.name: f for f in fields(TrainSettings) if f.name not in KINDS[kind].unused}
    values: dict[str, Any] = dict(given)
    for key, value in parse_changes(changes).items():
        if key not in known:
            raise UserError(f"unknown training setting {key!r} of {kind}; known: {', '.join(known)}")
        wanted = type(getattr(TrainSettings(), key))
        try:
            values[key] = _parsed(wanted, value)
        except (ValueError, KeyError):
            raise UserError(f"training setting {key} takes {wanted.__name__}, not {value!r}") from None
    made = replace(KINDS[kind].defaults, **values)
    for key in known:
        value = getattr(made, key)
        for names, holds, what in LIMITS:
            if key in names and not holds(value):
                raise UserError(f"training setting {key} is {value}; it must be {what}")
    if made.ce_weight + made.feature_weight <= 0:
        raise UserError(f"training setting ce_weight is {made.ce_weight}: there would be no loss")
    return made


LIMITS: tuple[tuple[frozenset[str], Callable[[Any], bool], str], ...] = (
    (frozenset({"batch_tokens", "warmup_steps", "unroll", "frequent_rows", "max_length", "held_out", "width", "layers"}),
     lambda n: n >= 1, "at least 1"),
    (frozenset({"held_out"}), lambda n: n <= HELD_OUT, f"at most {HELD_OUT}"),
    (frozenset({"tokens", "seed"}), lambda n: n >= 0, "0 or more"),
    (frozenset({"learning_rate", "cooldown", "clip_norm"}), lambda x: x > 0, "over 0"),
    (frozenset({"weight_decay", "ce_weight", "feature_weight", "noise", "unroll_decay", "intermediate_size"}),
     lambda x: x >= 0, "0 or more"),
    (frozenset({"unroll_from", "prompt_share"}), lambda x: 0 <= x <= 1, "from 0 to 1"),
    (frozenset({"ce_share"}), lambda x: 0 < x <= 1, "over 0 and at most 1"),
    (frozenset({"betas"}), lambda pair: len(pair) == 2 and all(0 <= x < 1 for x in pair), "two numbers from 0 to under 1"),
)  # fmt: skip


def _parsed(kind: type, value: str) -> Any:
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
    return tuple(float(x) for x in value.split(",")) if kind is tuple else kind(value)


def held_out_texts(dialogues: sharegpt.Split, seed: int, evaluation: list[str]) -> list[str]:
    """The prompts whose answers every drafter is judged on: of held dialogues, none a task's, none kept for `harness tune`."""
    texts = [text for text in sharegpt.prompts(dialogues.held, seed) if not sharegpt.is_reserved(text)]
    return sharegpt.without_overlap(texts[: 2 * HELD_OUT], evaluation)[0][:HELD_OUT]


def exchange_ids(loaded: Loaded, dialogues: list[dict], seed: int, evaluation: list[str]) -> list[tuple[list[int], int]]:
    """First exchanges of training dialogues as (ids, prompt length); neither side overlaps an evaluation prompt."""
    stop = loaded.tokenizer.decode([loaded.tokenizer.eos_token_id])
    overlaps = sharegpt.Overlap(evaluation)
    out = []
    for user, answer in sharegpt.exchanges(dialogues, seed)[:N_TEXTS]:
        if overlaps(user) or overlaps(answer) or sharegpt.is_reserved(user):
            continue
        prompt = loaded.encode(loaded.render([("user", user)]))
        if len(prompt) <= MAX_TEXT_PROMPT:
            ids = prompt + loaded.encode_text(answer + stop)
            out.append((ids[: min(len(prompt) + MAX_TEXT, MAX_PROMPT)], len(prompt)))
    return out


def head_config(loaded: Loaded, intermediate_size: int = 0) -> HeadConfig:
    """A head as wide as the target: one more of its layers, its MLP as wide as the target's (0) or otherwise."""
    c = loaded.target.model.config
    return HeadConfig(
        hidden_size=c.hidden_size, intermediate_size=intermediate_size or c.intermediate_size,
        num_attention_heads=c.num_attention_heads, num_key_value_heads=c.num_key_value_heads, rms_norm_eps=c.rms_norm_eps,
        rope_theta=c.rope_parameters["rope_theta"], vocab_size=c.vocab_size, bias=True,
    )  # fmt: skip


def _same_work(work: Path, made_from: dict[str, Any]) -> None:
    file = work / "made_from.json"
    if file.exists():
        before = json.loads(file.read_text())
        for key, value in made_from.items():
            if before.get(key) != value:
                raise UserError(f"{work} was begun with {key}={before.get(key)}, not {value}: choose another --work folder")
    work.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made_from) + "\n")
