"""The loop of a run: warm up, decode what the plan lacks, append records. It can be stopped and started again at any point.

Vanilla and every method see the same prompt one after another, in an order drawn per prompt. Drift of the machine hits both
sides of every ratio; one baseline measurement a prompt serves all methods of the run.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import methods
from harness.common import machine
from harness.common.errors import UserError, in_one_line, say
from harness.ledger.checked import record_of
from harness.ledger.record import Record, ids_sha, sample_key, text_sha, warm_up_key
from harness.ledger.sink import Sink
from harness.load.model import Loaded
from harness.run.arms import check_heads
from harness.run.new_record import Clocked, RunFacts, measured, new_record
from harness.run.plan import Cell, Plan, Recorded, RunSpec, Step, Talk
from harness.watch import originals
from harness.watch.run import ModeChanged, built, names_of, settled
from methods import Arm
from methods.base import SamplerParams
from methods.engine.engines import begin, prepare
from methods.engine.sampling import stream_key
from methods.servers.answer import EngineGone
from tasks import Prompt

WARMUP_TOKENS = 16
FAILURES = Exception  # of a method, perhaps a user's own, on one prompt; its sys.exit() is one too (`users_code`)


def _unreadable(record: Mapping[str, Any]) -> str | None:
    """Why a record would be left out by whoever reads it; None where it would not."""
    try:
        record_of(json.dumps(record, allow_nan=False).encode(), imported=False)
    except ValueError as e:
        return f"its record would not be read: {e}"
    return None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn's prompt, ready to be decoded. `turn1_sha`: of the first answer, which a later turn is built from."""

    prompt: Prompt
    turn: int
    repeat: int
    rendered: str
    ids: list[int]
    turn1_sha: str | None


