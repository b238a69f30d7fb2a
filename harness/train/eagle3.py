"""How an EAGLE-3 head is trained: what the training loop must know of this kind of drafter.

Training-time test (arXiv 2503.01840): pass s feeds the head its own states of pass s - 1, as drafting does, and weighs
0.8^(s - 1). The loss is the cross-entropy against the target's distribution, made one over the draft vocabulary; where the
target's argmax is not in that, there is none. There is no loss on features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from harness.common.errors import UserError
from harness.load.published import AUX, EAGLE3_CONFIG, LAYERS
from harness.train.batches import Batch, NormalisedInput, least_squares, some_batches, spread
from harness.train.data import Conversation, frequent_tokens
from harness.train.settings import TrainSettings
from methods.engine.eagle3 import N_STATES, Eagle3Config, Eagle3Head, default_layers, is_usual
from methods.engine.teacher_forced import teacher_forced

DEFAULTS = replace(
    TrainSettings(), unroll=7, unroll_from=0.0, unroll_decay=0.8, feature_weight=0.0, ce_weight=1.0, noise=0.0
)  # fmt: skip
UNUSED = frozenset({"feature_weight", "noise", "width", "layers", "frequent_rows"})


def new_head(target: LlamaConfig, settings: TrainSettings) -> Eagle3Head:
    """An untrained head as wide as the target, its MLP as wide as the target's unless settings say.

    Raises:
        UserError: a target without the usual hidden states, or settings that name others than it has.
    """
    c, rope, n = target, target.rope_parameters, target.num_hidden_layers
    assert rope is not None and rope["rope_theta"] is not None  # a plain LLaMA has them
    try:
        layers = settings.aux_layers or default_layers(n)
    except ValueError as e:
        raise UserError(f"{e} with --set aux_layers=I,J,K, from 0 to {n}") from None
    if list(layers) != sorted({*layers}) or len(layers) != N_STATES or not 0 <= layers[0] <= layers[-1] <= n:
        named = ",".join(map(str, layers))
        raise UserError(f"aux_layers={named}: an EAGLE-3 head reads {N_STATES} hidden states, ascending, from 0 to {n}")
    if not 0 < settings.draft_vocab <= c.vocab_size:
        raise UserError(f"draft_vocab is {settings.draft_vocab}; the target has {c.vocab_size} tokens")
    return Eagle3Head(
        Eagle3Config(
            hidden_size=c.hidden_size, intermediate_size=settings.intermediate_size or c.intermediate_size,
            num_attention_heads=c.num_attention_heads, num_key_value_heads=c.num_key_value_heads or c.num_attention_heads,
            rms_norm_eps=c.rms_norm_eps, rope_theta=rope["rope_theta"], vocab_size=c.vocab_size,
            draft_vocab_size=settings.draft_vocab, aux_layers=tuple(layers), n_layers=n,
        )
    )  # fmt: skip


def aux_layers(head: Eagle3Head) -> tuple[int, ...]:
    """The target's hidden states that it reads."""
    return head.config.aux_layers


def predicted_features(
    head: Eagle3Head, embedding: Tensor, batch: Batch, levels: int, noise: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """`predicted_features` of `harness.train.trainers.Trainer`: what the head's own LM head reads. There is no noise."""
    assert batch.aux is not None
    for out, valid in teacher_forced(head, embedding, batch.ids, batch.aux, batch.trained, levels):
        yield head.readable(out), valid


@torch.no_grad()
def initialise(head: Eagle3Head, embedding: Tensor, pool: list[Conversation], settings: TrainSettings) -> None:
    """Choose the draft vocabulary by frequency in the answers, give all matrices noise, and have `fc` read states of size one.

    With `settings.linear_start`, `fc` begins as the least-squares map from the states to the target's next feature. Attention and
    MLP then add nothing to it until they have learnt to.
    """
    n = len(head.d2t)
    seen = torch.from_numpy(frequent_tokens(pool, head.config.vocab_size, n)).long()
    others = torch.ones(head.config.vocab_size, dtype=torch.bool).index_fill(0, seen, False).nonzero()[:, 0]
    head.draft_over(torch.cat([seen, others])[:n])
    for p in head.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.02)
    states, features = list[Tensor](), list[Tensor]()
    for batch, rows in some_batches(pool, settings, embedding):
        assert batch.aux is not None
        states.append(batch.aux[0, :-1][rows].float())
        features.append(batch.features[0, 1:][rows].float())
    x, y = torch.cat(states), torch.cat(features)
    _, std = spread(x)
    if settings.linear_start:
        head.fc.weight.copy_(least_squares(x / std, y))
        for matrix in (head.midlayer.self_attn.o_proj, head.midlayer.mlp.down_proj):
            torch.nn.init.zeros_(matrix.weight)
    head.norm.weight.fill_(float(y.pow(2).mean().sqrt()))  # what the LM head reads is then as large as it is of the target
    head.fc = cast("nn.Linear", NormalisedInput(head.fc, torch.zeros_like(std), std))


@torch.no_grad()
def take_lm(head: Eagle3Head, lm_head: Tensor) -> None:
    """The LM head begins as the target's rows of the draft vocabulary. lm_head: [vocab, hidden]."""
    head.lm_head.weight.copy_(lm_head[head.tokens])


def own_lm(head: Eagle3Head) -> tuple[Tensor, Tensor]:
    """(the LM head [draft vocabulary, hidden], its tokens)."""
    return head.lm_head.weight, head.tokens


@torch.no_grad()
def shipped(head: Eagle3Head) -> Eagle3Head:
    """The head as it is shipped: its `fc` is a linear map of the states as they are."""
    done = Eagle3Head(head.config)
    state = head.state_dict()
    if isinstance(head.fc, NormalisedInput):
        state = {k: v for k, v in state.items() if not k.startswith("fc.")} | {"fc.weight": head.fc.plain()[0]}
    done.load_state_dict(state)
    return done


def config_values(config: Eagle3Config) -> dict[str, Any]:
    """A head's config.json in the layout of SafeAILab and SpecForge, every choice written out.

    `aux_hidden_states` counts as transformers does. What is not the usual is named for others, too, as each of them counts.
    """
    c = config
    values: dict[str, Any] = {
        "model_type": "llama", "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size, "num_hidden_layers": 1,
        "num_attention_heads": c.num_attention_heads, "num_key_value_heads": c.num_key_value_heads, "head_dim": c.head_dim,
        "hidden_act": "silu", "rms_norm_eps": c.rms_norm_eps, "rope_theta": c.rope_theta, "vocab_size": c.vocab_size,
        "draft_vocab_size": c.draft_vocab_size, "target_hidden_size": c.hidden_size, "tie_word_embeddings": False,
        "num_aux_hidden_states": len(c.aux_layers), AUX: list(c.aux_layers), "norm_output": c.norm_output,
        "fc_norm": c.fc_norm, "norm_before_residual": c.norm_before_residual,
        EAGLE3_CONFIG: {"use_aux_hidden_state": True, "norm_before_fc": c.norm_before_fc},
    }  # fmt: skip
    if not is_usual(c.aux_layers, c.n_layers):
        values[EAGLE3_CONFIG][LAYERS] = [i - 1 for i in c.aux_layers]  # SpecForge and SGLang
        if c.aux_layers[-1] < c.n_layers:
            values[LAYERS] = list(c.aux_layers)  # vLLM, which takes the last state before the final norm
    return values
