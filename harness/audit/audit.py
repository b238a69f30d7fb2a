"""`harness verify`: what each layer needs is generated once, kept as findings, and judged; exit 0 only if all holds."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import methods
from harness.audit.estimate import PACE_ABREAST, PACE_SMALLER, Progress, Rates, Work, known_rates, measured
from harness.audit.keeper import abreast_sha, audit_sha
from harness.audit.layers import ids_of
from harness.audit.levels import (
    LEVELS,
    MOST_ROUNDS,
    SCORE_DTYPE,
    SCORE_LONGEST,
    SCORE_TEMPERATURE,
    SCORE_TREE,
    Level,
    bundled,
    on_exact_trees,
)
from harness.audit.probe import findings, law
from harness.audit.probe import lanes as abreast
from harness.audit.probe.findings import SCORED_BY_CONTROL
from harness.audit.probe.ledger_pairs import LedgerPair, compared, prompt_ids
from harness.audit.probe.subject import Subject
from harness.audit.recorded_taus import TAU_KEY, TAUS, tau_key, taus
from harness.audit.store import Store
from harness.audit.verdicts import verdict as verdicts
from harness.audit.verdicts.acceptance import acceptance_verdicts
from harness.audit.verdicts.greedy import greedy_verdicts
from harness.audit.verdicts.law import law_verdicts, stop_verdicts
from harness.audit.verdicts.replay import control_verdicts, controls, replay_verdicts
from harness.audit.verdicts.sampling import coupled_verdicts, score_verdicts
from harness.common.errors import UserError, duration, say
from harness.common.files import whole_file
from harness.common.names import VANILLA, method_order
from harness.common.source_hash import is_same_code
from harness.ledger import ledger as records
from harness.ledger.record import canonical_hash
from harness.load.config import ModelConfig
from harness.load.model import Loaded
from methods.base import SamplerParams
from methods.engine.sampling import stream_key


def chosen(names: Sequence[str], config: ModelConfig) -> list[Subject]:
    """`all`: every registered method, inexact ones and external loops included. Vanilla always comes along."""
    found: list[str] = []
    for name in names:
        found += [n for n in (methods.names() if name == "all" else [name]) if n not in found]
    return [Subject.of(methods.get(n), config) for n in sorted({*found, VANILLA}, key=method_order)]


def pairs_of(results: Path, config: ModelConfig) -> tuple[list[LedgerPair], int]:
    """A ledger's pairs, and how many greedy outputs cannot be judged.

    Raises:
    UserError: no greedy outputs of this model in the ledger that have vanilla's beside them.
    """
    pairs, n_alone = compared(r for r in records.read(results) if r["model"] == config.name)
    if not pairs:
        raise UserError(f"{results} holds no greedy output of {config.name} with vanilla's to the same prompt beside it: "
                        f"`harness run --method all --temperature 0 ... --out {results}` records both")  # fmt: skip
    return pairs, n_alone


def load_in(
    config: ModelConfig, dtype: str, head: Path | None, threads: int, drafters: Collection[str] = (methods.EAGLE,)
) -> Loaded:  # fmt: skip
    import torch

    from harness.common.machine import keep_freed_memory
    from harness.load.model import load

    keep_freed_memory()
    torch.set_num_threads(threads)
    say(f"loading {config.title} in {dtype} ...")
    return load(config, dtype, head=head, drafters=drafters)


@dataclass
class Audit:
    """One call of the command. `touched`: the findings this call is about, made now or before; only they are judged."""

    store: Store
    config: ModelConfig
    subjects: Sequence[Subject]
    level: str
    ledger: Sequence[LedgerPair] = ()
    prompts_dir: Path | None = None
    head: Path | None = None
    named: Collection[str] = ()
    threads: int = 1
    touched: list[dict[str, Any]] = field(default_factory=list)
    rows: list[verdicts.Verdict] = field(default_factory=list)
    facts_of: dict[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=lambda: Progress([], Rates()))
    _plan: dict[str, Work | None] | None = None  # while planning: what is asked for, by key; None where it is there
    _said: float = 0.0

    @property
    def how(self) -> Level:
        return LEVELS[self.level]

    def load(self, dtype: str, head: Path | None) -> Loaded | None:
        """The model in one dtype; None, and a row that says why, where it cannot be had."""
        try:
            return load_in(self.config, dtype, head, self.threads, {methods.EAGLE, *(s.kind for s in self.subjects if s.kind)})
        except (UserError, RuntimeError, TypeError, MemoryError) as e:  # TypeError: a device without float64
            self.rows.append(verdicts.Verdict.missing(f"all of {dtype}", "all", " ".join(str(e).split()) or type(e).__name__))
            return None

    def lacks(self, about: Mapping[str, Any]) -> bool:
        """Whether a finding is to be made: there is none, or an error, which may have been the machine's."""
        found = self.store.get(about)
        return found is None or "error" in found

    def _stored(self, about: dict[str, Any], work: Work) -> dict[str, Any] | None:
        """The stored finding, None where it is to be made; while planning, a stand-in for that."""
        lacks = self.lacks(about)
        if self._plan is not None:
            self._plan[self.store.key_of(about)] = work if lacks else None
            return {"n": work.n_tokens, "ids": []} if lacks else dict(self.store.get(about) or {})
        found = None if lacks else self.store.get(about)
        if found is not None:
            self.touched.append(found)
        return found

    def _keep(self, about: dict[str, Any], made: dict[str, Any], seconds: float, work: Work) -> dict[str, Any]:
        found = self.store.add(about, {**made, "seconds": round(seconds, 4)})
        self.progress.made(work)
        what = " ".join(str(about[k]) for k in ("dtype", "kind", "method", "case", "prompt", "repeat") if k in about)
        if "error" in found:
            say(f"{what} raised {found['error']}")
        if self.progress.spent - self._said > 30:
            self._said, p = self.progress.spent, self.progress
            say(f"{p.done}/{p.n} findings, {duration(p.spent)} spent, about {duration(p.left)} left; the last: {what}")
        self.touched.append(found)
        return found

    def find(self, about: dict[str, Any], make: Callable[[], dict[str, Any]], work: Work) -> dict[str, Any]:
        """The stored finding, else one made now; while planning, a stand-in for that."""
        found = self._stored(about, work)
        if found is None:
            started = time.perf_counter()
            made = findings.guarded(make)
            found = self._keep(about, made, time.perf_counter() - started, work)
        return found

    # ---- layer 1 ----

    def law(self) -> None:
        for s in self.subjects:
            if s.external:
                self.rows.append(verdicts.Verdict.not_applicable("L1 exact law", s.name, "another's loop"))
                continue
            common = {"method": s.name, "code": s.code, "audit": audit_sha()}
            self.find({"kind": "stop", **common}, partial(findings.stop_finding, s), Work("stop", s.name, seconds=self.how.law_s))
            cases = law.cases(self.how.law_tokens, self.level, s.samples_drafts)
            for tree, case in law.walks(list(s.small), cases, self.level):
                about = {"kind": "law", "case": case.name, "tree": tree, "n_tokens": self.how.law_tokens, **common}
                work = Work("law", s.name, seconds=self.how.sampled_law_s if s.samples_drafts else self.how.law_s)
                if "refused" in self.find(about, partial(findings.law_finding, s, tree, case), work):
                    break  # the other cases would be refused after as many branches

    # ---- layers 2 to 4 ----

    def prepare(self, loaded: Loaded, dtypes: Sequence[str]) -> None:
        """Find out what cannot be done before hours are spent, and say how many they are.

        Raises:
            UserError: no bundled prompt fits, or the ledger's prompts or weights are not those at hand.
        """
        self.facts_of = {"model": self.config.name, "target": loaded.target_sha, "head": loaded.head_sha}
        known: dict[Any, Any] = {}
        for pair in self.ledger:
            if pair.record["target_sha"] != loaded.target_sha:
                raise UserError(f"the ledger's records are of other weights of {self.config.name} than those at hand")
            prompt_ids(pair, loaded, self.prompts_dir, known)
        how = self.how
        n = max(how.prompts, how.exact_prompts, how.score_prompts)
        found = bundled(loaded, n, how.new_tokens + how.width, how.shortest)
        if not found:
            raise UserError(f"no bundled prompt with {how.new_tokens} new tokens and a tree of {how.width} nodes fits into the "
                            f"{self.config.context_length} tokens of {self.config.name}")  # fmt: skip
        if len(found) < n:
            self.rows.append(verdicts.Verdict.missing("prompts", "all", f"only {len(found)} of {n} fit the context"))
        short = bundled(loaded, how.score_prompts, how.new_tokens + how.width, how.shortest, SCORE_LONGEST)
        if len(short) < how.score_prompts:
            why = f"only {len(short)} of {how.score_prompts} prompts have at most {SCORE_LONGEST} tokens"
            self.rows.append(verdicts.Verdict.missing("L4 score test", "all", why))
        self._estimate(loaded, dtypes, found[0][1])

    def _estimate(self, loaded: Loaded, dtypes: Sequence[str], prompt: list[int]) -> None:
        """Go through all that is to be found without finding it, and say how long it takes."""
        rows = list(self.rows)
        self._plan = {}
        self.law()
        for dtype in dtypes:
            self.on_model(loaded, dtype)  # of the model nothing but its names is used while planning
        plan, self._plan, self.rows = self._plan, None, rows
        self._say_what_is_apart(plan)
        missing = [work for work in plan.values() if work is not None]
        if not missing:
            say(f"everything asked for is in {self.store.path} already: nothing to run")
            return
        rates = Rates()
        if any(work.dtype for work in missing):
            try:
                rates = measured(loaded, self.subjects, prompt, known_rates(self.store, self.where()))
            except Exception as e:  # told again, as a finding
                say(f"how long it takes is not known: plain decoding raised {type(e).__name__}: {' '.join(str(e).split())}")
                return
        self.progress = Progress(missing, rates)
        parts = ", ".join(f"{duration(seconds)} {part}" for part, seconds in self.progress.by_layer.items())
        n = f"{len(missing):,} findings to make" + (
            f", {len(plan) - len(missing):,} are there" if len(plan) > len(missing) else ""
        )
        say(f"{n}: about {duration(self.progress.total)} if every answer uses its tokens ({parts})")

    def _say_what_is_apart(self, plan: Collection[str]) -> None:
        """Findings of the store that were made elsewhere, or by other code: kept, not judged."""
        here, apart = self.where(), dict[str, int]()
        code = {s.name: s.code for s in self.subjects}
        for f in self.store:
            if f["key"] in plan:
                continue
            there = {k: f[k] for k in here if k in f}
            if there and there != here:
                why = "on {machine}, {threads} threads, torch {torch}".format(**f)
            elif (
                not is_same_code(f.get("audit"), audit_sha())
                or not is_same_code(f.get("abreast", abreast_sha()), abreast_sha())
                or not is_same_code(f.get("code", ""), code.get(f["method"], f.get("code", "")))
            ):
                why = "by other code"
            else:
                continue  # another level's, or of a method not asked for
            apart[why] = apart.get(why, 0) + 1
        for why, n in apart.items():
            say(f"{self.store.path} holds {n:,} findings made {why}: they are kept and not judged here")

    def on_model(self, loaded: Loaded, dtype: str) -> None:
        """Everything that needs the model in one dtype."""
        how = self.how
        prompts = partial(bundled, loaded, room=how.new_tokens + how.width, shortest=how.shortest)
        able = []
        for s in self.subjects:
            lacks = s.lacks(loaded)
            if lacks is None:
                able.append(s)
            elif s.name in self.named:
                self.rows.append(verdicts.Verdict.missing(f"all of {dtype}", s.name, lacks))
            else:
                self.rows.append(verdicts.Verdict.not_applicable(f"all of {dtype}", s.name, lacks))
        if not self._greedy(loaded, dtype, able, prompts(how.exact_prompts if dtype == "float64" else how.prompts)):
            return
        if dtype == "float64":
            self._coupled(loaded, able, prompts(how.coupled_prompts))
        if dtype == SCORE_DTYPE:
            self._sampled(loaded, able, prompts(how.score_prompts, longest=SCORE_LONGEST))
        self._ledger(loaded, dtype)

    def not_asked_for(self, dtypes: Sequence[str]) -> None:
        """Rows for what a choice of dtypes leaves out."""
        for dtype in LEVELS[self.level].dtypes:
            if dtype not in dtypes:
                what = {SCORE_DTYPE: ", the score test of layer 4 with it", "float64": ", vanilla's own ids with it"}.get(
                    dtype, ""
                )
                why = f"this dtype was not asked for{what}"
                self.rows.append(verdicts.Verdict.not_applicable(f"all of {dtype}", "all", why))
        names = {s.name for s in self.subjects}
        skipped = sum(pair.dtype not in dtypes for pair in self.ledger if pair.method in names)
        if skipped:
            self.rows.append(verdicts.Verdict.missing("L3, ledger", "all", f"{skipped} outputs are in dtypes not asked for"))
        others = {pair.method for pair in self.ledger} - names
        if others:
            why = f"the ledger's outputs of {', '.join(sorted(others))} were not asked for"
            self.rows.append(verdicts.Verdict.not_applicable("L3, ledger", "all", why))

    def about(
        self, kind: str, s: Subject, loaded: Loaded, dtype: str, name: str, ids: Sequence[int], **more: Any
    ) -> dict[str, Any]:
        return {
            "kind": kind, "method": s.name, "dtype": dtype, "prompt": name, "prompt_sha": canonical_hash(list(ids))[:16],
            "model": self.config.name, "target": loaded.target_sha, "head": loaded.sha_of(s.kind),
            "frequent": loaded.frequent_sha if s.needs_frequent else None, "options": dict(s.options), "code": s.code,
            "new_tokens": self.how.new_tokens, "audit": audit_sha(), **self.where(), **more,
        }  # fmt: skip

    def _greedy(
        self, loaded: Loaded, dtype: str, able: Sequence[Subject], prompts: Sequence[tuple[str, list[int]]]
    ) -> bool:  # fmt: skip
        """The control and every method's greedy outputs; whether the control ran."""
        how = self.how
        params = SamplerParams(how.new_tokens, frozenset(self.config.stop_ids))
        vanilla = next(s for s in self.subjects if s.name == VANILLA)
        for i, (name, ids) in enumerate(prompts):
            about = self.about("control", vanilla, loaded, dtype, name, ids, width=how.width)
            n, text = how.new_tokens, len(ids) + how.new_tokens
            work = Work("control", VANILLA, dtype, n, len(ids), text + len(ids) + SCORED_BY_CONTROL * n)
            control = self.find(about, partial(findings.control_finding, loaded, ids, params, how.width), work)
            if "error" in control:
                self.rows.append(verdicts.Verdict.missing(f"all of {dtype}", "all", f"plain decoding raised {control['error']}"))
                return False
            for s in able if dtype != "float64" or i < how.exact_whole else on_exact_trees(able):
                self.find(
                    self.about("greedy", s, loaded, dtype, name, ids),
                    partial(findings.greedy_finding, loaded, s, ids, params, control["ids"]),
                    Work("greedy", s.name, dtype, n, len(ids), text, pace=self._pace(s)),
                )
        return True

    def _pace(self, s: Subject) -> float:
        """Of the time a token takes with the method's own options, which is what is measured."""
        own = next(own for own in self.subjects if own.name == s.name)
        return 1.0 if s.options == own.options else PACE_SMALLER

    def _coupled(self, loaded: Loaded, able: Sequence[Subject], prompts: Sequence[tuple[str, list[int]]]) -> None:
        def why_not(s: Subject) -> str:
            """Why its ids need not be vanilla's at T > 0."""
            if s.external:
                return "another's loop draws with its own generator"
            if s.samples_drafts:
                return "its drafts are sampled: the law is the target's, the ids are not vanilla's"
            return "" if s.exact else "it declares itself inexact"

        coupled = [s for s in able if s.name != VANILLA and not why_not(s)]
        for s in able:
            if why := why_not(s):
                self.rows.append(verdicts.Verdict.not_applicable("L4 same ids at T = 1, float64", s.name, why))
        for i, (name, ids) in enumerate(prompts):
            params = SamplerParams(
                self.how.new_tokens, frozenset(self.config.stop_ids), temperature=1.0, key=stream_key(1, name, 1, 0)
            )
            plain: list[int] | None = None
            for s in coupled if i < self.how.coupled_whole else on_exact_trees(coupled):
                about = self.about("coupled", s, loaded, "float64", name, ids)
                if plain is None and self._plan is None and self.lacks(about):
                    plain = methods.get(VANILLA).build()(ids, loaded.target, None, params).token_ids
                work = Work("coupled", s.name, "float64", self.how.new_tokens, len(ids), pace=self._pace(s))
                self.find(about, partial(findings.coupled_finding, loaded, s, ids, params, plain or []), work)

    def _sampled(self, loaded: Loaded, able: Sequence[Subject], prompts: Sequence[tuple[str, list[int]]]) -> None:
        """Sampled outputs of each method, round after round, until there are enough tokens."""
        how = self.how
        for s in (s.with_options(SCORE_TREE) for s in able):
            outputs = ((repeat, name, ids) for repeat in range(MOST_ROUNDS) for name, ids in prompts)
            n = 0
            while n < how.score_tokens:  # as many as there must be, if each uses its tokens
                batch = list(itertools.islice(outputs, -(-(how.score_tokens - n) // how.score_length)))
                if not batch:
                    break
                for f in self._sampled_batch(loaded, s, batch):
                    n += f.get("n", how.score_tokens)  # an error: no more of it

    def _sampled_batch(
        self, loaded: Loaded, s: Subject, outputs: Sequence[tuple[int, str, list[int]]]
    ) -> list[dict[str, Any]]:  # fmt: skip
        """The findings of outputs (repeat, prompt's name, ids), made abreast where that can be."""
        n = self.how.score_length
        lanes = abreast.LANES if abreast.can_run_abreast(loaded, s) else 1
        found: list[dict[str, Any]] = []
        missing: list[tuple[dict[str, Any], Work, list[int], SamplerParams]] = []
        for repeat, name, ids in outputs:
            params = SamplerParams(
                n, frozenset(self.config.stop_ids), temperature=SCORE_TEMPERATURE, key=stream_key(2, name, 1, repeat)
            )
            about = self.about("sampled", s, loaded, SCORE_DTYPE, name, ids, repeat=repeat, temperature=SCORE_TEMPERATURE,
                               new_tokens=n, lanes=lanes, **({"abreast": abreast_sha()} if lanes > 1 else {}))  # fmt: skip
            # q is the EAGLE head's, whatever the method
            own = loaded.sha_of(s.kind) if s.kind != methods.EAGLE else None
            about["head"] = f"{own} {loaded.head_sha}" if own else loaded.head_sha
            pace = self._pace(s) * (PACE_ABREAST if lanes > 1 else 1.0)
            work = Work("sampled", s.name, SCORE_DTYPE, n, len(ids), len(ids) + n, scored=True, pace=pace)
            stored = self._stored(about, work)
            if stored is not None:
                found.append(stored)
            else:
                missing.append((about, work, ids, params))
        if lanes == 1:
            for about, work, ids, params in missing:
                found.append(self.find(about, partial(findings.sampled_finding, loaded, s, ids, params), work))
                if "error" in found[-1]:
                    break
        elif missing:
            last = time.perf_counter()

            def made(i: int, finding: dict[str, Any]) -> None:
                nonlocal last
                before, last = last, time.perf_counter()
                about, work, *_ = missing[i]
                found.append(self._keep(about, finding, last - before, work))

            abreast.sampled_findings(loaded, s, [job[2:] for job in missing], made, lanes)
        return found

    def _ledger(self, loaded: Loaded, dtype: str) -> None:
        """A ledger's greedy outputs, and the control over vanilla's texts in it: as many positions as are checked, twice."""
        names = {s.name for s in self.subjects}
        known: dict[Any, Any] = {}
        pairs = [pair for pair in self.ledger if pair.dtype == dtype and pair.method in names]
        common = {"dtype": dtype, "model": self.config.name, "target": loaded.target_sha, "audit": audit_sha(),
                  **self.where()}  # fmt: skip
        texts = {(pair.vanilla_key, tuple(pair.vanilla["token_ids"])): pair for pair in pairs}
        for (key, ids), pair in texts.items():
            about = {"kind": "control", "method": VANILLA, "of": key, "ids": canonical_hash(list(ids))[:16],
                     "width": self.how.width, **common}  # fmt: skip

            def scored(pair: LedgerPair = pair) -> dict[str, Any]:
                prompt = prompt_ids(pair, loaded, self.prompts_dir, known)
                return findings.ledger_control_finding(loaded, prompt, pair.vanilla["token_ids"], self.how.width)

            n_prompt = pair.vanilla["n_prompt"]
            rows = n_prompt + (1 + SCORED_BY_CONTROL) * len(pair.vanilla["token_ids"])
            self.find(about, scored, Work("control", VANILLA, dtype, 0, n_prompt, rows))
        for pair in pairs:
            r = pair.record
            about = {"kind": "ledger", "method": pair.label, "of": pair.key, "vanilla": pair.vanilla_key, "ids": ids_of(pair),
                     "cell": r["cell"], "prompt": f"{r['task']}/{r['sample_id']} turn {r['turn']}", **common}  # fmt: skip

            def explained(pair: LedgerPair = pair) -> dict[str, Any]:
                if pair.at is None:
                    return {"n": pair.n, "divergence": None}
                prefix = [*prompt_ids(pair, loaded, self.prompts_dir, known), *pair.common]
                return {"n": pair.n, "divergence": {"at": pair.at, **findings.explained(loaded, prefix, pair.tokens)}}

            rows = 0 if pair.at is None else r["n_prompt"] + pair.at
            self.find(about, explained, Work("ledger", pair.method, dtype, rows=rows))

    # ---- verdicts ----

    def where(self) -> dict[str, Any]:
        """What findings hold for besides weights and code: another machine rounds otherwise."""
        import torch

        from harness.common.machine import cpu_name

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        return {"machine": gpu or cpu_name(), "threads": self.threads, "torch": torch.__version__}

    def facts(self) -> dict[str, Any]:
        return {**self.facts_of, **self.where()}

    def record(self, head: Path, failing: Collection[str]) -> None:
        """Keep each method's counts beside the head, in the place of those of the same weights, options and length; but of the
        methods that fail, whose tau would excuse the next loss."""
        kept = {tau_key(entry): entry for entry in taus(head)}
        if failing:
            say(f"--record leaves out what failed: {', '.join(sorted(failing, key=method_order))}")
        for f in self.touched:
            if f["method"] not in failing and f["kind"] == "greedy" and f["dtype"] == "float32" and f.get("forwards"):
                entry = kept.setdefault(tau_key(f), {name: f[name] for name in TAU_KEY} | {"runs": {}})
                entry["runs"][f["prompt_sha"]] = [f["emitted"], f["forwards"]]
        with whole_file(head / TAUS) as tmp:
            tmp.write_text(json.dumps(list(kept.values()), indent=1) + "\n")

    def recorded(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(method, prompt) -> the counts kept beside the head for the same weights, options and length."""
        if self.head is None:
            return {}
        kept = {tau_key(entry): entry["runs"] for entry in taus(self.head)}
        found = {}
        for f in self.touched:
            if f["kind"] == "greedy" and f["dtype"] == "float32":
                run = kept.get(tau_key(f), {}).get(f["prompt_sha"])
                if run is not None:
                    found[f["method"], f["prompt"]] = {"emitted": run[0], "forwards": run[1]}
        return found

    def judged(self) -> list[verdicts.Verdict]:
        known = controls(self.touched)
        f = self.touched
        rows = [
            *self.rows, *law_verdicts(f), *stop_verdicts(f), *control_verdicts(f, known),
            *replay_verdicts(f, known), *greedy_verdicts(f, known), *coupled_verdicts(f),
            *score_verdicts(f, self.how.score_tokens), *acceptance_verdicts(f, self.recorded()),
        ]  # fmt: skip
        return sorted(rows, key=lambda v: (v.layer, method_order(v.method)))
