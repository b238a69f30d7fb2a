"""A LLaMA's sizes: enough to say what it takes, before its weights are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import pydantic


class Architecture(pydantic.BaseModel, extra="forbid", frozen=True):
    """Sizes by the names of a LLaMA's config.json."""

    hidden_size: int = pydantic.Field(strict=True, gt=0)
    intermediate_size: int = pydantic.Field(strict=True, gt=0)
    num_hidden_layers: int = pydantic.Field(strict=True, gt=0)
    num_attention_heads: int = pydantic.Field(strict=True, gt=0)
    num_key_value_heads: int = pydantic.Field(strict=True, gt=0)
    vocab_size: int = pydantic.Field(strict=True, gt=0)
    tie_word_embeddings: bool = False

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """From the config.json of a target in `folder`; None where there is none, or none of a LLaMA."""
        try:
            values = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
            values = {key: value for key, value in values.items() if value is not None}
            values = {"num_key_value_heads": values["num_attention_heads"], **values}  # left out before heads were grouped
            return cls(**{name: values[name] for name in cls.model_fields if name in values})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def cut_to(self, layers: int | None) -> Self:
        """The same with its first layers only; None: with all."""
        return self if layers is None else self.model_copy(update={"num_hidden_layers": layers})

    @classmethod
    def of_config(cls, config: Any) -> Self | None:
        """From a config as transformers has it; None where it is none of a LLaMA's sizes."""
        try:
            return cls(**{name: getattr(config, name) for name in cls.model_fields})
        except (AttributeError, ValueError):
            return None

    @property
    def kv_size(self) -> int:
        """Width of a layer's keys, and of its values."""
        return self.hidden_size // self.num_attention_heads * self.num_key_value_heads

    @property
    def n_embedding(self) -> int:
        """Parameters of the embedding, and of the LM head."""
        return self.vocab_size * self.hidden_size

    @property
    def n_layer(self) -> int:
        """Parameters of one layer: four projections, three of the MLP, two norms."""
        h = self.hidden_size
        return 2 * h * (h + self.kv_size) + 3 * h * self.intermediate_size + 2 * h

    @property
    def n_parameters(self) -> int:
        """Parameters of the whole model."""
        tables = self.n_embedding * (1 if self.tie_word_embeddings else 2)
        return tables + self.num_hidden_layers * self.n_layer + self.hidden_size

    def n_kv(self, tokens: int) -> int:
        """Numbers in one layer's KV cache over `tokens`."""
        return 2 * self.kv_size * tokens
