"""Runs the planted faults through the layers. Every layer that must notice a fault does; none flags an equivalent change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import pandas as pd

import methods
from harness.audit.faults.faults import BITS, EQUIVALENT, MUTANTS, Mutant
from harness.audit.faults.metric import equal_arms, seen_when_recounted
from harness.audit.figures import draw_mutants
from harness.audit.layers import REJECTED, greedy_params, score_params
from harness.audit.levels import LEVELS, LONG, SCORE_LONGEST, Level, Prompts
from harness.audit.prepare import load_in
from harness.audit.probe import findings, lanes, law
from harness.audit.probe.lanes import LaneJob
from harness.audit.probe.subject import Subject
from harness.audit.request import FaultsRequest
from harness.audit.room import rooms_for
from harness.audit.verdicts.acceptance import acceptance_verdicts, drafts_verdicts
from harness.audit.verdicts.greedy import greedy_verdicts
from harness.audit.verdicts.law import law_verdicts, stop_verdicts
from harness.audit.verdicts.replay import bits_verdicts, controls, replay_verdicts
from harness.audit.verdicts.sampling import drawn_verdicts, score_verdicts
from harness.audit.verdicts.verdict import Finding, Verdict
from harness.common.errors import UserError, say
from harness.common.files import write_file
from harness.forms.table import Section, Table, csv, markdown
from harness.load.config import model_config
from harness.load.model import Loaded
from harness.load.preflight import architecture

METRIC = "26"  # a fault of a metric, not of a method: the baseline's tokens are counted in another way
MANY_TOKENS = 1500  # with so many the score test must notice what only it and layer 1 can
MORE_TOKENS = 4  # times as many, for a fault that the first ones do not show
FAULTS = {m.number for m in MUTANTS}
# The score test of level full has 20,000 tokens a method: hours for 39 mutants.
LEVELS_HERE = LEVELS | {"full": replace(LEVELS["full"], score_tokens=6000, score_length=32, score_prompts=12, score_tree={})}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one mutant. `expected`: layers that must notice it. `seen`: what each layer that was asked saw, None for
    nothing. `ratios`: the worst value that the layer saw, over its threshold."""

    number: str
    what: str
    expected: tuple[str, ...]
    seen: dict[str, str | None]
    ratios: dict[str, float]

    @property
    def noticed_by(self) -> list[str]:
        return [layer for layer, what in self.seen.items() if what is not None]

    @property
    def is_equivalent(self) -> bool:
        return not self.expected

    @property
    def wrong(self) -> str:
        """Why it is not right."""
        if self.is_equivalent:
            return f"{self.number} ({self.what}): flagged by {', '.join(self.noticed_by)}"
        return f"{self.number} ({self.what}): not noticed by {', '.join(n for n in self.expected if n not in self.noticed_by)}"

    @property
    def right(self) -> bool:
        """Whether every layer that must notice it did. Of an equivalent mutant: whether no layer flagged it."""
        return not self.noticed_by if self.is_equivalent else set(self.expected) <= set(self.noticed_by)


@dataclass(frozen=True, slots=True)
class Look:
    """What a layer saw that is wrong, None for nothing; and its worst value over the threshold."""

    what: str | None = None
    ratio: float = 0.0

    @classmethod
    def of(cls, rows: Sequence[Verdict]) -> Look:
        failed = [v for v in rows if v.passed is False and not v.raised]  # an error does not count: no layer found it
        what = f"{failed[0].worst}, allowed {failed[0].threshold}" if failed else None
        return cls(what, max((v.ratio for v in rows), default=0.0))


