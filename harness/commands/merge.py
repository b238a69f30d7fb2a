"""`harness merge`: several ledgers as one."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import PATH, examples, option
from harness.common.errors import say


@click.command(
    "merge",
    epilog=examples(
        "harness merge results/shard-1 results/shard-2 --out results/all",
        "harness merge results/node3 results/node4 --out results/here",
    ),
)
@click.argument("folders", nargs=-1, required=True, type=PATH, metavar="DIR...")
@option("--out", type=PATH, required=True, metavar="DIR", help="A new ledger, or one to add to.")
def command(folders: tuple[Path, ...], out: Path) -> None:
    """Put ledgers together: records, environments, drafted trees, presets, replays and their pools.

    What stands in several is one where it is equal. Records of one key that differ are named, and nothing is written.
    """
    from harness.ledger.merge import check_inputs, is_new, merge
    from harness.replay.merge import add, lacking

    is_new(out)
    check_inputs(folders)
    replays, files = lacking([f for f in folders if f.resolve() != out.resolve()], out)
    done = merge(folders, out)
    add(replays, files, out)
    parts = [f"{done.n_copied} records are added to {out}"]
    parts += [f"{n} {what}" for n, what in (
        (done.n_equal, "were there already"), (done.n_gave_way, "failed or were skipped and are measured elsewhere"),
        (done.n_trees, "drafted trees"), (len(replays), "replays"), (len(files), "pools"),
    ) if n]  # fmt: skip
    say(", ".join(parts))
