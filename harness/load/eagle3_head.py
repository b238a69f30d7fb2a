"""Reading an EAGLE-3 head in the layout of SafeAILab and SpecForge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import methods
from harness.common.errors import UserError
from harness.load.config_keys import check_keys, whole
from harness.load.drafters import EMBEDDING, check_embedding, check_target, fill, read_config, read_state
from harness.load.eagle_head import SIZES, check_architecture, check_fit, sizes_of
from harness.load.kinds import KINDS, ReadDrafter, TargetFacts
from harness.load.layout import weight_files
from harness.load.published import AUX, LAYERS
from harness.load.published import EAGLE3_CONFIG as NESTED
from methods.engine.eagle3 import N_STATES, Eagle3Config, Eagle3Head, default_layers
from methods.engine.engines import eagle3_drafter
from methods.engine.target import HFTarget

FLAGS = ("fc_norm", "norm_before_fc", "norm_output", "norm_before_residual")
ALWAYS = {  # choices inside `eagle_config` that are made: true where they are there
    "use_aux_hidden_state": "reads hidden states of the target's layers",
    "use_input_layernorm_in_first_layer": "norms the embedding that its layer reads",
    "use_last_layernorm": "norms what its LM head reads",
}
USED = (*SIZES, *FLAGS, "draft_vocab_size", "target_hidden_size", "num_aux_hidden_states", NESTED, AUX, LAYERS)


def read_eagle3(folder: Path, target: TargetFacts) -> ReadDrafter:
    """A head with `fc`, `midlayer`, `norm`, `lm_head` and its draft vocabulary. `read` of `DrafterKind`.

    The embedding is the target's; one in the file must be a copy of it. Choices that config.json leaves out are vLLM's: none of
    `FLAGS`. Without `d2t` and `t2d` the draft vocabulary is the whole one.
    """
    config, values = head_config(folder, target.model, target.layers)
    check_fit(config, folder, target.model, (target.vocab_size, target.hidden_size))
    check_target(folder, values, methods.EAGLE3, target.model, target.sha)
    state, digest = read_state(folder, values)
    embedding = state.pop(EMBEDDING, None)
    head = Eagle3Head(config)
    fill(head, with_vocabulary(weight_files(folder)[0], state, config), folder)

    def attach(t: HFTarget) -> Any:
        check_embedding(folder, embedding, t.embedding)
        where, n = t.lm_head.weight.device, len(t.body.layers)
        drafter = eagle3_drafter(t, head.to(where, t.dtype), t.embedding.to(where))
        # of a target only whose first layers are run, as in an audit, the last state stands in for those that are not there
        drafter.aux_layers = tuple(min(i, n) for i in config.aux_layers)
        return drafter

    return ReadDrafter(attach, digest)


def head_config(folder: Path, model: str, n_layers: int | None) -> tuple[Eagle3Config, dict[str, Any]]:
    """The sizes and choices in the config.json of a head for `model`, and all that it says. n_layers: of the target, None where
    not known.

    Raises:
        UserError: not there, not JSON, or sizes or choices that are missing, impossible or contradict each other.
    """
    file, values = folder / "config.json", read_config(folder, methods.EAGLE3, model)
    check_architecture(file, values, KINDS[methods.EAGLE3].architectures, eagle3=True)
    nested = values.get(NESTED)
    if nested is not None and not isinstance(nested, dict):
        raise UserError(f"{file}: {NESTED} is {str(nested)[:60]}; it must be an object")
    nested = nested or {}
    check_keys(file, values, USED, "draft head of EAGLE-3")
    check_keys(file, nested, (*FLAGS, *ALWAYS), "draft head of EAGLE-3")
    for key, what in ALWAYS.items():
        if nested.get(key, True) is not True:
            raise UserError(f"{file}: {key} is {nested[key]!r}; a head of EAGLE-3 here {what}")
    sizes = sizes_of(file, values)
    vocab, hidden = sizes["vocab_size"], sizes["hidden_size"]
    drafted, theirs = values.get("draft_vocab_size"), values.get("target_hidden_size")
    draft_vocab = vocab if drafted is None else whole(file, "draft_vocab_size", drafted)
    if draft_vocab > vocab:
        raise UserError(f"{file}: draft_vocab_size is {draft_vocab}, and vocab_size {vocab}")
    if theirs is not None and whole(file, "target_hidden_size", theirs) != hidden:
        raise UserError(f"{file}: target_hidden_size is {theirs!r} and hidden_size {hidden}: a head here reads the target's "
                        "embedding, so both must be the same")  # fmt: skip
    flags: dict[str, Any] = {flag: _flag(file, flag, values, nested) for flag in FLAGS}
    if flags["fc_norm"] and flags["norm_before_fc"]:
        raise UserError(f"{file}: fc_norm and norm_before_fc are both true: fc has one norm before it, of each state or of all")
    layers = _layers(file, values, n_layers)
    return Eagle3Config(**sizes, **flags, draft_vocab_size=draft_vocab, aux_layers=layers, n_layers=n_layers or 0), values


def _flag(file: Path, name: str, values: dict[str, Any], nested: dict[str, Any]) -> bool:
    """A choice, which may stand in `eagle_config` or beside it; false where it does not."""
    found = [value for value in (values.get(name), nested.get(name)) if value is not None]
    for value in found:
        if not isinstance(value, bool):
            raise UserError(f"{file}: {name} is {value!r}; it must be true or false")
    if len({*found}) > 1:
        raise UserError(f"{file}: two values of {name}, one of them in {NESTED}")
    return bool(found and found[0])


def _layers(file: Path, values: dict[str, Any], n: int | None) -> tuple[int, ...]:
    """The hidden states that a head reads, by transformers' numbers. n: layers of the target, None where not known."""
    key = AUX if AUX in values else LAYERS
    named: list[int] | None = values.get(key)
    if named is None:
        try:
            named = list(default_layers(n or 0))
        except ValueError as e:
            raise UserError(f"{file}: {e} in {AUX}") from None
    if named != sorted({*named}) or named[0] < 0 or (n is not None and named[-1] > n):
        within = f" to {n}, the layers of the target" if n is not None else ""
        raise UserError(f"{file}: {key} is {str(named)[:60]}; it must be hidden states of the target, ascending, from 0{within}")
    if key == LAYERS and named[-1] == n:
        raise UserError(f"{file}: {LAYERS} names what comes after the last of {n} layers, which others take before the target's "
                        "final norm, and a head here behind it")  # fmt: skip
    if type(told := values.get("num_aux_hidden_states", len(named))) is not int or told != len(named):
        raise UserError(f"{file}: num_aux_hidden_states is {told!r}, and {key} names {len(named)}")
    if len(named) != N_STATES:
        raise UserError(f"{file}: {key} names {len(named)} hidden states; a head of EAGLE-3 reads {N_STATES}")
    return tuple(named)


