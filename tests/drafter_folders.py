"""Folders of drafters for tests: as of the hub, in Medusa's own layout, and the tiny model's with another config."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from places import TINY
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from harness.load.config import ModelConfig, model_config

CONFIG = model_config(str(TINY))


def hub_lm(folder: Path, vocab: int = 384, extra_token: str | None = None, swap: bool = False) -> Path:
    """A folder as of the hub: a LLaMA with embeddings of its own, and a tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY.parent / "target")
    if extra_token:
        tokenizer.add_tokens([extra_token])
    LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if swap:
        file = folder / "tokenizer.json"
        values = json.loads(file.read_text())
        ids = values["model"]["vocab"]
        ids["A"], ids["B"] = ids["B"], ids["A"]
        file.write_text(json.dumps(values))
    return folder


def with_drafter(kind: str, folder: Path) -> ModelConfig:
    return CONFIG.model_copy(update={"drafters": {kind: str(folder)}})


def published(folder: Path, n_heads: int = 2, hidden: int = 64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for k in range(n_heads):
        state[f"{k}.0.linear.weight"] = 0.1 * torch.randn(hidden, hidden, generator=generator)
        state[f"{k}.0.linear.bias"] = 0.1 * torch.randn(hidden, generator=generator)
        state[f"{k}.1.weight"] = torch.randn(384, hidden, generator=generator)
    folder.mkdir()
    torch.save(state, folder / "medusa_lm_head.pt")
    (folder / "config.json").write_text(json.dumps({"medusa_num_heads": 5, "medusa_num_layers": 1}))
    return state


def edited(tmp_path: Path, kind: str, **changes: Any) -> Path:
    folder = tmp_path / kind
    shutil.copytree(TINY.parent / kind, folder)
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return folder
