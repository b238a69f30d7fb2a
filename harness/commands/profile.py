"""`harness profile`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from harness.commands.options import checked, include_all
from harness.common.errors import UserError, say
from harness.load import config as model_configs
from harness.run.session import MATRIX_DEFAULTS, drafters_of, run_spec
from harness.run.tuned import find_tuned

SWEPT = 32  # tokens of each cell of --sweep, where nothing is asked for


def profile_command(**o: Any) -> None:
    """Profile vanilla and the methods asked for, print and write tables and plots; with `sweep`, speed against context."""
    if o["limit"] < 1:
        raise UserError(f"--limit is {o['limit']}; it must be at least 1")
    checked({"repeats": 1, "top_p": 1.0, **o})
    include_all(o["includes"])
    config = model_configs.model_config(o["model"])
    for name in ("contexts", "trees"):
        if o["sweep"] and min(o[name]) < 1:
            raise UserError(f"--{name[:-1]} is {min(o[name])}; it must be at least 1")
    names = ("vanilla", *(n for n in o["names"] if n != "vanilla"))
    part = run_spec(config, {**MATRIX_DEFAULTS, **{k: v for k, v in o.items() if v is not None}, "names": names,
                          "task_names": ("all",), "source": "bundled"})  # fmt: skip
    untraced = [a.name for a in part.arms if a.method.external]
    if untraced:
        raise UserError(f"method {untraced[0]} is another loop: it has no steps to profile")
    budget = o["max_new_tokens"] or (SWEPT if o["sweep"] else config.max_new_tokens)
    if budget < 2:
        raise UserError(
            f"--max-new-tokens is {budget}; a profile takes at least 2, as the first token comes from the prompt alone"
        )
    import pandas as pd
    import torch

    from harness.common.machine import keep_freed_memory, usable_cores
    from harness.costs import steps as profiling
    from harness.costs.ceiling import ceiling
    from harness.costs.show import profile_rows, write_profile
    from harness.costs.show import report as report_of_show
    from harness.costs.sweep import sweep, write_sweep
    from harness.load.model import load
    from harness.run import arms as runner
    from methods.base import SamplerParams

    keep_freed_memory()
    torch.set_num_threads(o["threads"] or usable_cores())
    say(f"loading {config.title} ...")
    loaded = load(config, o["dtype"], head=o["head"], drafters=drafters_of([part]))
    runner.check_heads(part.arms, loaded)
    stop = frozenset(config.stop_ids)
    params = SamplerParams(budget, stop, temperature=o["temperature"], key=1)
    where = f"{config.name}, T = {o['temperature']:g}, {loaded.dtype}, {torch.get_num_threads()} threads"
    if o["sweep"]:
        contexts, trees = sorted(set(o["contexts"])), sorted(set(o["trees"]))
        tree_arms = [(f"{n} nodes", arm) for n in trees for arm in make_trees(config, o, n)]
        text = loaded.encode_text("\n\n".join(t for ps in part.prompt_sets for p in ps.prompts for t in p.turns))
        while len(text) < max(contexts):
            text = text + text
        vanilla = next(a for a in part.arms if a.name == "vanilla")
        say(f"contexts {', '.join(map(str, contexts))} x trees {', '.join(map(str, trees))} ...")
        whole = replace(params, stop_ids=frozenset())  # every cell as many tokens
        measured: list[dict[str, Any]] = []
        for at_context in sweep(loaded, [("vanilla", vanilla), *tree_arms], contexts, text, whole):
            measured += at_context
            say(
                f"  {at_context[0]['context']} tokens: "
                + ", ".join(f"{r['arm']} {r['tokens_per_s']:.1f} tokens/s" for r in at_context)
            )
            written = write_sweep(pd.DataFrame(measured), f"{where}, {budget} tokens of one text", o["out"])
        if not measured:
            raise UserError(f"no context of {', '.join(map(str, contexts))} fits into the model's {config.context_length} tokens")
        shown = pd.DataFrame(measured).pivot(index="arm", columns="context", values="tokens_per_s")
        click.echo(shown.reindex([r["arm"] for r in at_context]).round(1).to_string())
    else:
        prompts = [loaded.encode(loaded.render([("user", ps.prompts[i].turns[0])])) for i in range(o["limit"])
                   for ps in part.prompt_sets if i < len(ps.prompts)]  # fmt: skip
        room = config.context_length - budget
        prompts = [ids for ids in prompts if len(ids) <= room]
        if not prompts:
            raise UserError(f"no bundled prompt fits into the {max(room, 0)} tokens that --max-new-tokens {budget} leaves of the "
                            f"model's {config.context_length}")  # fmt: skip
        profiles = []
        for arm in part.arms:
            say(f"profiling {arm.name} on {len(prompts)} bundled prompts ...")
            profiles.append(profiling.profile(loaded, arm, prompts, params))
        limit, best = ceiling(loaded), _known_best(config, part, o)
        rows = profile_rows(profiles, profiles[0], limit, best)
        report = report_of_show(profiles, limit, where, best)
        click.echo(report)
        written = write_profile(rows, report, where, o["out"])
    for path in written:
        click.echo(path)


def make_trees(config: Any, o: dict[str, Any], total: int) -> tuple[Any, ...]:
    from harness.run import arms as runner

    return runner.make_arms(("eagle2",), "paper", {"total": str(total)}, config, o["head"] or config.head_folder)


def _known_best(config: Any, part: Any, o: dict[str, Any]) -> dict[str, float]:
    """The best decode speedup that `harness tune` predicted over all trees, by method, where it was run here."""
    best = {}
    for arm in part.arms:
        if arm.method.tunable:
            try:
                best[arm.name] = float(find_tuned(config, arm.name, o["head"] or config.head_folder, o).predicted["speedup"])
            except UserError:
                continue
    return best
