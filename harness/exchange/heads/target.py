"""The target that a head is exported for: its sizes, and what it is called where it is served. Its weights are not loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from harness.common.errors import UserError
from harness.common.hints import hinted
from harness.load.config import ModelConfig
from harness.load.preflight import architecture
from harness.load.sources import HubRepo
from harness.load.weights import prepared_folder, weights_folder


@dataclass(frozen=True, slots=True)
class Target:
    """name: ours. address: a repository of the hub, or a folder. architectures: as its config.json names them. sha: what
    identifies its weights; None where these are not here."""

    name: str
    hidden_size: int
    vocab_size: int
    n_layers: int
    context: int
    address: str
    architectures: tuple[str, ...] = ("LlamaForCausalLM",)
    sha: Callable[[], str] | None = None


def target_of(config: ModelConfig, address: str | None = None) -> Target:
    """A model's target. address: in place of the model's own.

    Raises:
        UserError: its sizes are not known before its weights are here.
    """
    sizes, folder = architecture(config), prepared_folder(config)
    if sizes is None:
        raise UserError(f"model {config.name}: its sizes are not known yet; {hinted('fetch', model=config.given)} obtains it")
    own = config.weights.hub if isinstance(config.weights, HubRepo) else str(folder or config.name)
    named: tuple[str, ...] = ("LlamaForCausalLM",)  # `architecture:` of a YAML is a LLaMA's
    if folder is not None:
        try:
            named = tuple(json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))["architectures"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    return Target(
        config.name, sizes.hidden_size, sizes.vocab_size, sizes.num_hidden_layers, config.context_length, address or own, named,
        None if folder is None else lambda: weights_folder(config)[1],
    )  # fmt: skip
