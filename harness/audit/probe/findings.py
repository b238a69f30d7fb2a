"""Makes findings: runs a method on stand-ins or on the model, and writes down what it did. Verdicts are made elsewhere.

If a method raises an error, that is a finding too (`error`): it was looked at, and it broke.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from harness.audit.probe import law, stand_ins
from harness.audit.probe.control import Noise, control
from harness.audit.probe.guided import GuidedDrafter
from harness.audit.probe.replay import (
    Replayed,
    below_best,
    drafts_off,
    head_law,
    other_bits,
    plain_forward,
    replayed,
    replayed_external,
    score_sums,
)
from harness.audit.probe.subject import Subject
from harness.common.errors import UserError
from harness.load.model import Loaded
from harness.metrics import divergences as lossless
from harness.watch.check import BadGeneration, is_generation
from harness.watch.run import names_of, watched
from methods import HEADS, get
from methods.base import SamplerParams

Finding = dict[str, Any]
LATE = range(24, 32)  # output tokens at which a late end falls: more of them in a row than a block holds
SCORED_BY_CONTROL = 2  # times that the control scores each position among many rows


def guarded(make: Callable[[], Finding]) -> Finding:
    """What `make` finds. An error of the audited code becomes a finding; `untrue` says that it did not raise it itself, but
    returned or did what cannot be recorded.

    Raises:
        UserError: the user can mend it.
    """
    try:
        found = make()
    except BadGeneration as e:
        return {"error": str(e), "untrue": True}
    except UserError:
        raise
    except (Exception, SystemExit) as e:
        return {"error": f"{type(e).__name__}: {' '.join(str(e).split())}"}
    for name in ("differences", "gaps", "deviations", "variances", "drafts"):
        if not all(math.isfinite(x) for x in found.get(name, ())):  # comparisons with NaN are false, so it would pass
            return {"error": f"numbers that are not finite in its {name}"}
    if not math.isfinite(found.get("deviation", 0.0)):
        return {"error": "a probability that is not finite"}
    return found


def law_finding(subject: Subject, tree: str, case: law.Case) -> Finding:
    """Layer 1, on the small tree of that name.

    `refused`: the method's randomness cannot be walked. `broken`: two choices use one random number, something that should be a
    probability is not, or mass is lost.
    """
    try:
        shape = (subject.deep if case.is_deep else subject.small)[tree]
        found = law.laws_of(subject.name, shape(), case, subject.samples_drafts)
    except law.NotEnumerable as e:
        return {"refused": str(e)}
    except AssertionError as e:
        return {"broken": str(e) or "an assertion failed"}
    return {"deviation": max(f.deviation for f in found), "branches": sum(f.branches for f in found)}


def control_finding(loaded: Loaded, prompt: list[int], params: SamplerParams, width: int, has_bits: bool = False) -> Finding:
    """The target alone. Every method's greedy text is compared with its text. has_bits: the engine is row-invariant."""
    one = replayed(loaded, get("vanilla").build(), prompt, params, None)
    noise = control(loaded, one, width, SCORED_BY_CONTROL)
    return {"ids": one.ids, **noise_of(noise), **({"other_bits": noise.other_bits} if has_bits else {})}


def ledger_control_finding(loaded: Loaded, prompt: list[int], ids: list[int], width: int) -> Finding:
    """The target alone over vanilla's text in a ledger."""
    _, reference = plain_forward(loaded, prompt, ids)
    noise = control(loaded, Replayed(prompt, ids, reference, reference), width, SCORED_BY_CONTROL)
    return noise_of(noise)


def greedy_finding(
    loaded: Loaded, subject: Subject, prompt: list[int], params: SamplerParams, vanilla: list[int], guided: bool = False,
    has_bits: bool = False, rejected: int = 0,
) -> Finding:  # fmt: skip
    """Layers 2, 3 and 5: the logits used against the plain forward's, and where the ids first differ from vanilla's.

    guided: the drafter is told vanilla's text, see `guided`. Its tau says nothing; how its first drafts differ from those of the
    head over the whole text (`drafts`) does.

    has_bits: the engine is row-invariant, and rows are compared with plain decoding's bit by bit, too. rejected: of how many
    rejected drafts at most.
    """
    vanilla, drafter = vanilla[: params.max_new_tokens], subject.drafter(loaded)
    told = GuidedDrafter(drafter, prompt, vanilla) if guided and drafter is not None and not subject.external else None
    run = run_of(loaded, subject, prompt, params, told or drafter)
    at = lossless.first_divergence(vanilla, run.ids)
    divergence = None if at is None else _divergence(run, vanilla, at)
    tau: Finding = (
        {} if subject.external else {"forwards": run.n_forwards, "emitted": run.n_emitted, "has_head": subject.kind is not None}
    )
    if told is not None:
        tau |= {"deepest": run.deepest}
        if subject.kind in HEADS:
            tau |= {"drafts": rounded(drafts_off(loaded, run, told.first, told.names, str(subject.kind)))}
    if has_bits:
        other = other_bits(loaded, run, rejected)
        tau |= {"n_bits": other.n, "other_bits": other.logits, "other_features": other.features}
        if rejected:
            tau |= {"n_rejected": other.n_rejected, "other_rejected": other.rejected}
    return {**looks(run, subject), **tau, "n": len(run.ids), "divergence": divergence,
            "not_argmax": [] if subject.external else run.not_argmax}  # fmt: skip


def sampled_finding(loaded: Loaded, subject: Subject, prompt: list[int], params: SamplerParams) -> Finding:
    """Layers 2 and 4 at T > 0."""
    return scored(loaded, subject, run_of(loaded, subject, prompt, params, subject.drafter(loaded)), params)


