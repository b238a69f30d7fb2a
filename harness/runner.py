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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import methods
from harness import environment, records
from harness.errors import UserError
from harness.loading import Loaded, ids_sha
from methods.base import Generation, SamplerParams
from methods.engine.sampling import stream_key
from tasks import Prompt, PromptSet

BASELINE = "vanilla"
WARMUP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Arm:
    """One method with the options in force."""

    method: methods.Method
    preset: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.method.name


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What one `harness run` asks for."""

    arms: tuple[Arm, ...]
    prompt_sets: tuple[PromptSet, ...]
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    repeats: int
    threads: int
    baseline: bool
    on_overflow: str  # error | skip


@dataclass(slots=True)
class Cell:
    """An arm on a task at a temperature: what one cell key names."""

    arm: Arm
    prompts: PromptSet
    temperature: float
    key: str


@dataclass(slots=True)
class Runner:
    """Runs a spec into a ledger. `tick(text)` is called before and after each measured generation, for progress."""

    loaded: Loaded
    spec: RunSpec
    ledger: records.Ledger
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    env_hash: str = ""
    env: dict[str, Any] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    turn1: dict[str, dict[str, Any]] = field(default_factory=dict)
    decoders: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loaded = self.loaded
        self.env = environment.describe(
            dtype=loaded.dtype, threads=self.spec.threads, target_sha=loaded.target_sha, head_sha=loaded.head_sha,
            seed=self.spec.seed,
        )  # fmt: skip
        for cell in self.cells():
            self.ledger.check_machine(cell.key, self.env)
        self.env_hash = self.ledger.write_env(self.env)
        self.keys = self.ledger.keys()

    # -- what there is to do -------------------------------------------------------------------------------------------

    def arms(self) -> list[Arm]:
        """The methods asked for and, unless the run has no baseline, vanilla."""
        arms = list(self.spec.arms)
        if self.spec.baseline and all(a.name != BASELINE for a in arms):
            arms.insert(0, _baseline_arm())
        return arms

    def cells(self) -> list[Cell]:
        return [self._cell(arm, ps, self.spec.temperature) for ps in self.spec.prompt_sets for arm in self.arms()]

    def _cell(self, arm: Arm, prompts: PromptSet, temperature: float) -> Cell:
        key = records.cell_key(
            model=self.loaded.config.name, target_sha=self.loaded.target_sha, head_sha=self._head_sha(arm),
            prompts_sha=prompts.sha256, task=prompts.task, method=arm.name, options=dict(arm.options), preset=arm.preset,
            source=prompts.source, temperature=temperature, top_p=self.spec.top_p, dtype=self.loaded.dtype,
            threads=self.spec.threads, max_new_tokens=self.spec.max_new_tokens, seed=self.spec.seed,
        )  # fmt: skip
        return Cell(arm, prompts, temperature, key)

    def _head_sha(self, arm: Arm) -> str | None:
        return self.loaded.head_sha if arm.method.needs_head else None

    def n_missing(self) -> dict[str, int]:
        """Generations still to be measured, by method. Turn-2 prompts are not known yet: counted by what is recorded."""
        done: dict[str, set[tuple[str, int, int]]] = {}
        for r in self._recorded():
            if not r["is_warmup"] and r["status"] in ("ok", "skipped"):
                done.setdefault(r["cell"], set()).add((r["sample_id"], r["turn"], r["repeat"]))
        missing: dict[str, int] = {}
        for cell in self.cells():
            wanted = {
                (p.id, t, n)
                for p in cell.prompts.prompts
                for t in range(1, len(p.turns) + 1)
                for n in range(self.spec.repeats)
            }
            missing[cell.arm.name] = missing.get(cell.arm.name, 0) + len(wanted - done.get(cell.key, set()))
        return missing

    def _recorded(self) -> list[Any]:
        path = self.ledger.folder / records.RECORDS
        return list(records.read(self.ledger.folder)) if path.exists() and path.stat().st_size else []

    # -- doing it ------------------------------------------------------------------------------------------------------

    def warm_up(self) -> dict[str, float]:
        """A short generation per method (recorded, marked); -> seconds per token of each, for the estimate of time."""
        first = next((p for ps in self.spec.prompt_sets for p in ps.prompts), None)
        rates: dict[str, float] = {}
        if first is None:
            return rates
        prompts = next(ps for ps in self.spec.prompt_sets if first in ps.prompts)
        ids = self.loaded.encode(self.loaded.render([("user", first.turns[0])]))
        for arm in self.arms():
            for n in (4, WARMUP_TOKENS):  # the first run of a method compiles and allocates
                generation, wall = self._generate(arm, ids, self._params(n, "warm-up", 1, 0, self.spec.temperature))
            cell = self._cell(arm, prompts, self.spec.temperature)
            record = self._record(cell, first, 1, 0, self.loaded.render([("user", first.turns[0])]), ids, None)
            record |= self._measured(arm, generation, wall) | {
                "is_warmup": True, "max_new_tokens": WARMUP_TOKENS,
                "key": records.canonical_hash(["warm-up", self.run_id, arm.name]),
            }  # fmt: skip
            self.ledger.append(record)
            rates[arm.name] = (wall - generation.prefill_s if generation.trace else wall) / max(
                len(generation.token_ids) - 1, 1
            )
        return rates

    def run(self, tick: Callable[[str], None], advance: Callable[[str], None]) -> int:
        """Measure everything missing; -> number of generations that failed. Ctrl-C drops the one under way.

        Raises:
            UserError: a prompt that does not fit (on_overflow='error'), or the ledger cannot be written.
        """
        failed = 0
        for prompts in self.spec.prompt_sets:
            cells = [self._cell(arm, prompts, self.spec.temperature) for arm in self.arms()]
            for prompt in prompts.prompts:
                for repeat in range(self.spec.repeats):
                    for turn in range(1, len(prompt.turns) + 1):
                        failed += self._turn(cells, prompts, prompt, turn, repeat, tick, advance)
        return failed

    def _turn(
        self, cells: Sequence[Cell], prompts: PromptSet, prompt: Prompt, turn: int, repeat: int,
        tick: Callable[[str], None], advance: Callable[[str], None],
    ) -> int:  # fmt: skip
        failed = 0
        history: list[tuple[str, str]] = []
        turn1_sha = None
        if turn > 1:
            first = self._turn1(prompts, prompt)
            if first is None:  # turn 1 failed or does not fit: there is nothing to build turn 2 from
                return 0
            history = [("user", prompt.turns[0]), ("assistant", first["text"])]
            turn1_sha = ids_sha(first["token_ids"])
        rendered = self.loaded.render([*history, ("user", prompt.turns[turn - 1])])
        prompt_sha = _sha(rendered)
        todo = [c for c in cells if records.sample_key(c.key, prompt.id, turn, repeat, prompt_sha) not in self.keys]
        # the order is a function of the seed and the sample, not of what was measured before
        random.Random(f"{self.spec.seed} {prompts.task} {prompt.id} {turn} {repeat}").shuffle(todo)
        if not todo:
            return 0
        ids = self.loaded.encode(rendered)
        for cell in todo:
            tick(f"{prompts.task} {prompt.id} turn {turn}: {cell.arm.name}")
            record = self._record(cell, prompt, turn, repeat, rendered, ids, turn1_sha)
            failed += self._measure(cell, record, ids, prompt, turn, repeat)
            advance(cell.arm.name)
        return failed

    def _measure(
        self, cell: Cell, record: dict[str, Any], ids: list[int], prompt: Prompt, turn: int, repeat: int
    ) -> int:
        room = self.loaded.config.context_length - self.spec.max_new_tokens
        if len(ids) > room:
            why = (
                f"prompt {prompt.id} turn {turn} has {len(ids)} tokens; with {self.spec.max_new_tokens} new ones it exceeds the "
                f"context of {self.loaded.config.context_length}"
            )
            self._append(record | {"status": "skipped", "error": why})
            if self.spec.on_overflow == "error":
                raise UserError(f"{why} (--on-overflow skip leaves such prompts out and records it)")
            return 0
        params = self._params(self.spec.max_new_tokens, prompt.id, turn, repeat, cell.temperature)
        try:
            generation, wall = self._generate(cell.arm, ids, params)
        except (RuntimeError, MemoryError) as e:  # a failed prompt is a record with a status and no numbers
            self._append(
                record | {"status": "error", "error": f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"}
            )
            print(f"{cell.arm.name} failed on {prompt.id} turn {turn}: {e}", file=sys.stderr)
            return 1
        self._append(record | self._measured(cell.arm, generation, wall))
        return 0

    def _append(self, record: dict[str, Any]) -> None:
        self.ledger.append(record)
        if record["status"] != "error":
            self.keys.add(record["key"])

    def _generate(self, arm: Arm, ids: list[int], params: SamplerParams) -> tuple[Generation, float]:
        """One interval around the whole generation: what every ratio is made of."""
        token = f"{arm.name} {arm.options}"
        if token not in self.decoders:
            self.decoders[token] = arm.method.build(**arm.options)
        drafter = self.loaded.drafter if arm.method.needs_head else None
        self.loaded.target.synchronise()
        started = time.perf_counter()
        generation = self.decoders[token](ids, self.loaded.target, drafter, params)
        self.loaded.target.synchronise()
        return generation, time.perf_counter() - started

    def _turn1(self, prompts: PromptSet, prompt: Prompt) -> dict[str, Any] | None:
        """Vanilla's greedy turn 1 of the same model, dtype and budget, made once and stored as a record."""
        rendered = self.loaded.render([("user", prompt.turns[0])])
        cell = self._cell(_baseline_arm(), prompts, 0.0)
        key = records.sample_key(cell.key, prompt.id, 1, 0, _sha(rendered))
        if not self.turn1:
            self.turn1 = {
                r["key"]: dict(r)
                for r in self._recorded()
                if r["method"] == BASELINE and r["turn"] == 1 and r["status"] == "ok"
            }
        if key not in self.turn1:
            if key not in self.keys:
                ids = self.loaded.encode(rendered)
                record = self._record(cell, prompt, 1, 0, rendered, ids, None) | {"temperature": 0.0}
                if self._measure(cell, record, ids, prompt, 1, 0):
                    return None
            found = {r["key"]: dict(r) for r in self._recorded() if r["key"] == key and r["status"] == "ok"}
            if not found:
                return None
            self.turn1 |= found
        return self.turn1[key]

    def _params(self, max_new_tokens: int, sample_id: str, turn: int, repeat: int, temperature: float) -> SamplerParams:
        return SamplerParams(
            max_new_tokens=max_new_tokens,
            stop_ids=frozenset(self.loaded.config.stop_ids),
            temperature=temperature,
            top_p=self.spec.top_p,
            key=stream_key(self.spec.seed, sample_id, turn, repeat),
        )

    # -- records -------------------------------------------------------------------------------------------------------

    def _record(
        self, cell: Cell, prompt: Prompt, turn: int, repeat: int, rendered: str, ids: list[int], turn1_sha: str | None
    ) -> dict[str, Any]:
        """A record of a generation not yet made: no numbers."""
        arm, prompts = cell.arm, cell.prompts
        prompt_sha = _sha(rendered)
        return {
            "schema": records.SCHEMA, "key": records.sample_key(cell.key, prompt.id, turn, repeat, prompt_sha), "cell": cell.key,
            "run": self.run_id, "model": self.loaded.config.name, "target_sha": self.loaded.target_sha,
            "head_sha": self._head_sha(arm), "task": prompts.task, "source": prompts.source, "method": arm.name,
            "preset": arm.preset, "exact": arm.method.exact, "options": dict(arm.options), "sample_id": prompt.id,
            "category": prompt.category, "turn": turn, "n_turns": len(prompt.turns), "repeat": repeat, "is_warmup": False,
            "temperature": cell.temperature, "top_p": self.spec.top_p, "dtype": self.loaded.dtype, "threads": self.spec.threads,
            "max_new_tokens": self.spec.max_new_tokens, "seed": self.spec.seed, "token_ids": [], "text": "", "n_prompt": len(ids),
            "n_text_tokens": 0, "n_cut": 0, "looped": False, "finish": None, "wall_s": None, "prefill_s": None, "trace": None,
            "peak_bytes": None, "prompt_sha": prompt_sha, "turn1_sha": turn1_sha, "status": "ok", "error": None,
            "env": self.env_hash,
        }  # fmt: skip

    def _measured(self, arm: Arm, generation: Generation, wall: float) -> dict[str, Any]:
        trace = generation.trace
        text = self.loaded.decode(generation.token_ids)
        return {
            "token_ids": generation.token_ids,
            "text": text,
            "n_text_tokens": len(self.loaded.encode(text)),
            "n_cut": generation.n_cut,
            "looped": records.is_looped(generation.token_ids),
            "finish": generation.finish,
            "wall_s": wall,
            "prefill_s": generation.prefill_s if trace else None,
            "trace": None if trace is None else {
                "tree_size": trace.tree_size, "accepted": trace.accepted,
                **{k: [round(x, 7) for x in getattr(trace, k)] for k in ("draft_s", "verify_s", "forward_s")},
            },
            "peak_bytes": self.loaded.target.peak_bytes(),
        }  # fmt: skip


