"""`harness verify`: what each layer needs is generated once, kept as findings, and judged; exit 0 only if all holds."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import pandas as pd

import methods
import tasks
from harness import lossless, records, tables
from harness.audit import law, verdicts
from harness.audit.store import Store
from harness.config import ModelConfig, model_config
from harness.errors import UserError, unknown
from harness.style import VANILLA, method_order
from methods import Method
from methods.base import SamplerParams
from methods.engine.sampling import stream_key


@dataclass(frozen=True, slots=True)
class Level:
    """How much is checked. `law_tokens`: tokens whose joint law is enumerated (one less where drafts are sampled)."""

    prompts: int
    new_tokens: int
    dtypes: tuple[str, ...]
    score_tokens: int
    law_tokens: int
    width: int  # nodes of the control's random trees


LEVELS = {
    "quick": Level(3, 24, ("float32", "float64"), 400, 2, 30),
    "full": Level(20, 128, ("bfloat16", "float32", "float64"), 20_000, 3, 60),
}
SCORE_DTYPE, SCORE_TEMPERATURE = "float32", 1.0

Work = tuple[dict[str, Any], Callable[[], dict[str, Any]]]
"""(what a finding is about, how to make it)."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def verify(
    *, model: str, names: Sequence[str], level: str, dtypes: Sequence[str], results: Path | None, prompts_dir: Path | None,
    out: Path, head: Path | None, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Audit methods on a model; print the table and write it beside the findings.

    Raises:
        UserError: bad input, or a layer found a method out (after everything was checked).
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    how = LEVELS[level]
    chosen = _methods(names)
    config = model_config(model)
    wanted = tuple(dtypes) or how.dtypes
    with Store(out) as store:
        _law(store, chosen, how, level)
        started = time.monotonic()
        for dtype in wanted:
            loaded = _on_model(store, config, chosen, how, dtype, head, threads)
            if dtype == wanted[-1]:  # the most exact one, if the dtypes were not chosen by hand
                _explain(store, loaded)
                if results is not None:
                    _explain_ledger(store, loaded, results, prompts_dir)
        say(f"everything was generated in {time.monotonic() - started:.0f} s; judging ...")
        mine = {m.name for m in chosen}
        findings = [
            f for f in store if f.get("method", VANILLA) in mine | {VANILLA} and f.get("model", config.name) == config.name
        ]
    rows = judged(findings, how)
    report = table(rows, f"{config.title}, level {level}")
    for name, text in (("audit.md", tables.markdown(report)), ("audit.csv", tables.csv(report))):
        tables.write_file(out / name, text)
    click.echo(tables.plain(report))
    if as_json:
        click.echo(json.dumps([asdict(v) for v in rows]))
    problems = verdicts.overall(rows, {m.name: m.exact for m in chosen})
    if problems:
        raise UserError("; ".join(problems))


def _methods(names: Sequence[str]) -> list[Method]:
    """`all`: every registered method that is not an external loop, inexact ones included: those must be caught."""
    found: list[str] = []
    for name in names:
        every = [n for n in methods.names() if not methods.get(n).external]
        found += [n for n in (every if name == "all" else [name]) if n not in found]
    return [methods.get(n) for n in sorted({*found, VANILLA}, key=method_order)]


def judged(findings: Sequence[verdicts.Finding], how: Level) -> list[verdicts.Verdict]:
    known = verdicts.controls(findings)
    rows = [
        *verdicts.law_verdicts(findings), *verdicts.replay_verdicts(findings, known), *verdicts.greedy_verdicts(findings, known),
        *verdicts.coupled_verdicts(findings), *verdicts.score_verdicts(findings, how.score_tokens),
    ]  # fmt: skip
    return sorted(rows, key=lambda v: (v.layer, method_order(v.method)))


