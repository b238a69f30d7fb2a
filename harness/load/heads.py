"""Reading Medusa's and Hydra's heads: those trained here, and Medusa's in its authors' own layout."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.common.errors import UserError
from harness.load.config_keys import check_keys
from harness.load.drafters import (
    EMBEDDING,
    check_embedding,
    check_sizes,
    check_target,
    config_from,
    fill,
    read_config,
    read_state,
)
from harness.load.kinds import ReadDrafter, TargetFacts, kind_of
from harness.load.layout import MEDUSA_KEY, weight_files
from methods.base import Drafter
from methods.engine.heads import (
    Accuracies,
    HeadsConfig,
    IndependentHeadsDrafter,
    PublishedHeads,
    PublishedHeadsDrafter,
    ResidualHeads,
    SequentialHeadsDrafter,
)
from methods.engine.target import HFTarget

MEDUSAS = ("medusa_num_heads", "medusa_num_layers", "medusa_choices")  # the number of heads in a file is that of its weights


def read_heads(kind: str, folder: Path, target: TargetFacts) -> ReadDrafter:
    """The heads of a folder; kind: `medusa` or `hydra`. `read` of `DrafterKind`."""
    values = read_config(folder, kind, target.model)
    check_sizes(folder, values, kind, target)
    check_target(folder, values, kind, target.model, target.sha)
    state, digest = read_state(folder, values)
    own = state.pop(EMBEDDING, None)
    file = folder / "config.json"
    heads: ResidualHeads | PublishedHeads
    if kind == "medusa" and ("medusa_num_heads" in values or all(MEDUSA_KEY.fullmatch(key) for key in state)):
        # what else its config.json has is of the base model: the heads have no norm, no rope and SiLU
        check_keys(file, {k: v for k, v in values.items() if k.startswith("medusa_")}, MEDUSAS, "set of Medusa heads")
        heads = _published(folder, values, state, target)
    else:
        check_keys(file, values, [*HeadsConfig.__dataclass_fields__, "accuracies"], kind_of(kind).title)
        sees = kind == "hydra"
        if values.get("sees_tokens", sees) is not sees:
            raise UserError(f"{file}: sees_tokens is {values['sees_tokens']!r}; a {kind_of(kind).title} has {str(sees).lower()}")
        heads = ResidualHeads(config_from(HeadsConfig, folder, values | {"sees_tokens": sees}))
    fill(heads, state, folder)
    accuracies = _accuracies(folder, values, len(heads.heads))
    if accuracies:  # a tree may be chosen by them: with others these are other heads
        digest = hashlib.sha256(f"{digest} {accuracies}".encode()).hexdigest()

    def attach(t: HFTarget) -> Drafter:
        check_embedding(folder, own, t.embedding)
        where = t.lm_head.weight.device
        heads.to(where, t.dtype)
        embedding = t.embedding.to(where)
        if isinstance(heads, PublishedHeads):
            return PublishedHeadsDrafter(heads, embedding, accuracies)
        drafter = SequentialHeadsDrafter if heads.config.sees_tokens else IndependentHeadsDrafter
        return drafter(heads, embedding, t.lm_head, accuracies)

    return ReadDrafter(attach, digest)


def _accuracies(folder: Path, values: dict[str, Any], n: int) -> Accuracies:
    """The heads' held-out accuracies that config.json lists; empty where it lists none. n: heads there are."""
    found = values.get("accuracies", [])
    try:
        rows = tuple(tuple(float(x) for x in row) for row in found)
    except (TypeError, ValueError):
        rows = ((),)
    if rows and (len(rows) != n or len({len(row) for row in rows}) != 1 or not all(0 <= x <= 1 for row in rows for x in row)):
        raise UserError(f"{folder / 'config.json'}: accuracies must be a row of shares of equal length for each of {n} heads")
    return rows


def _published(folder: Path, values: dict[str, Any], state: dict[str, Tensor], target: TargetFacts) -> PublishedHeads:
    """An empty module for heads in Medusa's own layout; the keys of `state` get its prefix."""
    for key in [*state]:
        state[key.removeprefix("medusa_head.")] = state.pop(key)
    try:
        there = 1 + max(int(key.split(".")[0]) for key in state)
        layers = max(int(key.split(".")[1]) for key in state)
    except (ValueError, IndexError):
        odd = next((key for key in sorted(state) if not MEDUSA_KEY.fullmatch(key)), "nothing")
        raise UserError(
            f"{weight_files(folder)[0]}: not Medusa's layout: {odd!r} is no HEAD.LAYER...; the heads of a whole model that was "
            "trained with them (Medusa-2) are for that model alone"
        ) from None
    if (said := values.get("medusa_num_layers", layers)) != layers:
        raise UserError(f"{folder / 'config.json'}: medusa_num_layers is {said!r}, and the weights have {layers} a head")
    for key in [*state]:
        state["heads." + key.replace(".linear.", ".")] = state.pop(key)
    return PublishedHeads(target.hidden_size, target.vocab_size, there, layers)