def _baseline_arm() -> Arm:
    return Arm(methods.get(BASELINE), "paper", {})


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_arms(
    names: Sequence[str],
    preset: str,
    changes: Mapping[str, str],
    model_presets: Mapping[str, Mapping[str, Any]],
    has_head: bool,
    model: str,
) -> tuple[Arm, ...]:
    """Methods by name with their options resolved; `all` = the exact ones of this repository.

    A `--set` option must belong to at least one of the methods asked for, and changes those that have it.

    Raises:
        UserError: unknown method, preset or option, a bad value, or a method whose head the model lacks.
    """
    wanted: list[str] = []
    for name in names:
        wanted += [n for n in (methods.names(exact=True) if name == "all" else [name]) if n not in wanted]
    chosen = [methods.get(name) for name in wanted]
    for option in changes:
        if not any(option in m.options for m in chosen):
            has = "; ".join(f"{m.name}: {', '.join(m.options) or 'none'}" for m in chosen)
            raise UserError(f"no option {option!r} in the methods asked for ({has})")
    arms = []
    for m in chosen:
        if m.needs_head and not has_head:
            raise UserError(
                f"method {m.name} needs a draft head and model {model} has none: `harness train eagle --model {model} --out DIR`"
            )
        own = {k: v for k, v in changes.items() if k in m.options}
        presets = model_presets if m.needs_head else {preset: {}} if preset in model_presets else {}
        options = m.resolve(preset, own, presets)
        try:
            m.build(**options)
        except ValueError as e:
            raise UserError(f"method {m.name}: {e}") from None
        label = preset + "".join(f"+{k}={options[k]}" for k in sorted(own))
        arms.append(Arm(m, label, options))
    return tuple(arms)


def results_path(folder: Path) -> str:
    return str(folder / records.RECORDS)
