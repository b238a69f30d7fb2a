"""Made-up conversations and short trainings on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tiny_model import TinyModel
from torch import Tensor

from harness.train.batches import Batch
from harness.train.data import Conversation
from harness.train.generate import bits_of
from harness.train.loop import train
from harness.train.settings import TrainSettings
from harness.train.trainers import EAGLE
from methods.engine.draft_head import EagleHead, HeadConfig

HIDDEN, VOCAB = 16, 40
SETTINGS = TrainSettings(
    tokens=1400, batch_tokens=160, learning_rate=1e-2, warmup_steps=3, unroll=2, frequent_rows=20, max_length=48,
    held_out=3, seed=5,
)  # fmt: skip


def made_up(n: int, seed: int = 0) -> list[Conversation]:
    """Conversations of random tokens whose feature depends on the token, as three other states do: something a head can learn."""
    rng = np.random.default_rng(seed)
    table, states = (torch.from_numpy(np.random.default_rng([seed, i]).normal(size=(VOCAB, i * HIDDEN))).to(torch.bfloat16)
                     for i in (1, 3))  # fmt: skip
    out = []
    for _ in range(n):
        ids = rng.integers(1, VOCAB, size=rng.integers(30, 60)).astype(np.int32)
        features, aux = (bits_of(x[torch.from_numpy(ids).long()]) for x in (table, states))
        out.append(Conversation(ids, features, int(rng.integers(3, 28)), aux=aux))
    return out


@torch.inference_mode()
def true_batch(tiny: TinyModel, n: int) -> Batch:
    """Two texts with the target's own features, in float32."""
    texts = [tiny.prompts[0][:n], tiny.prompts[3][:n]]
    features, aux = (
        torch.stack([tiny.loaded.target.prefill(text, 1, states)[0] for text in texts]) for states in ((), (0, 1, 2))
    )
    trained = torch.zeros(2, n - 1, dtype=torch.bool)
    trained[0, 4:] = trained[1, 9:14] = trained[1, 17:] = True
    return Batch(torch.tensor(texts), features, trained, torch.zeros_like(trained), aux)


def new_head() -> EagleHead:
    return EagleHead(HeadConfig(HIDDEN, 24, 2, 1, 1e-5, 10000.0, VOCAB))


def trained(folder: Path, settings: TrainSettings = SETTINGS, say=lambda text: None) -> tuple[dict[str, Tensor], list[dict]]:  # noqa: ANN001
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    embedding, lm_head = (torch.randn(VOCAB, HIDDEN, generator=rng).to(torch.bfloat16) for _ in range(2))
    items, head = made_up(30), new_head()
    curve = train(EAGLE, head, embedding, lm_head, items[3:], items[:3], settings, folder, say=say)
    return head.state_dict(), curve


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