@dataclass
class Bench:
    """A model in float32, and what healthy runs show on a level's own cases: its prompts, lengths and trees.

    layers_run: how many of the target's layers were loaded, where that is not all of them; else None.
    """

    loaded: Loaded
    level: Level
    name: str = "quick"
    layers_run: int | None = None

    def __post_init__(self) -> None:
        self.prompts = Prompts.of(self.loaded, self.level)
        self.stop_ids = frozenset(self.loaded.config.stop_ids)
        self.healthy = Subject.of(methods.get("eagle2"), self.loaded.config)
        self._greedy: dict[str, list[Finding]] = {}

    @property
    def has_bits(self) -> bool:
        """Whether the engine is row-invariant, so that every row must have plain decoding's bits."""
        return self.loaded.target.is_row_invariant

    @property
    def has_many_tokens(self) -> bool:
        return self.level.score_tokens >= MANY_TOKENS

    @cached_property
    def control(self) -> list[Finding]:
        made = [
            findings.control_finding(
                self.loaded, case.prompt[1], greedy_params(case, self.stop_ids), self.level.width, self.has_bits
            )
            for case in self.prompts.usual
        ]
        return [{**f, "kind": "control", "dtype": "float32", "method": "vanilla"} for f in made]

    def runs(self, s: Subject) -> list[Finding]:
        """Greedy findings in every case. They are made once."""
        if s.name not in self._greedy:
            cut = {"layers": self.layers_run} if self.layers_run else {}
            self._greedy[s.name] = [
                {"kind": "greedy", "dtype": "float32", "method": s.name, "prompt": case.prompt[0], "guided": case.guided,
                 "row_invariant": self.has_bits, **cut,
                 **findings.guarded(partial(findings.greedy_finding, self.loaded, s.with_options(case.tree), case.prompt[1],
                                            greedy_params(case, self.stop_ids), plain["ids"], case.guided, self.has_bits,
                                            REJECTED))}
                for case, plain in zip(self.prompts.usual, self.control, strict=True)
            ]  # fmt: skip
        return self._greedy[s.name]

    def l1(self, s: Subject) -> Look:
        look = Look()
        cases = law.cases(self.level.law_tokens, self.name, s.samples_drafts)
        walks = [*law.walks(list(s.small), cases, self.name), *law.walks(list(s.deep), law.deep_cases(), "full")]
        for tree, case in walks:
            f = findings.guarded(partial(findings.law_finding, s, tree, case))
            seen = Look.of(law_verdicts([{"kind": "law", "method": s.name, "case": case.name, **f}]))
            look = max(look, seen, key=lambda x: x.ratio)
            if seen.what is not None:
                break
        return look

    def l2(self, s: Subject) -> Look:
        return Look.of([*replay_verdicts(self.runs(s), controls(self.control)), *bits_verdicts(self.runs(s))])

    def l3(self, s: Subject) -> Look:
        return Look.of(greedy_verdicts(self.runs(s), controls(self.control)))

    def l4(self, s: Subject, temperature: float = 1.0, draws: bool = True) -> Look:
        """draws: whether each token's own draw is looked at besides the score test."""
        s = s.with_options(self.level.score_tree)
        made, n, repeat, wanted = list[Finding](), 0, 0, self.level.score_tokens

        def keep(_: int, f: Finding) -> None:
            nonlocal n
            made.append({"kind": "sampled", "dtype": "float32", "method": s.name, **f})
            n += f.get("n", wanted)

        # on some models so few tokens do not show a small fault: what must be found is looked for in more of them
        most = wanted * (MORE_TOKENS if s.name in FAULTS and self.has_many_tokens else 1)
        look = Look()
        while n < most and look.what is None:
            while n < wanted:
                jobs = [
                    (ids, replace(score_params(self.level, name, repeat, self.stop_ids), temperature=temperature))
                    for name, ids in self.prompts.scored
                ]
                if lanes.can_run_in_lanes(self.loaded, s, self.loaded.dtype):
                    lanes.sampled_in_lanes(self.loaded, [LaneJob(s, *job) for job in jobs], keep)
                else:
                    for i, job in enumerate(jobs):
                        keep(i, findings.guarded(partial(findings.sampled_finding, self.loaded, s, *job)))
                repeat += 1
            wanted += self.level.score_tokens
            look = Look.of([*score_verdicts(made), *(drawn_verdicts(made) if draws else [])])
        return look

    def stop_rule(self, s: Subject) -> Look:
        f = findings.guarded(partial(findings.stop_finding, s))
        return Look.of(stop_verdicts([{"kind": "stop", "method": s.name, **f}]))

    def l5(self, s: Subject) -> Look:
        recorded = {(s.name, f["prompt"]): f for f in self.runs(self.healthy)}
        return Look.of([*acceptance_verdicts(self.runs(s), recorded), *drafts_verdicts(self.runs(s))])

    def layers(self) -> dict[str, Callable[[Subject], Look]]:
        return {"L1": self.l1, "stop": self.stop_rule, "L2": self.l2, "L3": self.l3, "L4": self.l4, "L5": self.l5}


def run_mutant(bench: Bench, m: Mutant) -> Outcome:
    """Run a mutant through the layers that must notice it; an equivalent one through all that look at the output."""
    layers, s = bench.layers(), m.subject()
    given_tokens = m.given_tokens if bench.has_many_tokens else ()
    layers["L4"] = partial(bench.l4, temperature=m.temperature, draws="L4" not in given_tokens)
    expected = tuple(dict.fromkeys((*m.killers, *given_tokens)))
    looks = {name: layers[name](s) for name in expected or ("L1", "stop", "L2", "L3", "L4")}
    seen, ratios = {name: look.what for name, look in looks.items()}, {name: look.ratio for name, look in looks.items()}
    return Outcome(m.number, m.what, expected, seen, ratios)