def scored(loaded: Loaded, subject: Subject, run: Replayed, params: SamplerParams) -> Finding:
    """The same, for a generation made before. `misdrawn`: see `Replayed.misdrawn`, of methods whose tokens are vanilla's."""
    deviations, variances = score_sums(run, head_law(loaded, run, params), params)
    drawn = {} if subject.external or subject.samples_drafts or not subject.exact else {"misdrawn": run.misdrawn(params)}
    return {**looks(run, subject), **drawn, "n": len(run.ids), "deviations": deviations, "variances": variances}


def coupled_finding(loaded: Loaded, subject: Subject, prompt: list[int], params: SamplerParams, vanilla: list[int]) -> Finding:
    """Layer 4: where the ids first differ from vanilla's. A method that draws the target's own tokens has vanilla's ids."""
    names = names_of(loaded, subject.kind)
    made = watched(subject.full(), prompt, subject.target(loaded), subject.drafter(loaded), params, names)
    ids = made.generation.token_ids
    return {"n": len(ids), "at": lossless.first_divergence(vanilla, ids)}


def again_finding(loaded: Loaded, subject: Subject, prompt: list[int], params: SamplerParams) -> Finding:
    """Layer 6: one prompt twice, decoded by two builds. A method without memory does the same both times."""
    names, steps, ids = names_of(loaded, subject.kind), list[list[int]](), list[list[int]]()
    for _ in range(2):
        made = watched(subject.full(), prompt, subject.target(loaded), subject.drafter(loaded), params, names).generation
        steps.append(made.trace.accepted if made.trace else [])
        ids.append(made.token_ids)
    is_same = steps[0] == steps[1] and ids[0] == ids[1]
    return {"n": len(ids[0]), "forwards": [len(accepted) for accepted in steps], "same": is_same}


def explained(loaded: Loaded, prefix: Sequence[int], ids: tuple[int | None, int | None]) -> Finding:
    """A divergence between two finished outputs: `ids` are vanilla's and the method's token after a common prefix."""
    if None in ids:
        return {"ended": True, "gap_vanilla": 0.0, "gap_method": 0.0}
    logits = plain_forward(loaded, prefix, [0])[1][0]
    return {
        "ended": False,
        "gap_vanilla": below_best(logits, int(ids[0] or 0)),
        "gap_method": below_best(logits, int(ids[1] or 0)),
    }


def stop_finding(subject: Subject) -> Finding:
    """The stop rule. The models agree, so blocks are long, and a stop id or the end of the budget falls inside them.

    Both fall early on all trees that can be walked, and late (`LATE`) on the deepest. There the stop id is none of the first
    tokens, and comes at each place of a block.
    """
    rows, none = stand_ins.random_rows(stand_ins.VOCAB, 31, 4.0), frozenset[int]()
    early = [(rows, stop_ids, n) for stop_ids in (none, frozenset({2}), frozenset({0, 3})) for n in range(1, 12)]
    late = [(rows, none, n) for n in LATE] + [(stand_ins.only_from(2, n, rows), frozenset({2}), 2 * n) for n in LATE]
    deep = subject.deep or dict(list(subject.small.items())[:1])
    cases = [(*c, tree) for tree in subject.small.items() for c in early] + [(*c, tree) for tree in deep.items() for c in late]
    vanilla = get("vanilla").build()
    for i, (model, stop_ids, budget, (tree, small)) in enumerate(cases, start=1):
        params, prompt, target = SamplerParams(budget, stop_ids), list(stand_ins.PROMPT), stand_ins.without_first(model)
        made = small()(prompt, stand_ins.FakeTarget(target), stand_ins.FakeDrafter(model), params)
        ids = is_generation(made).token_ids
        plain = vanilla(prompt, stand_ins.FakeTarget(target), None, params).token_ids
        if ids != plain:
            where = f"with a budget of {budget} and stop ids {sorted(stop_ids)}" + (f" on {tree}" if tree else "")
            how = f"{len(ids)} tokens instead of {len(plain)}" if len(ids) != len(plain) else "other ids"
            return {"wrong": f"{how} {where}", "n": i}
    return {"n": len(cases)}


def run_of(loaded: Loaded, subject: Subject, prompt: list[int], params: SamplerParams, drafter: Any) -> Replayed:
    if subject.external:
        return replayed_external(loaded, subject.full(), prompt, params, drafter)
    return replayed(loaded, subject.full(), prompt, params, drafter, subject.target(loaded), subject.kind)


def looks(run: Replayed, subject: Subject) -> Finding:
    """What layer 2 needs of a run. A loop that keeps no logits has nothing of it."""
    if subject.external:
        return {}
    return {"differences": rounded(run.differences), "n_offside": run.n_offside, "n_branching": run.n_branching}


def _divergence(run: Replayed, vanilla: list[int], at: int) -> Finding:
    if at >= min(len(run.ids), len(vanilla)):
        return {"at": at, "ended": True, "gap_vanilla": 0.0, "gap_method": 0.0}
    row = run.reference[at]  # the plain forward after the common prefix
    return {"at": at, "ended": False, "gap_vanilla": below_best(row, vanilla[at]), "gap_method": below_best(row, run.ids[at])}


def noise_of(noise: Noise) -> Finding:
    return {"differences": rounded(noise.differences), "gaps": rounded(noise.gaps), "flipped": noise.flipped,
            "exposed": noise.exposed}  # fmt: skip


def rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{x:.4g}") for x in values]
