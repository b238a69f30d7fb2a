"""The audit of an engine elsewhere: layers 3 and 4 alone, from its records beside those of the same engine without speculation.

It keeps no logits, runs no stand-in, and has other weights and kernels than any target here. So nothing is compared with vanilla.
Outputs that are equal need no target. What differs is weighed by the logits of the target here, where that can be loaded; what
the plain engine itself shows by them is the control.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch
from scipy import stats

import methods
from harness.audit.audit import Report
from harness.audit.levels import LEVELS
from harness.audit.page import overview, plain, sections, summary
from harness.audit.probe.ledger_pairs import LedgerPrompts
from harness.audit.probe.replay import Replayed, below_best, head_law, plain_forward
from harness.audit.probe.scores import ALPHA, FUNCTIONS, POWER, more_often, rate_bound, summands
from harness.audit.request import AuditRequest
from harness.audit.room import rooms_for
from harness.audit.verdicts.greedy import UNJUDGED, classify
from harness.audit.verdicts.replay import GAP_FACTOR
from harness.audit.verdicts.verdict import Verdict, beyond, counted, overall, share, unlikely
from harness.common.errors import UserError, say
from harness.common.files import write_file
from harness.common.names import SERVER, SERVER_PLAIN, label
from harness.forms.table import Table, csv, markdown
from harness.ledger.audit_words import AUDIT, PAGE
from harness.ledger.ledger import read
from harness.ledger.record import Record
from harness.load.config import ModelConfig, model_config
from harness.load.model import Loaded
from harness.load.preflight import architecture
from harness.metrics.divergences import first_divergence
from harness.metrics.intervals import holm
from harness.metrics.pairing import engine_of, measured, side_of
from methods.base import SamplerParams
from methods.engine.sampling import probabilities

DTYPE = "float32"  # of the target here: an engine's own rounding is in the control
MOST_GAP = 1.0  # of the control: tokens further below the best here are of another model, or of weights rounded otherwise
LAYERS = {
    "L3": (
        "greedy equality",
        f"""Outputs at T = 0 are compared with those of the same engine without speculation, token by token. Equal outputs need no
        target. A first difference is weighed by the logits of the target here, in {DTYPE}, after the common prefix. `benign_tie`:
        both tokens are the best. `near_tie`: both lie within gap_tol of the best, {GAP_FACTOR:g} x the furthest that any token of
        the plain engine's own outputs lies below it. All else is a `FAULT`, and so is an output that ends early. Where the plain
        engine's own tokens lie over {MOST_GAP:g} below the best, its weights are not those here, and a gap is `unjudged`.
        Differences may not be more frequent than texts in which the plain engine leaves the best (Fisher's exact test).""",
    ),
    "L4": (
        "sampling",
        f"""Outputs at T > 0 with the same seeds. If they are the plain engine's own, token by token, no more is to be shown. Else
        the six functions of the score test are summed over both engines' tokens from the first difference on, each less its
        expectation under the target here. The two sums must agree: what the engine's weights and kernels do is in both. Holm over
        the six, at {ALPHA:g}.""",
    ),
}
NOT_JUDGED = ("L1 exact law", "L2 logit replay", "L5 acceptance", "L6 conduct")

Ask = Callable[[], Loaded]


@dataclass(frozen=True, slots=True)
class Pair:
    """An output of the engine and the plain engine's to the same prompt. `turns`: the plain engine's greedy answers to the
    conversation. `at`: the first position where ids differ, None if none does."""

    own: Record
    base: Record
    turns: tuple[Record, ...]
    at: int | None

    @property
    def name(self) -> str:
        return label(self.own["method"], self.own["preset"])

    @property
    def where(self) -> str:
        return f"{self.own['task']}/{self.own['sample_id']} turn {self.own['turn']} repeat {self.own['repeat']}"


