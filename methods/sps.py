"""Speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318) with a small draft LM.

A chain of `gamma` tokens drawn from the draft LM's processed distribution; each is accepted with min(1, p/q), and the first
that is not is replaced by a draw from the residual max(p - q, 0). At T = 0 drafts are the draft LM's argmaxes and are accepted
where they are the target's. The draft LM shares the target's tokenizer: one of the hub, or a narrow one trained for the target
(`harness train sps`). A longer chain pays as long as drafts are cheap and accepted.
"""

from __future__ import annotations

from methods import method
from methods.base import Decode
from methods.engine.grow import sampled_chain
from methods.engine.loop import speculative
from methods.engine.verify import rejection


@method(
    "sps",
    line="speculative sampling: a chain drawn from a small draft LM, p/q acceptance",
    drafter="lm",
    samples_drafts=True,
    candidates=[{"gamma": gamma} for gamma in (1, 2, 3, 4, 7)],
    small=[{"gamma": 1}, {"gamma": 2}, {"gamma": 3}],
)
def sps(gamma: int = 5) -> Decode:
    return speculative(sampled_chain(gamma), rejection)
