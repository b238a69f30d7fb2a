"""Runs the planted faults through the layers. Every layer that must notice a fault does; none flags an equivalent change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import pandas as pd

import methods
from harness.audit.faults.faults import EQUIVALENT, MUTANTS, Mutant
from harness.audit.faults.metric import equal_arms, seen_when_recounted
from harness.audit.figures import draw_mutants
from harness.audit.levels import SCORE_LONGEST, bundled
from harness.audit.prepare import load_in
from harness.audit.probe import findings, lanes, law
from harness.audit.probe.lanes import LaneJob
from harness.audit.probe.subject import Subject
from harness.audit.request import FaultsRequest
from harness.audit.verdicts.acceptance import acceptance_verdicts
from harness.audit.verdicts.greedy import greedy_verdicts
from harness.audit.verdicts.law import law_verdicts, stop_verdicts
from harness.audit.verdicts.replay import controls, replay_verdicts
from harness.audit.verdicts.sampling import score_verdicts
from harness.audit.verdicts.verdict import Finding, Verdict
from harness.common.errors import UserError, say
from harness.common.files import write_file
from harness.forms.table import Section, Table, csv, markdown
from harness.load.config import model_config
from harness.load.model import Loaded
from methods.base import SamplerParams
from methods.engine.sampling import stream_key

METRIC = "26"  # a fault of a metric, not of a method: the baseline's tokens are counted in another way
LAW_TOKENS = 3
SCORE_TOKENS = {"quick": 1500, "full": 6000}
MORE_TOKENS = 4  # times as many, for a fault that the first ones do not show
FAULTS = {m.number for m in MUTANTS}


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
    """A model in float32, prompts, and what healthy runs show on it.

    `n_tokens`: sampled tokens of a mutant in layer 4. A fault that they do not show gets `MORE_TOKENS` times as many.
    """

    loaded: Loaded
    prompts: Sequence[list[int]]
    n_tokens: int
    level: str = "full"
    new_tokens: int = 32
    width: int = 30

    def __post_init__(self) -> None:
        self.greedy = SamplerParams(self.new_tokens, frozenset(self.loaded.config.stop_ids))
        self.healthy = Subject.of(methods.get("eagle2"), self.loaded.config)
        self._greedy: dict[str, list[Finding]] = {}

    @cached_property
    def control(self) -> list[Finding]:
        made = (findings.control_finding(self.loaded, ids, self.greedy, self.width) for ids in self.prompts)
        return [{**f, "kind": "control", "dtype": "float32", "method": "vanilla"} for f in made]

    def runs(self, s: Subject) -> list[Finding]:
        """Greedy findings on every prompt. They are made once."""
        if s.name not in self._greedy:
            self._greedy[s.name] = [
                {"kind": "greedy", "dtype": "float32", "method": s.name, "prompt": str(i),
                 **findings.guarded(partial(findings.greedy_finding, self.loaded, s, ids, self.greedy, plain["ids"]))}
                for i, (ids, plain) in enumerate(zip(self.prompts, self.control, strict=True))
            ]  # fmt: skip
        return self._greedy[s.name]

    def l1(self, s: Subject) -> Look:
        look = Look()
        for tree, case in law.walks(list(s.small), law.cases(LAW_TOKENS, self.level, s.samples_drafts), self.level):
            f = findings.guarded(partial(findings.law_finding, s, tree, case))
            seen = Look.of(law_verdicts([{"kind": "law", "method": s.name, "case": case.name, **f}]))
            look = max(look, seen, key=lambda x: x.ratio)
            if seen.what is not None:
                break
        return look

    def l2(self, s: Subject) -> Look:
        return Look.of(replay_verdicts(self.runs(s), controls(self.control)))

    def l3(self, s: Subject) -> Look:
        return Look.of(greedy_verdicts(self.runs(s), controls(self.control)))

    def l4(self, s: Subject, temperature: float = 1.0) -> Look:
        made, n, repeat = list[Finding](), 0, 0

        def keep(_: int, f: Finding) -> None:
            nonlocal n
            made.append({"kind": "sampled", "dtype": "float32", "method": s.name, **f})
            n += f.get("n", self.n_tokens)

        # on some models so few tokens do not show a small fault: what must be found is looked for in more of them
        most = self.n_tokens * (MORE_TOKENS if s.name in FAULTS else 1)
        look = Look()
        while n < most and look.what is None:
            wanted = n + self.n_tokens
            while n < wanted:
                jobs = [
                    (ids, replace(self.greedy, temperature=temperature, key=stream_key(3, f"{i}", 1, repeat)))
                    for i, ids in enumerate(self.prompts)
                ]
                if lanes.can_run_in_lanes(self.loaded, s):
                    lanes.sampled_in_lanes(self.loaded, [LaneJob(s, *job) for job in jobs], keep)
                else:
                    for i, job in enumerate(jobs):
                        keep(i, findings.guarded(partial(findings.sampled_finding, self.loaded, s, *job)))
                repeat += 1
            look = Look.of(score_verdicts(made))
        return look

    def stop_rule(self, s: Subject) -> Look:
        f = findings.guarded(partial(findings.stop_finding, s))
        return Look.of(stop_verdicts([{"kind": "stop", "method": s.name, **f}]))

    def l5(self, s: Subject) -> Look:
        recorded = {(s.name, f["prompt"]): f for f in self.runs(self.healthy)}
        return Look.of(acceptance_verdicts(self.runs(s), recorded))

    def layers(self) -> dict[str, Callable[[Subject], Look]]:
        return {"L1": self.l1, "stop": self.stop_rule, "L2": self.l2, "L3": self.l3, "L4": self.l4, "L5": self.l5}


def run_mutant(bench: Bench, m: Mutant) -> Outcome:
    """Run a mutant through the layers that must notice it; an equivalent one through all that look at the output."""
    layers, s = bench.layers(), m.subject()
    layers["L4"] = partial(bench.l4, temperature=m.temperature)
    looks = {name: layers[name](s) for name in m.killers or ("L1", "stop", "L2", "L3", "L4")}
    seen, ratios = {name: look.what for name, look in looks.items()}, {name: look.ratio for name, look in looks.items()}
    return Outcome(m.number, m.what, m.killers, seen, ratios)


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
        UserError: the model has no draft head, or no prompt fits it.
    """
    config = model_config(request.model)
    tell(f"loading {config.title} in float32 ...")
    loaded = load_in(config, "float32", request.head, request.n_threads)
    if loaded.drafter is None:
        raise UserError(f"model {config.name} has no draft head: faults are planted in methods that draft with one")
    prompts = [ids for _, ids in bundled(loaded, 6 if request.level == "quick" else 12, 100, longest=SCORE_LONGEST)]
    if not prompts:
        raise UserError(f"no bundled prompt of at most {SCORE_LONGEST} tokens fits model {config.name}")
    outcomes = []
    for outcome in all_outcomes(Bench(loaded, prompts, SCORE_TOKENS[request.level], request.level)):
        outcomes.append(outcome)
        seen = "; ".join(f"{layer}: {what}" for layer, what in outcome.seen.items() if what)
        tell(f"{outcome.number:>3} {outcome.what}: {seen or 'not noticed'}")
    faults = [o for o in outcomes if not o.is_equivalent]
    equivalent = [o for o in outcomes if o.is_equivalent]
    killed, flagged = sum(o.right for o in faults), sum(not o.right for o in equivalent)
    score = f"killed {killed}/{len(faults)}; equivalent mutants flagged {flagged}/{len(equivalent)}"
    survived = [o.wrong for o in outcomes if not o.right]
    table = matrix(outcomes, f"Planted faults: {config.title}, level {request.level}", (score, *survived))
    for name, text in (("mutants.md", markdown(table)), ("mutants.csv", csv(table))):
        write_file(request.out / name, text)
    draw_mutants(request.out, table.numbers)
    return Planted(outcomes, survived, score, table)


def all_outcomes(bench: Bench) -> Iterator[Outcome]:
    """Of every fault, every equivalent change, and the fault of the metric."""
    for m in (*MUTANTS, *EQUIVALENT):
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
