"""`harness predict`: what the paper's tau would give on a machine whose costs were measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.options import PATH, examples, include_all, include_option, json_option, option
from harness.common.bounds import bounded
from harness.common.errors import UserError

if TYPE_CHECKING:
    from harness.costs.table import CostTable


@click.command("predict", epilog=examples("harness predict", "harness predict --costs results/costs --model vicuna-7b"))
@option("--costs", type=PATH, default=None, metavar="DIR|FILE", help="Tables of `harness costs` (default: those shipped).")
@option("--model", "models", multiple=True, metavar="NAME", help="Targets of the paper; repeatable (default: all with costs).")
@option("--prompt-tokens", type=int, default=None, help="Of a prompt (default: the task's mean).")
@option("--answer-tokens", type=int, default=None, help="Of an answer (default: 256).")
@option("--results", type=PATH, default=None, metavar="DIR", help="Instead: hold the model against a ledger's decode speedups.")
@option("--out", type=PATH, default=None, help="Also write the tables there.")
@json_option
@include_option
def command(
    costs: Path | None, models: tuple[str, ...], prompt_tokens: int | None, answer_tokens: int | None, results: Path | None,
    out: Path | None, as_json: bool, includes: tuple[Path, ...],
) -> None:  # fmt: skip
    """Predict the paper's speedups from its tau and from measured costs: which are consistent, which not and by how much.

    No weights are needed: `harness costs --random-weights` measures a target's costs on the machine at hand.
    """
    bounded("--prompt-tokens", prompt_tokens)
    bounded("--answer-tokens", answer_tokens, least=2)
    include_all(includes)
    if results is not None:
        for name, value in (("--model", models), ("--prompt-tokens", prompt_tokens), ("--answer-tokens", answer_tokens)):
            if value:
                raise UserError(f"{name} is of the paper's tables; --results tells its own models and lengths")
        _against_ledger(costs, results, out, as_json)
        return
    from harness.common.files_written import files_written
    from harness.costs.splits import checked
    from harness.costs.table import read_all
    from harness.forms.table import json_rows, write_forms
    from harness.forms.terminal import print_table
    from harness.load.config import paper_model
    from harness.paper.prediction import chain_rates, deeper_levels, lengths_of, of_the_paper, predict, published_trees
    from harness.paper.prediction_tables import deeper_table, predictions_table, splits_table
    from harness.paper.published import TASKS
    from methods import EAGLE

    wanted = {paper_model(name).name for name in models}
    found = of_the_paper(read_all(costs))
    kept = [(table, config) for table, config in found if not wanted or table.model in wanted]
    if lacking := sorted(wanted - {table.model for table, _ in kept}):
        there = ", ".join(sorted({table.model for table, _ in found})) or "none"
        raise UserError(f"no costs of {lacking[0]} there; targets of the paper with costs: {there}; "
                        f"`harness costs --model {lacking[0]} --random-weights` measures them")  # fmt: skip
    if not kept:
        raise UserError(f"{costs or 'the shipped tables'}: no costs of a target of the paper there")
    lengths, default = lengths_of(prompt_tokens, answer_tokens)
    told = f"prompts of {prompt_tokens}" if prompt_tokens else "prompts of each task's mean"
    predicted = [
        (table, predict(table, config, lengths, default), [f"{told} tokens, answers of {default.answer}", *_about(table)])
        for table, config in kept
    ]
    tables = [predictions_table(predicted)]
    levels = []
    for (costs_of, config), (_, cells, _) in zip(kept, predicted, strict=True):
        for chain in chain_rates(config) if costs_of.has(EAGLE) else ():
            deeper = deeper_levels(costs_of, chain.rates, lengths.get(TASKS[chain.task], default).context)
            levels.append((costs_of, chain, deeper, published_trees(chain, deeper, cells)))
    tables += [deeper_table(levels)] if levels else []
    tables.append(splits_table(checked()))
    for i, table in enumerate(tables):
        click.echo() if i else None
        print_table(table)
    if out is not None:
        click.echo(files_written([file for table in tables for file in write_forms(table, out)]), err=True)
    if as_json:
        click.echo(json_rows(tables[:1]))


def _against_ledger(costs: Path | None, results: Path, out: Path | None, as_json: bool) -> None:
    from harness.common.files_written import files_written
    from harness.costs.table import read_all
    from harness.forms.table import json_rows, write_forms
    from harness.forms.terminal import print_table
    from harness.ledger.ledger import read, read_env
    from harness.metrics.pairing import by_machine
    from harness.paper.held_against import against
    from harness.paper.prediction_tables import held_table

    records = list(read(results))
    where = {name: _where(read_env(results, name) or {}) for name in {r["env"] for r in records}}
    tables: dict[tuple[Any, ...], list[CostTable]] = {}
    for table in read_all(costs):
        m = table.machine
        if table.temperature:
            continue
        own = tables.setdefault((table.model, m.dtype, m.threads, m.gpu or m.cpu, m.engine), [])
        if table.frequent in [other.frequent for other in own]:
            raise UserError(f"--costs has two tables of {table.model} on {m.label}: name one file")
        own.append(table)
    shown = []
    for wanted, own in tables.items():
        if mine := [r for r in records if (r["model"], r["dtype"], r["threads"], *where[r["env"]]) == wanted]:
            of_machines = by_machine(mine)
            shown += [
                (own[0], against(own, of_one), name if len(of_machines) > 1 else "") for name, of_one in of_machines.items()
            ]
    if not shown:
        raise UserError(f"{costs or 'the shipped tables'}: no costs of what {results} was measured on; `harness costs` with its "
                        "--model, --dtype and --threads measures them")  # fmt: skip
    held = held_table(shown)
    print_table(held)
    if out is not None:
        click.echo(files_written(write_forms(held, out)), err=True)
    if as_json:
        click.echo(json_rows([held]))


def _where(env: Mapping[str, Any]) -> tuple[str, str]:
    """The processor that a ledger was measured on, and the engine."""
    return env.get("gpu") or env.get("cpu", ""), (env.get("target_parts") or {}).get("engine", "")


def _about(table: CostTable) -> list[str]:
    said = ["random weights"] if table.random_weights else []
    if table.is_scaled:
        said.append(f"{table.layers_measured} of {table.layers} layers measured, the others scaled")
    if table.frequent:
        said.append(f"the draft head over {table.frequent:,} frequent tokens")
    return ["; ".join(said)] if said else []
