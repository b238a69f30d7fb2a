"""`harness tune`, and the preset `tuned` that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import methods
from harness.commands.options import checked, include_all
from harness.common.errors import UserError, say
from harness.load import config as model_configs
from harness.replay.prompts import held_out_prompts
from harness.run.session import MATRIX_DEFAULTS
from harness.run.tuned import tuned_key


def tune_command(**o: Any) -> None:
    """Find methods' best options for each temperature, print what was found, and save them as the preset `tuned`."""
    temperatures = o["temperatures"] or (0.0,)
    for temperature in temperatures:
        checked({**MATRIX_DEFAULTS, **o, "temperature": temperature})
    if o["conversations"] < 1:
        raise UserError(f"--conversations is {o['conversations']}; it must be at least 1")
    include_all(o["includes"])
    config = model_configs.model_config(o["model"])
    from harness.common.machine import keep_freed_memory
    from harness.run import tuned

    arms = _arms(config, o)
    budget = o["max_new_tokens"] or config.max_new_tokens
    if budget < 2:
        raise UserError(f"--max-new-tokens is {budget}; tuning takes at least 2, as the first token comes from the prompt alone")
    tuned.check(o["save"])  # found out before hours are spent
    keep_freed_memory()
    from harness.load.model import load
    from harness.replay import pools as tune
    from tasks.overlap import checked_prompts

    jobs = _jobs(arms, temperatures, config, o)
    if not jobs:
        return
    evaluation = checked_prompts()
    drafters = {arm.method.drafter for arm, _ in jobs if arm.method.drafter}
    loaded = load(config, jobs[0][1].dtype, head=o["head"], drafters=drafters)
    longest = min(tune.LONGEST, config.context_length - budget)
    prompts = held_out_prompts(loaded, o["conversations"], longest, evaluation)
    if not prompts:
        raise UserError(f"no held-out prompt of at most {longest} tokens, which is what --max-new-tokens {budget} leaves of the "
                        f"model's {config.context_length}")  # fmt: skip
    if len(prompts) < o["conversations"]:
        say(f"only {len(prompts)} held-out prompts are there; --conversations is {o['conversations']}")
    for arm, key in jobs:
        try:
            options, predicted = (_replayed if arm.method.dynamic else _raced)(loaded, arm, key, prompts, budget)
        except UserError as e:
            if arm.name in o["names"]:
                raise
            say(f"left out: {e}")
            continue
        if predicted["speedup"] <= 1:
            click.echo(f"speculation does not pay on this machine: the best found is at {predicted['speedup']:.2f}x of vanilla")
        path = tuned.save(tuned.Entry(key, options, predicted | {"conversations": len(prompts)}), o["save"])
        say(f"saved in {path}; `harness run --method {arm.name} --preset tuned --temperature {key.temperature:g} ...` uses it")


def _arms(config: Any, o: dict[str, Any]) -> dict[str, Any]:
    """The methods to tune, by name, each at the options it begins with; of `all` those the model has weights for."""
    from harness.load.weights import drafter_folders
    from harness.run import arms as runner

    head = o["head"] or config.head_folder
    folders, found = drafter_folders(config, head), {}
    for name in o["names"]:
        if name != "all" and not methods.get(name).tunable:
            has = ", ".join(n for n in methods.names() if methods.get(n).tunable)
            raise UserError(f"method {name} has no options that can be tuned; these have: {has}")
        for n in [n for n in methods.names(exact=True) if methods.get(n).tunable] if name == "all" else [name]:
            lacking = runner.lacks(methods.get(n), config, folders)
            if lacking and n not in o["names"]:
                say(f"left out: {lacking}")
            else:
                found[n] = _first_arm(methods.get(n), config, head)
    runner.check_given(o["head"], (arm.method for arm in found.values()))
    return found