@dataclass
class Target:
    """The target here, loaded when it is first needed. `why`: why it cannot be; empty while that is not known."""

    config: ModelConfig
    request: AuditRequest
    why: str = ""
    _loaded: Loaded | None = None
    _prompts: LedgerPrompts = field(init=False)

    def __post_init__(self) -> None:
        self._prompts = LedgerPrompts(self.request.prompts_dir)

    def loaded(self) -> Loaded | None:
        """None where it cannot be had."""
        if self._loaded is None and not self.why:
            try:
                self._loaded = self._load()
            except (UserError, RuntimeError, MemoryError) as e:
                self.why = " ".join(str(e).split()) or type(e).__name__
        return self._loaded

    def _load(self) -> Loaded:
        from harness.audit.prepare import load_in

        sizes, level = architecture(self.config), LEVELS[self.request.level]
        if sizes is not None:
            kinds = {methods.EAGLE}
            (room,) = rooms_for(self.config, sizes, [DTYPE], level=level, kinds=kinds, head=self.request.head,
                                measured={DTYPE}, ledgers={DTYPE}).values()  # fmt: skip
            if room.fit.words:
                raise UserError(room.fit.words)
        return load_in(self.config, DTYPE, self.request.head, self.request.n_threads)

    def prompt(self, record: Record, turns: Sequence[Record]) -> list[int]:
        """The token ids of a record's prompt.

        Raises:
            UserError: the prompt is not here, or is another.
        """
        assert self._loaded is not None
        return self._prompts.ids_of(record, turns, self._loaded)


def pairs_of(records: Iterable[Record]) -> tuple[list[Pair], int]:
    """(every output of the engine with the plain engine's beside it; how many have none)."""
    whole = [r for r in measured(records) if methods.is_served(r["method"])]
    base = side_of(r for r in whole if r["method"] == SERVER_PLAIN)
    answers: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for r in base.values():
        if r["temperature"] == 0:
            answers[r["task"], r["source"], r["sample_id"], r["target_id"] or ""].append(r)
    found, n_alone = [], 0
    for r in (r for r in whole if r["method"] == SERVER):
        (key,) = side_of([r])
        if key not in base:
            n_alone += 1
            continue
        turns = tuple(answers[r["task"], r["source"], r["sample_id"], r["target_id"] or ""])
        found.append(Pair(r, base[key], turns, first_divergence(base[key]["token_ids"], r["token_ids"])))
    return found, n_alone


# ---- layer 3 ----


@dataclass(frozen=True, slots=True)
class Control:
    """The plain engine's own greedy tokens by the target here: the furthest one below the best, in how many texts one lies below,
    and the positions up to the first of those."""

    gap: float
    n: int
    flipped: int
    exposed: int

    @property
    def gap_tol(self) -> float | None:
        return GAP_FACTOR * self.gap if self.gap <= MOST_GAP else None


def control_of(pairs: Sequence[Pair], target: Target, loaded: Loaded) -> Control:
    gaps, flipped, exposed = list[float](), 0, 0
    for pair in {p.base["key"]: p for p in pairs}.values():
        ids = list(pair.base["token_ids"])
        _, logits = plain_forward(loaded, target.prompt(pair.base, pair.turns), ids)
        below = [below_best(row, token) for row, token in zip(logits, ids, strict=True)]
        first = next((i for i, gap in enumerate(below) if gap > 0), None)
        gaps += below
        flipped += first is not None
        exposed += len(ids) if first is None else first + 1
    return Control(max(gaps), len(gaps), flipped, exposed)


@dataclass(frozen=True, slots=True)
class Difference:
    """A first difference, and its class."""

    method: str
    prompt: str
    position: int
    gap_plain: float | None
    gap_own: float | None
    gap_tol: float | None
    ended: bool
    kind: str
    why: str


def greedy_rows(pairs: Sequence[Pair], target: Target) -> tuple[list[Verdict], list[Difference]]:
    """Layer 3, a row an engine, method and preset."""
    rows, differences = list[Verdict](), list[Difference]()
    for name, mine in _by_engine(p for p in pairs if p.own["temperature"] == 0):
        found = [p for p in mine if p.at is not None]
        positions = sum(len(p.own["token_ids"]) if p.at is None else p.at + 1 for p in mine)
        checked = _checked(mine, positions)
        layer = "L3 greedy equality, served"
        if not found:
            seen = f"fault rate under {rate_bound(0, len(mine)):.2%} of outputs (95 %)"
            rows.append(Verdict(layer, name, checked, "all identical", "the plain engine's ids", seen, True, cells=len(mine)))
            continue
        loaded = target.loaded()
        control = None if loaded is None else control_of(mine, target, loaded)
        own = [_difference(p, target, loaded, control) for p in found]
        differences += own
        rows.append(_greedy_row(layer, name, checked, len(mine), positions, own, control, target.why))
    return rows, differences


