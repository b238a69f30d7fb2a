"""`harness run` and `harness matrix`: what is asked for, measured where it is not there yet, one estimate for all of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from harness.commands.options import checked, include_all
from harness.common.errors import duration, say
from harness.load import config as model_configs
from harness.run.session import known_rates, measure, preflight_lines, run_spec, session, tell_failures
from harness.run.tuned import find_tuned


def run_command(**o: Any) -> None:
    checked(o)
    include_all(o["includes"])
    config = model_configs.model_config(o["model"])
    part = run_spec(config, o)
    from harness.run.arms import check_given

    check_given(o["head"], (arm.method for arm in part.arms))
    if o["dry_run"]:
        _dry_run(config, part, o)
        return
    from harness.ledger import ledger as records
    from harness.metrics import cells as metrics
    from harness.show.tables import run as tables

    with session(config, o, [part]) as (run,):
        failed = measure([run])
        wanted = {c.key for c in run.cells()}
        asked = {c.key for c in run.cells() if any(c.arm.name == a.name for a in part.arms)}
        mine = [r for r in records.read(o["out"]) if r["cell"] in wanted]
    ids = {(ps.task, p.id) for ps in part.prompt_sets for p in ps.prompts}
    mine = [r for r in mine if (r["task"], r["sample_id"]) in ids]
    summaries = metrics.summarise(mine)
    tables.print_run_table(summaries)
    compare_with_prediction(config, summaries, o)
    path = str(o["out"] / records.RECORDS)
    say(f"records: {path}")
    if o["as_json"]:
        shown = {r["method"] for r in mine if r["cell"] in asked}
        values = [s.to_json(path) for s in summaries if s.method in shown]
        click.echo(json.dumps(values[0] if len(values) == 1 else values))
    tell_failures(failed)


def compare_with_prediction(config: Any, summaries: Sequence[Any], o: dict[str, Any]) -> None:
    """One line a tuned method: what `harness tune` expected on held-out training prompts, and what was measured now."""
    from harness.run.arms import TUNED

    measured = [s for s in summaries if s.preset == TUNED and s.temperature == o["temperature"] and s.tau is not None]
    for method in dict.fromkeys(s.method for s in measured):
        predicted = find_tuned(config, method, o["head"] or config.head_folder, o).predicted
        cells = [s for s in measured if s.method == method]
        tau = sum(s.tau for s in cells) / len(cells)
        ratios = [s.decode_speedup for s in cells if s.decode_speedup is not None]
        speed = f", decode speedup {sum(ratios) / len(ratios):.2f}x" if ratios else ""
        say(
            f"{method}, T = {o['temperature']:g}: predicted on training prompts: tau {predicted['tau']:.2f}, "
            f"decode speedup {predicted['speedup']:.2f}x; "
            f"measured here (mean over {len(cells)} tasks): tau {tau:.2f}{speed}"
        )


def _dry_run(config: Any, part: Any, o: dict[str, Any]) -> None:
    """Cells, a rough time, memory, and what is missing; loads no model."""
    from harness.ledger import ledger as records
    from harness.run.arms import BASELINE

    arms, prompt_sets, max_new_tokens = part.arms, part.prompt_sets, part.max_new_tokens
    arm_names = [f"{a.name} ({a.preset})" for a in arms]
    if not o["no_baseline"] and all(a.name != BASELINE for a in arms):
        arm_names.insert(0, f"{BASELINE} (baseline)")
    turns = 0
    for ps in prompt_sets:
        n = sum(len(p.turns) for p in ps.prompts)
        turns += n
        for name in arm_names:
            where = f"{ps.task} ({ps.source}, {len(ps.prompts)} prompts, {n} turns)"
            click.echo(f"cell: {config.name} x {where} x {name} at T = {o['temperature']:g}")
    names = [a.name for a in arms] + ([BASELINE] if len(arm_names) > len(arms) else [])
    generations = turns * len(names) * o["repeats"]
    click.echo(f"generations: {generations} of at most {max_new_tokens} tokens")
    rates = known_rates(o["out"], config.name, records)
    if lacking := [name for name in names if name not in rates]:
        click.echo(f"time: unknown until the warm-up has run ({o['out']} has no record of {', '.join(lacking)} on {config.name})")
    else:
        seconds = turns * o["repeats"] * max_new_tokens * sum(rates[name] for name in names)
        click.echo(f"time: at most {duration(seconds)}, by the records in {o['out']}; what is measured already is not taken off")
    for line in preflight_lines(config, names, o):
        click.echo(line)
