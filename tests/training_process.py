"""One of several processes that train together, as a test starts them: `python training_process.py WHAT FOLDER ...`.

loop KIND FOLDER: a short training on made-up conversations; the weights go to FOLDER/weights-<process>.pt.
command FOLDER WORDS ...: the harness's command line on made-up dialogues.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from made_up_training import HIDDEN, SETTINGS, VOCAB, made_up
from torch import Tensor
from transformers import LlamaConfig

from harness.train import batches
from harness.train.loop import train
from harness.train.processes import ALONE, Processes, started
from harness.train.settings import TrainSettings
from harness.train.trainers import TRAINERS

MODEL = LlamaConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_attention_heads=2, rms_norm_eps=1e-5)


def settings_of(kind: str, tokens: int) -> TrainSettings:
    small = {k: getattr(SETTINGS, k) for k in ("batch_tokens", "learning_rate", "warmup_steps", "frequent_rows", "max_length",
                                               "held_out", "seed")}  # fmt: skip
    return replace(TRAINERS[kind].defaults, **small, tokens=tokens, cooldown=1e-9, noise=0.0, width=8, layers=1,
                   draft_vocab=25)  # fmt: skip


@contextmanager
def in_float32() -> Iterator[None]:
    """Train without bf16, so that what two ways of adding up differ by is not its rounding, which AdamW makes large."""
    autocast, in_bf16 = torch.autocast, batches.padded_features
    torch.autocast = lambda *args, **named: nullcontext()  # type: ignore[assignment, misc]
    batches.padded_features = lambda *args: in_bf16(*args).float()
    try:
        yield
    finally:
        torch.autocast, batches.padded_features = autocast, in_bf16  # type: ignore[misc]


def tables() -> tuple[Tensor, Tensor]:
    """A made-up embedding and LM head [vocab, hidden], float32."""
    rng = torch.Generator().manual_seed(0)
    return torch.randn(VOCAB, HIDDEN, generator=rng), torch.randn(VOCAB, HIDDEN, generator=rng)


def loop(kind: str, folder: Path, tokens: int, processes: Processes = ALONE) -> tuple[dict[str, Tensor], list[dict]]:
    """A training of a kind without noise, which each process draws for itself."""
    torch.set_num_threads(1)
    torch.manual_seed(processes.number)  # what weights begin as is the main process's
    settings, items, trainer = settings_of(kind, tokens), made_up(30), TRAINERS[kind]
    head = trainer.new(MODEL, settings)
    quiet = partial(train, processes=processes, say=lambda text: None)
    with in_float32():
        curve = quiet(trainer, head, *tables(), items[3:], items[:3], settings, folder)
    return head.state_dict(), curve


def talks(n: int = 120) -> list[dict]:
    """Made-up dialogues: a question and an answer each."""
    return [{"id": str(i), "conversations": [{"from": "human", "value": f"How does thing number {i} in a house work?"},
                                             {"from": "gpt", "value": f"Thing number {i} works by itself, as they all do."}]}
            for i in range(n)]  # fmt: skip


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "loop":
        kind, folder, tokens = words
        processes = started()
        weights, curve = loop(kind, Path(folder), int(tokens), processes)
        torch.save({"weights": weights, "curve": curve}, Path(folder) / f"weights-{processes.number}.pt")
        processes.finish()
    else:
        from harness import cli
        from tasks import sharegpt

        sharegpt.conversations = lambda path=None: iter(talks())
        sys.argv = ["harness", *words]
        cli.main()
