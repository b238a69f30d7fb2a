"""`harness train KIND`."""

from __future__ import annotations

from typing import Any

import click

from harness.commands.options import PATH, examples, model_option, option, seed_option, threads_option
from harness.load.kinds import KINDS


@click.group("train")
def command() -> None:
    """Train drafters. All kinds of them learn from the same data, made once a work folder."""


def _train_command(kind: str, about: str) -> None:
    @command.command(
        kind,
        help=f"Train {about} for a model: prompts, answers, features, training; goes on where it was stopped.",
        epilog=examples(
            f"harness train {kind} --out my-{kind}",
            f"harness train {kind} --out my-{kind} --answer-tokens 1000000 --tokens 10000000 --set learning_rate=0.001",
        ),
    )
    @model_option
    @option("--out", required=True, type=PATH, help="Folder for the weights, settings and learning curve.")
    @option("--work", type=PATH, default=None, help="Folder for features and checkpoints (default: the cache).")
    @option("--answer-tokens", type=int, default=200_000, help="On-policy tokens to generate.")
    @option(
        "--text-tokens", type=int, default=None, help="Tokens of ShareGPT's own answers (default: 190000), or of --data's (all)."
    )
    @option(
        "--data",
        multiple=True,
        type=PATH,
        metavar="FILE",
        help="Conversations in SpecForge's form (JSON lines) to train on, in place of ShareGPT's own answers; repeatable.",
    )
    @option("--write-answers", type=PATH, default=None, metavar="FILE", help="Write the target's answers in that form, too.")
    @option("--tokens", type=int, default=5_000_000, help="Positions to train on, all epochs together; 0: only generate.")
    @option("--max-new-tokens", type=int, default=None, help="Of an answer (default: the model's, at least 256).")
    @option(
        "--features",
        default="auto",
        metavar="auto|keep|recompute",
        help="Keep the target's features on the disk, or compute them for each batch; auto: by the room there is.",
    )
    @option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a training setting; repeatable.")
    @seed_option
    @threads_option
    def one_kind(**options: Any) -> None:
        from harness.train.pipeline import train_drafter
        from harness.train.request import TrainRequest

        train_drafter(TrainRequest(kind, **options))


for _kind in KINDS.values():
    if _kind.train_command is not None:
        _train_command(_kind.train_command, _kind.train_makes)
