"""What decides a training besides its data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What decides the result besides the data.

    tokens: positions put through the first level, all epochs together.
    cooldown: the last share of a training, in which the rate falls to 0. It is constant before, so a training can be made longer
        from the checkpoint before its cooldown.
    ce_share: of the trained positions, those whose cross-entropy is computed, which is half of a step's work.
    noise: features given are moved by up to so much, at random.
    unroll: levels that are trained: the passes of an EAGLE head, the number of Medusa's and Hydra's heads.
    unroll_from: the share of the training that has one level only.
    unroll_decay: the weight of a level's loss over the weight of the level before.
    prompt_share: of the pairs of prompts, those that are trained as well.
    first_pair: whether (last prompt feature, first answer token) is trained, which the reference never does.
    frequent_rows: how many rows of the vocabulary every cross-entropy is over.
    max_length: of a conversation, in tokens; what is longer is cut.
    held_out: answers that the training is judged on.
    muon: matrices are trained by Muon (Jordan et al. 2024; updates scaled to AdamW's size as in arXiv 2502.16982), the rest by
        AdamW.
    intermediate_size: of the MLPs; 0 for the kind's own.
    linear_start: an EAGLE head's `fc` begins as the least-squares map to the next feature.
    width, layers: of a draft LM.
    draft_vocab: tokens that an EAGLE-3 head drafts over, the most frequent ones of the training answers.
    aux_layers: the target's hidden states that an EAGLE-3 head reads, by transformers' numbers; none: 2, n/2 and n - 3.
    """

    tokens: int = 5_000_000
    batch_tokens: int = 2048
    learning_rate: float = 8e-4
    cooldown: float = 0.55
    warmup_steps: int = 200
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    ce_weight: float = 0.5
    ce_share: float = 1.0
    feature_weight: float = 1.0
    noise: float = 0.1
    unroll: int = 2
    unroll_from: float = 0.75
    unroll_decay: float = 1.0
    prompt_share: float = 0.2
    first_pair: bool = True
    frequent_rows: int = 6144
    max_length: int = 2048
    held_out: int = 96
    muon: bool = False
    intermediate_size: int = 0
    linear_start: bool = True
    width: int = 256
    layers: int = 3
    draft_vocab: int = 4096
    aux_layers: tuple[int, ...] = ()
    seed: int = 0