def with_vocabulary(file: Path, state: dict[str, Tensor], config: Eagle3Config) -> dict[str, Tensor]:
    """The state, its `d2t` and `t2d` checked against each other; all tokens where it has neither and needs none.

    Raises:
        UserError: they do not name one vocabulary, or not one of the target's.
    """
    n, vocab = config.draft_vocab_size, config.vocab_size
    if "d2t" not in state and "t2d" not in state and n == vocab:
        return state | {"d2t": torch.zeros(n, dtype=torch.long), "t2d": torch.ones(vocab, dtype=torch.bool)}
    if "d2t" not in state or "t2d" not in state or state["d2t"].shape != (n,) or state["t2d"].shape != (vocab,):
        return state  # whose names and shapes `fill` finds fault with
    if state["d2t"].is_floating_point() or (state["t2d"] != state["t2d"].bool()).any():
        raise UserError(
            f"{file}: d2t holds whole numbers and t2d truth values, not {state['d2t'].dtype} and {state['t2d'].dtype}"
        )
    d2t, t2d = state["d2t"].long(), state["t2d"].bool()
    tokens = d2t + torch.arange(n)
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab or not (tokens.diff() > 0).all():
        raise UserError(f"{file}: d2t gives no ascending token ids under {vocab} (column i is token i + d2t[i])")
    if not torch.equal(tokens, t2d.nonzero()[:, 0]):
        raise UserError(f"{file}: t2d marks other tokens than d2t gives")
    return state | {"d2t": d2t, "t2d": t2d}