def _difference(p: Pair, target: Target, loaded: Loaded | None, control: Control | None) -> Difference:
    assert p.at is not None
    ids, plain_ids = list(p.own["token_ids"]), list(p.base["token_ids"])
    ended = p.at >= min(len(ids), len(plain_ids))
    if ended:
        return Difference(p.name, p.where, p.at, None, None, None, True, "FAULT", "one output ended and the other went on")
    if loaded is None or control is None:
        return Difference(p.name, p.where, p.at, None, None, None, False, UNJUDGED, target.why)
    _, logits = plain_forward(loaded, [*target.prompt(p.own, p.turns), *ids[: p.at]], [0])
    gaps = below_best(logits[0], plain_ids[p.at]), below_best(logits[0], ids[p.at])
    kind = classify({"ended": False, "gap_vanilla": gaps[0], "gap_method": gaps[1]}, control.gap_tol)
    why = f"the plain engine's own tokens lie up to {control.gap:.2g} below the best here" if kind == UNJUDGED else ""
    return Difference(p.name, p.where, p.at, *gaps, control.gap_tol, False, kind, why)


def _greedy_row(
    layer: str, name: str, checked: str, n: int, positions: int, found: Sequence[Difference], control: Control | None, why: str
) -> Verdict:  # fmt: skip
    kinds = [d.kind for d in found]
    counts = "".join(f", {kinds.count(kind)} {kind}" for kind in ("benign_tie", "near_tie", UNJUDGED, "FAULT") if kind in kinds)
    gaps = [max(d.gap_plain, d.gap_own) for d in found if d.gap_plain is not None and d.gap_own is not None]
    largest = f"; largest gap {max(gaps):.2g}" if gaps else ""
    p, threshold, ratio = 1.0, "none: there is no control", 0.0
    if control is not None:
        p = more_often(len(found), positions, control.flipped, control.exposed)
        tol = control.gap_tol
        threshold = f"gap {tol:.2g} = {GAP_FACTOR:g} x the plain engine's furthest" if tol is not None else "none: other weights"
        threshold += f"; as rare as its own {control.flipped} in {control.exposed:,} (p = {p:.2g})"
        ratio = share(max(gaps, default=0.0), tol) if tol is not None else 0.0
    passed: bool | None = False if "FAULT" in kinds else None if UNJUDGED in kinds else True
    reason = "" if passed is not None else next(d.why for d in found if d.kind == UNJUDGED) or why
    if passed and p < ALPHA:
        passed, reason, ratio = False, f"differs more often than the plain engine leaves the best: p = {p:.2g}", unlikely(p)
    return Verdict(
        layer, name, checked, f"{n - len(found)} identical{counts}{largest}", threshold,
        f"fault rate under {rate_bound(kinds.count('FAULT'), n):.2%} of outputs (95 %)", passed, reason,
        blocks=passed is None, cells=n, ratio=max(ratio, beyond(kinds.count("FAULT"))),
    )  # fmt: skip


# ---- layer 4 ----


def sampled_rows(pairs: Sequence[Pair], target: Target) -> list[Verdict]:
    """Layer 4, a row an engine, method, preset and temperature."""
    rows = list[Verdict]()
    temperatures = sorted({p.own["temperature"] for p in pairs} - {0})
    cells = ((t, *cell) for t in temperatures for cell in _by_engine(p for p in pairs if p.own["temperature"] == t))
    for temperature, name, mine in cells:
        layer, n = f"L4 plain engine's law, T = {temperature:g}, served", sum(len(p.own["token_ids"]) for p in mine)
        checked = _checked(mine, n)
        if all(p.at is None for p in mine):
            seen = f"fault rate under {rate_bound(0, n):.2%} of tokens (95 %)"
            rows.append(Verdict(layer, name, checked, "all identical", "the plain engine's ids, or its law", seen, True,
                                "with the same seeds it draws the same tokens", cells=len(mine)))  # fmt: skip
            continue
        loaded = target.loaded()
        if loaded is None:
            rows.append(Verdict.missing(layer, name, f"no logits to weigh its tokens by: {target.why}"))
            continue
        rows.append(_sampled_row(layer, name, checked, mine, target, loaded))
    return rows