def counts_differently() -> Outcome:
    """Fault 26, which is planted in the metric."""
    assert equal_arms() is None
    seen = {"metric": seen_when_recounted()}
    return Outcome(METRIC, "the baseline's tokens counted differently", ("metric",), seen, {})


@dataclass(frozen=True, slots=True)
class Planted:
    """What came of planting every fault. `survived`: what was not noticed, or wrongly flagged, a line each."""

    outcomes: Sequence[Outcome]
    survived: Sequence[str]
    score: str
    table: Table


def plant(request: FaultsRequest, tell: Callable[[str], None] = say) -> Planted:
    """Plant every fault and write which layers noticed it. `tell` gets a line a fault.

    Raises:
        UserError: the model has no draft head, no prompt fits it, or not even its first layer fits into the memory.
    """
    config, level = model_config(request.model), LEVELS_HERE[request.level]
    sizes = architecture(config)
    kinds = [methods.EAGLE]
    room = rooms_for(config, sizes, ["float32"], level=level, kinds=kinds, head=request.head)["float32"] if sizes else None
    on = room.fit.words if room else ""
    if room and not room.fit.layers:
        raise UserError(f"model {config.name} in float32: {on}")
    tell(f"loading {config.title} in float32{on and f', {on}'} ...")
    loaded = load_in(config, "float32", request.head, request.n_threads, room=room)
    if loaded.drafter is None:
        raise UserError(f"model {config.name} has no draft head: faults are planted in methods that draft with one")
    bench = Bench(loaded, level, request.level, room.fit.layers if room and room.fit.is_cut else None)
    if not bench.prompts.has_long or not bench.prompts.scored:
        raise UserError(f"faults are planted after prompts of {LONG} tokens and of at most {SCORE_LONGEST}: the context of model "
                        f"{config.name}, {config.context_length} tokens, does not hold both")  # fmt: skip
    outcomes = []
    for outcome in all_outcomes(bench):
        outcomes.append(outcome)
        seen = "; ".join(f"{layer}: {what}" for layer, what in outcome.seen.items() if what)
        tell(f"{outcome.number:>3} {outcome.what}: {seen or 'not noticed'}")
    faults = [o for o in outcomes if not o.is_equivalent]
    equivalent = [o for o in outcomes if o.is_equivalent]
    killed, flagged = sum(o.right for o in faults), sum(not o.right for o in equivalent)
    score = f"killed {killed}/{len(faults)}; equivalent mutants flagged {flagged}/{len(equivalent)}"
    survived = [o.wrong for o in outcomes if not o.right]
    table = matrix(outcomes, f"Planted faults: {config.title}, level {request.level}", (score, *survived, *([on] if on else [])))
    for name, text in (("mutants.md", markdown(table)), ("mutants.csv", csv(table))):
        write_file(request.out / name, text)
    draw_mutants(request.out, table.numbers)
    return Planted(outcomes, survived, score, table)


def all_outcomes(bench: Bench) -> Iterator[Outcome]:
    """Of every fault that the engine can show, every equivalent change, and the fault of the metric."""
    for m in (*MUTANTS, *(BITS if bench.has_bits else ()), *EQUIVALENT):
        yield run_mutant(bench, m)
    yield counts_differently()


def matrix(outcomes: Sequence[Outcome], title: str, notes: tuple[str, ...] = ()) -> Table:
    """A row a fault: which layers must notice it, which did, and the verdict."""
    names = ("L1", "stop", "L2", "L3", "L4", "L5", "metric")
    ordered = sorted(outcomes, key=lambda o: (o.is_equivalent, int(o.number.lstrip("E"))))
    shown = [
        {"fault": o.number, "what": o.what, "must be noticed by": ", ".join(o.expected) or "none",
         **{n: "" if n not in o.seen else "seen" if o.seen[n] else "—" for n in names},
         "verdict": ("killed" if o.right else "SURVIVED") if not o.is_equivalent else "not flagged" if o.right else "FLAGGED"}
        for o in ordered
    ]  # fmt: skip
    numbers = [row | {f"{n} ratio": o.ratios.get(n) for n in names[:-1]} for row, o in zip(shown, ordered, strict=True)]
    return Table("mutants", (Section(title, (), pd.DataFrame(shown)),), notes, pd.DataFrame(numbers))
