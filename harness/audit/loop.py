"""The loop of an audit: it makes what the store lacks of a stage, and hands every finding of the stage to the keeper."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import methods
from harness.audit.estimate import Progress
from harness.audit.jobs import Ids, Job, PlainText, Plan, Sample, ScoreTest, Stage, ends_stage, expected
from harness.audit.keeper import Finding, Keeper
from harness.audit.probe import findings, lanes
from harness.audit.probe.lanes import LaneJob
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
    _broken: str | None = None  # the dtype whose control raised an error: nothing else of it can be judged

    def lacks(self, plan: Plan, dtype: str) -> bool:
        """Whether any finding of a dtype is to be made."""
        return any(self.keeper.found(job) is None for job in expected([s for s in plan if s.dtype == dtype], self.keeper.found))

    def run(self, stage: Stage, loaded: Loaded | None) -> list[Verdict]:
        """Make what is missing of a stage; -> the rows that need no finding. `loaded`: None if nothing is missing, or the stage
        runs no model."""
        if stage.dtype == self._broken:
            self._drop(expected([stage], self.keeper.found))
            return []
        rows = list(stage.rows)
        for i, job in enumerate(stage.jobs):
            found = self._found(job) or self._made(job, loaded)
            if job.is_control and "error" in found:
                self._broken = stage.dtype
                rows.append(Verdict.missing(f"all of {stage.dtype}", "all", f"plain decoding raised {found['error']}"))
            if self._broken == stage.dtype or ends_stage(found):
                self._drop(stage.jobs[i + 1 :])
                break
            if job.is_control:
                self._texts[job] = found["ids"]
        self._score(stage.tests, loaded)
        self._texts.clear()
        return rows

    def _found(self, job: Job) -> Finding | None:
        found = self.keeper.found(job)
        return None if found is None else self.keeper.touch(found)

    def _made(self, job: Job, loaded: Loaded | None) -> Finding:
        assert loaded is not None or not job.work.dtype
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

    def _vanilla(self, source: Job | PlainText, loaded: Loaded | None) -> Ids:
        if source not in self._texts:
            assert isinstance(source, PlainText) and loaded is not None, "a control is run before what stands beside it"
            plain = methods.get(VANILLA).build()(source.prompt, loaded.target, None, source.params)
            self._texts[source] = plain.token_ids
        return self._texts[source]

    def _score(self, tests: Sequence[ScoreTest], loaded: Loaded | None) -> None:
        """Outputs of every method, round after round, until each has enough tokens."""
        n_asked, n_tokens = dict.fromkeys(tests, 0), dict.fromkeys(tests, 0)
        while True:
            missing = list[tuple[ScoreTest, Sample]]()
            is_over = True
            for test in tests:
                batch = test.more(n_asked[test], n_tokens[test])
                n_asked[test] += len(batch)
                is_over = is_over and not batch
                for sample in batch:
                    if (stored := self._found(sample.job)) is not None:
                        n_tokens[test] += test.tokens_in(stored)
                        continue
                    missing.append((test, sample))
                    if self.keeper.key(sample.job) not in self.planned:
                        self.progress.more(sample.job.work)
            if is_over:
                return
            for test, found in self._samples(missing, loaded):
                n_tokens[test] += test.tokens_in(found)

    def _samples(self, missing: Sequence[tuple[ScoreTest, Sample]], loaded: Loaded | None) -> list[tuple[ScoreTest, Finding]]:
        """The findings of these outputs: those that can be made in lanes together. After an error a method's others are left."""
        made, failed = dict[Sample, Finding](), set[ScoreTest]()
        together = [(test, sample) for test, sample in missing if test.n_lanes > 1]
        last = time.perf_counter()

        def keep(i: int, finding: Finding) -> None:
            nonlocal last
            before, last = last, time.perf_counter()
            made[together[i][1]] = self._keep(together[i][1].job, finding, last - before)

        if together:
            assert loaded is not None
            jobs = [LaneJob(test.subject, sample.prompt, sample.params) for test, sample in together]
            lanes.sampled_in_lanes(loaded, jobs, keep, max(test.n_lanes for test, _ in together))
        for test, sample in missing:
            if test.n_lanes == 1 and test not in failed:
                made[sample] = self._made(sample.job, loaded)
                failed |= {test} if "error" in made[sample] else set()
        self._drop(sample.job for _, sample in missing if sample not in made)
        return [(test, made[sample]) for test, sample in missing if sample in made]
