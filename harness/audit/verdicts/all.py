"""All layers' verdicts on the findings of one audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.audit.verdicts.acceptance import acceptance_verdicts, drafts_verdicts
from harness.audit.verdicts.conduct import again_verdicts
from harness.audit.verdicts.greedy import greedy_verdicts
from harness.audit.verdicts.law import law_verdicts, stop_verdicts
from harness.audit.verdicts.replay import bits_verdicts, control_verdicts, controls, replay_verdicts
from harness.audit.verdicts.sampling import coupled_verdicts, drawn_verdicts, score_verdicts
from harness.audit.verdicts.verdict import Finding, Verdict
from harness.common.names import method_order


def judged(f: Sequence[Finding], score_tokens: int, recorded: Mapping[tuple[str, str], Finding]) -> list[Verdict]:
    """Every layer's verdicts, in the order of the table.

    score_tokens: what the score test needs. recorded: (method, prompt) -> the counts that tau is compared with.
    """
    known = controls(f)
    return in_order([
        *law_verdicts(f), *stop_verdicts(f), *control_verdicts(f, known), *replay_verdicts(f, known),
        *bits_verdicts(f), *greedy_verdicts(f, known), *coupled_verdicts(f), *drawn_verdicts(f), *score_verdicts(f, score_tokens),
        *acceptance_verdicts(f, recorded), *drafts_verdicts(f), *again_verdicts(f),
    ])  # fmt: skip


def in_order(rows: Sequence[Verdict]) -> list[Verdict]:
    return sorted(rows, key=lambda v: (v.layer, method_order(v.method)))