def _jobs(arms: dict[str, Any], temperatures: Sequence[float], config: Any, o: dict[str, Any]) -> list[tuple[Any, Any]]:
    """(method, what it is tuned for), one a method and temperature, without those of `all` that were tuned before."""
    from harness.run import tuned

    shipped = config.folder / f"{config.name}.tuned.json"
    known = {e.key for e in (tuned.stored(o["save"]) if o["save"] else tuned.entries(shipped))}
    found = []
    for name, arm in arms.items():
        for temperature in temperatures:
            key = tuned_key(config, name, o["head"] or config.head_folder, o | {"temperature": temperature})
            if name not in o["names"] and key in known:
                say(f"{name} at T = {temperature:g} was tuned before")
            else:
                found.append((arm, key))
    return found


def _first_arm(m: Any, config: Any, head: Path | None) -> Any:
    """The method at the paper's options, or, where the heads are too few for its tree, at those chosen by their accuracies."""
    from harness.run import arms as runner

    try:
        return runner.make_arms((m.name,), "paper", {}, config, head)[0]
    except UserError:
        if "chosen" not in m.presets:
            raise
        return runner.make_arms((m.name,), "chosen", {}, config, head)[0]


Found = tuple[dict[str, Any], dict[str, Any]]
"""Options to run with, and what is expected of them: at least tau and decode speedup."""


def _about(arm: Any, key: Any) -> str:
    return f"{arm.name} on {key.model}, T = {key.temperature:g}, {key.dtype}, {key.threads} threads, {key.machine}:"


def _replayed(loaded: Any, arm: Any, key: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> Found:
    """The best dynamic tree of all."""
    from harness.replay.pools import tune

    ranked, costs = tune(
        loaded, temperature=key.temperature, frequent=arm.options.get("frequent"), prompts=prompts,
        max_new_tokens=max_new_tokens,
    )  # fmt: skip
    click.echo(_about(arm, key))
    click.echo(f"one vanilla step takes {costs.step * 1e3:.1f} ms at a context of {costs.context} tokens")
    given = tuple(arm.options[k] for k in ("top_k", "depth", "total"))
    paper = [("paper", c) for c in ranked if (c.top_k, c.depth, c.total) == given]
    for what, c in [*((f"{i}.", c) for i, c in enumerate(ranked[:5], start=1)), *paper]:
        click.echo(
            f"{what:6} top_k={c.top_k} depth={c.depth} total={c.total}: tau {c.tau:.2f}, c_verify {c.c_verify:.2f}, "
            f"c_draft {c.c_draft:.2f}, decode speedup {c.speedup:.2f}x"
        )
    best = ranked[0]
    return {**arm.options, "top_k": best.top_k, "depth": best.depth, "total": best.total}, {
        "tau": round(best.tau, 3), "speedup": round(best.speedup, 3), "c_verify": round(best.c_verify, 3),
        "c_draft": round(best.c_draft, 3), "step_ms": round(costs.step * 1e3, 2), "context": costs.context,
    }  # fmt: skip


def _raced(loaded: Any, arm: Any, key: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> Found:
    """The best of the method's candidates and of the options it has."""
    from harness.replay.race import race
    from harness.run.arms import check_heads

    tried: list[dict[str, Any]] = []
    for options in (dict(arm.options), *({**arm.options, **c} for c in arm.method.candidates)):
        try:
            check_heads((replace(arm, options=options),), loaded)
        except UserError:  # too few heads for this tree, or none that say how good they are
            continue
        tried += [options] if options not in tried else []
    if not tried:
        raise UserError(f"the heads of {key.model} can draft none of the trees that {arm.name} is tuned over")
    ranked = race(loaded, arm.method, tried, temperature=key.temperature, prompts=prompts, max_new_tokens=max_new_tokens)
    click.echo(_about(arm, key))
    for i, r in enumerate(ranked, start=1):
        what = "paper" if arm.preset == "paper" and r.options == arm.options else f"{i}."
        changed = " ".join(f"{k}={v}" for k, v in r.options.items() if v != arm.options[k])
        click.echo(f"{what:6} {changed or '(its defaults)'}: tau {r.tau:.2f}, decode speedup {r.speedup:.2f}x")
    best = ranked[0]
    return dict(best.options), {"tau": round(float(best.tau), 3), "speedup": round(float(best.speedup), 3)}
