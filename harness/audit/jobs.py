"""What an audit's plan is made of: jobs, in stages. All of it is data; the loop of `harness.audit.audit` does the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.audit.estimate import Work
from harness.audit.levels import MOST_ROUNDS, Prompt
from harness.audit.probe.findings import Finding
from harness.audit.probe.subject import Subject
from harness.audit.verdicts.verdict import Verdict
from methods.base import SamplerParams

Ids = list[int]
About = dict[str, Any]
"""What a finding is about: its identity in the store, as plain JSON."""


@dataclass(frozen=True, slots=True, eq=False)
class PlainText:
    """What vanilla emits for a prompt. It is made when a job first needs it, and not kept as a finding."""

    prompt: Ids
    params: SamplerParams


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One finding: what it is about, the work it is, and how to make it.

    `make` is called with the loaded model, if `work.dtype` says that one is run, and with `vanilla=ids`, if ids of vanilla stand
    beside the finding. `beside` says where those come from: the control's finding, or a text made for the purpose.
    """

    about: About
    work: Work
    make: Callable[..., Finding]
    beside: Job | PlainText | None = None

    @property
    def is_control(self) -> bool:
        """Whether it is the audit's own control, without which nothing in its dtype can be judged."""
        return self.about["kind"] == "control" and "of" not in self.about

    @property
    def name(self) -> str:
        fields = ("dtype", "kind", "method", "case", "prompt", "repeat")
        return " ".join(str(self.about[field]) for field in fields if field in self.about)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A job of the score test: a sampled output that lanes can make too."""

    job: Job
    prompt: Ids
    params: SamplerParams


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTest:
    """One method's sampled outputs: as many as give `n_tokens`. How many that are shows only as outputs end.

    `sample(repeat, prompt)`: the job of one output, of at most `length` tokens. `n_lanes`: how many can be made at once.
    """

    subject: Subject
    prompts: Sequence[Prompt]
    n_tokens: int
    length: int
    n_lanes: int
    sample: Callable[[int, Prompt], Sample]

    def more(self, n_asked: int, n_made: int) -> list[Sample]:
        """The outputs to make next, after the first `n_asked` gave `n_made` tokens: enough if each uses its whole length."""
        n = -(-max(self.n_tokens - n_made, 0) // self.length)
        last = min(n_asked + n, MOST_ROUNDS * len(self.prompts))
        return [self.sample(*self._output(i)) for i in range(n_asked, last)]

    def _output(self, i: int) -> tuple[int, Prompt]:
        repeat, place = divmod(i, len(self.prompts))
        return repeat, self.prompts[place]

    def tokens_in(self, found: Finding) -> int:
        """An output that raised an error ends the test."""
        return int(found.get("n", self.n_tokens))


@dataclass(frozen=True, slots=True)
class Stage:
    """Findings that are made one after another and judged when all are there. `dtype`: empty where no model is run. `rows`: what
    is known without making anything."""

    name: str
    dtype: str
    jobs: Sequence[Job] = ()
    tests: Sequence[ScoreTest] = ()
    rows: Sequence[Verdict] = ()


Plan = Sequence[Stage]
"""Stages in the order in which they are done."""


def ends_stage(found: Finding) -> bool:
    """Whether the stage's other jobs are not made: a law with too many branches was refused, and they would be refused too."""
    return "refused" in found


def expected(plan: Plan, stored: Callable[[Job], Finding | None]) -> Iterator[Job]:
    """All jobs of a plan, if every output that is not stored uses all its tokens."""
    for stage in plan:
        for job in stage.jobs:
            yield job
            if ends_stage(stored(job) or {}):
                break
        for test in stage.tests:
            asked: list[Sample] = []
            n_made = 0
            while batch := test.more(len(asked), n_made):
                asked += batch
                n_made += sum(test.length if (f := stored(s.job)) is None else test.tokens_in(f) for s in batch)
            yield from (s.job for s in asked)