def table(rows: Sequence[verdicts.Verdict], title: str) -> tables.Table:
    said = {True: "holds", False: "FAILS", None: "not judged"}
    shown = pd.DataFrame(
        [
            {"layer": v.layer, "method": v.method, "checked": v.checked, "worst": v.worst, "threshold": v.threshold,
             "smallest detectable": v.detectable, "verdict": said[v.passed] + (f" ({v.why})" if v.why else "")}
            for v in rows
        ]
    )  # fmt: skip
    return tables.Table("audit", (tables.Section(title, (), shown),), (), shown)


# ---- layer 1 ----


def _law(store: Store, chosen: Sequence[Method], how: Level, level: str) -> None:
    for m in chosen:
        if m.external:
            continue
        n = how.law_tokens - (1 if m.samples_drafts and how.law_tokens > 2 else 0)
        for case in law.cases(n, level):
            about = {"kind": "law", "method": m.name, "case": case.name, "n_tokens": n, "code": _code(m)}
            if store.get(about) is None:
                store.add(about, _law_finding(m, case))


def _law_finding(m: Method, case: law.Case) -> dict[str, Any]:
    try:
        found = law.method_law(m, case)
    except law.NotEnumerable as e:
        return {"refused": str(e), "deviation": 0.0, "branches": 0}
    except AssertionError as e:  # two choices on one random number, or probabilities that do not sum to one
        return {"deviation": 1.0, "branches": 0, "broken": str(e)}
    return {"deviation": found.deviation, "branches": found.branches}


def _code(m: Method) -> str:
    from harness.environment import code_sha

    return code_sha(m.file)


# ---- layers 2 to 4 ----


