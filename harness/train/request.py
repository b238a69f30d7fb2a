"""What is asked of a training: checked once, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from harness.common.bounds import bounded
from harness.common.errors import UserError, unknown
from harness.common.options import parse_changes
from harness.train.features import CHOICES
from harness.train.settings import TrainSettings
from harness.train.trainers import Trainer, trainer_of

TEXT_TOKENS = 190_000  # of ShareGPT's own answers, where nothing else is said
MOST_TOKENS = 10**10  # more than any file has
HELD_OUT = 256  # held-out prompts that are answered; a training is judged on the first `held_out` of them


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """One drafter to train.

    kind: what `harness train` calls it. model: a name, or the path of a YAML. out: the folder for the weights. work: the folder
    for data and checkpoints, None for one in the cache. answer_tokens: tokens of the target's own answers to generate.
    text_tokens: tokens of ShareGPT's own answers to train on besides, or of those in `data`; None for 190,000 of ShareGPT's, and
    for all of those. data: files in SpecForge's form, in place of ShareGPT's own answers. write_answers: a file for the target's
    answers in that form. tokens: positions to train on, 0 for none. changes:
    `KEY=VALUE` settings. threads: None for as many as the process may use. max_new_tokens: of an answer, None for as many as the
    model's evaluation gives it (`harness.train.texts`). features: one of `harness.train.features.CHOICES`.

    Raises:
        UserError: no such kind, a number that cannot be, or a setting that is unknown or cannot be.
    """

    kind: str
    model: str
    out: Path
    work: Path | None = None
    answer_tokens: int = 200_000
    text_tokens: int | None = None
    tokens: int = 5_000_000
    changes: tuple[str, ...] = ()
    seed: int = 0
    threads: int | None = None
    max_new_tokens: int | None = None
    features: str = "auto"
    data: tuple[Path, ...] = ()
    write_answers: Path | None = None

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--answer-tokens", self.answer_tokens, 0 if self.data else 1), ("--text-tokens", self.text_tokens, 0),
            ("--tokens", self.tokens, 0),
        ):  # fmt: skip
            bounded(option, value, least)
        bounded("--threads", self.threads)
        bounded("--seed", self.seed, least=0)
        bounded("--max-new-tokens", self.max_new_tokens)
        if self.features not in CHOICES:
            raise unknown("choice of --features", self.features, CHOICES)
        _ = self.settings

    @property
    def n_text_tokens(self) -> int:
        """How many tokens of given texts to train on."""
        return self.text_tokens if self.text_tokens is not None else MOST_TOKENS if self.data else TEXT_TOKENS

    @property
    def trainer(self) -> Trainer[Any]:
        """How this kind is trained."""
        return trainer_of(self.kind)

    @property
    def settings(self) -> TrainSettings:
        """The settings in force."""
        return training_settings(self.changes, self.kind, tokens=self.tokens, seed=self.seed)


def training_settings(
    changes: tuple[str, ...], kind: str = "eagle", *, tokens: int | None = None, seed: int | None = None
) -> TrainSettings:  # fmt: skip
    """A kind's default settings with `tokens`, `seed` and the changes (`KEY=VALUE`, which may name these two as well).

    Raises:
        UserError: no such kind, no such setting for it, or a value that cannot be.
    """
    trainer = trainer_of(kind)
    known = {f.name: f for f in fields(TrainSettings) if f.name not in trainer.unused}
    values: dict[str, Any] = {k: v for k, v in (("tokens", tokens), ("seed", seed)) if v is not None}
    for key, value in parse_changes(changes).items():
        if key not in known:
            raise UserError(f"unknown training setting {key!r} of {kind}; known: {', '.join(known)}")
        wanted = type(getattr(TrainSettings(), key))
        try:
            values[key] = _parsed(wanted, value)
        except (ValueError, KeyError):
            raise UserError(f"training setting {key} takes {wanted.__name__}, not {value!r}") from None
    made = replace(trainer.defaults, **values)
    for key in known:
        value = getattr(made, key)
        for names, holds, what in LIMITS:
            if key in names and not holds(value):
                raise UserError(f"training setting {key} is {value}; it must be {what}")
    if made.ce_weight + made.feature_weight <= 0:
        raise UserError(f"training setting ce_weight is {made.ce_weight}: there would be no loss")
    return made


LIMITS: tuple[tuple[frozenset[str], Callable[[Any], bool], str], ...] = (
    (frozenset({"batch_tokens", "warmup_steps", "unroll", "frequent_rows", "max_length", "held_out", "width", "layers",
                "draft_vocab"}), lambda n: n >= 1, "at least 1"),
    (frozenset({"held_out"}), lambda n: n <= HELD_OUT, f"at most {HELD_OUT}"),
    (frozenset({"tokens", "seed"}), lambda n: n >= 0, "0 or more"),
    (frozenset({"learning_rate", "cooldown", "clip_norm"}), lambda x: x > 0, "over 0"),
    (frozenset({"weight_decay", "ce_weight", "feature_weight", "noise", "unroll_decay", "intermediate_size"}),
     lambda x: x >= 0, "0 or more"),
    (frozenset({"unroll_from", "prompt_share"}), lambda x: 0 <= x <= 1, "from 0 to 1"),
    (frozenset({"ce_share"}), lambda x: 0 < x <= 1, "over 0 and at most 1"),
    (frozenset({"aux_layers"}), lambda layers: all(isinstance(i, int) for i in layers), "whole numbers from 0"),
    (frozenset({"betas"}), lambda pair: len(pair) == 2 and all(0 <= x < 1 for x in pair), "two numbers from 0 to under 1"),
)  # fmt: skip
"""(settings, whether a value of theirs can be, what it must be)."""


def _parsed(kind: type, value: str) -> Any:
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
    if kind is tuple:
        return tuple(int(x) if x.strip().isdecimal() else float(x) for x in value.split(","))
    return kind(value)