def _sampled_row(layer: str, name: str, checked: str, mine: Sequence[Pair], target: Target, loaded: Loaded) -> Verdict:
    differ = [(p, p.at) for p in mine if p.at is not None]
    own, base = (_sums([(side(p), p.turns, at) for p, at in differ], target, loaded)
                 for side in (lambda p: p.own, lambda p: p.base))  # fmt: skip
    n = (own.n + base.n) / 2
    means = [(a - b) / n for a, b in zip(own.deviations, base.deviations, strict=True)]
    errors = [math.sqrt(a + b) / n for a, b in zip(own.variances, base.variances, strict=True)]
    known = [i for i, error in enumerate(errors) if error > 0]
    if not known:
        return Verdict.missing(layer, name, "no function of the tokens varied: nothing was tested")
    p_values = [float(2 * stats.norm.sf(abs(means[i] / errors[i]))) for i in known]
    adjusted = holm(p_values)
    worst = min(range(len(known)), key=lambda k: (adjusted[k], p_values[k]))
    i, p = known[worst], adjusted[worst]
    half, reach = (float(x) for x in (stats.norm.isf(0.025), stats.norm.isf(ALPHA / len(known) / 2) + stats.norm.isf(1 - POWER)))
    same = sum(pair.at is None for pair in mine)
    return Verdict(
        layer, name, f"{checked}, {len(FUNCTIONS)} functions",
        f"p = {p:.2g} ({FUNCTIONS[i]}: {means[i]:+.2g} [{means[i] - half * errors[i]:+.2g}, {means[i] + half * errors[i]:+.2g}])",
        f"Holm-adjusted p {ALPHA:g}", "; ".join(f"{FUNCTIONS[k]} {reach * errors[k]:.2g}" for k in known),
        p >= ALPHA, f"{same} of {len(mine)} have the plain engine's ids", cells=len(mine), ratio=unlikely(p),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sums:
    """The six functions over `n` tokens: deviations from what the target here expects, and their variances. What comes before a
    first difference is the same on both sides: it is in no sum, as it would cancel in the deviations and not in the variances."""

    n: int
    deviations: list[float]
    variances: list[float]


def _sums(outputs: Sequence[tuple[Record, Sequence[Record], int]], target: Target, loaded: Loaded) -> Sums:
    """outputs: each with the answers before it, and from which token on it counts."""
    n, deviations, variances = 0, [0.0] * len(FUNCTIONS), [0.0] * len(FUNCTIONS)
    for record, turns, at in outputs:
        prompt, ids = target.prompt(record, turns), list(record["token_ids"])
        features, reference = plain_forward(loaded, prompt, ids)
        params = SamplerParams(len(ids), temperature=record["temperature"], top_p=record["top_p"])
        run = Replayed(prompt, ids, reference, reference, features=features)
        p = probabilities(reference, params.temperature, params.top_p)
        d, v = summands(p, head_law(loaded, run, params), torch.tensor(ids))
        n += len(ids) - at
        deviations = [a + b for a, b in zip(deviations, d[at:].sum(0).tolist(), strict=True)]
        variances = [a + b for a, b in zip(variances, v[at:].sum(0).tolist(), strict=True)]
    return Sums(n, deviations, variances)


# ---- the whole ----


def audit_served(request: AuditRequest, tell: Callable[[str], None] = say) -> Report:
    """Judge an engine by the records in `request.ledgers`; pages and tables go to `request.out`.

    Raises:
        UserError: no such records, prompts that are not here, or files that cannot be written.
    """
    config = model_config(request.model)
    records = [r for folder in request.ledgers for r in read(folder) if r["model"] == config.name]
    pairs, n_alone = pairs_of(records)
    if not pairs:
        where = ", ".join(map(str, request.ledgers))
        raise UserError(f"{where} holds no output of {SERVER} on {config.name} with {SERVER_PLAIN}'s beside it")
    names = sorted({p.name for p in pairs})
    rows = [Verdict.not_applicable(layer, name, "an engine elsewhere: it keeps no logits and runs no stand-in")
            for layer in NOT_JUDGED for name in names]  # fmt: skip
    if n_alone:
        rows.append(Verdict.missing("all of served", "all", f"{n_alone} outputs have no output of {SERVER_PLAIN} beside them"))
    target = Target(config, request)
    tell(f"judging {counted(len(pairs), 'output')} of {', '.join(names)} beside {SERVER_PLAIN}'s ...")
    greedy, differences = greedy_rows(pairs, target)
    rows += [*greedy, *sampled_rows(pairs, target)]
    for layer, is_there in (("L3", bool(greedy)), ("L4", any(p.own["temperature"] > 0 for p in pairs))):
        if not is_there:
            rows.append(Verdict.missing(layer, "all", f"no outputs at T {'= 0' if layer == 'L3' else '> 0'} to compare"))
    rows.sort(key=lambda v: (v.layer, v.method))
    engines = sorted({engine_of(p.own) for p in pairs})
    title = f"{config.title} as served by {', '.join(engines)}"
    written = _write(request.out, rows, differences, config.name, request.level, title)
    return Report(title, request.level, rows, overall(rows, {SERVER: True, "all": True}), written)


def _write(
    out: Path, rows: Sequence[Verdict], differences: Sequence[Difference], model: str, level: str, title: str
) -> list[Path]:  # fmt: skip
    words = {"model": model, "level": level, "methods": {**_words_there(out, model), **summary(rows, level)}}
    columns = list(Difference.__dataclass_fields__)
    table = pd.DataFrame([asdict(d) for d in differences], columns=columns)
    return [
        write_file(out / PAGE, _page(rows, title, level)),
        write_file(out / "audit.csv", csv(Table("audit", (), (), pd.DataFrame([asdict(v) for v in rows])))),
        write_file(out / "divergences.csv", csv(Table("divergences", (), (), table))),
        write_file(out / AUDIT.name, json.dumps(words) + "\n"),
    ]


def _words_there(out: Path, model: str) -> Mapping[str, str]:
    """What another audit said of the model's other methods in the same folder."""
    try:
        found = json.loads((out / AUDIT.name).read_text(encoding="utf-8"))
        return dict(found["methods"]) if found["model"] == model else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _page(rows: Sequence[Verdict], title: str, level: str) -> str:
    said = [v.passed for v in rows]
    missing = sum(v.passed is None and v.blocks for v in rows)
    parts = [
        f"# Losslessness of {title}",
        "Does speculation leave the distribution of an engine's text as it is? It is compared with the same engine without"
        " speculation. Layers 3 and 4 alone can judge that from outside.",
        f"**{said.count(True)} verdicts hold, {said.count(False)} fail, {missing} could not be judged though they should**.",
        f"Level {level}. Written by `harness verify`.",
        markdown(Table("", (overview(rows),), (), overview(rows).shown)).rstrip(),
    ]
    for layer, (name, text) in LAYERS.items():
        parts += [f"## {layer}: {name}", " ".join(text.split())]
        parts += [markdown(Table("", (s,), (), s.shown)).rstrip() for s in sections([v for v in rows if v.layer[:2] == layer])]
    return "\n\n".join(parts) + "\n"


def shown(report: Report) -> str:
    """For the terminal."""
    return plain(report.rows, report.title, report.level)


def _by_engine(pairs: Iterable[Pair]) -> list[tuple[str, list[Pair]]]:
    """(method and preset, the pairs of one target and drafter): what one engine's tokens tell says nothing of another's."""
    found: dict[tuple[str, str | None, str | None], list[Pair]] = defaultdict(list)
    for p in pairs:
        found[p.name, p.own["target_id"], p.own["head_id"]].append(p)
    return [(name, mine) for (name, *_), mine in found.items()]


def _checked(mine: Sequence[Pair], n_tokens: int) -> str:
    """What was compared, and whose."""
    return f"{counted(len(mine), 'output')}, {counted(n_tokens, 'token')} of {mine[0].own['target_sha']}"