def _on_model(
    store: Store, config: ModelConfig, chosen: Sequence[Method], how: Level, dtype: str, head: Path | None, threads: int
) -> Any:
    """Everything that needs the model in one dtype; -> the model."""
    import torch

    from harness.loading import load

    torch.set_num_threads(threads)
    say(f"loading {config.title} in {dtype} ...")
    loaded = load(config, dtype, head=head)
    prompts = _prompts(loaded, how.prompts)
    work = list(_work(store, loaded, chosen, how, dtype, prompts))
    todo = [(about, make) for about, make in work if store.get(about) is None]
    started = time.monotonic()
    for i, (about, make) in enumerate(todo, start=1):
        if store.get(about) is None and not (about["kind"] == "score" and _n_scored(store, about["method"]) >= how.score_tokens):
            store.add(about, make())
        spent = time.monotonic() - started
        if i == 3 or i % max(len(todo) // 20, 1) == 0:
            say(f"{dtype}: {i}/{len(todo)} findings, {spent:.0f} s spent, about {spent / i * (len(todo) - i):.0f} s left")
    return loaded


def _n_scored(store: Store, method: str) -> int:
    return sum(f["n"] for f in store if f["kind"] == "score" and f["method"] == method)


def _prompts(loaded: Any, n: int) -> list[tuple[str, list[int]]]:
    """(name, token ids): bundled prompts, taken from the tasks in turn."""
    sets = [tasks.load(name, source="bundled", limit=-(-n // len(tasks.names()))) for name in tasks.names()]
    turns = [(f"{ps.task}/{ps.prompts[i].id}", ps.prompts[i].turns[0]) for i in range(len(sets[0].prompts)) for ps in sets]
    return [(name, loaded.encode(loaded.render([("user", text)]))) for name, text in turns[:n]]


def _work(
    store: Store, loaded: Any, chosen: Sequence[Method], how: Level, dtype: str, prompts: Sequence[tuple[str, list[int]]]
) -> Iterator[Work]:
    config = loaded.config
    common = {"model": config.name, "target": loaded.target_sha, "dtype": dtype, "new_tokens": how.new_tokens}
    stop = frozenset(config.stop_ids)

    def about(kind: str, m: Method, prompt: str, **more: Any) -> dict[str, Any]:
        head = loaded.head_sha if m.needs_head else None
        return {"kind": kind, "method": m.name, "prompt": prompt, "head": head, "options": dict(m.options), "code": _code(m),
                **common, **more}  # fmt: skip

    vanilla = methods.get(VANILLA)
    greedy = SamplerParams(how.new_tokens, stop)
    for name, ids in prompts:
        yield about("control", vanilla, name, width=how.width), lambda ids=ids: _control(loaded, ids, greedy, how.width)
        base = about("greedy", vanilla, name)
        yield base, lambda ids=ids: _vanilla(loaded, ids, greedy)
        for m in chosen:
            if m.name != VANILLA and _runs(m, loaded):
                yield (
                    about("greedy", m, name),
                    lambda m=m, ids=ids, name=name, base=base: _greedy(store, loaded, m, name, ids, greedy, base, about),
                )
    if dtype == "float64":
        for i, (name, ids) in enumerate(prompts):
            params = SamplerParams(how.new_tokens, stop, temperature=SCORE_TEMPERATURE, key=stream_key(1, name, 1, i))
            for m in chosen:
                if m.name != VANILLA and not m.external and not m.samples_drafts and m.exact and _runs(m, loaded):
                    yield about("coupled", m, name), lambda m=m, ids=ids, params=params: _coupled(loaded, m, ids, params)
    if dtype == SCORE_DTYPE and loaded.drafter is not None:
        rounds = max(1, -(-how.score_tokens // max(len(prompts) * how.new_tokens // 2, 1)))
        for repeat in range(rounds):
            for name, ids in prompts:
                params = SamplerParams(how.new_tokens, stop, temperature=SCORE_TEMPERATURE, key=stream_key(2, name, 1, repeat))
                for m in chosen:
                    if _runs(m, loaded):
                        yield (
                            about("score", m, name, repeat=repeat, temperature=SCORE_TEMPERATURE),
                            lambda m=m, ids=ids, params=params: _score(loaded, m, ids, params),
                        )


def _runs(m: Method, loaded: Any) -> bool:
    return not (m.needs_head and loaded.drafter is None) and not (m.needs_frequent and loaded.frequent_sha is None)


def _decode(loaded: Any, m: Method, ids: list[int], params: SamplerParams, target: Any = None) -> list[int]:
    drafter = loaded.drafter if m.needs_head else None
    made: list[int] = m.build(**m.options)(ids, target or loaded.target, drafter, params).token_ids
    return made


def _control(loaded: Any, ids: list[int], params: SamplerParams, width: int) -> dict[str, Any]:
    from harness.audit.replay import control, differences, gap_noise, replayed

    one = replayed(loaded, methods.get(VANILLA).build(), ids, params, None)
    many = control(loaded, ids, one.ids, width, seed=len(ids))
    alone, _ = differences(one.used, one.reference)
    wide, _ = differences(many, one.reference)
    _, flips = differences(one.used, many)
    return {"one_row": alone, "many_rows": wide, "gap_noise": gap_noise(one.used, many, one.reference), "flips": flips}


def _vanilla(loaded: Any, ids: list[int], params: SamplerParams) -> dict[str, Any]:
    made = _decode(loaded, methods.get(VANILLA), ids, params)
    return {"ids": made, "n_outputs": 1, "n_positions": len(made)}


def _greedy(
    store: Store, loaded: Any, m: Method, name: str, ids: list[int], params: SamplerParams, base: dict[str, Any], about: Any
) -> dict[str, Any]:
    """One greedy output: its replay (a finding of its own), and its first divergence from vanilla's, if any."""
    from harness.audit.replay import differences, replayed

    if m.external:
        made, before = _decode(loaded, m, ids, params), []
    else:
        run = replayed(loaded, m.build(**m.options), ids, params, loaded.drafter if m.needs_head else None)
        made, (before, flips) = run.ids, differences(run.used, run.reference)
        store.add(about("replay", m, name), {"differences": before, "flips": flips, "n_offside": run.n_offside})
    vanilla = store.get(base)
    assert vanilla is not None
    at = lossless.first_divergence(vanilla["ids"], made)
    if at is not None:
        both = [x[at] if at < len(x) else None for x in (vanilla["ids"], made)]
        store.add(
            about("pending", m, name), {"prefix": [*ids, *made[:at]], "tokens": both, "before": max(before[:at], default=0.0)}
        )
    return {"ids": made, "n_outputs": 1, "n_positions": len(made)}


def _coupled(loaded: Any, m: Method, ids: list[int], params: SamplerParams) -> dict[str, Any]:
    ours, theirs = (_decode(loaded, each, ids, params) for each in (methods.get(VANILLA), m))
    return {"n": len(theirs), "identical": ours == theirs}


def _score(loaded: Any, m: Method, ids: list[int], params: SamplerParams) -> dict[str, Any]:
    from harness.audit.replay import Replayed, head_law, plain_logits, replayed, score_sums

    if m.external:
        made = _decode(loaded, m, ids, params)
        plain = plain_logits(loaded, ids, made)
        run = Replayed(ids, made, plain, plain, 0)
    else:
        run = replayed(loaded, m.build(**m.options), ids, params, loaded.drafter if m.needs_head else None)
    deviations, variances = score_sums(run, head_law(loaded, ids, run.ids, params), params)
    return {"n": len(run.ids), "deviations": deviations, "variances": variances}


# ---- divergences explained ----


def _explain(store: Store, loaded: Any) -> None:
    """Turn pending divergences into explained ones, by the logits of the model that is loaded."""
    for f in store:
        if f["kind"] == "pending" and f["model"] == loaded.config.name:
            about = {"kind": "divergence", "of": f["key"], "method": f["method"], "dtype": f["dtype"], "model": f["model"]}
            if store.get(about) is None:
                store.add(about, {**gaps(loaded, f["prefix"], f["tokens"]), "before": f["before"]})


def gaps(loaded: Any, prefix: Sequence[int], tokens: Sequence[int | None]) -> dict[str, Any]:
    """How far below the reference's best logit the two first different tokens lie; `ended` where one output had ended."""
    from harness.audit.replay import plain_logits

    if None in tokens:
        return {"ended": True, "gap_vanilla": 0.0, "gap_method": 0.0, "reference": loaded.dtype}
    logits = plain_logits(loaded, prefix, [0])[0].double()
    best = float(logits.max())
    return {"ended": False, "gap_vanilla": best - float(logits[tokens[0]]), "gap_method": best - float(logits[tokens[1]]),
            "reference": loaded.dtype}  # fmt: skip


def _explain_ledger(store: Store, loaded: Any, results: Path, prompts_dir: Path | None) -> None:
    """First divergences of a ledger's greedy outputs, explained on the prompts they were made from."""
    config = loaded.config
    ledger = [r for r in records.read(results) if r["model"] == config.name and r["status"] == "ok" and not r["is_warmup"]]
    by_key = {r["key"]: r for r in ledger}
    known: dict[tuple[str, str], Any] = {}
    for d in lossless.divergences(ledger):
        record, vanilla = by_key[d.key], by_key[d.vanilla_key]
        about = {"kind": "divergence", "of": d.key, "method": d.method, "dtype": record["dtype"], "model": config.name,
                 "ledger": str(results)}  # fmt: skip
        if store.get(about) is None:
            prompt = _prompt_of(record, ledger, loaded, prompts_dir, known)
            prefix = [*prompt, *record["token_ids"][: d.position]]
            store.add(about, {**gaps(loaded, prefix, (d.vanilla_token, d.token)), "before": 0.0, "position": d.position,
                              "n_vanilla": len(vanilla["token_ids"])})  # fmt: skip
    for r in ledger:
        if r["temperature"] == 0 and r["method"] != VANILLA:
            about = {"kind": "greedy", "of": r["key"], "method": r["method"], "dtype": r["dtype"], "model": config.name}
            if store.get(about) is None:
                store.add(about, {"n_outputs": 1, "n_positions": len(r["token_ids"])})


def _prompt_of(record: Any, ledger: Sequence[Any], loaded: Any, prompts_dir: Path | None, known: dict[Any, Any]) -> list[int]:
    """The token ids of a record's prompt, rendered anew and checked against the hash in the record."""
    import hashlib

    name = (record["task"], record["source"])
    if name not in known:
        found = tasks.load(record["task"], source=record["source"], limit=10**6, prompts_dir=prompts_dir, seed=record["seed"])
        known[name] = {p.id: p for p in found.prompts}
    prompt = known[name].get(record["sample_id"])
    if prompt is None:
        raise UserError(f"prompt {record['sample_id']} of {record['task']} ({record['source']}) is not among the prompts here")
    dialogue = [("user", prompt.turns[0])]
    for turn in range(1, record["turn"]):
        answer = next((
            r for r in ledger
            if r["method"] == VANILLA and (r["task"], r["sample_id"], r["turn"], r["dtype"]) ==
            (record["task"], record["sample_id"], turn, record["dtype"]) and r["temperature"] == 0
        ), None)  # fmt: skip
        if answer is None:
            raise UserError(f"{record['task']} {record['sample_id']}: vanilla's answer to turn {turn} is not in the ledger")
        dialogue += [("assistant", answer["text"]), ("user", prompt.turns[turn])]
    rendered = loaded.render(dialogue)
    if hashlib.sha256(rendered.encode()).hexdigest()[:16] != record["prompt_sha"]:
        raise UserError(f"prompt {record['sample_id']} of {record['task']} here is not what the record was made from")
    ids: list[int] = loaded.encode(rendered)
    return ids


# ---- layer 5 ----


def mutants(*, model: str, level: str, out: Path, head: Path | None, threads: int, as_json: bool) -> None:
    """Plant every fault, print which layer noticed it, write the table.

    Raises:
        UserError: a fault survived, or an equivalent mutant was flagged.
    """
    import torch

    from harness.audit.mutation import Bench, run_mutants
    from harness.loading import load

    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    torch.set_num_threads(threads)
    config = model_config(model)
    say(f"loading {config.title} in {SCORE_DTYPE} ...")
    loaded = load(config, SCORE_DTYPE, head=head)
    if loaded.drafter is None:
        raise UserError(f"model {config.name} has no draft head: faults are planted in methods that draft with one")
    prompts = [ids for _, ids in _prompts(loaded, LEVELS[level].prompts * 2)]
    bench = Bench(loaded, prompts, n_tokens=2_000 if level == "quick" else LEVELS[level].score_tokens)
    outcomes = []
    for outcome in run_mutants(bench):
        outcomes.append(outcome)
        say(f"{outcome.number:>3} {outcome.what}: {outcome.killed_by or 'not noticed'} ({outcome.seen})")
    faults = [o for o in outcomes if not o.is_equivalent]
    equivalent = [o for o in outcomes if o.is_equivalent]
    rows = pd.DataFrame(
        [{"fault": o.number, "what": o.what, "expected": ", ".join(o.expected) or "none", "noticed by": o.killed_by or "none",
          "seen": o.seen} for o in outcomes]
    )  # fmt: skip
    report = tables.Table("mutants", (tables.Section(f"{config.title}, level {level}", (), rows),), (), rows)
    for name, text in (("mutants.md", tables.markdown(report)), ("mutants.csv", tables.csv(report))):
        tables.write_file(out / name, text)
    killed, flagged = sum(o.right for o in faults), sum(not o.right for o in equivalent)
    click.echo(f"killed {killed}/{len(faults)}; equivalent mutants flagged {flagged}/{len(equivalent)}")
    if as_json:
        click.echo(json.dumps([asdict(o) for o in outcomes]))
    wrong = [f"{o.number} ({o.what})" for o in outcomes if not o.right]
    if wrong:
        raise UserError(f"survived or wrongly flagged: {', '.join(wrong)}")
