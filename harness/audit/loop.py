"""The loop of an audit: it makes what the store lacks of a stage, and hands every finding of the stage to the keeper."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import methods
from harness.audit.estimate import Progress
from harness.audit.jobs import Ids, Job, PlainText, Sample, ScoreTest, Stage, expected
from harness.audit.keeper import Finding, Keeper
from harness.audit.probe import findings, lanes
from harness.audit.verdicts.verdict import Verdict
from harness.common.names import VANILLA
from harness.load.model import Loaded


@dataclass
class Loop:
    """`planned`: keys of the findings that `progress` counts. `tell` gets lines on progress."""

    keeper: Keeper
    progress: Progress
    planned: Collection[str]
    tell: Callable[[str], None]
    _texts: dict[Job | PlainText, Ids] = field(default_factory=dict)  # vanilla's ids, by where they come from
    _broken: str = ""  # the dtype whose control raised an error: nothing else of it can be judged

    def run(self, stage: Stage, loaded: Loaded) -> list[Verdict]:
        """Make what is missing of a stage; -> the rows that need no finding."""
        if stage.dtype and stage.dtype == self._broken:
            self._drop(expected([stage], self.keeper.found))
            return []
        rows = list(stage.rows)
        for i, job in enumerate(stage.jobs):
            found = self._found(job) or self._made(job, loaded)
            if job.is_control and "error" in found:
                self._broken = stage.dtype
                rows.append(Verdict.missing(f"all of {stage.dtype}", "all", f"plain decoding raised {found['error']}"))
            # a law that is refused has too many branches: the other cases would be refused after as many
            if self._broken or "refused" in found:
                self._drop(stage.jobs[i + 1 :])
                break
            if job.is_control:
                self._texts[job] = found["ids"]
        for test in stage.tests:
            self._score(test, loaded)
        self._texts.clear()
        return rows

    def _found(self, job: Job) -> Finding | None:
        found = self.keeper.found(job)
        return None if found is None else self.keeper.touch(found)

    def _made(self, job: Job, loaded: Loaded) -> Finding:
        model = (loaded,) if job.work.dtype else ()
        beside = {} if job.beside is None else {"vanilla": self._vanilla(job.beside, loaded)}
        started = time.perf_counter()
        made = findings.guarded(partial(job.make, *model, **beside))
        return self._keep(job, made, time.perf_counter() - started)

    def _keep(self, job: Job, made: Finding, seconds: float) -> Finding:
        found = self.keeper.keep(job, made, seconds)
        self.progress.made(job.work)
        if "error" in found:
            self.tell(f"{job.name} raised {found['error']}")
        if line := self.progress.line(job.name):
            self.tell(line)
        return found

    def _drop(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if self.keeper.found(job) is None:
                self.progress.dropped(job.work)

    def _vanilla(self, source: Job | PlainText, loaded: Loaded) -> Ids:
        if source not in self._texts:
            assert isinstance(source, PlainText), "a control is run before what stands beside it"
            plain = methods.get(VANILLA).build()(source.prompt, loaded.target, None, source.params)
            self._texts[source] = plain.token_ids
        return self._texts[source]

    def _score(self, test: ScoreTest, loaded: Loaded) -> None:
        """Outputs of one method, until there are enough tokens."""
        n_asked = n_tokens = 0
        while batch := test.more(n_asked, n_tokens):
            n_asked += len(batch)
            n_tokens += sum(map(test.tokens_in, self._samples(test, batch, loaded)))

    def _samples(self, test: ScoreTest, batch: Sequence[Sample], loaded: Loaded) -> list[Finding]:
        """The findings of these outputs; fewer if one raises an error."""
        found, missing = list[Finding](), list[Sample]()
        for sample in batch:
            if (stored := self._found(sample.job)) is not None:
                found.append(stored)
                continue
            missing.append(sample)
            if self.keeper.key(sample.job) not in self.planned:
                self.progress.more(sample.job.work)
        if test.n_lanes == 1:
            for i, sample in enumerate(missing):
                found.append(self._made(sample.job, loaded))
                if "error" in found[-1]:
                    self._drop(s.job for s in missing[i + 1 :])
                    break
        elif missing:
            last = time.perf_counter()

            def made(i: int, finding: Finding) -> None:
                nonlocal last
                before, last = last, time.perf_counter()
                found.append(self._keep(missing[i].job, finding, last - before))

            lanes.sampled_in_lanes(loaded, test.subject, [(s.prompt, s.params) for s in missing], made, test.n_lanes)
        return found