class Runner:
    """Carries out a run's plan on one loaded model, into one ledger, or into what stands in for it.

    Raises:
        UserError: the loaded heads cannot draft an arm's tree, the ledger's cells are of another machine, or a user's file
            replaced code of this repository.
    """

    def __init__(self, loaded: Loaded, spec: RunSpec, ledger: Sink) -> None:
        check_heads(spec.arms, loaded)
        if replaced := originals.replaced():
            raise UserError(replaced[0])
        self.loaded, self.spec, self.ledger = loaded, spec, ledger
        self.plan = Plan.of(spec, loaded)
        self.recorded: Recorded
        self._describe()
        self._trees = ledger.trees(loaded.piece) if spec.trees else None
        self._whole: dict[str, Record] | None = None
        self.n_failed = 0
        self._longest = 0  # tokens of a prompt and its answer, at most
        self._tell_of_changes(self.look())

    def _describe(self) -> None:
        """Note what the run is measured on.

        Raises:
            UserError: the ledger's cells are of another machine.
        """
        loaded, spec = self.loaded, self.spec
        self.env = machine.describe(
            dtype=loaded.dtype, threads=spec.threads, target_sha=loaded.target_sha, target_parts=loaded.identity.parts,
            head_sha=loaded.head_sha, engine_sha=methods.engine_sha(), seed=spec.seed, n_devices=len(loaded.target.devices),
            template=loaded.config.template, system=loaded.config.system, is_row_invariant=loaded.target.is_row_invariant,
            engine_facts=loaded.target.engine_facts,
        )  # fmt: skip
        for cell in self.plan.cells_written():
            self.ledger.check_machine(cell.key, self.env)
        self._facts = RunFacts(uuid.uuid4().hex[:12], self.ledger.write_env(self.env))

    @property
    def shown(self) -> dict[str | None, dict[str, Any]]:
        """What shows on loading only, as records have it: of the target under None, of each drafter under its kind."""
        loaded = self.loaded
        target = {"target_sha": loaded.target_sha, "target_id": loaded.identity.id, "dtype": loaded.dtype}
        heads: dict[str | None, dict[str, Any]]
        heads = {kind: {"head_sha": loaded.sha_of(kind), "head_id": loaded.drafter_id(kind)}
                 for kind in methods.DRAFTERS if loaded.sha_of(kind) is not None}  # fmt: skip
        return {None: target, **heads}

    def look(self) -> list[Record]:
        """Take in what the ledger holds now, and return it: another run of the same process may have added to it."""
        self._whole = None
        self.recorded = Recorded.of(self.ledger.records, self.spec, self._trees.keys if self._trees else None)
        return self.ledger.records

    def _tell_of_changes(self, records: Sequence[Record]) -> None:
        """What is measured anew here although the folder holds records of it."""
        own, parts = [r for r in records if r["model"] == self.loaded.config.name], self.loaded.identity.parts
        others = [r["target_parts"] or {} for r in own if r["target_id"] != self.loaded.identity.id]
        if others:
            differ = ", ".join(name for name in parts if any(other.get(name) != parts[name] for other in others))
            say(f"note: {self.ledger.folder} holds records of another {self.loaded.config.name} ({differ}); "
                "they are kept, and this one is measured beside them")  # fmt: skip
        now = {(cell.arm.name, cell.prompts.task): methods.code_sha(cell.arm.name) for cell in self.plan.cells}
        old = {r["method"] for r in records if r["code_sha"] != now.get((r["method"], r["task"]), r["code_sha"])}
        if old:
            say(f"note: {self.ledger.folder} holds records of {', '.join(sorted(old))} that were measured with other code; "
                "they are kept, and measured anew beside them")  # fmt: skip

    # ---- before anything is timed ----

    def check_prompts(self) -> None:
        """Find turns that have other ids than sentencepiece's, or, where that is an error, may not fit: before anything is
        measured. A later turn has the answers before it, each of as many tokens as the budget allows.

        Steps are recorded for texts of up to the longest (`warm_up`).

        Raises:
            UserError: names the prompt, and its length or its first wrong id.
        """
        for prompts in self.spec.prompt_sets:
            for p in self.spec.conversations(prompts):
                dialogue: list[tuple[str, str]] = []
                for i, turn in enumerate(p.turns):
                    dialogue.append(("user", turn))
                    n = len(self._encoded(p, i + 1, self.loaded.render(dialogue)))
                    self._longest = max(self._longest, n + (i + 1) * self.spec.max_new_tokens)
                    why = self._overflow(p, i + 1, n, i * self.spec.max_new_tokens)
                    if why and self.spec.on_overflow == "error":
                        raise UserError(f"{why} (--on-overflow skip leaves such prompts out and records it)")
                    dialogue.append(("assistant", ""))

    def warm_up(self) -> dict[str, float]:
        """A short generation per method (recorded, marked); -> seconds per token of each, for the estimate of time.

        Then whatever their steps replay is recorded for texts of all lengths to come, so that no step that counts has to. Where
        that is refused the run is one of steps launched call by call from here on, and its records say so.

        Raises:
            UserError: it is refused, and the ledger's cells were measured with it; or an engine elsewhere does not answer.
        """
        first = next(((ps, p) for ps in self.spec.prompt_sets for p in self.spec.conversations(ps)), None)
        rates: dict[str, float] = {}
        if first is None:
            return rates
        prompts, prompt = first
        rendered = self.loaded.render([("user", prompt.turns[0])])
        ids = self.loaded.encode(rendered)[: max(self.loaded.config.context_length - WARMUP_TOKENS, 1)]
        turn = Turn(prompt, 1, 0, rendered, ids, None)
        drafters = [one.drafter for one in self.loaded.drafters.values()]
        begin(self.loaded.target, drafters)
        warm: list[tuple[Cell, Clocked]] = []
        for cell in (c for c in self.plan.cells if c.prompts is prompts):
            arm = cell.arm
            try:
                for n in (4, WARMUP_TOKENS):  # the first run of a method compiles and allocates
                    made = self._generate(arm, ids, self._params(n, "warm-up", 1, 0, self.spec.temperature))
            except EngineGone as e:
                raise UserError(f"{arm.name} on {prompt.id} turn 1, warming up: {e}") from None
            except FAILURES:  # told and recorded when it fails on a prompt that counts
                rates[arm.name] = 0.0
                continue
            warm.append((cell, made))
            generation = made.generation
            decoding = made.wall_s - generation.prefill_s if generation.trace else made.wall_s
            rate = decoding / max(len(generation.token_ids) - 1, 1)
            rates[arm.name] = max(rates.get(arm.name, 0.0), rate)  # of several trees the slowest
        prepare(self.loaded.target, drafters, min(self._longest, self.loaded.config.context_length))
        if self.env.get("mode") != self.loaded.target.engine_facts.get("mode"):
            self._describe()
        for cell, made in warm:
            self.ledger.append(self._record(cell, turn) | measured(self.loaded, made) | {
                "is_warmup": True, "max_new_tokens": WARMUP_TOKENS,
                "key": warm_up_key(self._facts.run_id, cell.arm.name, cell.arm.preset),
            })  # fmt: skip
        return rates

    # ---- the loop ----

    def run(
        self, tick: Callable[[str], None], advance: Callable[[str], None], only: Collection[Talk] | None = None,
        begins: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> int:  # fmt: skip
        """Measure everything missing; -> the number of generations that failed. Ctrl-C drops the one under way.

        tick: called with a text before each generation. advance: called with the method's name after it. only: these
        conversations. begins: called with the records, still without numbers, of the generations that follow for a turn.

        Raises:
            UserError: a prompt that does not fit (on_overflow='error'), or the ledger cannot be written.
        """
        self.look()
        self.n_failed = 0
        for step in self.plan.steps(only):
            self._step(step, tick, advance, begins)
        return self.n_failed

    def _step(
        self, step: Step, tick: Callable[[str], None], advance: Callable[[str], None],
        begins: Callable[[list[dict[str, Any]]], None] | None,
    ) -> None:  # fmt: skip
        found = self._prompt_of(step)
        if found is None:
            return
        rendered, turn1_sha = found
        sha, recorded = text_sha(rendered), self.recorded
        keys = {cell.key: sample_key(cell.key, step.prompt.id, step.turn, step.repeat, sha) for cell in step.cells}
        todo = [c for c in step.cells if keys[c.key] not in recorded.keys or keys[c.key] in recorded.treeless]
        if not todo:
            return
        turn = Turn(step.prompt, step.turn, step.repeat, rendered, self._encoded(step.prompt, step.turn, rendered), turn1_sha)
        if begins is not None:
            begins([self._record(cell, turn) for cell in todo if keys[cell.key] not in recorded.keys])
        for cell in todo:
            tick(f"{step.prompts.task} {step.prompt.id} turn {step.turn}: {cell.arm.name}")
            if keys[cell.key] in recorded.keys:
                self._keep_trees_of(cell, recorded.treeless.pop(keys[cell.key]), turn.ids)
            else:
                self._measure(cell, turn)
            advance(cell.arm.name)

    def _prompt_of(self, step: Step) -> tuple[str, str | None] | None:
        """A step's prompt as text, and the hash of the first answer in it; None where an earlier answer is lacking."""
        dialogue: list[tuple[str, str]] = [("user", step.prompt.turns[0])]
        turn1_sha = None
        for earlier in range(1, step.turn):
            answer = self._answer(step, earlier, self.loaded.render(dialogue), turn1_sha)
            if answer is None:
                return None
            dialogue += [("assistant", answer["text"]), ("user", step.prompt.turns[earlier])]
            turn1_sha = turn1_sha or ids_sha(list(answer["token_ids"]))
        return self.loaded.render(dialogue), turn1_sha

    def _answer(self, step: Step, turn: int, rendered: str, turn1_sha: str | None) -> Record | None:
        """Vanilla's greedy answer of the same model, dtype and budget, made once and stored as a record."""
        key = sample_key(step.answers.key, step.prompt.id, turn, 0, text_sha(rendered))
        if key not in self.recorded.keys:
            ids = self._encoded(step.prompt, turn, rendered)
            self._measure(step.answers, Turn(step.prompt, turn, 0, rendered, ids, turn1_sha))
        return self.recorded.answers.get(key)

    def _measure(self, cell: Cell, turn: Turn) -> None:
        """Decode, time and record one generation. A failed prompt is a record with a status and no numbers."""
        record, prompt = self._record(cell, turn), turn.prompt
        why = self._overflow(prompt, turn.turn, len(turn.ids))
        if why:
            if self.spec.on_overflow == "error":  # a record that is skipped would not be an error the next time
                self._append(record | {"status": "error", "error": why})
                raise UserError(f"{why} (--on-overflow skip leaves such prompts out and records it)")
            self._append(record | {"status": "skipped", "error": why})
            return
        params = self._params(
            self.spec.max_new_tokens, prompt.id, turn.turn, turn.repeat, cell.temperature, self.spec.trees
        )  # fmt: skip
        try:
            made = self._generate(cell.arm, turn.ids, params)
        except ModeChanged:
            raise
        except EngineGone as e:  # whatever is asked after it fails as well
            self._append(record | {"status": "error", "error": str(e)})
            raise UserError(f"{cell.arm.name} on {prompt.id} turn {turn.turn}: {e}; the records written are whole, and the same "
                            "command goes on from here") from None  # fmt: skip
        except FAILURES as e:
            self._fail(record, cell, turn, in_one_line(e))
            return
        trace, whole = made.generation.trace, record | measured(self.loaded, made)
        if why := _unreadable(whole):
            self._fail(record, cell, turn, why)
            return
        if self._trees and trace and any(trace.tree_size):
            # before the record: a generation whose record a kill prevents is made again, and its trees are there already
            self._trees.add(cell.key, record["key"], made.generation.token_ids, trace.trees)
        self._append(whole)

    def _fail(self, record: dict[str, Any], cell: Cell, turn: Turn, why: str) -> None:
        self._append(record | {"status": "error", "error": why})
        print(f"{cell.arm.name} failed on {turn.prompt.id} turn {turn.turn}: {why}", file=sys.stderr)
        self.n_failed += 1

    def _keep_trees_of(self, cell: Cell, record: Record, ids: list[int]) -> None:
        """If trees were not kept, the generation is repeated off the clock; its trees are kept only if the output is
        identical."""
        assert self._trees is not None
        if self._whole is None:  # what the ledger holds in memory has no traces
            self._whole = self.ledger.whole({record["key"], *self.recorded.treeless})
        params = self._params(
            record["max_new_tokens"], record["sample_id"], record["turn"], record["repeat"], cell.temperature, self.spec.trees
        )
        generation, then = self._generate(cell.arm, ids, params).generation, self._whole[record["key"]]["trace"]
        trace = generation.trace
        assert trace is not None and then is not None
        was = list(record["token_ids"]), then["tree_size"], then["accepted"]
        if (generation.token_ids, trace.tree_size, trace.accepted) == was:
            self._trees.add(cell.key, record["key"], generation.token_ids, trace.trees)
        else:
            where = f"{cell.arm.name} on {record['sample_id']} turn {record['turn']}"
            print(f"{where} did not come out as measured (other code or machine): its trees are not kept", file=sys.stderr)

    def _generate(self, arm: Arm, ids: list[int], params: SamplerParams) -> Clocked:
        """One interval around the whole generation: what every ratio is made of.

        The decode is built anew each time, off the clock: what it learnt from one prompt cannot serve another.
        """
        m, loaded = arm.method, self.loaded
        drafter, names = loaded.drafter_of(m.drafter), names_of(loaded, m.drafter)
        made = settled(
            partial(built, m, arm.options, loaded.target), ids, loaded.target, drafter, params, names, external=m.external
        )  # fmt: skip
        return Clocked(made.generation, made.wall_s, made.cpu_s, os.getloadavg()[0], made.peak_bytes)

    # ---- records ----

    def _append(self, record: dict[str, Any]) -> None:
        self.ledger.append(record)
        self.recorded.add(cast(Record, record))

    def _record(self, cell: Cell, turn: Turn) -> dict[str, Any]:
        return new_record(
            self.loaded, self.spec, cell, self._facts, turn.prompt, turn=turn.turn, repeat=turn.repeat, rendered=turn.rendered,
            n_prompt=len(turn.ids), turn1_sha=turn.turn1_sha,
        )  # fmt: skip

    def _encoded(self, prompt: Prompt, turn: int, rendered: str) -> list[int]:
        return self.loaded.encode(rendered, f"prompt {prompt.id} turn {turn}")

    def _overflow(self, prompt: Prompt, turn: int, n_tokens: int, n_answers: int = 0) -> str | None:
        """Why a prompt does not fit with its budget, if it does not. n_answers: tokens that answers to come may add to it."""
        room = self.loaded.config.context_length - self.spec.max_new_tokens
        if n_tokens + n_answers <= room:
            return None
        has = f"may have {n_tokens + n_answers} tokens, {n_answers} of them answers" if n_answers else f"has {n_tokens} tokens"
        return (
            f"prompt {prompt.id} turn {turn} {has}; with {self.spec.max_new_tokens} new ones it exceeds the "
            f"context of {self.loaded.config.context_length}"
        )

    def _params(
        self, max_new_tokens: int, sample_id: str, turn: int, repeat: int, temperature: float, keep_trees: bool = False
    ) -> SamplerParams:
        return SamplerParams(
            max_new_tokens=max_new_tokens,
            stop_ids=frozenset(self.loaded.config.stop_ids),
            temperature=temperature,
            top_p=self.spec.top_p,
            key=stream_key(self.spec.seed, sample_id, turn, repeat),
            keep_trees=keep_trees,
        )
