"""Crosses methods with prompts on one loaded model: warm up, interleave per prompt, append records, skip what is there.

Vanilla and every method see the same prompt one after another, in an order drawn per prompt, so that drift of the
machine hits both sides of every ratio; one baseline measurement a prompt serves all methods of the run.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import methods
from harness.common import machine as environment
from harness.common.errors import UserError
from harness.common.source_hash import is_same_code
from harness.ledger import ledger as records
from harness.ledger.record import SCHEMA, Record, canonical_hash, cell_key, ids_sha, is_looped, sample_key, text_sha
from harness.ledger.trees import TreeStore
from harness.load.model import Loaded
from harness.run.arms import BASELINE, baseline_arm, check_heads
from harness.run.plan import Cell, RunSpec
from methods import Arm
from methods.base import Generation, SamplerParams
from methods.engine.sampling import stream_key
from tasks import Prompt, PromptSet

WARMUP_TOKENS = 16
FAILURES = Exception  # a method, perhaps a user's own, may fail on one prompt without ending the run


@dataclass(slots=True)
class Runner:
    """Runs a spec into a ledger. `tick(text)` is called before each measured generation, `advance(method)` after it."""

    loaded: Loaded
    spec: RunSpec
    ledger: records.Ledger
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    env_hash: str = ""
    env: dict[str, Any] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    decoders: dict[str, Any] = field(default_factory=dict)
    n_failed: int = 0
    trees: TreeStore | None = None
    treeless: dict[str, Record] = field(default_factory=dict)  # measured without keeping trees, by key

    def __post_init__(self) -> None:
        loaded = self.loaded
        if self.spec.trees:
            self.trees = TreeStore(self.ledger.folder, loaded.piece)
        self.env = environment.describe(
            dtype=loaded.dtype, threads=self.spec.threads, target_sha=loaded.target_sha, head_sha=loaded.head_sha,
            seed=self.spec.seed, n_devices=len(loaded.target.devices), template=loaded.config.template,
            system=loaded.config.system,
        )  # fmt: skip
        check_heads(self.spec.arms, loaded)
        several_turns = [ps for ps in self.spec.prompt_sets if any(len(p.turns) > 1 for p in ps.prompts)]
        for cell in (*self.cells(), *(self._answer_cell(ps) for ps in several_turns)):
            self.ledger.check_machine(cell.key, self.env)
        self.env_hash = self.ledger.write_env(self.env)
        self._warn_of_other_code(self._look())

    # -- what there is to do -------------------------------------------------------------------------------------------

    def arms(self) -> list[Arm]:
        """The methods asked for and, unless the run has no baseline, vanilla."""
        arms = list(self.spec.arms)
        if self.spec.baseline and all(a.name != BASELINE for a in arms):
            arms.insert(0, baseline_arm())
        return arms

    def cells(self) -> list[Cell]:
        return [self._cell(arm, ps, self.spec.temperature) for ps in self.spec.prompt_sets for arm in self.arms()]

    def _cell(self, arm: Arm, prompts: PromptSet, temperature: float) -> Cell:
        key = cell_key(
            model=self.loaded.config.name, target_sha=self.loaded.target_sha, head_sha=self._head_sha(arm),
            prompts_sha=self._prompts_sha(prompts), task=prompts.task, method=arm.name, options=dict(arm.options),
            preset=arm.preset, source=prompts.source, temperature=temperature, top_p=self.spec.top_p, dtype=self.loaded.dtype,
            threads=self.spec.threads, max_new_tokens=self.spec.max_new_tokens, seed=self.spec.seed,
        )  # fmt: skip
        return Cell(arm, prompts, temperature, key)

    def _prompts_sha(self, prompts: PromptSet) -> str:
        """Prompts under another system prompt than the paper's are other prompts: they are not pooled with them."""
        system = self.loaded.config.system
        return prompts.sha256 if system == "paper" else hashlib.sha256(f"{prompts.sha256} {system}".encode()).hexdigest()

    def _answer_cell(self, prompts: PromptSet) -> Cell:
        """Vanilla's greedy answers: what later turns are built from, at any temperature and without a baseline too."""
        return self._cell(baseline_arm(), prompts, 0.0)

    def _head_sha(self, arm: Arm) -> str | None:
        head, frequent = self.loaded.head_sha, self.loaded.frequent_sha
        if arm.method.needs_frequent and head and frequent:
            return hashlib.sha256(f"{head} {frequent}".encode()).hexdigest()
        return self.loaded.sha_of(arm.method.drafter)

    def n_missing(self, planned: set[tuple[str, str, int, int]]) -> dict[str, int]:
        """Generations still to be measured, by method. Turn-2 prompts are not known yet: counted by what is recorded.

        planned: (cell, sample, turn, repeat) that another run of this process measures before; this one's are added.
        """
        done: dict[str, set[tuple[str, int, int]]] = {}
        counted = ("ok", "skipped") if self.spec.on_overflow == "skip" else ("ok",)
        for r in self._recorded():
            if not r["is_warmup"] and r["status"] in counted:
                # after a turn that was skipped there is nothing to build the next one from
                last = r["turn"] if r["status"] == "ok" else r["n_turns"]
                done.setdefault(r["cell"], set()).update((r["sample_id"], t, r["repeat"]) for t in range(r["turn"], last + 1))
        missing: dict[str, int] = {}
        for cell in self.cells():
            wanted = {
                (p.id, t, n) for p in cell.prompts.prompts for t in range(1, len(p.turns) + 1) for n in range(self.spec.repeats)
            }
            todo = {(cell.key, *one) for one in wanted - done.get(cell.key, set())} - planned
            planned |= todo
            missing[cell.arm.name] = missing.get(cell.arm.name, 0) + len(todo)
            missing[cell.arm.name] += sum(
                r["cell"] == cell.key and (r["sample_id"], r["turn"], r["repeat"]) in wanted for r in self.treeless.values()
            )
        return missing

    def n_treeless(self, method: str) -> int:
        """Generations of a method whose trees alone are missing: they are made again, untimed."""
        keys = {c.key for c in self.cells() if c.arm.name == method}
        return sum(r["cell"] in keys for r in self.treeless.values())

    def _look(self) -> list[Any]:
        """Take in what the ledger holds now; -> its records."""
        self.keys = self.ledger.keys(with_skipped=self.spec.on_overflow == "skip")
        recorded = self._recorded()
        for record in recorded:
            self._remember(dict(record))
        if self.trees:
            self.treeless = {
                r["key"]: r for r in recorded
                if r["status"] == "ok" and not r["is_warmup"] and r["key"] not in self.trees.keys
                and r["trace"] and any(r["trace"]["tree_size"])
            }  # fmt: skip
        return recorded

    def _warn_of_other_code(self, recorded: list[Any]) -> None:
        now = {cell.key: methods.code_sha(cell.arm.name) for cell in self.cells()}
        old = {r["method"] for r in recorded if r["cell"] in now and not is_same_code(r.get("code_sha"), now[r["cell"]])}
        if old:
            print(
                f"warning: {self.ledger.folder} holds records of {', '.join(sorted(old))} that were measured with other code; "
                "they are kept and not measured again (another --out measures anew)", file=sys.stderr,
            )  # fmt: skip

    def _recorded(self) -> list[Any]:
        return list(records.read(self.ledger.folder)) if records.has_records(self.ledger.folder) else []

    # -- doing it ------------------------------------------------------------------------------------------------------

    def check_lengths(self) -> None:
        """Find first turns that do not fit before anything is measured, where they are errors.

        Raises:
            UserError: names the prompt and its length.
        """
        if self.spec.on_overflow != "error":
            return
        for prompts in self.spec.prompt_sets:
            for p in prompts.prompts:
                why = self._overflow(p, 1, len(self.loaded.encode(self.loaded.render([("user", p.turns[0])]))))
                if why:
                    raise UserError(f"{why} (--on-overflow skip leaves such prompts out and records it)")

    def _overflow(self, prompt: Prompt, turn: int, n_tokens: int) -> str | None:
        room = self.loaded.config.context_length - self.spec.max_new_tokens
        if n_tokens <= room:
            return None
        return (
            f"prompt {prompt.id} turn {turn} has {n_tokens} tokens; with {self.spec.max_new_tokens} new ones it exceeds the "
            f"context of {self.loaded.config.context_length}"
        )

    def warm_up(self) -> dict[str, float]:
        """A short generation per method (recorded, marked); -> seconds per token of each, for the estimate of time."""
        first = next((p for ps in self.spec.prompt_sets for p in ps.prompts), None)
        rates: dict[str, float] = {}
        if first is None:
            return rates
        prompts = next(ps for ps in self.spec.prompt_sets if first in ps.prompts)
        rendered = self.loaded.render([("user", first.turns[0])])
        ids = self.loaded.encode(rendered)[: max(self.loaded.config.context_length - WARMUP_TOKENS, 1)]
        for arm in self.arms():
            try:
                for n in (4, WARMUP_TOKENS):  # the first run of a method compiles and allocates
                    generation, wall = self._generate(arm, ids, self._params(n, "warm-up", 1, 0, self.spec.temperature))
            except FAILURES:  # told and recorded when it fails on a prompt that counts
                rates[arm.name] = 0.0
                continue
            cell = self._cell(arm, prompts, self.spec.temperature)
            record = self._record(cell, first, 1, 0, rendered, ids, None)
            record |= self._measured(arm, generation, wall) | {
                "is_warmup": True, "max_new_tokens": WARMUP_TOKENS,
                "key": canonical_hash(["warm-up", self.run_id, arm.name, arm.preset]),
            }  # fmt: skip
            self.ledger.append(record)
            decoding = wall - generation.prefill_s if generation.trace else wall
            rate = decoding / max(len(generation.token_ids) - 1, 1)
            rates[arm.name] = max(rates.get(arm.name, 0.0), rate)  # of several trees the slowest
        return rates

    def run(self, tick: Callable[[str], None], advance: Callable[[str], None]) -> int:
        """Measure everything missing; -> number of generations that failed. Ctrl-C drops the one under way.

        Raises:
            UserError: a prompt that does not fit (on_overflow='error'), or the ledger cannot be written.
        """
        self.n_failed = 0
        self._look()  # another run of the same process may have measured since
        for prompts in self.spec.prompt_sets:
            cells = [self._cell(arm, prompts, self.spec.temperature) for arm in self.arms()]
            for prompt in prompts.prompts:
                for repeat in range(self.spec.repeats):
                    for turn in range(1, len(prompt.turns) + 1):
                        self._turn(cells, prompts, prompt, turn, repeat, tick, advance)
        return self.n_failed

    def _turn(
        self, cells: Sequence[Cell], prompts: PromptSet, prompt: Prompt, turn: int, repeat: int,
        tick: Callable[[str], None], advance: Callable[[str], None],
    ) -> None:  # fmt: skip
        dialogue, turn1_sha = [("user", prompt.turns[0])], None
        for earlier in range(1, turn):
            answer = self._answer(prompts, prompt, earlier, dialogue, turn1_sha)
            if answer is None:  # it failed or does not fit: there is nothing to build the next turn from
                return
            dialogue += [("assistant", answer["text"]), ("user", prompt.turns[earlier])]
            turn1_sha = turn1_sha or ids_sha(answer["token_ids"])
        rendered = self.loaded.render(dialogue)
        prompt_sha = text_sha(rendered)
        # the order is a function of the seed and the sample, not of what was measured before
        order = list(cells)
        random.Random(f"{self.spec.seed} {prompts.task} {prompt.id} {turn} {repeat}").shuffle(order)
        keys = {c.key: sample_key(c.key, prompt.id, turn, repeat, prompt_sha) for c in order}
        todo = [c for c in order if keys[c.key] not in self.keys or keys[c.key] in self.treeless]
        if not todo:
            return
        ids = self.loaded.encode(rendered)
        for cell in todo:
            tick(f"{prompts.task} {prompt.id} turn {turn}: {cell.arm.name}")
            if keys[cell.key] in self.keys:
                self._keep_again(cell, self.treeless.pop(keys[cell.key]), ids)
            else:
                record = self._record(cell, prompt, turn, repeat, rendered, ids, turn1_sha)
                self._measure(cell, record, ids, prompt, turn, repeat)
            advance(cell.arm.name)

    def _keep_again(self, cell: Cell, record: Record, ids: list[int]) -> None:
        """The trees of a generation that was measured without keeping them: made again, untimed, if it comes out the same."""
        assert self.trees is not None and record["trace"] is not None
        params = self._params(
            record["max_new_tokens"], record["sample_id"], record["turn"], record["repeat"], cell.temperature, self.spec.trees
        )
        generation, _ = self._generate(cell.arm, ids, params)
        trace, then = generation.trace, record["trace"]
        assert trace is not None
        if (generation.token_ids, trace.tree_size, trace.accepted) == (record["token_ids"], then["tree_size"], then["accepted"]):
            self.trees.add(cell.key, record["key"], generation.token_ids, trace.trees)
        else:
            where = f"{cell.arm.name} on {record['sample_id']} turn {record['turn']}"
            print(f"{where} did not come out as measured (other code or machine): its trees are not kept", file=sys.stderr)

    def _measure(self, cell: Cell, record: dict[str, Any], ids: list[int], prompt: Prompt, turn: int, repeat: int) -> None:
        why = self._overflow(prompt, turn, len(ids))
        if why:
            if self.spec.on_overflow == "error":  # a record that is skipped would not be an error the next time
                self._append(record | {"status": "error", "error": why})
                raise UserError(f"{why} (--on-overflow skip leaves such prompts out and records it)")
            self._append(record | {"status": "skipped", "error": why})
            return
        params = self._params(self.spec.max_new_tokens, prompt.id, turn, repeat, cell.temperature, self.spec.trees)
        try:
            generation, wall = self._generate(cell.arm, ids, params)
        except FAILURES as e:  # a failed prompt is a record with a status and no numbers
            why = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
            self._append(record | {"status": "error", "error": why})
            print(f"{cell.arm.name} failed on {prompt.id} turn {turn}: {why}", file=sys.stderr)
            self.n_failed += 1
            return
        if self.trees and generation.trace and any(generation.trace.tree_size):
            # before the record: a generation whose record a kill prevents is made again, and its trees are there already
            self.trees.add(cell.key, record["key"], generation.token_ids, generation.trace.trees)
        self._append(record | self._measured(cell.arm, generation, wall))

    def _append(self, record: dict[str, Any]) -> None:
        self.ledger.append(record)
        if record["status"] != "error":
            self.keys.add(record["key"])
        self._remember(record)

    def _remember(self, record: dict[str, Any]) -> None:
        """Keep vanilla's answers to all turns but the last: later turns are built from them."""
        if record["method"] == BASELINE and record["turn"] < record["n_turns"] and record["status"] == "ok":
            self.answers[record["key"]] = record

    def _generate(self, arm: Arm, ids: list[int], params: SamplerParams) -> tuple[Generation, float]:
        """One interval around the whole generation: what every ratio is made of."""
        token = f"{arm.name} {arm.options}"
        if token not in self.decoders:
            self.decoders[token] = arm.method.build(**arm.options)
        drafter = self.loaded.drafter_of(arm.method.drafter)
        self.loaded.target.synchronise()
        started = time.perf_counter()
        generation = self.decoders[token](ids, self.loaded.target, drafter, params)
        self.loaded.target.synchronise()
        wall = time.perf_counter() - started
        return generation, wall - (generation.trace.keeping_s if generation.trace else 0.0)

    def _answer(
        self, prompts: PromptSet, prompt: Prompt, turn: int, dialogue: list[tuple[str, str]], turn1_sha: str | None
    ) -> dict[str, Any] | None:
        """Vanilla's greedy answer of the same model, dtype and budget, made once and stored as a record."""
        rendered = self.loaded.render(dialogue)
        cell = self._answer_cell(prompts)
        key = sample_key(cell.key, prompt.id, turn, 0, text_sha(rendered))
        if key not in self.keys:
            ids = self.loaded.encode(rendered)
            self._measure(cell, self._record(cell, prompt, turn, 0, rendered, ids, turn1_sha), ids, prompt, turn, 0)
        return self.answers.get(key)

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

    # -- records -------------------------------------------------------------------------------------------------------

    def _record(
        self, cell: Cell, prompt: Prompt, turn: int, repeat: int, rendered: str, ids: list[int], turn1_sha: str | None
    ) -> dict[str, Any]:
        """A record of a generation not yet made: no numbers."""
        arm, prompts = cell.arm, cell.prompts
        prompt_sha = text_sha(rendered)
        return {
            "schema": SCHEMA, "key": sample_key(cell.key, prompt.id, turn, repeat, prompt_sha), "cell": cell.key,
            "run": self.run_id, "model": self.loaded.config.name, "target_sha": self.loaded.target_sha,
            "head_sha": self._head_sha(arm), "task": prompts.task, "source": prompts.source, "method": arm.name,
            "preset": arm.preset, "exact": arm.method.exact, "options": dict(arm.options), "sample_id": prompt.id,
            "category": prompt.category, "turn": turn, "n_turns": len(prompt.turns), "repeat": repeat, "is_warmup": False,
            "temperature": cell.temperature, "top_p": self.spec.top_p, "dtype": self.loaded.dtype, "threads": self.spec.threads,
            "max_new_tokens": self.spec.max_new_tokens, "seed": self.spec.seed, "token_ids": [], "text": "", "n_prompt": len(ids),
            "n_text_tokens": 0, "n_cut": 0, "looped": False, "finish": None, "wall_s": None, "prefill_s": None, "trace": None,
            "peak_bytes": None, "prompts_sha": prompts.sha256,
            "prompt_sha": prompt_sha, "turn1_sha": turn1_sha, "status": "ok", "error": None,
            "env": self.env_hash, "code_sha": methods.code_sha(arm.name),
        }  # fmt: skip

    def _measured(self, arm: Arm, generation: Generation, wall: float) -> dict[str, Any]:
        trace = generation.trace
        text = self.loaded.decode(generation.token_ids)
        return {
            "token_ids": generation.token_ids,
            "text": text,
            "n_text_tokens": len(self.loaded.encode_text(text)),
            "n_special": len(self.loaded.tokenizer("").input_ids),
            "n_cut": generation.n_cut,
            "looped": is_looped(generation.token_ids),
            "finish": generation.finish,
            "wall_s": wall,
            "prefill_s": generation.prefill_s if trace else None,
            "trace": None if trace is None else {
                "tree_size": trace.tree_size, "accepted": trace.accepted,
                **{k: [round(x, 7) for x in getattr(trace, k)] for k in ("draft_s", "verify_s", "target_s", "drafter_s")},
            },
            "peak_bytes": self.loaded.target.peak_bytes(),
        }  # fmt: skip
