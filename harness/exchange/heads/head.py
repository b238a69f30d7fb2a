"""A head of EAGLE, EAGLE-2 or EAGLE-3 in memory: its sizes and choices, and its tensors by our names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import methods
from harness.common.errors import UserError
from harness.exchange.heads.target import Target
from harness.load import eagle3_head, eagle_head
from harness.load.drafters import EMBEDDING, check_embedding_shape, check_state, check_target, read_state
from harness.load.kinds import drafter_kind, kind_of
from harness.load.layout import weight_files
from methods.engine.draft_head import EagleHead, HeadConfig
from methods.engine.eagle3 import Eagle3Config, Eagle3Head


@dataclass(frozen=True, slots=True)
class Head:
    """tensors: by the names of the authors' layouts. context: positions that its config.json names. target_sha: of the target's
    weights, where that names them. has_embedding: an embedding stands in its file, which is not among `tensors`."""

    folder: Path
    config: HeadConfig
    tensors: dict[str, Tensor]
    context: int | None = None
    target_sha: str | None = None
    has_embedding: bool = False

    @property
    def eagle3(self) -> Eagle3Config | None:
        """What it has besides sizes; None of EAGLE's and EAGLE-2's heads, which are the same."""
        return self.config if isinstance(self.config, Eagle3Config) else None

    @property
    def kind(self) -> str:
        return methods.EAGLE if self.eagle3 is None else methods.EAGLE3

    @property
    def has_bias(self) -> bool:
        """Whether its `fc` has a bias that does anything."""
        return "fc.bias" in self.tensors and bool(self.tensors["fc.bias"].any())


def read_head(folder: Path, target: Target) -> Head:
    """The head in a folder of any layout that is read here (`harness.load.published`).

    Raises:
        UserError: another drafter; a key that is unknown, missing or of another shape; or it is for another target: both values.
    """
    config: HeadConfig
    kind = drafter_kind(folder)
    if kind == methods.EAGLE3:
        config, values = eagle3_head.head_config(folder, target.name, target.n_layers)
    elif kind == methods.EAGLE:
        config, values = eagle_head.head_config(folder, target.name)
    else:
        raise UserError(f"{folder} holds a {kind_of(kind).title}; heads of EAGLE, EAGLE-2 and EAGLE-3 are exported")
    eagle_head.check_fit(config, folder, target.name, (target.vocab_size, target.hidden_size))
    if values.get("target_sha256") is not None and target.sha is not None:
        check_target(folder, values, kind, target.name, target.sha())
    state, _ = read_state(folder, values)
    embedding = state.pop(EMBEDDING, None)
    check_embedding_shape(folder, embedding, (target.vocab_size, target.hidden_size))
    with torch.device("meta"):
        wanted = (Eagle3Head(config) if isinstance(config, Eagle3Config) else EagleHead(config)).state_dict()
    if isinstance(config, Eagle3Config):
        state = eagle3_head.with_vocabulary(weight_files(folder)[0], state, config)
    check_state(wanted, state, folder)
    context, sha = values.get("max_position_embeddings"), values.get("target_sha256")
    return Head(
        folder, config, state, context if type(context) is int else None, sha if isinstance(sha, str) else None,
        embedding is not None,
    )  # fmt: skip
