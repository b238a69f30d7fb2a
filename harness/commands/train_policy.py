"""`harness train-policy KIND`."""

from __future__ import annotations

from typing import Any

import click

from harness.commands.options import PATH, examples, json_option, option, threads_option


@click.command(
    "train-policy",
    epilog=examples(
        "harness train-policy radar --results results/held-out --temperature 1 --out my-radar.safetensors",
        "harness train-policy radar --results results/held-out --objective ratio --set rounds=every --out my-radar.safetensors",
    ),
)
@click.argument("kind", type=click.Choice(["radar"]))
@option("--results", required=True, type=PATH, metavar="DIR", help="Where `harness replay` left its pools and replays.")
@option(
    "--costs",
    default="gpu-radar",
    metavar="NAME|FILE",
    help="Published GPU splits, or a table of `harness costs`.",
)
@option("--objective", default="mean", metavar="mean|ratio",
        help="mean: of accepted over time, the authors'; ratio: tokens of all rounds over their time.")  # fmt: skip
@option("--temperature", "temperatures", type=float, multiple=True, help="Of the answers; repeatable (default: all).")
@option("--top-k", type=int, default=10, help="Of the tree.")
@option("--depth", type=int, default=8, help="The most calls of the drafter, its first among them.")
@option("--total", type=int, default=59, help="Nodes that are verified.")
@option("--look", type=float, default=None, metavar="STEPS",
        help="What a look of the network costs, in plain steps (default: published, or a look's time here).")  # fmt: skip
@option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a training setting; repeatable.")
@option("--out", required=True, type=PATH, metavar="FILE", help="The weights, half precision.")
@threads_option
@json_option
def command(kind: str, as_json: bool, **options: Any) -> None:
    """Train a policy that says when to stop drafting, on the pools of a replay: no model is run."""
    from harness.forms.table import json_rows
    from harness.forms.terminal import print_table
    from harness.replay.radar import PolicyRequest, train_radar

    table = train_radar(PolicyRequest(**options))
    print_table(table)
    if as_json:
        click.echo(json_rows([table]))
